"""Batches of examples of very different cost: tiles within a budget, and the same work for every rank."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

import datasets
import numpy as np
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_pt_utils import BatchRebalanceSampler

from mm1_hf.accounting.flops import flops_formula
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.training.parallel import data_rank
from mm1_hf.training.parts import frozen_parts


# What a chat template writes around a message: two marks, the role and two line ends.
_TOKENS_PER_MESSAGE = 5
_RECORDS_AT_ONCE = 256

# Of batches `(batches,)`: their tiles, rows, longest row and positions with text.
BatchCost = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ExampleSizes:
    """
    How large the examples of a data set are, by their index.

    Args:
        tiles: `(examples,)`, of all images of each.
        text: `(examples,)`, positions that are no image token.
        tokens_per_tile: image tokens of a tile.
    """

    tiles: np.ndarray
    text: np.ndarray
    tokens_per_tile: int

    @property
    def lengths(self) -> np.ndarray:
        """`(examples,)`, all positions of each."""
        return self.text + self.tiles * self.tokens_per_tile


def measure(dataset: Any, processor: MM1Processor) -> ExampleSizes:
    """
    The sizes of examples in TRL's columns, as [`mm1_hf.data.collation.MM1Collator`] takes them. Tiles are counted exactly,
    from the heads of image files; text is tokenised without its chat template, of which a message counts as five tokens.

    Args:
        dataset: map-style, with `images` or `image` where there are any.
        processor: the model's, with the tiles that are trained on.

    Raises:
        ValueError: an image that cannot be read.

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
        # As they are stored: no image is decoded.
        for table in dataset.with_format("arrow").iter(_RECORDS_AT_ONCE):
            yield from table.to_pylist()
    else:
        yield from (dataset[index] for index in range(len(dataset)))


def _undecoded(image: Any) -> Any:
    """As the image processor takes it, of what `datasets` stores."""
    if not isinstance(image, dict):
        return image
    return image["path"] if image["bytes"] is None else image["bytes"]


def batch_cost(model_or_config: MM1ForConditionalGeneration | MM1Config, frozen: Collection[str] = ()) -> BatchCost:
    """
    The floating-point operations of a training step on padded batches, by [`mm1_hf.accounting.flops`]; every position with
    text counts as a target.

    Args:
        model_or_config: an MM1 or its configuration.
        frozen: parts that are not trained.

    Returns:
        A function of arrays `(batches,)`: tiles, rows, longest row, positions with text.
    """
    formula = flops_formula(model_or_config)

    def cost(tiles: np.ndarray, rows: np.ndarray, longest: np.ndarray, text: np.ndarray) -> np.ndarray:
        pairs: Any = rows * longest * (longest + 1) / 2
        sizes: dict[str, Any] = {"positions": rows * longest, "tiles": tiles, "targets": text, "pairs": pairs}
        total: Any = formula.training(**sizes, frozen=frozen).total
        return total

    return cost


class BalancedBatchSampler(BatchRebalanceSampler):
    """
    The batches of one rank, where examples differ in tiles and text. `Trainer` takes it for its own
    `BatchRebalanceSampler`, which knows text alone, and leaves it as it is.

    An optimizer step has the examples that it would have without it, `batch_size * ranks * accumulation` in the order of
    a shuffle. They are dealt out so that no batch has more than `max_tiles` tiles and batches cost the same; of those that
    still differ, similar ones run at the same time. Batches differ in rows, which the loss does not see: Trainer divides by
    the targets of the whole step. What does not fit in a step's budget comes with the next one.

    All ranks draw the same plan from the same seed, without a word between them. At the end of an epoch up to `ranks - 1`
    examples come twice, so that no rank is without a batch.

    Args:
        sizes: of the data set's examples.
        cost: of batches, such as [`batch_cost`] gives.
        batch_size: rows of a batch on average.
        max_tiles: of a batch; unset, any number.
        ranks: with data of their own.
        rank: this one.
        accumulation: batches of a rank in a step.
        shuffle: whether the order is drawn, anew in each epoch.
        seed: of the order.
        drop_last: whether the examples that are no whole step any more are left out.

    Raises:
        ValueError: an example with more tiles than `max_tiles`.

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
        lengths = sizes.lengths
        super().__init__(
            lengths.tolist(), batch_size * ranks * accumulation, ranks, accumulation, shuffle, seed, rank, drop_last
        )
        self.sizes, self.cost = sizes, cost
        self.max_tiles = max_tiles
        largest = int(sizes.tiles.argmax())
        if max_tiles is not None and sizes.tiles[largest] > max_tiles:
            raise ValueError(
                f"Example {largest} has {sizes.tiles[largest]} tiles, more than max_tiles={max_tiles}. Images are never "
                "cut: allow more, split images into fewer tiles (max_tiles of the image processor), or leave it out."
            )
        self._costs = cost(sizes.tiles, np.ones_like(lengths), lengths, sizes.text)
        self._planned: tuple[int, list[list[list[int]]]] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        return iter(batches[self.rank] for batches in self.plan())

    def __len__(self) -> int:
        return len(self.plan())

    def plan(self) -> list[list[list[int]]]:
        """The batches of all ranks in this epoch, by the time that they run at: `(times, ranks)` lists of examples."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, list(self._batches())
        return self._planned[1]

    def _batches(self) -> Iterator[list[list[int]]]:
        order = np.arange(len(self.lengths))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        waiting: list[int] = []
        coming, size = 0, self.effective_batch_size
        while waiting or coming < len(order):
            new = order[coming : coming + size - len(waiting)].tolist()
            coming += len(new)
            examples, times = waiting + new, self.grad_accum
            if len(examples) < size:
                if self.drop_last:
                    return
                times = -(-len(examples) * self.grad_accum // size)
                # Those of the beginning once more, as in torch's DistributedSampler.
                missing = times * self.dp_size - len(examples)
                examples += [int(order[index % len(order)]) for index in range(missing)]
            batches, waiting = self._deal(examples, times * self.dp_size, len(waiting))
            yield from self._in_time(batches)

    def _deal(self, examples: list[int], number: int, due: int) -> tuple[list[list[int]], list[int]]:
        """So many batches of the same cost, and what did not fit; the first `due` examples did not fit before."""
        batches: list[list[int]] = [[] for _ in range(number)]
        tiles, rows, longest, text = np.zeros((4, number), dtype=np.int64)
        waiting = []
        # The most expensive first, each to where it leaves the cheapest batch: padding counts.
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
        """Batches of similar cost at the same time, and no rank always with the dearer ones."""
        ranked = [batches[index] for index in np.argsort(-self._batch_costs(batches), kind="stable")]
        for time, start in enumerate(range(0, len(ranked), self.dp_size)):
            at_once = ranked[start : start + self.dp_size]
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
    `Trainer` whose map-style training data comes in the batches of a [`BalancedBatchSampler`]. It goes in front of any
    other trainer: `class BalancedSFTTrainer(BalancedTrainer, SFTTrainer)`.

    Args:
        args, kwargs: those of the trainer behind it.
        example_sizes: of the training data, which [`measure`] takes; unset, data is read as without it.
        max_tiles: of a batch on one device; unset, any number.

    Raises:
        ValueError: when training begins: sizes of another data set, or an example with more tiles than `max_tiles`.
    """

    def __init__(
        self, *args: Any, example_sizes: ExampleSizes | None = None, max_tiles: int | None = None, **kwargs: Any
    ):
        if max_tiles is not None and example_sizes is None:
            raise ValueError("max_tiles needs the sizes of the examples: give example_sizes, as measure() makes them.")
        self.example_sizes, self.max_tiles = example_sizes, max_tiles
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sizes = self.example_sizes
        if sizes is None:
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        examples = len(dataset)
        if len(sizes.tiles) != examples:
            raise ValueError(
                f"example_sizes are those of {len(sizes.tiles)} examples, but the training data has {examples}: measure "
                "the data set that is trained on."
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

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        batches: Any = loader.batch_sampler
        sampler = getattr(batches, "batch_sampler", None)
        if isinstance(sampler, BalancedBatchSampler):
            # accelerate's wrapper on several ranks: of a run that is resumed Trainer reaches this one, not the one inside.
            batches.set_epoch = sampler.set_epoch
        return loader
