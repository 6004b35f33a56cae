"""Supervised fine-tuning: TRL's `SFTTrainer` with MM1's loss, packed rows and parts, and runs from a file of settings."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoProcessor
from trl import SFTTrainer

from mm1_hf.data.collation import MM1Collator
from mm1_hf.data.examples import ChatEncoder
from mm1_hf.data.packed_dataset import PackedDataset
from mm1_hf.training.lora import LoraPreset, lora_config
from mm1_hf.training.parts import freeze
from mm1_hf.training.recipes import Recipe, recipe
from mm1_hf.training.settings import (
    RunSettings,
    build_mixture,
    change_recipe,
    fit_tiles,
    load,
    load_model,
    split_images,
    train_and_save,
)
from mm1_hf.training.trainer import MM1Trainer


# What TRL looks at, in place of rows that it does not know: of pictures, so that it leaves them to the collator.
_STAND_IN = {"messages": [[{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]], "images": [[]]}
# What TRL's options may be here.
_FOLLOWED: dict[str, tuple[Any, ...]] = {
    "loss_type": ("nll",),
    "packing_strategy": ("bfd",),
    "completion_only_loss": (None, True),
    "pad_to_multiple_of": (None,),
}


@dataclass(frozen=True)
class SFTSettings(RunSettings):
    """
    What `mm1 sft` reads from a YAML or JSON file: [`mm1_hf.training.settings.RunSettings`], and below. Of the layouts,
    `"chat"` and `"llava_chat"` are conversations.

    Args:
        recipe:
            the preset whose mixture and images these are, such as `"mm1.5-3b"`: the model itself does not say whether it is
            an MM1 or an MM1.5.
        lora: a preset of [`mm1_hf.training.lora.lora_config`], whose adapter is then what is trained and saved.
    """

    recipe: str | None = None
    lora: LoraPreset | None = None


def load_settings(path: str | Path) -> SFTSettings:
    """
    Reads a YAML or JSON file.

    Args:
        path: of entries as [`SFTSettings`] has fields.

    Raises:
        ValueError: it is neither, or has unknown, missing or wrong entries.
        OSError: it cannot be read.
    """
    settings = load(SFTSettings, path)
    if settings.lora is not None and settings.frozen:
        raise ValueError(f"{path}: with lora={settings.lora!r} the preset says what is trained: leave out frozen.")
    return settings


def build_recipe(settings: SFTSettings, model: Any) -> Recipe:
    """
    The fine-tuning recipe with the settings' changes.

    Args:
        settings: the run's.
        model: a model or configuration, where the settings name no preset.

    Raises:
        ValueError: a source without a weight whose name the recipe does not know, or no such preset.
    """
    return change_recipe(recipe(settings.recipe or model, "sft"), settings)


def build_trainer(settings: SFTSettings) -> "MM1SFTTrainer":
    """
    The trainer of a run, with its model and its mixture.

    Args:
        settings: the run's.

    Raises:
        ValueError: settings that do not fit each other, the model or the data.
    """
    num_devices, model = load_model(settings.model, settings.arguments, settings.distributed)
    processor = AutoProcessor.from_pretrained(settings.model)
    stage = build_recipe(settings, model)
    split_images(processor, stage.data)
    fit_tiles(model, processor)
    stage.configure(model)
    freeze(model, settings.frozen)
    mixture = build_mixture(settings, stage, ChatEncoder(processor, stage.data.sequence_length, stage.data.max_images))
    return MM1SFTTrainer(
        model=model,
        args=stage.training_arguments(
            settings.output_dir, num_devices=num_devices, rows_per_device=settings.rows_per_device
        ),
        train_dataset=mixture,
        processing_class=processor,
        peft_config=None if settings.lora is None else lora_config(model, settings.lora),
        learning_rates=settings.learning_rates,
        peak_tflops=settings.peak_tflops,
    )


def sft(settings: SFTSettings) -> "MM1SFTTrainer":
    """
    Runs a fine-tuning, or goes on with one, and saves the model, or its adapter, and its processor to `output_dir`.

    Args:
        settings: the run's.

    Returns:
        The trainer, with the trained model.

    Raises:
        ValueError: settings that do not fit each other, the model or the data, or too many unusable records.
    """
    trainer = build_trainer(settings)
    print(f"{build_recipe(settings, trainer.model)}\n")
    train_and_save(trainer, settings.output_dir)
    return trainer


class _OwnLossTrainer(SFTTrainer):
    """TRL's trainer over MM1's own loss and labels, on packed rows where asked."""

    def __init__(
        self,
        model: Any,
        args: Any,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        _require_followed(args, kwargs)
        # It is changed below, and the caller's stays.
        args = copy.copy(args)
        if processing_class is None:
            path = model if isinstance(model, str) else model.config._name_or_path
            processing_class = AutoProcessor.from_pretrained(path)
        # Plain TrainingArguments, of a recipe's mixture, have neither.
        packing, max_length = getattr(args, "packing", False), getattr(args, "max_length", None)
        if packing:
            if max_length is None:
                raise ValueError("packing=True makes rows of max_length positions: set it, to 2048 as MM1 has it.")
            if data_collator is not None:
                raise ValueError("Packed rows come ready: leave out data_collator, or set packing=False.")
            encoder = ChatEncoder(processing_class, max_length)
            eval_packing = packing if args.eval_packing is None else args.eval_packing
            train_dataset = _packed(train_dataset, encoder, args.seed)
            if eval_packing:
                eval_dataset = _packed(eval_dataset, encoder, args.seed)
            args.packing = args.eval_packing = False
        if data_collator is None:
            data_collator = _RowCollator(MM1Collator(processing_class, max_length))
            if isinstance(train_dataset, datasets.Dataset | datasets.IterableDataset):
                # What is wrong with every record is told now, not after the model has been sharded.
                data_collator([next(iter(train_dataset))])
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
        # Past TRL's, to Trainer's: the model's own loss.
        return super(SFTTrainer, self).compute_loss(model, inputs, return_outputs, num_items_in_batch)


class MM1SFTTrainer(MM1Trainer, _OwnLossTrainer):
    """
    TRL's `SFTTrainer` for MM1: its arguments, data sets and adapters, with what it leaves out.

    - Only what the assistant writes is learned, by [`MM1Collator`]. TRL's own collator learns everything but padding, the
      image placeholders too, unless `assistant_only_loss=True` or the data set has prompts and completions.
    - `packing=True` makes rows of `max_length` positions out of whole conversations, their images included; TRL refuses to
      pack data with images. What the model sees of each, and its loss and gradient, are those of unpacked rows.
    - The loss is the model's own. TRL goes round the model's forward: there is no softmax z-loss, and of the router's losses
      only the balance, as Mixtral counts it.
    - Parts have learning rates of their own, and what [`MM1Trainer`] logs is logged, in place of TRL's entropy and token
      accuracy. A [`Mixture`] is trained on too.

    Nothing is truncated: a conversation longer than `max_length` is refused, when it is packed or when its batch is made.

    It takes the arguments of `SFTTrainer`, and the `learning_rates`, `source_names` and `peak_tflops` of [`MM1Trainer`]. A
    data set has `messages`, or `prompt` and `completion`, with `images` or `image` where there are any; to be packed, it is
    at hand, and not streamed.

    Raises:
        ValueError: as [`MM1Trainer`] and TRL do; records that cannot be trained on; packing a stream, without
            `max_length`, or with a collator; a chat template that does not mark what the assistant writes; options of TRL's
            own loss, labels or rows, such as `loss_type="dft"`.

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
        ValueError: an option of TRL's, for its own loss, labels or rows, that would do nothing here.
    """
    given = {name: getattr(args, name, allowed[0]) for name, allowed in _FOLLOWED.items()}
    given["formatting_func"] = kwargs.get("formatting_func")
    ignored = {name: value for name, value in given.items() if value not in _FOLLOWED.get(name, (None,))}
    if ignored:
        names = ", ".join(f"{name}={value!r}" for name, value in ignored.items())
        raise ValueError(
            f"MM1SFTTrainer has MM1's own loss, labels and rows, which {names} would not change: leave this out, or take "
            "TRL's SFTTrainer."
        )


def _packed(dataset: Any, encoder: ChatEncoder, seed: int) -> Any:
    if isinstance(dataset, dict):
        return {name: _packed(each, encoder, seed) for name, each in dataset.items()}
    if isinstance(dataset, datasets.Dataset):
        return PackedDataset(dataset, encoder, seed=seed)
    if isinstance(dataset, datasets.IterableDataset):
        raise ValueError(
            "packing=True packs a data set that is at hand; this one is a stream. Load it without streaming, or train on a "
            "mm1_hf.data.mixture.Mixture, which packs streams."
        )
    # None, or a mixture, which is packed already.
    return dataset


@dataclass
class _RowCollator:
    """Stacks packed rows, and leaves conversations to MM1's collator."""

    collator: MM1Collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if "segment_ids" not in examples[0]:
            return dict(self.collator(examples))
        # The order matters: accelerate takes a batch's size from its first entry.
        names = ("input_ids", "labels", "segment_ids")
        batch = {name: torch.stack([row[name] for row in examples]) for name in names}
        tiles = [row["pixel_values"] for row in examples if "pixel_values" in row]
        return batch | ({"pixel_values": torch.cat(tiles)} if tiles else {})
