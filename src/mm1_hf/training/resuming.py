"""
Trainer whose runs can be stopped anywhere: it resumes whole checkpoints only, with the settings that they were made
    with, and
a finished run stays finished.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from mm1_hf.data.identity import differences, listed
from mm1_hf.training.checkpoints import (
    RUN_NAME,
    checkpoint_fault,
    delete_oldest,
    last_complete_checkpoint,
    read_json,
    saved_shapes,
)
from mm1_hf.training.output_folder import hold, on_main_process
from mm1_hf.training.parts import PARTS, part_of
from mm1_hf.training.sharded import SplitWeightsTrainer


# Fields of TrainingArguments that decide the weights that a run ends with.
_DECISIVE = (
    "optim",
    "optim_args",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
)
# May change when a run is resumed, which is said. `max_steps` is compared with the checkpoint's step too.
_FOLLOWED = ("max_steps", "num_train_epochs", "bf16", "fp16")

logger = logging.get_logger(__name__)


class ResumableTrainer(SplitWeightsTrainer):
    """
    `Trainer` with these rules for runs that are stopped and resumed:

    - A checkpoint is resumed only if it is complete ([`mm1_hf.training.checkpoints.checkpoint_fault`]).
      `resume_from_checkpoint=True` takes the last complete one.
    - What decides the result must be that of the checkpoint: the optimizer, the learning rates and their schedule, the
      batch size, the trained parts, adapters, the seed, and the number of processes. `max_steps` and the precision may
      change; this is logged.
    - A run whose checkpoint is at its last step is finished: it is loaded and not trained.
    - One run at a time uses an output folder, and it must be possible to write to it.
    - A checkpoint that cannot be written stops the run, with the last complete one named.

    Raises:
        ValueError: when training begins: the output folder is used by another run or cannot be written to, or the
            checkpoint is incomplete, belongs to another model, was made with other settings, or is beyond the last
            step.
        OSError: a checkpoint could not be written.
    """

    _resumed: str | None = None
    _is_finished = False
    _updates_per_epoch = 1

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        with hold(cast(str, self.args.output_dir)):
            self._resumed = on_main_process(lambda: _chosen(resume_from_checkpoint, cast(str, self.args.output_dir)))
            self._is_finished = False
            output = super().train(self._resumed, trial, ignore_keys_for_eval)
            if self.args.load_best_model_at_end and not self._is_finished:
                # Trainer may keep no checkpoint but the best one, which does not tell that the run has ended.
                self.save_state()
            return output

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> Any:
        """
        Trainer's numbers of epochs, steps and examples, without an epoch for a finished run.

        Args:
            args: arguments of the run.
            dataloader: loader of the training batches.

        Raises:
            ValueError: the resumed checkpoint is beyond the last step.
        """
        epochs, updates_per_epoch, *counts, max_steps = super().set_initial_training_values(args, dataloader)
        self._updates_per_epoch = updates_per_epoch
        if self._resumed is not None:
            step = read_json(Path(self._resumed) / TRAINER_STATE_NAME)["global_step"]
            if step > max_steps:
                raise ValueError(
                    f"max_steps is {max_steps}, but {self._resumed} has been trained for {step} steps. Set max_steps to "
                    f"{step} to end there, or resume from an earlier checkpoint in another output_dir."
                )
            self._is_finished = max_steps in (step, self._step_of_best())
            if self._is_finished:
                logger.warning(
                    f"{self._resumed} is the end of this run (max_steps is {max_steps}): it is not trained."
                )
                # Trainer looks for the last step only after a step, so give it no epoch to train.
                epochs = 0
        return epochs, updates_per_epoch, *counts, max_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.args.ignore_data_skip and self.state.epoch is not None:
            # Trainer counts the batches since it was started.
            self.state.epoch = self.state.global_step / self._updates_per_epoch
        super().log(logs, start_time)

    def run_settings(self) -> dict[str, Any]:
        """What decides the weights that this run ends with, beside its data, in a form that JSON can hold."""
        trained = dict.fromkeys(PARTS, 0)
        for name, weight in cast(nn.Module, self.model).named_parameters():
            trained[part_of(name)] += weight.numel() if weight.requires_grad else 0
        adapters = {
            name: {field: getattr(config, field, None) for field in ("r", "lora_alpha", "lora_dropout")}
            for name, config in getattr(self.model, "peft_config", {}).items()
        }
        arguments = {name: getattr(self.args, name) for name in (*_DECISIVE, *_FOLLOWED)}
        model: Any = self.model
        return json.loads(
            json.dumps(
                arguments
                | {
                    "processes": self.args.world_size,
                    "trained weights": trained,
                    "adapters": adapters,
                    "records": len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None,
                    "z_loss_coef": getattr(model.config, "z_loss_coef", None),
                },
                default=str,
            )
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(cast(str, self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            if self.args.should_save:
                # An earlier run may have left a checkpoint of this step, which is incomplete while it is replaced.
                (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            # Trainer orders checkpoints by time or number, so an incomplete one could outlive the complete ones.
            limit, self.args.save_total_limit = self.args.save_total_limit, None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            if self.args.should_save and limit:
                delete_oldest(folder.parent, self.state.global_step, limit, self.state.best_model_checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(unwritten(f"The checkpoint {folder}", self.args, error)) from error

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.should_save:
            run = {"processes": self.args.world_size, "stream": self._has_stream(), "settings": self.run_settings()}
            (Path(output_dir) / RUN_NAME).write_text(json.dumps(run, indent=2), encoding="utf-8")
        super()._save_rng_state(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PreTrainedModel) and self._split_model() is None:
            _require_same_weights(self.model, resume_from_checkpoint)
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except (RuntimeError, LookupError, ValueError, SafetensorError) as error:
            raise ValueError(f"{resume_from_checkpoint} does not hold the weights of this model: {error}") from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saved = read_json(Path(checkpoint) / RUN_NAME)["settings"]
            require_same_settings(checkpoint, saved, self.run_settings())
            self._load_stream(checkpoint)
            # Trainer goes on with the checkpoint's intervals of logging and saving, in place of those of the arguments.
            self.state.compute_steps(self.args, self.state.max_steps)
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (RuntimeError, LookupError, OSError) as error:
            raise ValueError(f"The optimizer's state in {checkpoint} cannot be loaded: {error}") from error

    def _step_of_best(self) -> int | None:
        """The step at which a run ended that resumes from its best checkpoint."""
        file = Path(cast(str, self.args.output_dir)) / TRAINER_STATE_NAME
        if not self.args.load_best_model_at_end or not file.exists():
            return None
        state = read_json(file)
        best = state.get("best_model_checkpoint")
        same = isinstance(best, str) and os.path.realpath(best) == os.path.realpath(cast(str, self._resumed))
        return state.get("global_step") if same else None

    def _has_stream(self) -> bool:
        """Whether each process saves its position in a data stream."""
        return False

    def _load_stream(self, checkpoint: str) -> None:
        """Restores the position in the data stream. It is called for finished runs too."""


def require_same_settings(
    checkpoint: str, saved: Mapping[str, Any], now: Mapping[str, Any], followed: tuple[str, ...] = _FOLLOWED
) -> None:
    """
    Compares the settings of a run with those of the checkpoint that it resumes, and logs changes that are allowed.

    Args:
        checkpoint: the checkpoint's folder.
        saved: the settings that were saved there, as JSON holds them.
        now: the settings of this run, as JSON holds them.
        followed: names of the settings that may change.

    Raises:
        ValueError: other settings differ. The message names each with both values.
    """
    changes = differences(saved, now)
    if allowed := {name: change for name, change in changes.items() if name in followed}:
        logger.warning(f"{checkpoint} is resumed with other settings from here on: {listed(allowed)}.")
    if refused := {name: change for name, change in changes.items() if name not in followed}:
        raise ValueError(
            f"{checkpoint} was made with other settings: {listed(refused)}. Resume it with the settings of the "
            "checkpoint. To use the new ones, start a new run in another output_dir; its model may be the checkpoint's "
            "folder."
        )


def unwritten(what: str, args: TrainingArguments, error: Exception) -> str:
    """
    The message for files that could not be written, for example because the disk is full.

    Args:
        what: what was written, as the beginning of the sentence.
        args: arguments of the run.
        error: the cause.
    """
    folder = cast(str, args.output_dir)
    free = shutil.disk_usage(folder).free / 1e9 if os.path.isdir(folder) else 0.0
    try:
        last = last_complete_checkpoint(folder)
    except ValueError:
        last = None
    rest = (
        f"Then start the run again: it resumes from {last}, which is complete."
        if last
        else "The run has no complete checkpoint."
    )
    return (
        f"{what} could not be written: {error}. {free:.2f} GB are free in {folder}; make space if it is full. {rest}"
    )


def _chosen(wanted: str | bool | None, output_dir: str) -> str | None:
    if wanted is None or wanted is False:
        return None
    checkpoint = last_complete_checkpoint(output_dir) if wanted is True else str(wanted)
    if checkpoint is None:
        raise ValueError(f"resume_from_checkpoint is True, but {output_dir} holds no complete checkpoint.")
    if fault := checkpoint_fault(checkpoint):
        raise ValueError(f"{checkpoint} cannot be resumed: {fault}. Resume an earlier checkpoint, or start a new run.")
    return checkpoint


def _require_same_weights(model: PreTrainedModel, checkpoint: str) -> None:
    saved = saved_shapes(checkpoint)
    if saved is None:
        return
    state = model.state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in state.items()}
    # Tied weights are saved once.
    stored = {state[name].data_ptr() for name in saved.keys() & state.keys()}
    own = {name for name, weight in state.items() if name in saved or weight.data_ptr() not in stored}
    wrong = [
        f"{name} {list(saved[name]) if name in saved else 'missing'} in the checkpoint, "
        f"{list(shapes[name]) if name in own else 'missing'} in the model"
        for name in sorted(own | saved.keys())
        if saved.get(name) != shapes.get(name)
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{checkpoint} holds the weights of another model, or of another resolution: {'; '.join(wrong[:3])}{more}. "
            "Resume it with the model and the settings that it was made with, or start a new run in another output_dir."
        )
