"""
Checkpoints of models whose weights were split over processes when they were loaded: every process writes and reads its own
shards.

Trainer refuses to checkpoint such a model and has no public hooks for it. tests/test_private_api.py lists the private ones
that are overridden here, and the version in which they were read.
"""

import os
import shutil
from typing import Any, cast

import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mm1_hf.model.versions import SAVES_SPLIT_WEIGHTS


if SAVES_SPLIT_WEIGHTS:
    from transformers.distributed import checkpoint as shards

# The folder of a checkpoint to which torch.distributed.checkpoint writes the optimizer's state.
_OPTIMIZER = "optimizer"


class SplitWeightsTrainer(Trainer):
    """
    `Trainer` that also saves and resumes a model loaded by `from_pretrained(..., distributed_config=...)`. Any other model
    is saved as Trainer saves it.

    In a checkpoint, each process writes its shards of the weights and of the optimizer's state, without gathering them.
    `from_pretrained` can load such a checkpoint. [`~Trainer.save_model`] writes whole weights.

    Args:
        model: a model, split at load or not.
        args: `TrainingArguments`.
        others, settings: further arguments of Trainer.

    Raises:
        ValueError: the weights are split and transformers is older than 5.20; when resuming split weights from a checkpoint
            of whole weights.
    """

    def __init__(self, model: Any = None, args: Any = None, *others: Any, **settings: Any):
        split = args is not None and getattr(model, "is_distributed_loading_by_transformers", False)
        if not split:
            super().__init__(model, args, *others, **settings)
            return
        if not SAVES_SPLIT_WEIGHTS:
            raise ValueError(
                "The weights of this model are split over processes, and checkpoints of such a model need transformers 5.20 "
                f"or newer; {transformers.__version__} is installed. Update it, or load the model unsplit."
            )
        # Trainer only accepts such a model if its checkpoints hold nothing but weights: say so while it looks.
        save_only_model, args.save_only_model = args.save_only_model, True
        super().__init__(model, args, *others, **settings)
        args.save_only_model = self.args.save_only_model = save_only_model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        model = self._split_model()
        checkpoint = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if model is None or output_dir is None or not (_internal_call and os.path.basename(output_dir) == checkpoint):
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            # A run that was stopped while it saved, maybe on more processes, left shards that do not belong to this one.
            shutil.rmtree(output_dir, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        model.save_pretrained(output_dir, is_main_process=self.args.should_save, distributed_checkpoint=True)
        processor: Any = self.processing_class
        if self.args.should_save and processor is not None:
            processor.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._is_split():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        shards.save_optimizer_distributed(self.model, self._torch_optimizer(), os.path.join(output_dir, _OPTIMIZER))
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # After this, the main process writes Trainer's own state, which marks the checkpoint as complete.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        split = self._split_model()
        if split is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        if not shards.is_sharded_checkpoint(resume_from_checkpoint):
            raise ValueError(
                f"{resume_from_checkpoint} was written by a run whose weights were not split over processes. Resume it "
                "without splitting them, or start a new run from its weights."
            )
        shards._load_model_checkpoint_distributed(split, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        split = self._split_model()
        if split is None:
            super()._load_best_model()
        else:
            shards._load_model_checkpoint_distributed(split, cast(str, self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._is_split():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = os.path.join(checkpoint, _OPTIMIZER)
        shards.load_optimizer_distributed(self.model, self._torch_optimizer(), folder)
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _is_split(self) -> bool:
        # Trainer has this attribute since 5.18.
        return getattr(self, "is_distributed_loading_by_transformers", False)

    def _split_model(self) -> PreTrainedModel | None:
        """The model if its weights are split, else `None`. An adapter on split weights is whole; Trainer saves it itself."""
        return self.model if self._is_split() and isinstance(self.model, PreTrainedModel) else None

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without accelerate's wrapper."""
        return cast(AcceleratedOptimizer, self.optimizer).optimizer
