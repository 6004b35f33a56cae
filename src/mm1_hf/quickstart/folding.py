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
    Folds the rows of each group, which share their common beginning, into one.

    Args:
        rows: token ids `(tokens,)` each, without padding.
        labels: what is learned of them, `(tokens,)` each.
        groups: which group each row belongs to; a group's rows stand next to each other.
        ignored: the label of what is not learned.

    Returns:
        `input_ids`, `labels`, `position_ids` `(groups, sequence)` and `attention_mask` `(groups, 1, sequence, sequence)`,
        true where a token sees another. Rows are padded at their end, with tokens that see themselves.
    """
    ids, kept_labels, positions, rests = [], [], [], []
    for group in dict.fromkeys(groups):
        members = [index for index, other in enumerate(groups) if other == group]
        shared = _common_beginning([rows[index] for index in members], [labels[index] for index in members], ignored)
        pieces = [(members[0], 0, shared, 0)]
        pieces += [(index, shared, len(rows[index]), rest) for rest, index in enumerate(members, start=1)]
        ids.append(torch.cat([rows[index][start:end] for index, start, end, _ in pieces]))
        kept_labels.append(torch.cat([labels[index][start:end] for index, start, end, _ in pieces]))
        positions.append(torch.cat([torch.arange(start, end) for _, start, end, _ in pieces]))
        rests.append(torch.cat([torch.full((end - start,), rest) for _, start, end, rest in pieces]))
    rest = pad_sequence(rests, batch_first=True, padding_value=-1)
    # A token is seen by later ones of its own rest, and by the whole row if it is in the beginning.
    visible = (rest[:, None, :] == 0) | (rest[:, :, None] == rest[:, None, :])
    causal = torch.ones(rest.shape[1], rest.shape[1], dtype=torch.bool).tril()
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence(kept_labels, batch_first=True, padding_value=ignored),
        "position_ids": pad_sequence(positions, batch_first=True),
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
