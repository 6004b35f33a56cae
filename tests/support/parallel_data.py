"""Trainer on rows whose tiles tell their row; a module of its own, because the processes have to import it by name."""

import os
from collections.abc import Iterator

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import AutoProcessor, Trainer, TrainingArguments

from mm1_hf import MM1ForConditionalGeneration
from mm1_hf.data.collation import MM1Collator


# Images of each row: two batches of two rows for each of two ranks, one of the four without any image, in the order of
# rows as well as where two workers take turns.
COUNTS = (3, 2, 1, 0, 0, 0, 0, 4)


def example(row: int) -> dict:
    """Row `row`, its number in its words and as the grey of its images: 32 apart, more than rounding can hide."""
    grey = Image.new("L", (56, 56), 32 * row).convert("RGB")
    return {"text": f"{row:02d}" + COUNTS[row] * "<image>" + f" row {row:02d}", "images": COUNTS[row] * [grey]}


class Rows(Dataset):
    """All rows, by number."""

    def __len__(self) -> int:
        return len(COUNTS)

    def __getitem__(self, row: int) -> dict:
        return example(row)


class Stream(IterableDataset):
    """All rows, one after the other; every worker of a rank reads its share."""

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        yield from (example(row) for row in range(first, len(COUNTS), step))


class LevelStream(Stream):
    """The same, all rows of one length."""

    def __iter__(self) -> Iterator[dict]:
        for row, number in zip(super().__iter__(), COUNTS, strict=True):
            yield {**row, "text": row["text"] + "." * 4 * (max(COUNTS) - number)}


def read(shards: list[list[int]]) -> Iterator[dict]:
    """The rows of some of a stream's shards."""
    for shard in shards:
        yield from map(example, shard)


def hub_stream(shards: int) -> datasets.IterableDataset:
    """All rows as the datasets library streams them: ranks and workers take whole shards where there are enough."""
    rows = range(len(COUNTS))
    size = len(rows) // shards
    parts = [list(rows[shard * size : (shard + 1) * size]) for shard in range(shards)]
    return datasets.IterableDataset.from_generator(read, gen_kwargs={"shards": parts})


DATASETS = {
    "rows": Rows,
    "stream": Stream,
    "level stream": LevelStream,
    "stream of 4 shards": lambda: hub_stream(4),
    "stream of 1 shard": lambda: hub_stream(1),
}


def numbers(batch: dict[str, torch.Tensor], processor) -> tuple[list[int], list[int], list[int]]:
    """The rows of a batch, the rows that its places for images belong to, and the rows that its tiles belong to."""
    rows = [int(text[:2]) for text in processor.batch_decode(batch["input_ids"])]
    tokens = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    places = [row for row, count in zip(rows, tokens, strict=True) for _ in range(count // processor.num_image_tokens)]
    if "pixel_values" not in batch:
        return rows, places, []
    image_processor = processor.image_processor
    mean = torch.tensor(image_processor.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(image_processor.image_std).view(1, 3, 1, 1)
    greys = ((batch["pixel_values"] * std + mean) * 255 / 32).mean((1, 2, 3))
    return rows, places, greys.round().int().tolist()


class Recorder(Trainer):
    """Notes which rows and tiles every step sees."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(numbers(inputs, self.data_collator.processor))
        return super().training_step(model, inputs, *args, **kwargs)


def train(folder: str, dataset: str, rows_per_step: int, steps: int, workers: int, **accelerator) -> Recorder:
    """Steps of plain gradient descent; rows come in their order."""
    processor = AutoProcessor.from_pretrained(folder)
    args = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=rows_per_step,
        dataloader_num_workers=workers,
        accelerator_config=accelerator,
        train_sampling_strategy="sequential",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Recorder(
        model=MM1ForConditionalGeneration.from_pretrained(folder),
        args=args,
        train_dataset=DATASETS[dataset](),
        data_collator=MM1Collator(processor),
    )
    trainer.seen = []
    trainer.train()
    return trainer


def train_one_rank(rank: int, folder: str, settings: dict) -> dict:
    """What this rank saw, and its weights after its steps; or the error that stopped it."""
    world_size = torch.distributed.get_world_size()
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    try:
        trainer = train(folder, **settings)
    except (RuntimeError, ValueError) as error:
        return {"error": str(error)}
    return {"seen": trainer.seen, "weights": weights(trainer)}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
