"""Log-likelihoods of continuations: the tokens that are scored, rows that several of them share, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Row:
    """
    A row of a forward pass: a prompt and the tokens of a continuation. Continuations that differ only in their last
    token, such as the letters of a multiple choice, share one.

    Args:
        owner: index of the request that it belongs to.
        text: the prompt, each image as its mark.
        special: whether the tokenizer adds its special tokens to the prompt.
        inputs: the tokens after the prompt, without the last one of the continuation.
        members: index of each continuation of the request that shares the row, and its tokens.
    """

    owner: int
    text: str
    special: bool
    inputs: tuple[int, ...]
    members: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


def rows_of(tokenizer: Any, owner: int, prompt: str, special: bool, continuations: Sequence[str]) -> list[Row]:
    """
    Finds the tokens of continuations as lm-evaluation-harness does, and the rows that have to be run.

    White space at the end of the prompt is moved to the continuation. The tokens of a continuation are those that come
    after as many tokens as the prompt alone has, in prompt and continuation tokenised together: so a word is split as it
    is in running text. They are scored after the tokens of the prompt alone. After an empty prompt, a continuation is
    scored after the tokenizer's token for beginnings, or that for ends if it has none.

    Args:
        tokenizer: the tokenizer.
        owner: index of the request.
        prompt: the prompt, each image as its mark.
        special: whether the tokenizer adds its special tokens to the prompt.
        continuations: the texts that are scored, at least one character each.
    """
    kept = prompt.rstrip()
    moved = prompt[len(kept) :]
    if kept:
        start = len(tokenizer(kept, add_special_tokens=special)["input_ids"])
    else:
        kept, special, start = tokenizer.bos_token or tokenizer.eos_token, False, None
    rows: dict[tuple[int, ...], Row] = {}
    for index, continuation in enumerate(continuations):
        targets: list[int] = []
        if start is not None:
            targets = tokenizer(kept + moved + continuation, add_special_tokens=special)["input_ids"][start:]
        # None are left where the tokenizer joins the whole continuation to the end of the prompt.
        targets = targets or tokenizer(moved + continuation, add_special_tokens=False)["input_ids"]
        inputs = tuple(targets[:-1])
        row = rows.setdefault(inputs, Row(owner, kept, special, inputs))
        row.members.append((index, tuple(targets)))
    return list(rows.values())


def append_tokens(inputs: dict[str, Any], rows: Sequence[Row], pad: int) -> tuple[dict[str, Any], list[int]]:
    """
    Writes the tokens of the rows behind their prompts.

    Args:
        inputs:
            a processor's outputs for the prompts, padded on the right: `input_ids` and `attention_mask` `(rows,
            sequence)`, and others, of which those of this shape are 0 at text.
        rows: the rows.
        pad: id of the token for padding.

    Returns:
        The inputs with longer sequences, and the length of each prompt in tokens.
    """
    shape = inputs["input_ids"].shape
    lengths = inputs["attention_mask"].sum(1).tolist()
    longest = max(length + len(row.inputs) for length, row in zip(lengths, rows, strict=True))
    appended = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            longer = value.new_full((shape[0], longest), pad if name == "input_ids" else 0)
            longer[:, : shape[1]] = value
            appended[name] = longer
    for index, (length, row) in enumerate(zip(lengths, rows, strict=True)):
        end = length + len(row.inputs)
        appended["input_ids"][index, length:end] = torch.tensor(row.inputs, dtype=torch.long)
        appended["attention_mask"][index, length:end] = 1
    return appended, lengths


def score(logits: torch.Tensor, targets: Sequence[int]) -> tuple[float, bool]:
    """
    Scores tokens.

    Args:
        logits: `(targets, vocabulary)`, at the positions before the targets.
        targets: the tokens.

    Returns:
        The sum of their log-likelihoods in nats, and whether each is the most likely one.
    """
    logits = logits.float()
    expected = torch.tensor(targets, device=logits.device)
    likelihoods = logits.log_softmax(-1).gather(-1, expected[:, None])
    return likelihoods.sum().item(), bool((logits.argmax(-1) == expected).all())
