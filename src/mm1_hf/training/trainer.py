"""transformers' `Trainer` with the additions that MM1's training needs, made by overriding Trainer's own methods."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from mm1_hf.data.mixture import SOURCES_KEY
from mm1_hf.model.foreign_decoders import num_experts
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.segment_attention import SEGMENT_SDPA
from mm1_hf.training.balancing import BalancedTrainer
from mm1_hf.training.finite import FiniteTrainer
from mm1_hf.training.metrics import PeriodSums, StepClock, TargetLosses, period_flops, period_logs
from mm1_hf.training.parts import frozen_parts, parameter_groups
from mm1_hf.training.streams import MixtureTrainer


class MM1Trainer(BalancedTrainer, FiniteTrainer, MixtureTrainer):
    """
    A [`MixtureTrainer`], [`BalancedTrainer`] and [`FiniteTrainer`] that can use a different learning rate for each
    part, and that logs more values.

    With every training loss it logs the following values, over all ranks and since the last log: `tokens_per_second`,
    without padding; `images_per_second`, or `tiles_per_second` if the processor splits images; `mfu` if `peak_tflops`
    is given; and the values of [`mm1_hf.training.metrics.period_logs`]. Time spent on evaluation and checkpoints does
    not count.

    On a CPU, the `"sdpa"` attention over a packed row costs the square of the row's length. There, a decoder with
    `"sdpa"` that also supports flash attention is switched to [`mm1_hf.model.segment_attention`], which gives the same
    results.

    Args:
        args, kwargs: arguments of `Trainer`, and `example_sizes` and `max_tiles` of [`BalancedTrainer`].
        learning_rates: learning rates of the parts that differ from the arguments' `learning_rate`, by name of the
            part.
        source_names:
            names of the data sources. The entry `sources` of a batch, `(batch,)`, holds the index of each row's source
            in this list, or -1 for an unknown source. If there are names, the cross-entropy of each source is logged;
            it comes from the same forward pass as the loss. Unset, the names are those of the mixture.
        peak_tflops:
            peak of one device in TFLOP/s, for dense matrices in the dtype of training: 989 for an H100 in bfloat16. If
            it is given, the share of the peak that training reaches is logged. Operations are counted as in
            [`mm1_hf.accounting.flops`], without those that gradient checkpointing repeats.

    Raises:
        ValueError: `peak_tflops` is not positive, or there are source names, but the loss is not the model's own.

    Example:

    ```python
    >>> from transformers import TrainingArguments
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration
    >>> from mm1_hf.training.trainer import MM1Trainer

    >>> model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny"))
    >>> arguments = TrainingArguments("run", learning_rate=1e-5, report_to="none", use_cpu=True)
    >>> trainer = MM1Trainer(model, arguments, learning_rates={"connector": 1e-3})
    >>> sorted({group["lr"] for group in trainer.create_optimizer().param_groups})
    [1e-05, 0.001]

    ```
    """

    def __init__(
        self,
        *args: Any,
        learning_rates: Mapping[str, float] | None = None,
        source_names: Sequence[str] | None = None,
        peak_tflops: float | None = None,
        **kwargs: Any,
    ):
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(
                f"peak_tflops is the peak of one device in TFLOP/s, a positive number such as 989; got {peak_tflops}."
            )
        self.learning_rates = learning_rates
        self.peak_tflops = peak_tflops
        super().__init__(*args, **kwargs)
        self.source_names = list(
            getattr(self.train_dataset, "source_names", ()) if source_names is None else source_names
        )
        own_loss = self.label_smoother is None and self.compute_loss_func is None
        if self.source_names and not (own_loss and self._mm1().loss_function is ForCausalLMLoss):
            raise ValueError(
                "The loss of each source is computed inside the model's own loss function, but "
                "label_smoothing_factor, compute_loss_func or another loss_function of the model replaces that "
                "function. Leave these settings out, or give source_names=() to log no loss by source."
            )
        decoder = self._mm1().model.language_model
        # Only decoders that support flash attention pass segment boundaries on to their attention.
        if (
            self.args.device.type == "cpu"
            and decoder.config._attn_implementation == "sdpa"
            and decoder._supports_flash_attn
        ):
            decoder.set_attn_implementation(SEGMENT_SDPA)
        self._clock = StepClock()
        self.add_callback(self._clock)
        self._target_losses = TargetLosses()
        self._sources: torch.Tensor | None = None
        self._period: PeriodSums | None = None

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        optimizer, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        # Trainer uses these "params" in place of its own groups. They cannot be made earlier, because the model is
        # sharded only now.
        trained = cast(nn.Module, self.model if model is None else model)
        groups = parameter_groups(trained, args.learning_rate, args.weight_decay, self.learning_rates)
        return optimizer, {**kwargs, "params": groups}

    def run_settings(self) -> dict[str, Any]:
        return super().run_settings() | {"learning_rates": dict(self.learning_rates or {})}

    def get_batch_samples(self, *args, **kwargs):
        self._clock.begin()
        return super().get_batch_samples(*args, **kwargs)

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        self._sources = inputs.pop(SOURCES_KEY, None)
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mm1 = self._mm1()
        config = mm1.config.get_text_config()
        if self._period is None:
            self._period = PeriodSums(config, len(self.source_names), self.args.device)
        wanted = {"output_router_logits": True} if num_experts(config) else {}
        with self._target_losses.of(mm1) if self.source_names else nullcontext():
            loss, outputs = super().compute_loss(model, {**inputs, **wanted}, True, num_items_in_batch)
        router_logits = getattr(outputs, "router_logits", None)
        self._period.add(inputs, self._sources, self._target_losses.last, router_logits)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._period is not None:
            # Trainer has just read the loss, so the device has finished its work and the measured time is complete.
            self._clock.lap()
            logs |= self._period_logs(self._period)
            self._period, self._clock.seconds = None, 0.0
        super().log(logs, start_time)

    def _period_logs(self, period: PeriodSums) -> dict[str, float]:
        totals = period.total(self._sum_over_ranks)
        seconds = self._clock.seconds
        image_processor = getattr(self.processing_class, "image_processor", None)
        unit = "images" if getattr(image_processor, "image_splitting", "none") == "none" else "tiles"
        logs = {
            "tokens_per_second": totals["tokens"].item() / seconds,
            f"{unit}_per_second": totals["tiles"].item() / seconds,
        }
        if self.peak_tflops is not None:
            mm1 = self._mm1()
            flops = period_flops(mm1.config, totals, frozen_parts(mm1))
            logs["mfu"] = flops.total / (seconds * self.args.world_size * self.peak_tflops * 1e12)
        return logs | period_logs(totals, self.source_names)

    def _sum_over_ranks(self, sums: torch.Tensor) -> torch.Tensor:
        # The ranks of a tensor-parallel group read the same rows, so the sum counts each row once for every rank of a
        # group.
        return self.accelerator.reduce(sums, "sum") / self.get_tp_size()

    def _mm1(self) -> MM1ForConditionalGeneration:
        """The MM1 itself, without the wrappers of PEFT or sharding."""
        modules = cast(nn.Module, self.model).modules()
        return next(module for module in modules if isinstance(module, MM1ForConditionalGeneration))
