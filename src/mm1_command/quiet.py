"""
Keeps the messages of other libraries out of the output of `mm1`. Only messages that are known to be of no use to its
user are left out, each by its logger and its first words; everything else is printed as ever.
"""

import logging
import os
import sys
import warnings
from dataclasses import dataclass


# Most of these appear when transformers or PEFT import an optional library that a verb does not use.
_MESSAGES = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "%s is an Enum subclass",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # Trainer copies the tokenizer's padding token into the configuration.
    "transformers.trainer_utils": "The tokenizer has new PAD/BOS/EOS tokens",
}
_WARNINGS = {FutureWarning: r"`is_gradient_checkpointing` is deprecated"}
# A progress bar appears if the work takes longer than this.
_BAR_DELAY_SECONDS = 2


def quieten() -> None:
    """
    Leaves these messages out, and the progress bars of short work. Has to be called before the libraries are imported.

    What users set themselves wins: with TRANSFORMERS_VERBOSITY, transformers' messages are printed, with PYTHONWARNINGS or
    `python -W`, the warnings, and TQDM_DELAY replaces the delay of the bars.
    """
    os.environ.setdefault("TQDM_DELAY", str(_BAR_DELAY_SECONDS))
    for name, beginning in _MESSAGES.items():
        if not (name.startswith("transformers.") and "TRANSFORMERS_VERBOSITY" in os.environ):
            logging.getLogger(name).addFilter(_Without(beginning))
    if not sys.warnoptions:
        for category, message in _WARNINGS.items():
            warnings.filterwarnings("ignore", message, category)


@dataclass(frozen=True)
class _Without:
    """A logging filter, equal to any other of the same message, so that a logger takes it only once."""

    beginning: str

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not str(record.msg).startswith(self.beginning)
