"""
Values that training logs beside the loss. They are summed on the device, and the host reads them once per log period,
so that it does not wait for the device after every batch.
"""

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, TrainerCallback

from mm1_hf.accounting.flops import Flops, flops_formula
from mm1_hf.model.configuration_mm1 import MM1Config, MM1TextConfig
from mm1_hf.model.foreign_decoders import num_experts
from mm1_hf.model.losses import router_losses
from mm1_hf.model.modeling_mm1_text import choices_within_capacity
from mm1_hf.model.segments import mask_padding, segment_positions, segments_from_positions


class StepClock(TrainerCallback):
    """Counts the seconds spent on training steps, including their data, but not evaluation and checkpoints."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """Starts to measure a step. The time since the previous step does not count."""
        self._mark = time.perf_counter()

    def lap(self) -> None:
        """Adds the time since the last call of `begin` or `lap`."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now

    def on_step_end(self, args, state, control, **kwargs):
        self.lap()


class TargetLosses:
    """
    The same loss as transformers' loss of a causal language model. It also keeps the cross-entropy of each target.
    """

    def __init__(self) -> None:
        self.last: torch.Tensor | None = None
        """`(targets,)`: cross-entropy of each target of the last call, in float32, in the order of their positions."""

    def __call__(
        self, logits: torch.Tensor, shift_labels: torch.Tensor, num_items_in_batch: torch.Tensor | int, **kwargs: Any
    ) -> torch.Tensor:
        losses = F.cross_entropy(logits.float(), shift_labels.to(logits.device), reduction="none")
        self.last = losses.detach()
        return losses.sum() / num_items_in_batch

    @contextmanager
    def of(self, model: PreTrainedModel) -> Generator[None]:
        """
        Replaces the loss function of a model inside a `with` block.

        Args:
            model: the model.
        """
        replaced = model.loss_function
        model.loss_function = self
        try:
            yield
        finally:
            model.loss_function = replaced


class PeriodSums:
    """
    Sums over the micro-batches of a log period. The sums of several ranks can be added.

    Args:
        config: configuration of the decoder.
        num_sources: number of sources that rows come from.
        device: device of the model.
    """

    def __init__(self, config: Any, num_sources: int, device: torch.device):
        self.config = config
        self.num_experts = num_experts(config)
        # MPS has no float64.
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        counts = ("micro_batches", "positions", "tokens", "pairs", "targets", "tiles", "tile_sides")
        sizes = dict.fromkeys(counts, 1)
        # The last entry is for rows whose source is not known. Their source number is -1.
        sizes |= dict.fromkeys(("source_losses", "source_targets"), num_sources + 1)
        if self.num_experts:
            sizes |= {"balance": 1, "choices": 1, "dropped": 1}
            # Becomes `(sparse layers, experts)` with the first router logits, which tell the number of sparse layers.
            sizes["load"] = 0
        self.sums = {name: torch.zeros(size, dtype=self.dtype, device=device) for name, size in sizes.items()}

    @torch.no_grad()
    def add(
        self,
        inputs: Mapping[str, Any],
        sources: torch.Tensor | None,
        target_losses: torch.Tensor | None,
        router_logits: tuple[torch.Tensor, ...] | None,
    ) -> None:
        """
        Adds a micro-batch. The host does not wait for the device.

        Args:
            inputs: inputs of the model.
            sources: `(batch,)`, number of the source of each row, or -1 if the source is not known.
            target_losses: `(targets,)`, cross-entropy of each target, in the order of their positions.
            router_logits: one tensor `(batch * sequence, experts)` for each sparse layer.
        """
        sums = self.sums
        shift_labels = inputs.get("shift_labels")
        if shift_labels is None:
            shift_labels = F.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        live, segments = shift_labels != -100, _segments(inputs, shift_labels.shape)
        real = segments != 0
        sums["micro_batches"] += 1
        sums["positions"] += real.numel()
        sums["tokens"] += real.sum()
        sums["pairs"] += ((segment_positions(segments) + 1) * real).sum()
        sums["targets"] += live.sum()
        if inputs.get("pixel_values") is not None:
            sums["tiles"] += inputs["pixel_values"].shape[0]
            # Values of several ranks are added, so this is a sum of sides. Divided by the number of tiles it gives the
            # side of a tile, because all tiles of a stage have the same size.
            sums["tile_sides"] += inputs["pixel_values"].shape[0] * inputs["pixel_values"].shape[-1]
        if sources is not None and target_losses is not None:
            places = torch.where(sources < 0, sums["source_losses"].numel() - 1, sources)
            index = live.flatten().nonzero_static(size=target_losses.numel()).squeeze(1)
            places, losses = places[index // live.shape[1]], target_losses.to(self.dtype)
            sums["source_losses"].index_add_(0, places, losses)
            sums["source_targets"].index_add_(0, places, torch.ones_like(losses))
        if router_logits:
            self._add_router(router_logits, real)

    def _add_router(self, router_logits: tuple[torch.Tensor, ...], real: torch.Tensor) -> None:
        sums, top_k = self.sums, self.config.num_experts_per_tok
        balance, _ = router_losses(router_logits, real, "mean")
        sums["balance"] += balance
        if not sums["load"].numel():
            sums["load"] = sums["load"].new_zeros(len(router_logits), self.num_experts)
        capacity = self.config.expert_capacity_factor if isinstance(self.config, MM1TextConfig) else None
        counted = real.flatten()[:, None].expand(-1, top_k).to(self.dtype)
        for layer, logits in enumerate(router_logits):
            experts = logits.topk(top_k, dim=-1).indices
            sums["load"][layer].index_add_(0, experts.flatten(), counted.flatten())
            sums["choices"] += counted.sum()
            if capacity is not None:
                kept = choices_within_capacity(experts, real, self.num_experts, capacity)
                sums["dropped"] += (counted * ~kept).sum()

    def total(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        The sums over all ranks, as tensors on the host.

        Args:
            reduce: function that adds up a vector over the ranks.
        """
        whole = reduce(torch.cat([value.flatten() for value in self.sums.values()])).cpu().double()
        parts = whole.split([value.numel() for value in self.sums.values()])
        return {name: part.view_as(value) for part, (name, value) in zip(parts, self.sums.items(), strict=True)}


def _segments(inputs: Mapping[str, Any], shape: torch.Size) -> torch.Tensor:
    """The number of the segment that each position belongs to, `(batch, sequence)`, 0 for padding."""
    attention_mask = inputs.get("attention_mask")
    if attention_mask is not None and attention_mask.dim() != 2:
        attention_mask = None
    segments = inputs.get("segment_ids")
    if segments is None:
        segments = segments_from_positions(inputs.get("position_ids"), attention_mask, shape)
    if segments is None:
        segments = torch.ones(shape, dtype=torch.long, device=inputs["labels"].device)
    return mask_padding(segments, attention_mask)


def period_logs(totals: Mapping[str, torch.Tensor], source_names: Sequence[str]) -> dict[str, float]:
    """
    The logged values that need only the sums, and no measured time.

    Args:
        totals: the result of [`PeriodSums.total`].
        source_names: names of the sources, in the order of their numbers.

    Returns:
        `utilisation`, the share of positions that are not padding; `loss/NAME`, the mean cross-entropy over the
        targets of a source, if it has targets. For decoders with experts also `router_balance`, the load-balancing
        loss, which is 1 if all experts are used equally; `router_max_load`, the load of the most used expert of any
        layer, divided by the mean load of the experts of its layer; and `router_dropped`, the share of the tokens'
        choices of an expert that were dropped because the expert was full.
    """
    logs = {"utilisation": (totals["tokens"] / totals["positions"]).item()}
    for name, loss, targets in zip(source_names, totals["source_losses"], totals["source_targets"], strict=False):
        if targets > 0:
            logs[f"loss/{name}"] = (loss / targets).item()
    if "load" in totals:
        load = totals["load"]
        logs["router_balance"] = (totals["balance"] / totals["micro_batches"]).item()
        logs["router_max_load"] = (load / load.mean(dim=-1, keepdim=True)).max().item()
        logs["router_dropped"] = (totals["dropped"] / totals["choices"]).item()
    return logs


def period_flops(config: MM1Config, totals: Mapping[str, torch.Tensor], frozen: Collection[str]) -> Flops:
    """
    Floating-point operations of the forward and backward passes of the summed micro-batches, for the tile size that
    these batches had.

    Args:
        config: configuration of the model.
        totals: the result of [`PeriodSums.total`].
        frozen: names of the parts that are not trained.
    """
    sizes = {name: totals[name].item() for name in ("positions", "tiles", "targets", "pairs")}
    tile_size = round(totals["tile_sides"].item() / sizes["tiles"]) if sizes["tiles"] else None
    return flops_formula(config, tile_size).training(**sizes, frozen=frozen)
