"""Documents to examples: the token ids and images of what stands in a packed row as one segment."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from mm1_hf.data.chats import Chat, Message, place_images, require_generation_marks
from mm1_hf.data.collation import without_first_turns
from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.tiling import ImageLayout, placeholder_text, sample_layouts


@dataclass(frozen=True)
class Example:
    """
    A document, or a piece of one that is longer than a row.

    Args:
        input_ids: `(length,)`, int32.
        learned: `(length,)`, whether the token is a target: text is, images are not.
        images: in the order of their places, not decoded yet.
        splits: whether each image is cut into tiles.
        begins: whether it is its document's first piece.
        name: the document's.
    """

    input_ids: np.ndarray
    learned: np.ndarray
    images: tuple[ImagePart, ...]
    splits: tuple[bool, ...]
    begins: bool
    name: str


@dataclass(frozen=True)
class _Part:
    """A text or an image of a document as tokens."""

    input_ids: np.ndarray
    learned: np.ndarray
    image: ImagePart | None = None
    splits: bool = False


class ExampleEncoder:
    """
    Turns documents into examples that fit a row.

    A document becomes what the tokenizer begins a text with (nothing, for most), its parts in order, and the end-of-text
    token. What is longer than a row, or has more images than a row may, is treated by this rule: a caption pair is
    refused; other documents are cut between two parts, and within a text that is longer than a row by itself, at any
    token; an image is never cut. Text that spells a special token stays text.

    Args:
        processor: the model's own; its image processor's settings say how images are split.
        sequence_length: positions of a row.
        max_images: images of a row at most; unset, as many as fit.

    Raises:
        ValueError: a tokenizer without an end-of-text token, or a row that cannot hold one image.
    """

    def __init__(self, processor: MM1Processor, sequence_length: int, max_images: int | None = None):
        tokenizer = processor.tokenizer
        if tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no end-of-text token; set tokenizer.eos_token, which ends a document.")
        if sequence_length <= processor.num_image_tokens + 1:
            raise ValueError(
                f"A row of sequence_length={sequence_length} positions cannot hold one image of "
                f"{processor.num_image_tokens} tokens and a word; make it longer."
            )
        self.processor = processor
        self.sequence_length = sequence_length
        self.max_images = sequence_length if max_images is None else max_images
        if self.max_images < 1:
            raise ValueError(f"max_images is {max_images}; give 1 or more, or None for as many as fit.")
        begin = tokenizer("")["input_ids"]
        self._begin = np.array([token for token in begin if token != tokenizer.eos_token_id], dtype=np.int32)
        self._tiling = processor.image_processor.tiling_config()
        self._image_tokens = lru_cache(maxsize=4096)(self._image_tokens_of)

    def __getstate__(self) -> dict:
        # A cache does not travel to data workers.
        return {name: value for name, value in self.__dict__.items() if name != "_image_tokens"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._image_tokens = lru_cache(maxsize=4096)(self._image_tokens_of)

    def encode(self, documents: Sequence[Document]) -> list[list[Example] | Unusable]:
        """
        Args:
            documents: best many at once, whose texts are tokenised together.

        Returns:
            For every document its examples in order, or why it cannot be used.
        """
        texts = [part for document in documents for part in document.parts if isinstance(part, str) and part]
        ids = iter(self._tokenize(texts))
        encoded: list[list[Example] | Unusable] = []
        for document in documents:
            # Taken for every document, so that the next one finds its own.
            own = [next(ids) if isinstance(part, str) and part else None for part in document.parts]
            try:
                encoded.append(self._pieces(document, self._parts(document, own)))
            except Unusable as reason:
                encoded.append(reason)
        return encoded

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.processor.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]

    def _parts(self, document: Document, ids: list[list[int] | None]) -> list[_Part]:
        if not any(ids):
            raise Unusable("no text", f"{document.name} has nothing to learn from")
        layouts = sample_layouts([image.size() for image in document.images], self._tiling)
        placed = iter(enumerate(layouts))
        parts = []
        for part, tokens in zip(document.parts, ids, strict=True):
            if isinstance(part, ImagePart):
                index, layout = next(placed)
                parts.append(_Part(*self._image_tokens(layout, index), image=part, splits=layout.num_tiles > 1))
            elif tokens:
                parts.append(_text(tokens))
        return parts

    def _image_tokens_of(self, layout: ImageLayout, index: int) -> tuple[np.ndarray, np.ndarray]:
        text = placeholder_text(
            layout, index, self._tiling, self.processor.image_token, self.processor.num_image_tokens
        )
        ids = np.array(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        return ids, np.zeros(len(ids), dtype=bool)

    def _pieces(self, document: Document, parts: list[_Part]) -> list[Example]:
        begin = _Part(self._begin, np.zeros(len(self._begin), dtype=bool))
        end = _text([self.processor.tokenizer.eos_token_id])
        parts = [begin, *parts, end]
        length, images = sum(len(part.input_ids) for part in parts), len(document.images)
        fits = length <= self.sequence_length and images <= self.max_images
        if not fits and document.kind == "caption":
            raise Unusable(
                "caption longer than a row",
                f"{document.name} has {length} tokens and {images} images, and a row has room for {self.sequence_length} "
                f"and {self.max_images}",
            )
        pieces = [parts] if fits else list(self._cut(document, parts))
        return [_example(piece, index == 0, document.name) for index, piece in enumerate(pieces)]

    def _cut(self, document: Document, parts: Iterable[_Part]) -> Iterator[list[_Part]]:
        piece: list[_Part] = []
        room, places = self.sequence_length, self.max_images
        for part in parts:
            number = len(part.input_ids)
            if part.image is not None and number > self.sequence_length:
                raise Unusable(
                    "image longer than a row",
                    f"{document.name} has one of {number} tokens, and a row has room for {self.sequence_length}",
                )
            if number > self.sequence_length:
                # It fills this row and the next ones.
                start = 0
                while start < number:
                    if not room:
                        yield piece
                        piece, room, places = [], self.sequence_length, self.max_images
                    stop = min(start + room, number)
                    piece.append(_Part(part.input_ids[start:stop], part.learned[start:stop]))
                    start, room = stop, room - (stop - start)
                continue
            if number > room or (part.image is not None and not places):
                yield piece
                piece, room, places = [], self.sequence_length, self.max_images
            piece.append(part)
            room -= number
            places -= part.image is not None
        yield piece

    def pixel_values(self, example: Example) -> torch.Tensor:
        """
        Decodes and cuts an example's images.

        Args:
            example: with one image or more.

        Returns:
            `(tiles, 3, tile, tile)`.

        Raises:
            Unusable: an image that is broken.
        """
        tiles = []
        for image, splits in zip(example.images, example.splits, strict=True):
            settings = {} if splits else {"image_splitting": "none"}
            features = self.processor.image_processor([[image.load()]], return_tensors="pt", **settings)
            tiles.append(features["pixel_values"])
        return torch.cat(tiles)


def _text(tokens: Sequence[int]) -> _Part:
    return _Part(np.array(tokens, dtype=np.int32), np.ones(len(tokens), dtype=bool))


def _example(parts: list[_Part], begins: bool, name: str) -> Example:
    learned = np.concatenate([part.learned for part in parts])
    # Nothing before it in its segment could tell a segment's first token.
    learned[0] = False
    return Example(
        input_ids=np.concatenate([part.input_ids for part in parts]),
        learned=learned,
        images=tuple(part.image for part in parts if part.image is not None),
        splits=tuple(part.splits for part in parts if part.image is not None),
        begins=begins,
        name=name,
    )


class _Sizes:
    """An image processor that lays images out by their sizes, and never reads a pixel."""

    def __init__(self, image_processor: MM1ImageProcessor):
        self.image_processor = image_processor

    def __call__(self, images: list[list[np.ndarray]], **kwargs: Any) -> dict[str, Any]:
        return {}

    def __getattr__(self, name: str) -> Any:
        if name == "image_processor":
            # Before there is one, as copies ask.
            raise AttributeError(name)
        return getattr(self.image_processor, name)


class ChatEncoder(ExampleEncoder):
    """
    Turns conversations into examples, by the processor's chat template: the very tokens and labels that [`MM1Collator`]
    makes of them. Only what the assistant writes is learned, its end mark included, and of a prompt's nothing.

    A conversation is never cut: one that is longer than a row, or has more images than a row may, is refused. Other
    documents become what [`ExampleEncoder`] makes of them.

    Args:
        processor: the model's own; its image processor's settings say how images are split.
        sequence_length: positions of a row.
        max_images: images of a row at most; unset, as many as fit.

    Raises:
        ValueError: as [`ExampleEncoder`], or a chat template without generation marks.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import GPT2Tokenizer
    >>> from mm1_hf import MM1ImageProcessor, MM1Processor
    >>> from mm1_hf.data.examples import ChatEncoder
    >>> from mm1_hf.data.layouts import LAYOUTS

    >>> tokenizer = GPT2Tokenizer(eos_token="<eos>").train_new_from_iterator(["A cat."], vocab_size=300)
    >>> tokens = ["<image>", "<|im_start|>", "<|im_end|>"]
    >>> _ = tokenizer.add_special_tokens({"pad_token": "<eos>", "additional_special_tokens": tokens})
    >>> image_processor = MM1ImageProcessor(size={"height": 56, "width": 56}, image_splitting="none")
    >>> encoder = ChatEncoder(MM1Processor(image_processor, tokenizer, num_image_tokens=4), sequence_length=2048)
    >>> chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]
    >>> document = LAYOUTS["chat"]({"messages": chat, "images": [Image.new("RGB", (80, 60))]}, "a record")
    >>> ((example,),) = encoder.encode([document])
    >>> tokenizer.decode(example.input_ids[example.learned])
    'A cat.<|im_end|>'

    ```
    """

    def __init__(self, processor: MM1Processor, sequence_length: int, max_images: int | None = None):
        require_generation_marks(processor.chat_template)
        super().__init__(processor, sequence_length, max_images)
        self._layouts_only = copy.copy(processor)
        self._layouts_only.image_processor = _Sizes(processor.image_processor)

    def encode(self, documents: Sequence[Document]) -> list[list[Example] | Unusable]:
        """
        Args:
            documents: conversations, and others.

        Returns:
            For every one its examples, or why it cannot be used.
        """
        chats = [document for document in documents if isinstance(document, Chat)]
        encoded = iter(self._encode_chats(chats))
        others = iter(super().encode([document for document in documents if not isinstance(document, Chat)]))
        return [next(encoded) if isinstance(document, Chat) else next(others) for document in documents]

    def _encode_chats(self, chats: list[Chat]) -> list[list[Example] | Unusable]:
        encoded: dict[int, list[Example] | Unusable] = {}
        sizes: dict[int, list[tuple[int, int]]] = {}
        for index, chat in enumerate(chats):
            try:
                sizes[index] = [image.size() for image in chat.images]
            except Unusable as reason:
                encoded[index] = reason
        tokens = self._chat_tokens([_blank(chats[index], found) for index, found in sizes.items()])
        for (index, found), result in zip(sizes.items(), tokens, strict=True):
            chat = chats[index]
            try:
                if isinstance(result, Exception):
                    raise Unusable("no chat of this template", f"{chat.name}: {result}")
                encoded[index] = [self._example_of(chat, found, *result)]
            except Unusable as reason:
                encoded[index] = reason
        return [encoded[index] for index in range(len(chats))]

    def _chat_tokens(self, chats: list[list[Message]]) -> list[tuple[list[int], list[int]] | Exception]:
        """The ids of each chat and which of them the assistant writes, or why there are none."""
        if not chats:
            return []
        try:
            batch = self._layouts_only.apply_chat_template(
                chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except (ValueError, TemplateError) as error:
            if len(chats) == 1:
                return [error]
            # One spoils them all: by halves it is found.
            half = len(chats) // 2
            return self._chat_tokens(chats[:half]) + self._chat_tokens(chats[half:])
        return list(zip(batch["input_ids"], batch["assistant_masks"], strict=True))

    def _example_of(self, chat: Chat, sizes: list[tuple[int, int]], ids: list[int], written: list[int]) -> Example:
        input_ids = np.array(ids, dtype=np.int32)
        if len(input_ids) > self.sequence_length or len(sizes) > self.max_images:
            raise Unusable(
                "chat longer than a row",
                f"{chat.name} has {len(input_ids)} tokens and {len(sizes)} images, and a row has room for "
                f"{self.sequence_length} and {self.max_images}. Images are never cut: leave it out, split its images into "
                "fewer tiles, or allow longer rows",
            )
        learned = without_first_turns(torch.tensor([written]).bool(), [chat.given_turns])[0].numpy()
        learned &= input_ids != self.processor.image_token_id
        learned[0] = False
        if not learned.any():
            raise Unusable("nothing to learn from", f"{chat.name} has no assistant's turn to learn")
        layouts = sample_layouts(sizes, self._tiling)
        return Example(
            input_ids=input_ids,
            learned=learned,
            images=chat.images,
            splits=tuple(layout.num_tiles > 1 for layout in layouts),
            begins=True,
            name=chat.name,
        )


def _blank(chat: Chat, sizes: list[tuple[int, int]]) -> list[Message]:
    """A chat's turns with arrays of its images' sizes in their places, which take no memory."""
    messages = [{**message, "content": [dict(part) for part in message["content"]]} for message in chat.messages]
    return place_images(messages, [np.broadcast_to(np.uint8(0), size) for size in sizes], chat.name)
