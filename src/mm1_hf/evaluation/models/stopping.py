"""Ends generated texts at stop strings."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria


class StopStrings(StoppingCriteria):
    """
    Stops a row of a batch when its generated text holds a stop string. Only the end of the text is decoded after each
    step, so that a step's work does not grow with the text.

    Args:
        tokenizer: the model's tokenizer.
        stop: the stop strings.
        prompt_length: number of tokens of the padded prompts.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int):
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._start = prompt_length
        # A token has at least one byte of text. Some tokens more, because the first ones may be parts of a character.
        self._tail = max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """
        Args:
            input_ids: `(batch, sequence)`, prompts and generated tokens.
            scores: not used.
            kwargs: not used.

        Returns:
            `(batch,)`, true where the row is done.
        """
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :]
        texts = self._tokenizer.batch_decode(tails, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        done = [any(stop in text for stop in self._stop) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)  # ty: ignore[invalid-explicit-return]


def cut(text: str, stop: Sequence[str]) -> str:
    """
    Cuts a text before the first stop string, and removes the white space around it.

    Args:
        text: a generated text.
        stop: the stop strings.

    Example:

    ```python
    >>> from mm1_hf.evaluation.models.stopping import cut

    >>> cut(" a cat. Question: what", [".", "Question"])
    'a cat'

    ```
    """
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends, default=len(text))].strip()
