"""Training runs over a mixture in processes of their own, which tests kill."""

import hashlib
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from mixtures import LENGTH, mixture, source
from tiny import tiny_mm1
from transformers import TrainerCallback, TrainingArguments

from mm1_hf.training.checkpoints import last_complete_checkpoint
from mm1_hf.training.streams import MixtureTrainer


class Diary(MixtureTrainer):
    """Writes down what each micro-batch was."""

    def training_step(self, model, inputs, *args, **kwargs):
        seen = b"".join(inputs[name].numpy().tobytes() for name in ("input_ids", "pixel_values") if name in inputs)
        line = f"{self.state.global_step} {hashlib.sha256(seen).hexdigest()[:16]}\n"
        with open(f"{self.args.output_dir}/diary_{self.args.process_index}.txt", "a", encoding="utf-8") as diary:
            diary.write(line)
        return super().training_step(model, inputs, *args, **kwargs)


class Die(TrainerCallback):
    """Once a step is done, ends the process as `kill -9` does, or fills its disk."""

    def __init__(self, step: int, disk_full: bool):
        self.step, self.disk_full = step, disk_full

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != self.step:
            return
        if self.disk_full:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    folder: str, die_after: int | None = None, disk_full: bool = False, workers: int = 0, streaming: int = 0
) -> MixtureTrainer:
    """Eight steps of two micro-batches, with a checkpoint at every second, from the last one that is complete."""
    torch.set_num_threads(1)
    model, _ = tiny_mm1()
    kinds = ("caption", "interleaved", "text")
    run = Diary(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=8,
            save_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            dataloader_num_workers=workers,
            learning_rate=0.01,
            ignore_data_skip=True,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=mixture(*(source(kind, 40, longest=40, streaming=streaming) for kind in kinds)),
        callbacks=[] if die_after is None else [Die(die_after, disk_full)],
    )
    run.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    return run


def in_process(target: Callable, *args: object) -> int | None:
    """How a forked process that runs `target(*args)` ends."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode


def diary(folder: Path, rank: int = 0) -> dict[int, list[str]]:
    """The micro-batches of each step; of a step that was taken twice, those of the last time."""
    steps: dict[int, list[str]] = {}
    for line in (folder / f"diary_{rank}.txt").read_text(encoding="utf-8").splitlines():
        step, digest = line.split()
        steps.setdefault(int(step), []).append(digest)
    return {step: digests[-2:] for step, digests in steps.items()}


def weights_of_one_rank(rank: int, folder: str, halves: bool) -> dict[str, torch.Tensor]:
    """What two ranks learn, in one go or with a stop after step 4."""
    world_size = torch.distributed.get_world_size()
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    if halves:
        import shutil

        train(folder)
        torch.distributed.barrier()
        if rank == 0:
            for step in (6, 8):
                shutil.rmtree(f"{folder}/checkpoint-{step}")
        torch.distributed.barrier()
    run = train(folder)
    return {name: parameter.detach() for name, parameter in run.model.named_parameters()}


def pretrain_one_rank(rank: int, *files: str) -> bool:
    """`mm1 pretrain` by settings of one file after the other."""
    from mm1_hf.training import runs, settings

    world_size = torch.distributed.get_world_size()
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    for file in files:
        runs.train(settings.load_settings(settings.PretrainingSettings, file))
    return True


__all__ = ["LENGTH", "diary", "in_process", "pretrain_one_rank", "train", "weights_of_one_rank"]
