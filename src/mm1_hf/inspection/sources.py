"""Where the rows that one looks at come from: chats in TRL's columns, documents of any layout, a mixture's packed rows."""

import copy
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import AutoConfig, AutoProcessor

from mm1_hf.data.chats import IMAGE_KEYS, Chat, images_of
from mm1_hf.data.collation import MM1Collator
from mm1_hf.data.documents import Document, Unusable
from mm1_hf.data.examples import ChatEncoder, Example, ExampleEncoder
from mm1_hf.data.layouts import FOLDER, LAYOUTS, image_of_part, unwrapped
from mm1_hf.data.packing import build_row
from mm1_hf.data.readers import read, read_records
from mm1_hf.inspection.rows import InspectedRow, RowImage, read_tiles, read_tokens
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.tiling import image_layout, sample_layouts
from mm1_hf.training import pretraining, sft
from mm1_hf.training.resolution import connector_for
from mm1_hf.training.settings import build_mixture, split_images


CHAT = "chat"
Labels = Literal["mm1", "trl"]

# Longer than any row: a document is looked at as a whole.
_ANY_LENGTH = 1 << 24


def inspect_chat(
    processor: MM1Processor, example: Mapping[str, Any], title: str, labels: Labels = "mm1"
) -> InspectedRow:
    """
    An example in TRL's columns.

    Args:
        processor: the model's own.
        example: `messages`, `prompt` and `completion`, or `text`; with pictures, where there are any, in `images` or in the
            parts of messages.
        title: where it comes from.
        labels: `"trl"` shows the labels of TRL's collator, with its own defaults, beside those of [`MM1Collator`].

    Raises:
        ValueError: columns that MM1Collator cannot read, or TRL is asked for and not installed.
    """
    example = _gathered(example, title)
    batches = {"mm1": MM1Collator(processor)([_copied(example)])}
    if labels == "trl":
        batches["trl"] = _trl_batch(processor, _copied(example))
    sizes = processor.image_processor.image_sizes([example["images"]])[0]
    images = [
        RowImage(height, width, layout)
        for (height, width), layout in zip(
            sizes, sample_layouts(sizes, processor.image_processor.tiling_config()), strict=True
        )
    ]
    tiles = read_tiles(images, batches["mm1"].get("pixel_values"), processor.image_processor)
    readings = [
        read_tokens(
            name,
            processor,
            batch["input_ids"][0].tolist(),
            batch["labels"][0].tolist(),
            batch["attention_mask"][0].tolist(),
            len(tiles),
        )
        for name, batch in batches.items()
    ]
    return InspectedRow(title, (title,), tuple(images), tiles, tuple(readings), processor.num_image_tokens)


def _gathered(example: Mapping[str, Any], title: str) -> dict[str, Any]:
    """An example whose pictures all stand beside its messages, in reading order."""
    beside, images = iter(images_of(example)), []
    columns = {name: value for name, value in example.items() if name not in ("image", FOLDER)}
    for name in ("messages", "prompt", "completion"):
        if not isinstance(example.get(name), list):
            continue
        columns[name] = []
        for message in example[name]:
            content = message.get("content") if isinstance(message, Mapping) else None
            if isinstance(content, list):
                parts = []
                for part in content:
                    if isinstance(part, Mapping) and part.get("type") == "image":
                        own = {key: part[key] for key in IMAGE_KEYS if part.get(key) is not None}
                        images += [image_of_part(own, example, title).load()] if own else islice(beside, 1)
                        part = {"type": "image"}
                    parts.append(part)
                message = {**message, "content": parts}
            columns[name].append(message)
    return columns | {"images": [*images, *beside]}


def _copied(example: dict[str, Any]) -> dict[str, Any]:
    """TRL's collator changes what it is given. Pictures are shared."""
    columns = {name: copy.deepcopy(value) for name, value in example.items() if name != "images"}
    return columns | {"images": list(example["images"])}


def _trl_batch(processor: MM1Processor, example: dict[str, Any]) -> dict[str, torch.Tensor]:
    try:
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
    except ImportError as error:
        raise ValueError("TRL's labels are made by TRL, which is not installed: pip install trl") from error
    # SFTTrainer's own choice for data of a prompt and a completion.
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss="completion" in example)
    return collator([example])


def inspect_document(processor: MM1Processor, document: Document) -> InspectedRow:
    """
    A document as pre-training learns it, or a conversation as fine-tuning does, whole: in a row it may be cut or have
    neighbours.

    Args:
        processor: the model's own.
        document: any.

    Raises:
        Unusable: nothing to learn, or an image that is broken.
    """
    encoder = (ChatEncoder if isinstance(document, Chat) else ExampleEncoder)(processor, _ANY_LENGTH)
    (pieces,) = encoder.encode([document])
    if isinstance(pieces, Unusable):
        raise pieces
    return inspect_packed(encoder, pieces, sum(len(piece.input_ids) for piece in pieces), document.name)


def inspect_packed(
    encoder: ExampleEncoder, examples: Sequence[Example], sequence_length: int, title: str
) -> InspectedRow:
    """
    Examples that share a row.

    Args:
        encoder: which made them.
        examples: in their order.
        sequence_length: positions of the row.
        title: where it comes from.

    Raises:
        Unusable: an image that is broken.
    """
    processor = encoder.processor
    config = processor.image_processor.tiling_config()
    images = []
    for example in examples:
        for image, splits in zip(example.images, example.splits, strict=True):
            height, width = image.size()
            images.append(RowImage(height, width, image_layout(height, width, config, splits)))
    pixels = [encoder.pixel_values(example) for example in examples if example.images]
    tiles = read_tiles(images, torch.cat(pixels) if pixels else None, processor.image_processor)
    row = build_row(examples, sequence_length)
    columns = (row[name].tolist() for name in ("input_ids", "labels", "segment_ids"))
    reading = read_tokens("mm1", processor, *columns, len(tiles))
    names = tuple(example.name for example in examples)
    return InspectedRow(title, names, tuple(images), tiles, (reading,), processor.num_image_tokens)


def inspect_data(
    model: str | Path,
    data: str | Path,
    *,
    layout: str = CHAT,
    split: str = "train",
    row: int = 0,
    labels: Labels = "mm1",
) -> InspectedRow:
    """
    A row of any data set.

    Args:
        model: a saved model's folder or Hub id; only its processor is read.
        data: a file, folder, pattern or Hub id, as [`mm1_hf.data.readers.read`] takes them.
        layout: `"chat"` for TRL's columns, or a name in [`mm1_hf.data.layouts.LAYOUTS`].
        split: of the data set.
        row: its number, from 0.
        labels: see [`inspect_chat`].

    Raises:
        ValueError: there is no such layout or row, the row cannot be read, or TRL's labels are asked for documents.
    """
    processor = AutoProcessor.from_pretrained(model)
    title = f"row {row} of {data}"
    if layout != CHAT:
        if labels == "trl":
            raise ValueError(
                f"TRL's trainers read chats, not documents: leave out layout {layout!r}, or TRL's labels."
            )
        records = read(data, layout, split=split)
        return inspect_document(processor, LAYOUTS[layout](_record(records, row, data), title))
    record = dict(unwrapped(_record(read_records(data, split=split), row, data), title))
    given = record.pop("image", None) if "images" not in record else record.pop("images")
    given = [] if given is None else given if isinstance(given, list) else [given]
    record["images"] = [image_of_part({"image": image}, record, title).load() for image in given]
    return inspect_chat(processor, _without_empty(record), title, labels)


def _record(records: Any, row: int, data: str | Path) -> Mapping[str, Any]:
    found = next(islice(records, row, None), None)
    if found is None:
        raise ValueError(f"{data} has no row {row}; it has {len(records)}, counted from 0.")
    return found


def _without_empty(value: Any) -> Any:
    """Without the entries that tables fill up with nothing, so that a text part has no `image`."""
    if isinstance(value, dict):
        return {name: _without_empty(entry) for name, entry in value.items() if entry is not None}
    return [_without_empty(entry) for entry in value] if isinstance(value, list) else value


def inspect_mixture(settings: pretraining.PretrainingSettings | sft.SFTSettings, row: int = 0) -> InspectedRow:
    """
    A packed row of a run, as a single device reads it.

    Args:
        settings: as `load_settings` of [`mm1_hf.training.pretraining`] or of [`mm1_hf.training.sft`] reads them.
        row: its number, from 0.

    Raises:
        ValueError: settings that do not fit each other, the model or the data.
    """
    processor = AutoProcessor.from_pretrained(settings.model)
    config = AutoConfig.from_pretrained(settings.model)
    if isinstance(settings, sft.SFTSettings):
        stage, kind = sft.build_recipe(settings, config), ChatEncoder
    else:
        stage, kind = pretraining.build_recipe(settings, config), ExampleEncoder
    split_images(processor, stage.data)
    # As fit_tiles does it to the run's model, which is not loaded here.
    processor.num_image_tokens = cast(int, connector_for(config, processor.image_processor.size["height"]).num_tokens)
    encoder = kind(processor, stage.data.sequence_length, stage.data.max_images)
    mixture = build_mixture(settings, stage, encoder)
    mixture.split(0, 1, settings.rows_per_device)
    source, examples = next(islice(mixture.packed_examples(), row, None))
    title = f"row {row} of the mixture, from {source}"
    return inspect_packed(mixture.encoder, examples, stage.data.sequence_length, title)
