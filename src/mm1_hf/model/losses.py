"""The losses of MM1: targets of the next-token cross-entropy, the softmax z-loss, and the router's load-balancing loss
and z-loss. All losses are computed in float32."""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F


class LiveTargets(NamedTuple):
    """
    The live positions of a batch: those whose next token is a target.

    Args:
        index: `(live,)`, indices of these positions in the flattened `(batch * sequence)`.
        tokens: `(live,)`, the next token of each of these positions.
    """

    index: torch.Tensor
    tokens: torch.Tensor


def live_targets(labels: torch.Tensor | None, shift_labels: torch.Tensor | None) -> LiveTargets:
    """
    Finds the positions whose next token is a target.

    Call it before any other work of a forward pass. The number of targets determines shapes, so the host must read it
    from the device, and early in the pass it has to wait for no other queued work.

    Args:
        labels: `(batch, sequence)`, the token at each position, or -100 where it is not a target.
        shift_labels:
            `(batch, sequence)`, labels already shifted one position to the left; if given, `labels` is not used.

    Returns:
        The positions and their targets.
    """
    if shift_labels is None:
        shift_labels = F.pad(cast(torch.Tensor, labels)[:, 1:], (0, 1), value=-100)
    flat = shift_labels.reshape(-1)
    index = (flat != -100).nonzero().squeeze(1)
    return LiveTargets(index, flat[index])


def z_loss(logits: torch.Tensor, num_items: torch.Tensor | int) -> torch.Tensor:
    """
    Softmax z-loss: the sum of `logsumexp(logits) ** 2` divided by `num_items`.

    Args:
        logits: `(targets, vocabulary)`.
        num_items: number of targets in the whole batch, of which these may be only a part.

    Returns:
        A scalar in float32.
    """
    return logits.float().logsumexp(dim=-1).square().sum() / num_items


def router_losses(
    router_logits: tuple[torch.Tensor, ...], token_mask: torch.Tensor | None, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The load-balancing loss and the z-loss of the sparse layers (MM1, section 4.3, after GShard and ST-MoE).

    The load-balancing loss is `experts * sum_e(share of tokens whose first choice is e * mean probability of e)`,
    which is 1 when all experts are used equally. The z-loss is `mean(logsumexp(router logits) ** 2)`.

    Args:
        router_logits: one `(batch * sequence, experts)` for each sparse layer.
        token_mask: `(batch, sequence)`, 0 for positions that do not count; None counts all positions.
        reduction: `"sum"` or `"mean"` over the layers.

    Returns:
        The load-balancing loss and the z-loss, two scalars.
    """
    logits = torch.stack([layer.float() for layer in router_logits])
    layers, tokens, num_experts = logits.shape
    if token_mask is None:
        weight = logits.new_ones(tokens)
    else:
        weight = token_mask.reshape(-1).ne(0).to(logits)
    counted = weight.sum().clamp(min=1)
    mean_probability = (logits.softmax(dim=-1) * weight[:, None]).sum(dim=1) / counted
    first_choice = logits.argmax(dim=-1)
    share = logits.new_zeros(layers, num_experts).scatter_add(1, first_choice, weight.expand(layers, -1)) / counted
    balance = num_experts * (share * mean_probability).sum(dim=-1)
    z = (logits.logsumexp(dim=-1).square() * weight).sum(dim=1) / counted
    return (balance.sum(), z.sum()) if reduction == "sum" else (balance.mean(), z.mean())
