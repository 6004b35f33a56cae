"""Turns documents into examples: the token ids and images that become one segment of a packed row."""

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from mm1_hf.data.chats import Chat, Message, place_images, require_generation_marks, require_rendered
from mm1_hf.data.collation import without_first_turns
from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.shared_images import SharedImages, fill, shared_length
from mm1_hf.data.wall import around_record, require_unicode, result_or_reason, results_or_reasons
from mm1_hf.model.chat_text import plain_documents
from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.tiling import ImageLayout, placeholder_text, sample_layouts


@dataclass(frozen=True)
class Example:
    """
    A training sequence made from a document, or from one piece of a document that is longer than a row.

    Args:
        input_ids: `(length,)`, int32.
        learned: `(length,)`, whether each token is a target. Tokens of text can be targets, tokens of images cannot.
        images: the images in the order of their placeholder tokens, not decoded yet.
        splits: for each image, whether it is cut into several tiles.
        sizes: for each image, the `(height, width)` in pixels that its placeholder tokens are for.
        begins: whether this is the first piece of its document.
        name: name of the document.
        left_out: number of images of the document that are in no piece, because no text was in a row with them. Counted
            at the first piece.
        branches: lengths of its branches, if it is several examples that share their beginning: what is left of
            `input_ids` before them. Each branch continues this shared beginning, and does not see the others.
    """

    input_ids: np.ndarray
    learned: np.ndarray
    images: tuple[ImagePart, ...]
    splits: tuple[bool, ...]
    sizes: tuple[tuple[int, int], ...]
    begins: bool
    name: str
    left_out: int = 0
    branches: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Part:
    """The tokens of one text or one image of a document."""

    input_ids: np.ndarray
    learned: np.ndarray
    image: ImagePart | None = None
    splits: bool = False
    size: tuple[int, int] = (0, 0)


class ExampleEncoder:
    """
    Turns documents into examples that fit a row.

    A document is encoded as the tokens that the tokenizer puts before every text (most tokenizers put none), its parts
    in order, and the end-of-text token. Text that spells a special token is encoded as ordinary text.

    A document may be longer than a row, or have more images than a row may have. Then a caption is refused, and any
    other document is cut into pieces: between two parts, or, inside a text that alone is longer than a row, at any
    token. An image is never cut; if one image alone is longer than a row, its document is refused. A piece without a
    target, for example one of a long run of images without text between them, is left out.

    Documents that share their images ([`SharedImages`]) become one example with a branch for each of them, or several such
    examples if they do not fit into a row together. If one of them cannot be used, none of them is.

    Whatever goes wrong with a document, of any type, is the reason why it cannot be used, and no other document is
    affected.

    Args:
        processor: the model's processor. The settings of its image processor say how images are split.
        sequence_length: number of positions of a row.
        max_images: largest number of images in a row. If unset, a row may have as many as fit.

    Raises:
        ValueError: the tokenizer has no end-of-text token, a row cannot hold one image, or `max_images` is below 1.
    """

    def __init__(self, processor: MM1Processor, sequence_length: int, max_images: int | None = None):
        tokenizer = processor.tokenizer
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end-of-text token, which has to end every document. Set tokenizer.eos_token."
            )
        if sequence_length <= processor.num_image_tokens + 1:
            raise ValueError(
                f"A row of sequence_length={sequence_length} positions cannot hold one image of "
                f"{processor.num_image_tokens} tokens and a word. Set a larger sequence_length."
            )
        self.processor = processor
        self.sequence_length = sequence_length
        self.max_images = sequence_length if max_images is None else max_images
        if self.max_images < 1:
            raise ValueError(f"max_images is {max_images}; give 1 or more, or None for as many as fit.")
        begin = tokenizer("")["input_ids"]
        self._begin = np.array([token for token in begin if token != tokenizer.eos_token_id], dtype=np.int32)
        # Special tokens that a document spells are split below, but others, such as an image token that was added as an
        # ordinary token, have to be broken up before.
        self._plain = plain_documents(tokenizer, processor.default_template, processor.image_token)
        self._tiling = processor.image_processor.tiling_config()
        self._image_tokens = lru_cache(maxsize=4096)(self._image_tokens_of)

    def __getstate__(self) -> dict:
        # The encoder is pickled for data workers, and the cache of a method cannot be pickled.
        return {name: value for name, value in self.__dict__.items() if name != "_image_tokens"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._image_tokens = lru_cache(maxsize=4096)(self._image_tokens_of)

    def encode(self, documents: Sequence[Document]) -> list[list[Example] | Unusable]:
        """
        Turns documents into examples.

        Args:
            documents: the documents. Give many at once if possible, because their texts are tokenised together.

        Returns:
            For every document, its examples in order, or the reason why it cannot be used.
        """
        members = [document.documents if isinstance(document, SharedImages) else (document,) for document in documents]
        encoded = iter(self._encode_documents([document for each in members for document in each]))
        found = [[next(encoded) for _ in each] for each in members]
        return [
            self._joined(document, each) if isinstance(document, SharedImages) else each[0]
            for document, each in zip(documents, found, strict=True)
        ]

    def _joined(self, document: SharedImages, encoded: list[list[Example] | Unusable]) -> list[Example] | Unusable:
        examples: list[Example] = []
        for each, part in zip(encoded, document.documents, strict=True):
            if isinstance(each, Unusable):
                return each
            if len(each) > 1:
                return Unusable("exchange longer than a row", f"{part.name} would be cut into {len(each)} pieces")
            examples += each
        return result_or_reason(lambda own: self._with_branches(own, document.name), examples, document.name)

    def _with_branches(self, examples: list[Example], name: str) -> list[Example]:
        """Joins examples that have the same images into examples with branches, each of which fits a row."""
        shared = shared_length([example.input_ids for example in examples], [example.learned for example in examples])
        beginning, first = examples[0].input_ids[:shared], examples[0]
        rests = [len(example.input_ids) - shared for example in examples]
        placeholders = sum(
            int((example.input_ids[shared:] == self.processor.image_token_id).sum()) for example in examples
        )
        if placeholders:
            raise Unusable(
                "images not shared",
                f"the examples of {name} do not begin with the same images; the chat template has to write images in "
                "front of what differs between questions",
            )
        if not shared:
            return examples
        joined = []
        for group in fill(rests, self.sequence_length - shared):
            chosen = [examples[index] for index in group]
            joined.append(
                replace(
                    first,
                    input_ids=np.concatenate([beginning, *(example.input_ids[shared:] for example in chosen)]),
                    learned=np.concatenate(
                        [np.zeros(shared, bool), *(example.learned[shared:] for example in chosen)]
                    ),
                    branches=tuple(rests[index] for index in group),
                    begins=not joined,
                    name=name,
                )
            )
        return joined

    def _encode_documents(self, documents: Sequence[Document]) -> list[list[Example] | Unusable]:
        checked = [result_or_reason(_require_unicode, document, document.name) for document in documents]
        readable = [
            document for document, why in zip(documents, checked, strict=True) if not isinstance(why, Unusable)
        ]
        ids = iter(results_or_reasons(self._ids_of, readable, [document.name for document in readable]))
        return [
            why if isinstance(why, Unusable) else self._encode(document, next(ids))
            for document, why in zip(documents, checked, strict=True)
        ]

    def _encode(self, document: Document, ids: list[list[int] | None] | Unusable) -> list[Example] | Unusable:
        if isinstance(ids, Unusable):
            return ids
        return result_or_reason(lambda own: self._pieces(document, self._parts(document, own)), ids, document.name)

    def _ids_of(self, documents: list[Document]) -> list[list[list[int] | None]]:
        """For each part of each document, its token ids, or `None` for an image or an empty text."""
        texts = [part for document in documents for part in document.parts if isinstance(part, str) and part]
        ids = iter(self._tokenize(texts))
        return [
            [next(ids) if isinstance(part, str) and part else None for part in document.parts]
            for document in documents
        ]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        texts = [self._plain(text) for text in texts]
        return self.processor.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]

    def _parts(self, document: Document, ids: list[list[int] | None]) -> list[_Part]:
        if not any(ids):
            raise Unusable("no text", f"{document.name} has no text to train on")
        sizes = [image.size() for image in document.images]
        placed = iter(enumerate(zip(sample_layouts(sizes, self._tiling), sizes, strict=True)))
        parts = []
        for part, tokens in zip(document.parts, ids, strict=True):
            if isinstance(part, ImagePart):
                index, (layout, size) = next(placed)
                tokens_of_image = self._image_tokens(layout, index)
                parts.append(_Part(*tokens_of_image, image=part, splits=layout.num_tiles > 1, size=size))
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
                f"{document.name} has {length} tokens and {images} images, but a row holds at most "
                f"{self.sequence_length} tokens and {self.max_images} images",
            )
        pieces = [parts] if fits else list(self._cut(document, parts))
        examples = [_example(piece, document.name) for piece in pieces]
        kept = [example for example in examples if example.learned.any()]
        if not kept:
            raise Unusable("nothing to learn from", f"{document.name} has no text that a row could be trained on")
        left_out = images - sum(len(example.images) for example in kept)
        return [replace(kept[0], begins=True, left_out=left_out), *kept[1:]]

    def _cut(self, document: Document, parts: Iterable[_Part]) -> Iterator[list[_Part]]:
        piece: list[_Part] = []
        room, places = self.sequence_length, self.max_images
        for part in parts:
            number = len(part.input_ids)
            if part.image is not None and number > self.sequence_length:
                raise Unusable(
                    "image longer than a row",
                    f"{document.name} has an image of {number} tokens, but a row holds at most {self.sequence_length}",
                )
            if number > self.sequence_length:
                # A text that fills the rest of this row, and then the next rows.
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
        Decodes the images of an example and cuts them into tiles.

        Args:
            example: an example with at least one image.

        Returns:
            The tiles of all images, `(tiles, 3, tile, tile)`.

        Raises:
            Unusable: an image is missing or corrupt, or its pixels have another size than its placeholder tokens are
                for.
        """
        tiles = []
        with around_record(example.name):
            for image, splits, size in zip(example.images, example.splits, example.sizes, strict=True):
                loaded = image.load()
                if (loaded.height, loaded.width) != size:
                    raise Unusable(
                        "image of another size",
                        f"{example.name}: an image has {loaded.height} x {loaded.width} pixels (height x width), but "
                        f"its header said {size[0]} x {size[1]}",
                    )
                settings = {} if splits else {"image_splitting": "none"}
                features = self.processor.image_processor([[loaded]], return_tensors="pt", **settings)
                tiles.append(features["pixel_values"])
            return torch.cat(tiles)


def _require_unicode(document: Document) -> None:
    for part in document.parts:
        if isinstance(part, str):
            require_unicode(part, document.name)
    if isinstance(document, Chat):
        # Roles, names and calls of tools are text too.
        require_unicode(json.dumps(document.messages, ensure_ascii=False, default=str), document.name)


def _text(tokens: Sequence[int]) -> _Part:
    return _Part(np.array(tokens, dtype=np.int32), np.ones(len(tokens), dtype=bool))


def _example(parts: list[_Part], name: str) -> Example:
    learned = np.concatenate([part.learned for part in parts])
    # The first token cannot be predicted, because no token precedes it in its segment.
    learned[0] = False
    return Example(
        input_ids=np.concatenate([part.input_ids for part in parts]),
        learned=learned,
        images=tuple(part.image for part in parts if part.image is not None),
        splits=tuple(part.splits for part in parts if part.image is not None),
        sizes=tuple(part.size for part in parts if part.image is not None),
        begins=False,
        name=name,
    )


class _Sizes:
    """Stands in for an image processor where only the sizes of images are needed: it computes no pixels."""

    def __init__(self, image_processor: MM1ImageProcessor):
        self.image_processor = image_processor

    def __call__(self, images: list[list[np.ndarray]], **kwargs: Any) -> dict[str, Any]:
        return {}

    def __getattr__(self, name: str) -> Any:
        if name == "image_processor":
            # A new copy is asked for attributes before it has any. Without this check, the lookup would never end.
            raise AttributeError(name)
        return getattr(self.image_processor, name)


class ChatEncoder(ExampleEncoder):
    """
    Turns conversations into examples with the processor's chat template. The tokens and labels are the same as those
    of [`MM1Collator`]: only what the assistant writes is trained on, including its end mark, but not the turns of a
    prompt.

    A conversation is never cut. It is refused if it is longer than a row or has more images than a row may have.
    Documents that are not conversations are encoded as [`ExampleEncoder`] encodes them.

    Args:
        processor: the model's processor. The settings of its image processor say how images are split.
        sequence_length: number of positions of a row.
        max_images: largest number of images in a row. If unset, a row may have as many as fit.

    Raises:
        ValueError: for the reasons of [`ExampleEncoder`], or because the chat template has no generation marks.

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

    def _encode_documents(self, documents: Sequence[Document]) -> list[list[Example] | Unusable]:
        chats = [document for document in documents if isinstance(document, Chat)]
        encoded = iter(self._encode_chats(chats))
        others = iter(
            super()._encode_documents([document for document in documents if not isinstance(document, Chat)])
        )
        return [next(encoded) if isinstance(document, Chat) else next(others) for document in documents]

    def _encode_chats(self, chats: list[Chat]) -> list[list[Example] | Unusable]:
        sized = [(chat, result_or_reason(self._sizes_of, chat, chat.name)) for chat in chats]
        usable = [(chat, sizes) for chat, sizes in sized if not isinstance(sizes, Unusable)]
        tokens = iter(results_or_reasons(self._chat_tokens, usable, [chat.name for chat, _ in usable]))
        return [
            sizes if isinstance(sizes, Unusable) else self._encode_chat(chat, sizes, next(tokens))
            for chat, sizes in sized
        ]

    def _sizes_of(self, chat: Chat) -> list[tuple[int, int]]:
        _require_unicode(chat)
        require_rendered(self.processor.chat_template, chat.messages, chat.tools, chat.name)
        return [image.size() for image in chat.images]

    def _encode_chat(
        self, chat: Chat, sizes: list[tuple[int, int]], tokens: tuple[list[int], list[int]] | Unusable
    ) -> list[Example] | Unusable:
        if isinstance(tokens, Unusable):
            return tokens
        return result_or_reason(lambda own: [self._example_of(chat, sizes, *own)], tokens, chat.name)

    def _chat_tokens(self, chats: list[tuple[Chat, list[tuple[int, int]]]]) -> list[tuple[list[int], list[int]]]:
        """The token ids of each chat, whose images have the given sizes, and the mask of what the assistant writes."""
        # One call of the template gives all its chats the same tools.
        groups: dict[str, list[int]] = {}
        for index, (chat, _) in enumerate(chats):
            groups.setdefault(json.dumps(chat.tools, default=str), []).append(index)
        tokens: dict[int, tuple[list[int], list[int]]] = {}
        for members in groups.values():
            first = chats[members[0]][0]
            try:
                batch = self._layouts_only.apply_chat_template(
                    [_blank(*chats[index]) for index in members],
                    tools=list(first.tools) or None,
                    tokenize=True,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
            except (ValueError, TemplateError) as error:
                raise Unusable("refused by the chat template", f"{first.name}: {error}") from error
            tokens |= zip(members, zip(batch["input_ids"], batch["assistant_masks"], strict=True), strict=True)
        return [tokens[index] for index in range(len(chats))]

    def _example_of(self, chat: Chat, sizes: list[tuple[int, int]], ids: list[int], written: list[int]) -> Example:
        input_ids = np.array(ids, dtype=np.int32)
        if len(input_ids) > self.sequence_length or len(sizes) > self.max_images:
            raise Unusable(
                "chat longer than a row",
                f"{chat.name} has {len(input_ids)} tokens and {len(sizes)} images, but a row holds at most "
                f"{self.sequence_length} tokens and {self.max_images} images. A chat is never cut: remove it from the "
                "data, split its images into fewer tiles, or allow longer rows",
            )
        learned = without_first_turns(torch.tensor([written]).bool(), [chat.given_turns])[0].numpy()
        learned &= input_ids != self.processor.image_token_id
        learned[0] = False
        if not learned.any():
            raise Unusable("nothing to learn from", f"{chat.name} has no assistant turn to train on")
        layouts = sample_layouts(sizes, self._tiling)
        return Example(
            input_ids=input_ids,
            learned=learned,
            images=chat.images,
            splits=tuple(layout.num_tiles > 1 for layout in layouts),
            sizes=tuple(sizes),
            begins=True,
            name=chat.name,
        )


def _blank(chat: Chat, sizes: list[tuple[int, int]]) -> list[Message]:
    """The turns of a chat with its images replaced by arrays of their sizes, which take no memory for pixels."""
    messages = [{**message, "content": [dict(part) for part in message["content"]]} for message in chat.messages]
    return place_images(messages, [np.broadcast_to(np.uint8(0), size) for size in sizes], chat.name)
