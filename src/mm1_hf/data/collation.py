"""Makes training batches from conversations and texts: padded on the right, with labels."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature

from mm1_hf.data.chats import Conversation, read_conversation, require_generation_marks, require_rendered
from mm1_hf.data.media import given_image, require_read
from mm1_hf.data.messages import MARK, image_columns
from mm1_hf.data.raw_records import unwrapped
from mm1_hf.data.wall import around_record
from mm1_hf.model.processing_mm1 import MM1Processor


IGNORED = -100


@dataclass
class MM1Collator:
    """
    Makes a training batch from examples in TRL's columns: `messages`, or `prompt` and `completion` (both chats), or
    `text`. Images are in `images` (a list) or `image` (a single one). Conversations may also have any other form of
    [`mm1_hf.data.chats.FORMS`]. Everything in an example that names an image has a place, or the example is refused.

    Labels are -100 at image tokens, at the position indicators around them, at padding and at the first token of a
    row. In chats, only what the assistant writes is trained on, including its end mark; of a prompt and completion,
    only the assistant's turns in the completion. Plain text is trained on as a whole.

    Args:
        processor: the model's processor.
        max_length: largest number of tokens in a row. If unset, there is no limit. Longer examples raise an error;
            nothing is truncated.

    Raises:
        ValueError: a batch mixes kinds of examples; an example has another number of images than of places for them,
            is longer than `max_length` or has nothing to learn from; or a chat's template has no generation marks.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import GPT2Tokenizer
    >>> from mm1_hf import MM1ImageProcessor, MM1Processor
    >>> from mm1_hf.data.collation import MM1Collator

    >>> tokenizer = GPT2Tokenizer(eos_token="<eos>").train_new_from_iterator(["A cat."], vocab_size=300)
    >>> tokens = ["<image>", "<|im_start|>", "<|im_end|>"]
    >>> _ = tokenizer.add_special_tokens({"pad_token": "<eos>", "additional_special_tokens": tokens})
    >>> image_processor = MM1ImageProcessor(size={"height": 56, "width": 56}, image_splitting="none")
    >>> collator = MM1Collator(MM1Processor(image_processor, tokenizer, num_image_tokens=4))
    >>> chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]
    >>> batch = collator([{"messages": chat, "images": [Image.new("RGB", (80, 60))]}])
    >>> tokenizer.decode(batch["labels"][batch["labels"] != -100])
    'A cat.<|im_end|>'

    ```
    """

    processor: MM1Processor
    max_length: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> BatchFeature:
        """
        Args:
            examples: examples of one kind, with the columns listed for the class.

        Returns:
            `input_ids`, `attention_mask`, `labels` `(batch, sequence)` and, if there are images, `pixel_values`
            `(tiles, 3, tile, tile)`.

        Raises:
            ValueError: see the class. If one sample is the cause, the message names its index in the batch.
        """
        examples, chats = list(examples), []
        for index, example in enumerate(examples):
            with around_record(_name(index)):
                examples[index] = dict(unwrapped(example, _name(index)))
                chats.append(read_conversation(examples[index], _name(index)))
        kinds = {
            _kind(_name(index), example, chat)
            for index, (example, chat) in enumerate(zip(examples, chats, strict=True))
        }
        if len(kinds) > 1:
            raise ValueError(
                f"All examples of a batch must be of one kind; this batch mixes {', '.join(sorted(kinds))}."
            )
        conversations = [chat for chat in chats if chat is not None]
        batch = self._encode_chats(conversations) if conversations else self._encode_text(examples)
        learned = batch.pop("learned")
        attention_mask, input_ids = batch["attention_mask"], batch["input_ids"]
        learned = learned & attention_mask.bool() & (input_ids != self.processor.image_token_id)
        learned[:, 0] = False
        self._check_rows(attention_mask.sum(dim=1).tolist(), learned.any(dim=1).tolist())
        batch["labels"] = torch.where(learned, input_ids, IGNORED)
        # pixel_values must not be first: accelerate reads the batch size from the first entry, and pixel_values has
        # one entry per tile, not per row.
        names = ("input_ids", "attention_mask", "labels", "pixel_values")
        return BatchFeature({name: batch[name] for name in names if name in batch})

    def _encode_text(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = []
        for index, example in enumerate(examples):
            with around_record(_name(index)):
                found = image_columns(example, _name(index))
                images.append([given_image(image, example, _name(index)) for image in found])
                require_read(example, ("text", "images", "image"), len(found), _name(index))
        batch = self.processor(
            text=[example["text"].replace(MARK, self.processor.image_token) for example in examples],
            images=images if any(images) else None,
            padding=True,
            padding_side="right",
            return_tensors="pt",
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
        )
        learned = batch["attention_mask"].bool()
        offsets = batch.pop("offset_mapping")
        for row, replacements in enumerate(batch.pop("text_replacement_offsets")):
            for start, end in (replacement["new_span"] for replacement in replacements):
                learned[row] &= ~((offsets[row, :, 0] < end) & (offsets[row, :, 1] > start))
        return {**batch, "learned": learned}

    def _encode_chats(self, chats: list[Conversation]) -> dict[str, torch.Tensor]:
        require_generation_marks(self.processor.chat_template)
        for index, chat in enumerate(chats):
            require_rendered(self.processor.chat_template, chat.messages, chat.tools, _name(index))
        if all(chat.tools == chats[0].tools for chat in chats):
            batch = self._rendered([chat.messages for chat in chats], chats[0].tools)
        else:
            batch = self._stacked([self._rendered([chat.messages], chat.tools) for chat in chats])
        learned = batch.pop("assistant_masks").bool()
        return {**batch, "learned": without_first_turns(learned, [chat.given_turns for chat in chats])}

    def _rendered(self, chats: list[list[dict[str, Any]]], tools: list[Any]) -> dict[str, torch.Tensor]:
        return dict(
            self.processor.apply_chat_template(
                chats,
                tools=tools or None,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=True,
                processor_kwargs={"padding": True, "padding_side": "right"},
            )
        )

    def _stacked(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """One batch of batches of one row each, padded on the right."""
        padding = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "assistant_masks": 0}
        batch = {
            name: torch.nn.utils.rnn.pad_sequence(
                [row[name][0] for row in rows], batch_first=True, padding_value=value
            )
            for name, value in padding.items()
        }
        tiles = [row["pixel_values"] for row in rows if "pixel_values" in row]
        return batch | ({"pixel_values": torch.cat(tiles)} if tiles else {})

    def _check_rows(self, lengths: list[int], learned: list[bool]) -> None:
        for index, (length, learns) in enumerate(zip(lengths, learned, strict=True)):
            if self.max_length is not None and length > self.max_length:
                raise ValueError(
                    f"Sample {index} of the batch has {length} tokens, more than max_length={self.max_length}. A "
                    "sample is never cut: remove it, split its images into fewer tiles, or allow longer rows."
                )
            if not learns:
                raise ValueError(
                    f"Sample {index} of the batch has nothing to learn from: a chat needs an assistant turn, and a "
                    "text needs words after its images."
                )


def _name(index: int) -> str:
    return f"Sample {index} of the batch"


def _kind(name: str, example: dict[str, Any], chat: Conversation | None) -> str:
    if chat is not None:
        return chat.form if chat.form == "prompt and completion" else "messages"
    if isinstance(example.get("text"), str):
        return "text"
    raise ValueError(
        f"{name} has the columns {sorted(example)}; give it messages, or prompt and completion, or text. Images go "
        "into images or image."
    )


def without_first_turns(learned: torch.Tensor, turns: list[int]) -> torch.Tensor:
    """
    Removes the first assistant turns of each row from a mask.

    Args:
        learned: `(batch, sequence)`, true where the assistant writes. Each run of true values is one turn.
        turns: for each row, the number of turns to remove, counted from its first one.
    """
    previous = torch.nn.functional.pad(learned[:, :-1], (1, 0))
    turn = (learned & ~previous).cumsum(dim=1)
    return learned & (turn > torch.tensor(turns).unsqueeze(1))
