"""The losses of MM1: targets of the next-token cross-entropy, the head with its loss in chunks, the softmax z-loss, and
the router's load-balancing loss and z-loss. All losses are computed in float32."""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .segments import preceding_columns


class LiveTargets(NamedTuple):
    """
    The live positions of a batch: those whose next token is a target.

    Args:
        index: `(live,)`, indices of these positions in the flattened `(batch * sequence)`.
        tokens: `(live,)`, the next token of each of these positions.
    """

    index: torch.Tensor
    tokens: torch.Tensor


def live_targets(
    labels: torch.Tensor | None, shift_labels: torch.Tensor | None, segment_ids: torch.Tensor | None = None
) -> LiveTargets:
    """
    Finds the positions whose next token is a target.

    Call it before any other work of a forward pass. The number of targets determines shapes, so the host must read it
    from the device, and early in the pass it has to wait for no other queued work.

    Args:
        labels: `(batch, sequence)`, the token at each position, or -100 where it is not a target.
        shift_labels:
            `(batch, sequence)`, labels already shifted one position to the left; if given, `labels` is not used.
        segment_ids:
            `(batch, sequence)`. The first token of a branch is predicted by the last token of its shared beginning, which
            so may have several targets; see [`mm1_hf.model.segments`].

    Returns:
        The positions and their targets, in the order of the targets.
    """
    if shift_labels is None and segment_ids is not None:
        labels = cast(torch.Tensor, labels)
        rows, columns = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        preceding = preceding_columns(segment_ids.to(labels.device))[rows, columns + 1]
        return LiveTargets(rows * labels.shape[1] + preceding, labels[rows, columns + 1])
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


def chunked_head_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: torch.Tensor,
    num_items: torch.Tensor | int,
    z_loss_coef: float = 0.0,
) -> torch.Tensor:
    """
    Cross-entropy and z-loss of a linear head, without the logits of all positions in memory at once.

    The positions go through the head in chunks. Each chunk computes its gradients at once, so that its logits can be
    freed and nothing is computed twice. The result is that of the head followed by the losses, up to rounding; the
    gradient of the weights is added up chunk by chunk, in their dtype. Like any graph whose tensors were freed, it can
    be differentiated once.

    Args:
        hidden_states: `(positions, hidden)`.
        weight: `(vocabulary, hidden)`.
        bias: `(vocabulary,)`, or None.
        tokens: `(positions,)`, the target of each position.
        num_items: number of targets in the whole batch, of which these may be only a part.
        z_loss_coef: weight of the softmax z-loss.

    Returns:
        A scalar in float32: the sum of both losses divided by `num_items`.
    """
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
    with_gradients = torch.is_grad_enabled()
    summed = cast(
        torch.Tensor, _ChunkedHeadLoss.apply(hidden_states, weight, bias, tokens, z_loss_coef, with_gradients)
    )
    return summed / num_items


class _ChunkedHeadLoss(torch.autograd.Function):
    """The sum of [`chunked_head_loss`] over all positions."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tokens: torch.Tensor,
        z_loss_coef: float,
        with_gradients: bool,
    ) -> torch.Tensor:
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        hidden_grad = torch.empty_like(hidden_states) if wanted[0] else None
        weight_grad = torch.zeros_like(weight) if wanted[1] else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None
        dtype = hidden_states.dtype
        matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        loss = hidden_states.new_zeros((), dtype=torch.float32)
        # The logits of a chunk in float32 take about twice the memory of the head's weights at most.
        size = max(1024, hidden_states.shape[1] // 2)
        # One place for the logits of every chunk, and then for their gradients.
        place = hidden_states.new_empty(min(size, len(tokens)), len(matrix))
        with torch.autocast(hidden_states.device.type, enabled=False):
            for start in range(0, len(tokens), size):
                chunk, targets = hidden_states[start : start + size], tokens[start : start + size, None]
                logits = torch.mm(chunk, matrix.T, out=place[: len(chunk)])
                if offset is not None:
                    logits += offset
                log_probabilities = logits.log_softmax(dim=-1, dtype=torch.float32)
                chosen = log_probabilities.gather(1, targets)
                loss -= chosen.sum()
                log_sum = logits.gather(1, targets).float() - chosen
                if z_loss_coef:
                    loss += z_loss_coef * log_sum.square().sum()
                if not any(wanted):
                    continue
                gradient = log_probabilities.exp_()
                if z_loss_coef:
                    gradient *= 1 + 2 * z_loss_coef * log_sum
                gradient.scatter_add_(1, targets, torch.full_like(chosen, -1))
                if bias_grad is not None:
                    bias_grad += gradient.sum(dim=0)
                rounded = logits.copy_(gradient)
                del gradient, log_probabilities
                if hidden_grad is not None:
                    torch.mm(rounded, matrix, out=hidden_grad[start : start + size])
                if weight_grad is not None and weight_grad.dtype == dtype:
                    weight_grad.addmm_(rounded.T, chunk)
                elif weight_grad is not None:
                    weight_grad += rounded.T @ chunk
        ctx.gradients = hidden_grad, weight_grad, None if bias_grad is None else bias_grad.to(cast(Any, bias).dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The head's gradients were freed by the first backward pass. Run the forward pass again, or pass "
                "skip_logits=False to keep the logits."
            )
        gradients, ctx.gradients = ctx.gradients, None
        # In place, because those of the weights are large.
        return *(None if grad is None else grad.mul_(grad_outputs[0].to(grad.dtype)) for grad in gradients), *[
            None
        ] * 3


def router_losses(
    router_logits: tuple[torch.Tensor, ...], token_mask: torch.Tensor | None, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The load-balancing loss and the z-loss of the sparse layers (MM1, section 4.3, after GShard and ST-MoE).

    The load-balancing loss is `experts * sum_e(share of tokens whose first choice is e * mean probability of e)`,
    which is 1 when all experts are used equally. The z-loss is `mean(logsumexp(router logits) ** 2)`.

    Args:
        router_logits: one `(batch * sequence, experts)` for each sparse layer.
        token_mask: `(batch, sequence)`, how often each position counts, 0 for padding; None counts all positions once.
        reduction: `"sum"` or `"mean"` over the layers.

    Returns:
        The load-balancing loss and the z-loss, two scalars.
    """
    logits = torch.stack([layer.float() for layer in router_logits])
    layers, tokens, num_experts = logits.shape
    if token_mask is None:
        weight = logits.new_ones(tokens)
    else:
        weight = token_mask.reshape(-1).to(logits)
    counted = weight.sum().clamp(min=1)
    mean_probability = (logits.softmax(dim=-1) * weight[:, None]).sum(dim=1) / counted
    first_choice = logits.argmax(dim=-1)
    share = logits.new_zeros(layers, num_experts).scatter_add(1, first_choice, weight.expand(layers, -1)) / counted
    balance = num_experts * (share * mean_probability).sum(dim=-1)
    z = (logits.logsumexp(dim=-1).square() * weight).sum(dim=1) / counted
    return (balance.sum(), z.sum()) if reduction == "sum" else (balance.mean(), z.mean())
