"""Rows that begin alike, folded into one: several questions about a picture share the picture's tokens.

A folded row holds the common beginning once and then each row's own rest. A rest sees the beginning and itself, at the
positions that it had, so that it computes what it computed alone, for about half the tokens.
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence


def fold_rows(
    rows: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], groups: Sequence[int], ignored: int
) -> dict[str, torch.Tensor]:
    """
    Folds the rows of each group, which share their common beginning, into one. Short ones stand behind each other, as long
    as they fit into the room of the longest.

    Args:
        rows: token ids `(tokens,)` each, without padding.
        labels: what is learned of them, `(tokens,)` each.
        groups: which group each row belongs to; a group's rows stand next to each other.
        ignored: the label of what is not learned.

    Returns:
        `input_ids`, `labels`, `position_ids` `(batch, sequence)`, with the groups in their order, and `attention_mask`
        `(batch, 1, sequence, sequence)`, true where a token sees another. Rows are padded at their end, with tokens that see
        each other.
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
    # A token is seen by later ones of its own rest, and by its whole group if it is in the beginning.
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
    How many leading tokens all rows have in common. It ends before the token in front of the first label: in a folded row,
    a rest's first token does not follow the beginning, so it cannot be told from it.
    """
    learned = [int((row_labels != ignored).nonzero()[0]) for row_labels in labels]
    longest = min(learned) - 1
    stacked = torch.stack([row[:longest] for row in rows])
    different = (stacked != stacked[0]).any(dim=0).nonzero()
    return int(different[0]) if len(different) else longest
