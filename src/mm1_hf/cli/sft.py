"""`mm1 sft`: fine-tuning from a file of settings."""

import importlib.util


def sft(config: str) -> None:
    """Fine-tunes as a YAML or JSON file says."""
    if importlib.util.find_spec("trl") is None:
        raise ValueError("Fine-tuning uses TRL, which is not installed: pip install 'mm1_hf[sft]'")
    from mm1_hf.training.sft import load_settings
    from mm1_hf.training.sft import sft as run

    run(load_settings(config))
