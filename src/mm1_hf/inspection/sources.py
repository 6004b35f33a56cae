"""Builds rows to inspect from chats in TRL's columns, documents of any layout, or the packed rows of a mixture."""

import copy
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import AutoConfig, AutoProcessor

from mm1_hf.data.chats import Chat, Conversation, read_conversation
from mm1_hf.data.collation import MM1Collator
from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.examples import ChatEncoder, Example, ExampleEncoder
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.media import given_image, require_read
from mm1_hf.data.messages import Message, image_columns
from mm1_hf.data.packing import build_row
from mm1_hf.data.raw_records import unwrapped
from mm1_hf.data.readers import read, read_records
from mm1_hf.data.tables import row_of
from mm1_hf.data.two_captions import TwoCaptions
from mm1_hf.data.wall import around_record
from mm1_hf.inspection.rows import InspectedRow, RowImage, read_tiles, read_tokens
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.tiling import image_layout, sample_layouts
from mm1_hf.training.resolution import connector_for
from mm1_hf.training.runs import build_mixture, split_images
from mm1_hf.training.settings import RunSettings, build_recipe


CHAT = "chat"
Labels = Literal["mm1", "trl"]

# Longer than any document, so that a document is inspected as a whole.
_ANY_LENGTH = 1 << 24


def inspect_chat(
    processor: MM1Processor, example: Mapping[str, Any], title: str, labels: Labels = "mm1"
) -> InspectedRow:
    """
    Inspects an example in TRL's columns.

    Args:
        processor: the model's processor.
        example: record with `messages`, with `prompt` and `completion`, with another form of
            [`mm1_hf.data.chats.FORMS`], or with `text`. Its images, if it has any, are in `images`, in `image` or in the
            parts of its messages.
        title: where the example comes from.
        labels: `"trl"` shows the labels of TRL's collator with its default settings, beside those of [`MM1Collator`].

    Raises:
        ValueError: MM1Collator cannot read the columns, or `labels` is `"trl"` and TRL is not installed.
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
    """The example in TRL's columns, with all its images in `images`, in reading order, and in no part of its messages."""
    chat = read_conversation(example, title)
    if chat is None:
        images = image_columns(example, title)
        require_read(example, ("text", "images", "image"), len(images), title)
        columns = {"text": example["text"]} if "text" in example else dict(example)
    else:
        images = [part["image"] for message in chat.messages for part in message["content"] if "image" in part]
        columns = _columns(chat) | ({"tools": chat.tools} if chat.tools else {})
    return columns | {"images": [_opened(given_image(image, example, title)) for image in images]}


def _columns(chat: Conversation) -> dict[str, list[Message]]:
    messages = [
        {**message, "content": [{k: v for k, v in part.items() if k != "image"} for part in message["content"]]}
        for message in chat.messages
    ]
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(answers) > chat.given_turns and (chat.given_turns or chat.form == "prompt and completion"):
        begin = answers[chat.given_turns]
        return {"prompt": messages[:begin], "completion": messages[begin:]}
    return {"messages": messages}


def _opened(image: Any) -> Any:
    return ImagePart(image).load() if isinstance(image, bytes | str) else image


def _copied(example: dict[str, Any]) -> dict[str, Any]:
    """Copies an example, because TRL's collator changes its input. The images themselves are not copied."""
    columns = {name: copy.deepcopy(value) for name, value in example.items() if name != "images"}
    return columns | {"images": list(example["images"])}


def _trl_batch(processor: MM1Processor, example: dict[str, Any]) -> dict[str, torch.Tensor]:
    try:
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
    except ImportError as error:
        raise ValueError("The labels 'trl' need TRL, which is not installed: run pip install trl") from error
    # SFTTrainer makes the same choice for data with a prompt and a completion.
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss="completion" in example)
    return collator([example])


def inspect_document(processor: MM1Processor, document: Document) -> InspectedRow:
    """
    Inspects a document as pre-training encodes it, or a conversation as fine-tuning encodes it. It is shown as a
    whole; in a packed row it may be cut into pieces and share the row with others. Of an image with two captions, which
    training draws one of, both are shown.

    Args:
        processor: the model's processor.
        document: the document or conversation.

    Raises:
        Unusable: the document has no targets, or one of its images is broken.
    """
    encoder = (ChatEncoder if isinstance(document, Chat) else ExampleEncoder)(processor, _ANY_LENGTH)
    examples: list[Example] = []
    for pieces in encoder.encode([document, document.synthetic] if isinstance(document, TwoCaptions) else [document]):
        if isinstance(pieces, Unusable):
            raise pieces
        examples += pieces
    return inspect_packed(encoder, examples, sum(len(piece.input_ids) for piece in examples), document.name)


def inspect_packed(
    encoder: ExampleEncoder, examples: Sequence[Example], sequence_length: int, title: str
) -> InspectedRow:
    """
    Inspects a row of examples.

    Args:
        encoder: the encoder that made the examples.
        examples: examples of the row, in order.
        sequence_length: number of positions of the row.
        title: where the row comes from.

    Raises:
        Unusable: an image is broken.
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
    image_folder: str | Path | None = None,
) -> InspectedRow:
    """
    Inspects a record of a data set.

    Args:
        model: folder or Hub id of a saved model; only its processor is loaded.
        data: file, folder, pattern or Hub id of the data set, as for [`mm1_hf.data.readers.read`].
        layout: `"chat"` for TRL's columns, or a name in [`mm1_hf.data.layouts.LAYOUTS`].
        split: split of the data set.
        row: index of the record, counted from 0.
        labels: see [`inspect_chat`].
        image_folder: folder where the relative paths of the images start, as for [`mm1_hf.data.readers.read`].

    Raises:
        ValueError: there is no such layout, record or `image_folder`, the record cannot be read, or `labels` is
            `"trl"` for documents.
    """
    processor = AutoProcessor.from_pretrained(model)
    title = f"row {row} of {data}"
    if layout != CHAT:
        if labels == "trl":
            raise ValueError(
                f"TRL's trainers read chats, not documents: leave out layout {layout!r}, or the labels 'trl'."
            )
        records = read(data, layout, split=split, image_folder=image_folder)
        return inspect_document(processor, LAYOUTS[layout](_record(records, row, data), title))
    records = read_records(data, split=split, image_folder=image_folder)
    with around_record(title):
        return inspect_chat(processor, unwrapped(_record(records, row, data), title), title, labels)


def _record(records: Any, row: int, data: str | Path) -> Mapping[str, Any]:
    if not 0 <= row < len(records):
        raise ValueError(f"{data} has no row {row}; it has {len(records)} row(s), counted from 0.")
    # The rows before it may be ones that cannot be read.
    return row_of(records, row, f"row {row} of {data}")


def inspect_mixture(settings: RunSettings, row: int = 0) -> InspectedRow:
    """
    A packed row of a run, as a single device reads it.

    Args:
        settings: a `PretrainingSettings` or `SFTSettings` of [`mm1_hf.training.settings`].
        row: index of the row, counted from 0.

    Raises:
        ValueError: settings that do not fit each other, the model or the data.
    """
    processor = AutoProcessor.from_pretrained(settings.model)
    config = AutoConfig.from_pretrained(settings.model)
    stage = build_recipe(settings, config)
    split_images(processor, stage.data)
    # `fit_tiles` does the same to a run's model, which is not loaded here.
    processor.num_image_tokens = cast(int, connector_for(config, processor.image_processor.size["height"]).num_tokens)
    mixture = build_mixture(settings, stage, processor)
    mixture.split(0, 1, settings.rows_per_device)
    source, examples = next(islice(mixture.packed_examples(), row, None))
    title = f"row {row} of the mixture, from {source}"
    return inspect_packed(mixture.encoder, examples, stage.data.sequence_length, title)
