"""Rows that begin alike, folded into one: several questions about a picture share the picture's tokens.

A folded row holds the common beginning once and then each row's own rest. A rest sees the beginning and itself, at the
positions that it had, so that it computes what it computed alone, for about half the tokens.
"""

from collections.abc import Sequence

import torch


def fold_rows(
    rows: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], groups: Sequence[int], ignored: int
) -> dict[str, torch.Tensor]:
    """
    Folds all rows into a single one; rows of the same group share their common beginning.

    Args:
        rows: token ids `(tokens,)` each, without padding.
        labels: what is learned of them, `(tokens,)` each.
        groups: which group each row belongs to; a group's rows stand next to each other.
        ignored: the label of what is not learned.

    Returns:
        `input_ids`, `labels`, `position_ids` `(1, sequence)` and `attention_mask` `(1, 1, sequence, sequence)`, true where
        a token sees another.
    """
    ids, kept_labels, positions, owners = [], [], [], []
    # A token is seen by later ones of its own rest, and by all of its group if it is in the beginning.
    for group in dict.fromkeys(groups):
        members = [index for index, other in enumerate(groups) if other == group]
        shared = _common_beginning([rows[index] for index in members], [labels[index] for index in members], ignored)
        pieces = [(members[0], 0, shared, 0)]
        pieces += [(index, shared, len(rows[index]), rest) for rest, index in enumerate(members, start=1)]
        for index, start, end, rest in pieces:
            ids.append(rows[index][start:end])
            kept_labels.append(labels[index][start:end].clone())
            positions.append(torch.arange(start, end))
            owners.append(torch.tensor([[group, rest]]).expand(end - start, 2))
    owner = torch.cat(owners)
    same_group = owner[:, None, 0] == owner[None, :, 0]
    visible = (owner[None, :, 1] == 0) | (owner[:, None, 1] == owner[None, :, 1])
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    return {
        "input_ids": torch.cat(ids).unsqueeze(0),
        "labels": torch.cat(kept_labels).unsqueeze(0),
        "position_ids": torch.cat(positions).unsqueeze(0),
        "attention_mask": (same_group & visible & causal)[None, None],
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
