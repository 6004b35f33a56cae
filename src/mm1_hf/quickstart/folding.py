"""Folds rows with a common beginning into one row: several questions about an image share the image's tokens.

A folded row holds the common beginning once, followed by the rest of each original row. Each rest attends to the
beginning and to itself but not to the other rests, and keeps its position ids. So the model computes the same outputs
as for separate rows, with about half the tokens.
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence


def fold_rows(
    rows: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], groups: Sequence[int], ignored: int
) -> dict[str, torch.Tensor]:
    """
    Folds the rows of each group into one row, which contains their common beginning once. Folded groups that are short
    share a row of the batch, as long as together they are not longer than the longest folded group.

    Args:
        rows: token ids of each row, `(tokens,)`, without padding.
        labels: labels of each row, `(tokens,)`.
        groups: number of each row's group; rows of the same group follow one another.
        ignored: label of tokens that are not targets.

    Returns:
        `input_ids`, `labels` and `position_ids`, `(batch, sequence)`, with the groups in their original order, and
        `attention_mask`, `(batch, 1, sequence, sequence)`, true where a token attends to another. Rows are padded at
        their end; padding tokens attend only to each other.
    """
    folded = []
    for number, group in enumerate(dict.fromkeys(groups), start=1):
        members = [index for index, other in enumerate(groups) if other == group]
        shared = _common_beginning([rows[index] for index in members], [labels[index] for index in members], ignored)
        pieces = [(members[0], 0, shared, 0)]
        pieces += [(index, shared, len(rows[index]), rest) for rest, index in enumerate(members, start=1)]
        of_row = {
            "input_ids": [rows[index][start:end] for index, start, end, _ in pieces],
            "labels": [labels[index][start:end] for index, start, end, _ in pieces],
            "position_ids": [torch.arange(start, end) for _, start, end, _ in pieces],
            "rest": [torch.full((end - start,), rest) for _, start, end, rest in pieces],
        }
        of_row = {name: torch.cat(parts) for name, parts in of_row.items()}
        folded.append(of_row | {"group": torch.full_like(of_row["rest"], number)})
    longest = max(len(each["group"]) for each in folded)
    packed: list[list[dict[str, torch.Tensor]]] = []
    free = 0
    for each in folded:
        if len(each["group"]) > free:
            packed.append([])
            free = longest
        packed[-1].append(each)
        free -= len(each["group"])

    def padded(name: str, value: int = 0) -> torch.Tensor:
        joined = [torch.cat([each[name] for each in row]) for row in packed]
        return pad_sequence(joined, batch_first=True, padding_value=value)

    group, rest = padded("group"), padded("rest")
    # A token attends to the earlier tokens of its group that are in the beginning or in the token's own rest.
    visible = (rest[:, None, :] == 0) | (rest[:, :, None] == rest[:, None, :])
    visible &= group[:, None, :] == group[:, :, None]
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    return {
        "input_ids": padded("input_ids"),
        "labels": padded("labels", ignored),
        "position_ids": padded("position_ids"),
        "attention_mask": (visible & causal)[:, None],
    }


def _common_beginning(rows: list[torch.Tensor], labels: list[torch.Tensor], ignored: int) -> int:
    """
    The number of leading tokens that all rows have in common, without the token that predicts the first target. That
    token has to be in the rest: in a folded row, the token before a rest may belong to another rest, so a rest's first
    token cannot be a target.
    """
    learned = [int((row_labels != ignored).nonzero()[0]) for row_labels in labels]
    longest = min(learned) - 1
    stacked = torch.stack([row[:longest] for row in rows])
    different = (stacked != stacked[0]).any(dim=0).nonzero()
    return int(different[0]) if len(different) else longest
