"""
Batches for data sets whose examples differ greatly in cost: no batch has more tiles than a limit, and all ranks get
about the same work.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

import datasets
import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from mm1_hf.accounting.flops import flops_formula
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.training.parallel import data_rank
from mm1_hf.training.parts import frozen_parts


# Tokens that a chat template adds to a message: a start mark, the role, an end mark and two line breaks.
_TOKENS_PER_MESSAGE = 5
_RECORDS_AT_ONCE = 256

# Gives the cost of each batch from four arrays `(batches,)`: its tiles, its examples, the length of its longest
# example and its positions with text.
BatchCost = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ExampleSizes:
    """
    Sizes of the examples of a data set, in the order of the data set.

    Args:
        tiles: `(examples,)`, number of tiles of each example, over all its images.
        text: `(examples,)`, number of positions of each example that are not image tokens.
        tokens_per_tile: number of image tokens of one tile.
    """

    tiles: np.ndarray
    text: np.ndarray
    tokens_per_tile: int

    @property
    def lengths(self) -> np.ndarray:
        """`(examples,)`, number of positions of each example, image tokens included."""
        return self.text + self.tiles * self.tokens_per_tile


def measure(dataset: Any, processor: MM1Processor) -> ExampleSizes:
    """
    Measures the examples of a data set. Its records have TRL's columns, as [`mm1_hf.data.collation.MM1Collator`]
    accepts them. Tiles are counted exactly, from the headers of the image files. Text is tokenised without the chat
    template; instead, every message counts as five extra tokens.

    Args:
        dataset: map-style data set. Images are read from the columns `images` or `image` and from the messages.
        processor: processor of the model, with the image splitting that is used in training.

    Raises:
        ValueError: an image cannot be read.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import GPT2Tokenizer
    >>> from mm1_hf import MM1ImageProcessor, MM1Processor
    >>> from mm1_hf.training.balancing import measure

    >>> tokenizer = GPT2Tokenizer(eos_token="<eos>").train_new_from_iterator(["A cat."], vocab_size=300)
    >>> _ = tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    >>> image_processor = MM1ImageProcessor(size={"height": 56, "width": 56})
    >>> processor = MM1Processor(image_processor, tokenizer, num_image_tokens=4)
    >>> sizes = measure([{"text": "A cat.", "images": [Image.new("RGB", (900, 100))]}, {"text": "A"}], processor)
    >>> sizes.tiles.tolist(), (sizes.lengths - sizes.text).tolist()
    ([10, 0], [40, 0])

    ```
    """
    tiles, text = [], []
    for record in _records(dataset):
        chats = [record[name] for name in ("messages", "prompt", "completion") if isinstance(record.get(name), list)]
        messages = [message for chat in chats for message in chat]
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        written = [record[name] for name in ("prompt", "completion", "text") if isinstance(record.get(name), str)]
        written += [message["content"] for message in messages if isinstance(message["content"], str)]
        written += [part["text"] for part in parts if part.get("text")]
        images = record.get("images") or [record.get("image")]
        images = [*images, *(part.get(key) for part in parts for key in ("image", "url", "path", "base64"))]
        layouts = processor.image_processor.get_layouts(
            processor.image_processor.image_sizes([[_undecoded(image) for image in images if image is not None]])
        )
        tiles.append(sum(layout.num_tiles for layout in layouts[0]))
        tokens = processor.tokenizer(written, add_special_tokens=False)["input_ids"] if written else []
        text.append(sum(map(len, tokens)) + _TOKENS_PER_MESSAGE * len(messages))
    return ExampleSizes(np.array(tiles), np.array(text), processor.num_image_tokens)


def _records(dataset: Any) -> Iterator[dict[str, Any]]:
    if isinstance(dataset, datasets.Dataset):
        # Arrow tables hold the stored bytes or paths of images, so no image is decoded.
        for table in dataset.with_format("arrow").iter(_RECORDS_AT_ONCE):
            yield from table.to_pylist()
    else:
        yield from (dataset[index] for index in range(len(dataset)))


def _undecoded(image: Any) -> Any:
    """The image as the image processor accepts it; `datasets` stores it as a dictionary of its bytes and its path."""
    if not isinstance(image, dict):
        return image
    return image["path"] if image["bytes"] is None else image["bytes"]


def batch_cost(model_or_config: MM1ForConditionalGeneration | MM1Config, frozen: Collection[str] = ()) -> BatchCost:
    """
    A function that gives the floating-point operations of training on padded batches, counted as in
    [`mm1_hf.accounting.flops`]. It counts every position with text as a target.

    Args:
        model_or_config: an MM1 or its configuration.
        frozen: names of the parts that are not trained.

    Returns:
        A function of four arrays `(batches,)`: number of tiles, number of examples, length of the longest example and
        number of positions with text. It returns the cost of each batch, `(batches,)`.
    """
    formula = flops_formula(model_or_config)

    def cost(tiles: np.ndarray, rows: np.ndarray, longest: np.ndarray, text: np.ndarray) -> np.ndarray:
        pairs: Any = rows * longest * (longest + 1) / 2
        sizes: dict[str, Any] = {"positions": rows * longest, "tiles": tiles, "targets": text, "pairs": pairs}
        total: Any = formula.training(**sizes, frozen=frozen).total
        return total

    return cost


class BalancedBatchSampler(Sampler[list[int]]):
    """
    Makes the batches of one rank from examples that differ in their numbers of tiles and in the length of their text.
    (transformers' `BatchRebalanceSampler` balances by length only.)

    Each optimizer step uses the next `batch_size * ranks * accumulation` examples of the shuffled order, as a step
    without this sampler does. The sampler distributes them over batches so that no batch has more than `max_tiles`
    tiles and all batches cost about the same. The costs still differ a little, so batches of similar cost run at the
    same time on the ranks. Batches may have different numbers of examples. This does not change the loss, because
    Trainer divides the summed loss by the number of targets of the whole step. Examples that do not fit in a step
    because of `max_tiles` move to the next step.

    All ranks compute the same plan from the same seed, without communication. At the end of an epoch up to `ranks - 1`
    examples are repeated, so that every rank has a batch.

    Args:
        sizes: sizes of the examples of the data set.
        cost: function that gives the cost of batches, as [`batch_cost`] returns it.
        batch_size: average number of examples in a batch.
        max_tiles: largest number of tiles in a batch; unset, there is no limit.
        ranks: number of ranks that read different data.
        rank: index of this rank among them, counted from 0.
        accumulation: number of batches of one rank in an optimizer step.
        shuffle: whether to shuffle the examples, anew in each epoch.
        seed: seed of the shuffle.
        drop_last: whether to drop the last examples of an epoch if they are too few for a whole step.

    Raises:
        ValueError: an example has more tiles than `max_tiles`.

    Example:

    ```python
    >>> import numpy as np
    >>> from mm1_hf import MM1Config
    >>> from mm1_hf.training.balancing import BalancedBatchSampler, ExampleSizes, batch_cost

    >>> sizes = ExampleSizes(np.array([10, *[1] * 7]), np.full(8, 20), tokens_per_tile=4)
    >>> cost = batch_cost(MM1Config.from_preset("mm1-tiny"))
    >>> options = {"batch_size": 4, "max_tiles": 10, "ranks": 2, "shuffle": False}
    >>> [list(BalancedBatchSampler(sizes, cost, rank=rank, **options)) for rank in range(2)]
    [[[1, 2, 3, 4, 5, 6, 7]], [[0]]]

    ```
    """

    def __init__(
        self,
        sizes: ExampleSizes,
        cost: BatchCost,
        *,
        batch_size: int,
        max_tiles: int | None = None,
        ranks: int = 1,
        rank: int = 0,
        accumulation: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ):
        self.sizes, self.cost = sizes, cost
        self.lengths = lengths = sizes.lengths
        self.examples_per_step = batch_size * ranks * accumulation
        self.max_tiles, self.ranks, self.rank, self.accumulation = max_tiles, ranks, rank, accumulation
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch = 0
        largest = int(sizes.tiles.argmax())
        if max_tiles is not None and sizes.tiles[largest] > max_tiles:
            raise ValueError(
                f"Example {largest} has {sizes.tiles[largest]} tiles, more than max_tiles={max_tiles}. No tile is "
                "ever dropped: raise max_tiles, leave it unset, split images into fewer tiles (max_tiles of the "
                "image processor), or remove the example."
            )
        self._costs = cost(sizes.tiles, np.ones_like(lengths), lengths, sizes.text)
        self._planned: tuple[int, list[list[list[int]]]] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        return iter(batches[self.rank] for batches in self.plan())

    def __len__(self) -> int:
        return len(self.plan())

    def set_epoch(self, epoch: int) -> None:
        """
        Sets the epoch, which decides the order of the examples.

        Args:
            epoch: index of the epoch, counted from 0.
        """
        self.epoch = epoch

    @property
    def sampler(self) -> "BalancedBatchSampler":
        """
        Itself: accelerate sets the epoch of a batch sampler's `sampler`. On transformers 5.16, nothing else sets the epoch
        after the batches of a checkpoint were skipped.
        """
        return self

    def plan(self) -> list[list[list[int]]]:
        """
        The batches of all ranks in this epoch: a list of forward passes, each with one batch for each rank. A batch is
        a list of example indices.
        """
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, list(self._batches())
        return self._planned[1]

    def _batches(self) -> Iterator[list[list[int]]]:
        order = np.arange(len(self.lengths))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        waiting: list[int] = []
        coming, size = 0, self.examples_per_step
        while waiting or coming < len(order):
            new = order[coming : coming + size - len(waiting)].tolist()
            coming += len(new)
            examples, times = waiting + new, self.accumulation
            if len(examples) < size:
                if self.drop_last:
                    return
                times = -(-len(examples) * self.accumulation // size)
                # Repeats examples from the beginning of the epoch, as torch's DistributedSampler does.
                missing = times * self.ranks - len(examples)
                examples += [int(order[index % len(order)]) for index in range(missing)]
            batches, waiting = self._deal(examples, times * self.ranks, len(waiting))
            yield from self._in_time(batches)

    def _deal(self, examples: list[int], number: int, due: int) -> tuple[list[list[int]], list[int]]:
        """
        Distributes examples over `number` batches of about the same cost, and returns the batches and the examples
        that did not fit. The first `due` examples did not fit in the previous step, and are placed first.
        """
        batches: list[list[int]] = [[] for _ in range(number)]
        tiles, rows, longest, text = np.zeros((4, number), dtype=np.int64)
        waiting = []
        # The most expensive examples come first. Each goes to the batch whose cost with this example, padding
        # included, is the lowest.
        for example in [*examples[:due], *sorted(examples[due:], key=lambda example: -self._costs[example])]:
            own = self.sizes.tiles[example]
            added = self.cost(
                tiles + own,
                rows + 1,
                np.maximum(longest, self.lengths[example]),
                text + self.sizes.text[example],
            )
            if self.max_tiles is not None:
                added = np.where(tiles + own > self.max_tiles, np.inf, added)
            batch = int(added.argmin())
            if added[batch] == np.inf:
                waiting.append(example)
                continue
            batches[batch].append(example)
            tiles[batch] += own
            rows[batch] += 1
            longest[batch] = max(longest[batch], self.lengths[example])
            text[batch] += self.sizes.text[example]
        return batches, waiting

    def _in_time(self, batches: list[list[int]]) -> Iterator[list[list[int]]]:
        """
        Yields the batches of each forward pass, one for each rank. Batches of similar cost run in the same pass. The
        order is reversed in every other pass, so that no rank always gets the most expensive batch.
        """
        ranked = [batches[index] for index in np.argsort(-self._batch_costs(batches), kind="stable")]
        for time, start in enumerate(range(0, len(ranked), self.ranks)):
            at_once = ranked[start : start + self.ranks]
            yield at_once[::-1] if time % 2 else at_once

    def _batch_costs(self, batches: list[list[int]]) -> np.ndarray:
        lengths, sizes = self.sizes.lengths, self.sizes
        return self.cost(
            np.array([sizes.tiles[batch].sum() for batch in batches]),
            np.array([len(batch) for batch in batches]),
            np.array([lengths[batch].max() for batch in batches]),
            np.array([sizes.text[batch].sum() for batch in batches]),
        )


class BalancedTrainer(Trainer):
    """
    `Trainer` that trains on the batches of a [`BalancedBatchSampler`], for map-style data sets. To combine it with
    another trainer, name it first among the base classes: `class BalancedSFTTrainer(BalancedTrainer, SFTTrainer)`.

    Args:
        args, kwargs: arguments of the other trainer.
        example_sizes: sizes of the training examples, from [`measure`]; unset, the other trainer makes the batches.
        max_tiles: largest number of tiles in a batch on one device; unset, there is no limit.

    Raises:
        ValueError: `max_tiles` without `example_sizes`. When training begins: sizes of another data set, or an example
            with more tiles than `max_tiles`.
    """

    def __init__(
        self, *args: Any, example_sizes: ExampleSizes | None = None, max_tiles: int | None = None, **kwargs: Any
    ):
        if max_tiles is not None and example_sizes is None:
            raise ValueError(
                "max_tiles needs the sizes of the examples: also give example_sizes, as returned by "
                "mm1_hf.training.balancing.measure."
            )
        self.example_sizes, self.max_tiles = example_sizes, max_tiles
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        # Trainer's own loader tells which columns and which collator are used.
        given = super().get_train_dataloader()
        if self.example_sizes is None:
            return given
        loader = DataLoader(
            given.dataset,
            batch_sampler=self._balanced_batches(self.example_sizes, len(cast(Any, given.dataset))),
            collate_fn=given.collate_fn,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.accelerator.is_available(),
            worker_init_fn=given.worker_init_fn,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        # As for one process, because accelerate would distribute the batches over the ranks a second time.
        return prepare_data_loader(
            loader,
            device=self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
        )

    def _balanced_batches(self, sizes: ExampleSizes, examples: int) -> BalancedBatchSampler:
        if len(sizes.tiles) != examples:
            raise ValueError(
                f"example_sizes holds the sizes of {len(sizes.tiles)} examples, but the training data has {examples} "
                "examples: give the sizes that mm1_hf.training.balancing.measure returns for this training data."
            )
        modules = cast(nn.Module, self.model).modules()
        model = next(module for module in modules if isinstance(module, MM1ForConditionalGeneration))
        rank, ranks = data_rank(self.accelerator)
        return BalancedBatchSampler(
            sizes,
            batch_cost(model, frozen_parts(model)),
            batch_size=self._train_batch_size,
            max_tiles=self.max_tiles,
            ranks=ranks,
            rank=rank,
            accumulation=self.args.gradient_accumulation_steps,
            shuffle=self.args.train_sampling_strategy != "sequential",
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            drop_last=self.args.dataloader_drop_last,
        )
