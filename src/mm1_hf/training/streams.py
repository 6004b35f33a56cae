"""
Trainer for mixtures: each rank reads its own part of the stream, and every checkpoint stores the stream's position.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from mm1_hf.data.mixture import STATE_KEY, Mixture
from mm1_hf.training.checkpoints import read_json, stream_name
from mm1_hf.training.parallel import data_rank
from mm1_hf.training.resuming import ResumableTrainer


class MixtureTrainer(ResumableTrainer):
    """
    A [`ResumableTrainer`] that can also train on a [`Mixture`]. It reads other data sets as Trainer does.

    A checkpoint stores the stream's position after the last batch that was trained on, not after the prefetched
    batches. A resumed run reads on from this position, so that no example is lost or repeated. Beside the loss, the
    trainer logs the observed share of each source (`share/NAME`) and the number of its dropped records
    (`dropped/NAME`), both counted on this rank only.

    Raises:
        ValueError: a mixture without `ignore_data_skip`: Trainer would skip the batches again, although the stream has
            already been resumed after them. When resuming: the checkpoint does not store a position of the stream.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if isinstance(self.train_dataset, Mixture) and not self.args.ignore_data_skip:
            raise ValueError(
                "A mixture restores its own position when training is resumed. Set ignore_data_skip=True in the "
                "TrainingArguments, as the recipes do; otherwise Trainer skips the same number of batches again."
            )

    def get_train_dataloader(self) -> DataLoader:
        mixture = self.train_dataset
        if not isinstance(mixture, Mixture):
            return super().get_train_dataloader()
        mixture.split(*data_rank(self.accelerator), self._train_batch_size)
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            mixture,
            # The mixture yields whole batches, not rows.
            batch_size=None,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.accelerator.is_available(),
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        # Prepared as for a single process: otherwise accelerate would distribute the batches of this rank over all
        # ranks.
        return prepare_data_loader(
            loader,
            device=self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        state = inputs.pop(STATE_KEY, None)
        if state is not None and isinstance(self.train_dataset, Mixture):
            self.train_dataset.consumed(state)
        return super()._prepare_inputs(inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mixture = self.train_dataset
        if isinstance(mixture, Mixture) and "loss" in logs:
            logs |= {f"share/{name}": round(share, 4) for name, share in mixture.shares().items()}
            report = mixture.drops().report()
            logs |= {f"dropped/{name}": sum(report[name]["dropped"].values()) for name in report}
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, Mixture):
            self._stream_file(output_dir).write_text(json.dumps(self.train_dataset.state_dict()), encoding="utf-8")
            # The main process next writes Trainer's own state, which marks the checkpoint as complete. Before that all
            # ranks must have written their files.
            self.accelerator.wait_for_everyone()

    def _load_stream(self, checkpoint: str) -> None:
        if not isinstance(self.train_dataset, Mixture):
            return
        file = self._stream_file(checkpoint)
        if not file.exists():
            raise ValueError(
                f"{checkpoint} does not store a position in a data stream (the file {file.name}): it was not trained on a "
                "mixture. Start a new run from its weights."
            )
        self.train_dataset.load_state_dict(read_json(file))

    def _has_stream(self) -> bool:
        return isinstance(self.train_dataset, Mixture)

    def _stream_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / stream_name(self.args.process_index)
