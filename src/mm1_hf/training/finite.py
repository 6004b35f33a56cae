"""Stops a run whose loss or gradients are no longer finite, before such a step changes the weights."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import Trainer


class FiniteTrainer(Trainer):
    """
    `Trainer` that stops when the loss or the norm of the gradients is NaN or infinite on any process. All processes
    stop before the optimizer's step, so that neither the weights nor a checkpoint are spoilt. With `fp16`, gradients
    that overflow are left to the loss scaler, which skips their step.

    Raises:
        ValueError: while training: a loss or gradient that is not finite.
    """

    _losses_are_finite: torch.Tensor | None = None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        finite = torch.isfinite(loss).all()
        earlier = self._losses_are_finite
        self._losses_are_finite = finite if earlier is None else earlier & finite
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        losses, self._losses_are_finite = self._losses_are_finite, None
        # DeepSpeed tells no norm where a gradient overflowed.
        judged = whole is not None and getattr(self.accelerator, "scaler", None) is None
        wrong = torch.zeros(2, device=self.args.device)
        if losses is not None:
            wrong[0] = ~losses
        if judged:
            wrong[1] = ~torch.isfinite(torch.as_tensor(whole, device=self.args.device)).all()
        if self.args.world_size > 1:
            wrong = self.accelerator.reduce(wrong, "sum")
        of_loss, of_norm = wrong.tolist()
        if of_loss or of_norm:
            what = "loss" if of_loss else "norm of the gradients"
            raise ValueError(
                f"In step {self.state.global_step + 1} the {what} is NaN or infinite, so this run stops before the step "
                f"changes the weights. Its checkpoints in {self.args.output_dir} are untouched. Look at the data of this "
                "step and at the log before it. Often a lower learning rate, a longer warm-up or a lower max_grad_norm "
                "helps: start a new run with them in another output_dir, whose model may be the last checkpoint."
            )
        return norm
