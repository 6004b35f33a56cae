"""Supervised fine-tuning: TRL's `SFTTrainer` with MM1's loss, labels, packed rows and learning rates by part."""

import copy
from itertools import islice
from typing import Any

import datasets
import torch
from transformers import AutoProcessor
from trl import SFTTrainer

from mm1_hf.data.collation import IGNORED, MM1Collator
from mm1_hf.data.documents import Drops, Unusable
from mm1_hf.data.examples import ChatEncoder
from mm1_hf.data.packed_dataset import PackedDataset
from mm1_hf.data.wall import result_or_reason
from mm1_hf.training.trainer import MM1Trainer


# TRL inspects this in place of the data set, whose rows it does not know. The images column makes it leave
# tokenisation to the collator.
_STAND_IN = {"messages": [[{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]], "images": [[]]}
# Number of records that are tried before training.
_TRIED = 10
# The name of the data set where dropped records are counted.
_SOURCE = "the data set"
# The values of TRL's options that MM1SFTTrainer follows.
_FOLLOWED: dict[str, tuple[Any, ...]] = {
    # The default before TRL 1.15 is the same loss, computed in chunks.
    "loss_type": ("nll", "chunked_nll"),
    "packing_strategy": ("bfd",),
    "completion_only_loss": (None, True),
    "pad_to_multiple_of": (None,),
}


class _OwnLossTrainer(SFTTrainer):
    """TRL's trainer with MM1's own loss and labels, on packed rows if `packing=True`."""

    def __init__(
        self,
        model: Any,
        args: Any,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        separate_exchanges: bool = False,
        **kwargs: Any,
    ):
        _require_followed(args, kwargs)
        # A copy, because it is changed below.
        args = copy.copy(args)
        if processing_class is None:
            path = model if isinstance(model, str) else model.config._name_or_path
            processing_class = AutoProcessor.from_pretrained(path)
        # The plain TrainingArguments of a recipe have neither.
        packing, max_length = getattr(args, "packing", False), getattr(args, "max_length", None)
        if packing:
            if max_length is None:
                raise ValueError(
                    "packing=True makes rows of max_length positions, and max_length is None. Set it, for example to 2048."
                )
            if data_collator is not None:
                raise ValueError(
                    "packing=True makes rows that need no data_collator: leave it out, or set packing=False."
                )
            encoder = ChatEncoder(processing_class, max_length)
            eval_packing = packing if args.eval_packing is None else args.eval_packing
            options = {"seed": args.seed, "separate_exchanges": separate_exchanges}
            train_dataset = _packed(train_dataset, encoder, options)
            if eval_packing:
                eval_dataset = _packed(eval_dataset, encoder, options)
            args.packing = args.eval_packing = False
        elif separate_exchanges:
            raise ValueError(
                "separate_exchanges=True makes examples that share their images in a packed row, and packing is off. Set "
                "packing=True and max_length in the SFTConfig, or leave out separate_exchanges. A mixture has this option "
                "for each of its sources."
            )
        if data_collator is None:
            data_collator = _RowCollator(MM1Collator(processing_class, max_length))
            if isinstance(train_dataset, datasets.Dataset | datasets.IterableDataset):
                # A mistake that all records share is found now, not after the model has been sharded.
                data_collator.find_good_record(train_dataset)
        args.remove_unused_columns = False
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=datasets.Dataset.from_dict(_STAND_IN),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.train_dataset = train_dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Skips TRL's method and calls Trainer's, which uses the model's own loss.
        return super(SFTTrainer, self).compute_loss(model, inputs, return_outputs, num_items_in_batch)


class MM1SFTTrainer(MM1Trainer, _OwnLossTrainer):
    """
    TRL's `SFTTrainer` for MM1. It takes the same arguments, data sets and adapters, and differs in this:

    - Only what the assistant writes is a target, because [`MM1Collator`] makes the labels. TRL's own collator trains on
      everything but padding, image placeholders included, unless `assistant_only_loss=True` or the data set has prompts and
      completions.
    - `packing=True` packs whole conversations, with their images, into rows of `max_length` positions. TRL refuses to pack
      data with images. Loss and gradients are the same as with one conversation per row.
    - `separate_exchanges=True` makes every exchange of a conversation an example of its own, which does not see the others.
      In a packed row they share the conversation's images. It is for data that lists independent questions about an image
      as one conversation. See [`mm1_hf.data.shared_images.take_apart`].
    - The loss is the model's own. TRL computes its loss outside the model's forward, without the softmax z-loss and with
      only one of the router's losses, the load balance as Mixtral defines it.
    - Parts can have their own learning rates, and it logs what [`MM1Trainer`] logs instead of TRL's entropy and token
      accuracy. It can also train on a [`Mixture`].

    Nothing is truncated: a conversation longer than `max_length` is refused when it is packed or collated. A record that
    cannot be used, whatever the reason, is left out, counted and logged; too many of them stop the run.

    It takes the arguments of `SFTTrainer`, `separate_exchanges`, and `learning_rates`, `source_names` and `peak_tflops` of
    [`MM1Trainer`]. A record of the data set has `messages`, or `prompt` and `completion`, or another form of
    [`mm1_hf.data.chats.FORMS`], and its images in `images` or `image`. A data set that is packed must be loaded, not
    streamed.

    Raises:
        ValueError: what [`MM1Trainer`] and TRL refuse; too many records that cannot be used; packing of a stream, without
            `max_length`, or with a collator; `separate_exchanges` without packing; a chat template that does not mark what
            the assistant writes; options of TRL's own loss, labels or rows, such as `loss_type="dft"`.

    Example:

    ```python
    >>> from trl import SFTConfig
    >>> from mm1_hf.training.sft import MM1SFTTrainer

    >>> arguments = SFTConfig("run", packing=True, max_length=2048, use_cpu=True)
    >>> trainer = MM1SFTTrainer(model, arguments, train_dataset=dataset)  # doctest: +SKIP

    ```
    """


def _require_followed(args: Any, kwargs: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: an option of TRL's loss, labels or rows that would have no effect here.
    """
    given = {name: getattr(args, name, allowed[0]) for name, allowed in _FOLLOWED.items()}
    given["formatting_func"] = kwargs.get("formatting_func")
    ignored = {name: value for name, value in given.items() if value not in _FOLLOWED.get(name, (None,))}
    if ignored:
        names = ", ".join(f"{name}={value!r}" for name, value in ignored.items())
        raise ValueError(
            f"MM1SFTTrainer uses MM1's own loss, labels and rows, on which {names} would have no effect. Leave this out, or "
            "use TRL's SFTTrainer."
        )


def _packed(dataset: Any, encoder: ChatEncoder, options: dict[str, Any]) -> Any:
    if isinstance(dataset, dict):
        return {name: _packed(each, encoder, options) for name, each in dataset.items()}
    if isinstance(dataset, datasets.Dataset):
        return PackedDataset(dataset, encoder, **options)
    if isinstance(dataset, datasets.IterableDataset):
        raise ValueError(
            "packing=True packs a data set once, before training, but this one is a stream. Load it without streaming, or "
            "train on a mm1_hf.data.mixture.Mixture, which packs streams."
        )
    # None, or a mixture, whose rows are packed already.
    return dataset


class _RowCollator:
    """
    Stacks packed rows, and passes conversations on to MM1's collator. A conversation that cannot be collated is left out
    of its batch, counted and logged. A batch of which nothing is left becomes one without targets.
    """

    def __init__(self, collator: MM1Collator):
        self.collator = collator
        self.drops = Drops()
        # A batch of one record that can be collated.
        self._good: list[dict[str, Any]] = []

    def find_good_record(self, dataset: datasets.Dataset | datasets.IterableDataset) -> None:
        """
        Raises:
            ValueError: none of the first ten records can be collated.
        """
        errors = []
        for record in islice(dataset, _TRIED):
            try:
                self.collator([record])
            except ValueError as error:
                errors.append(error)
            else:
                self._good = [record]
                return
        if errors:
            raise errors[0]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if "segment_ids" not in examples[0]:
            return self._collated(examples)
        # The order matters: accelerate takes a batch's size from its first entry.
        names = ("input_ids", "labels", "segment_ids")
        batch = {name: torch.stack([row[name] for row in examples]) for name in names}
        tiles = [row["pixel_values"] for row in examples if "pixel_values" in row]
        return batch | ({"pixel_values": torch.cat(tiles)} if tiles else {})

    def _collated(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = result_or_reason(self.collator, examples, "the batch")
        if not isinstance(batch, Unusable):
            for _ in examples:
                self.drops.seen(_SOURCE)
            self._good = self._good or examples[:1]
            return dict(batch)
        kept = []
        for example in examples:
            # Beside a good record, so that a record of another kind is found too.
            found = result_or_reason(self.collator, [example, *self._good], "a record")
            self.drops.seen(_SOURCE, found if isinstance(found, Unusable) else None)
            if not isinstance(found, Unusable):
                kept.append(example)
                self._good = self._good or [example]
        if kept:
            return dict(self.collator(kept))
        if not self._good:
            raise batch
        batch = dict(self.collator(self._good))
        return batch | {"labels": torch.full_like(batch["labels"], IGNORED)}
