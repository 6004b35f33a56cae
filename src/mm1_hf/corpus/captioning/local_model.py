"""
Asks a model in this process about documents: any of transformers' image-text-to-text models, or a causal language
model.

Documents are asked about in fixed batches, because an answer may change with its neighbours in the batch by rounding:
so a resumed run gives the same answers. Each chunk of answers is written whole.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from datatrove.data import Document as EngineDocument
from datatrove.pipeline.base import PipelineStep
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from mm1_hf.corpus.atomic import whole_file
from mm1_hf.corpus.bridge import Documents
from mm1_hf.corpus.captioning.answers import (
    CHUNK,
    Ask,
    ModelAnswer,
    chunk_path,
    clean,
    no_answer,
    require_same_writer,
)
from mm1_hf.corpus.captioning.writers import CaptionWriter
from mm1_hf.data.documents import Unusable
from mm1_hf.data.wall import result_or_reason
from mm1_hf.model.chat_text import PlainText


Item = TypeVar("Item")


class LocalAnswers(PipelineStep):
    """
    Asks a model in this process about every document and writes the answers, as the last step of a stage.

    Args:
        writer: the model and its prompt.
        ask: makes the question of a document.
        folder: folder of the answers.
        batch_size: number of documents that are asked about at once.

    Raises:
        ValueError: `batch_size` does not divide a chunk.
    """

    name = "ask a model"
    type = "MM1"

    def __init__(self, writer: CaptionWriter, ask: Ask, folder: str | os.PathLike[str], batch_size: int = 8) -> None:
        super().__init__()
        if batch_size < 1 or CHUNK % batch_size:
            raise ValueError(
                f"batch_size is {batch_size}; give a number that divides {CHUNK}, so that batches stay the same when a "
                "run is resumed."
            )
        self.writer = writer
        self.ask = ask
        self.folder = os.fspath(folder)
        self.batch_size = batch_size

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """
        Asks about the documents of one task.

        Args:
            data: the documents.
            rank: number of the task.
            world_size: number of tasks.

        Raises:
            ValueError: the folder holds answers of another model, or to another prompt.
        """
        require_same_writer(self.folder, rank, self.writer.provenance() | {"batch_size": self.batch_size})
        model: _Model | None = None
        for index, chunk in enumerate(_batches(enumerate(data), CHUNK)):
            path = chunk_path(self.folder, rank, index)
            if path.exists():
                continue
            model = model or _Model(self.writer)
            answers: list[ModelAnswer] = []
            for batch in _batches(chunk, self.batch_size):
                with self.track_time("batch"):
                    answers += self._answered(model, batch)
            with whole_file(path) as partial:
                lines = "".join(f"{json.dumps(answer.to_json(), sort_keys=True)}\n" for answer in answers)
                partial.write_text(lines, encoding="utf-8")

    def _answered(self, model: "_Model", batch: Sequence[tuple[int, EngineDocument]]) -> Iterator[ModelAnswer]:
        prepared = [result_or_reason(self._prepared, document, document.id) for _, document in batch]
        answers = iter(model.write([each for each in prepared if not isinstance(each, Unusable)]))
        for (number, document), each in zip(batch, prepared, strict=True):
            if isinstance(each, Unusable):
                yield no_answer(number, document.id, each)
            else:
                text, cut_off = next(answers)
                yield ModelAnswer(number, document.id, text, cut_off)

    def _prepared(self, document: EngineDocument) -> tuple[str, Image.Image | None]:
        question = self.ask(document)
        return question.text, None if question.image is None else question.image.load().convert("RGB")


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class _Model:
    """
    A loaded model.

    Args:
        writer: which model, and the limit of its answers.
    """

    def __init__(self, writer: CaptionWriter) -> None:
        name, sees = writer.model, writer.sees
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        # Not every CPU has units for the half precision that weights are mostly saved in.
        dtype: Any = torch.float32 if device.type == "cpu" else "auto"
        load: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        self.model: Any = load.from_pretrained(name, dtype=dtype).to(device).eval()
        self.processor: Any = (AutoProcessor if sees else AutoTokenizer).from_pretrained(name)
        self.tokenizer: Any = self.processor.tokenizer if sees else self.processor
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # An alt text must not end the user's turn.
        self.plain = PlainText(token for token in self.tokenizer.all_special_tokens if len(token) > 1)
        self.sees = sees
        self.max_tokens = writer.max_tokens

    @torch.inference_mode()
    def write(self, questions: Sequence[tuple[str, Image.Image | None]]) -> list[tuple[str, bool]]:
        """The answer to every question, and whether the limit of its length ended it."""
        if not questions:
            return []
        inputs = {name: self._moved(value) for name, value in self._inputs(questions).items()}
        generated = self.model.generate(
            **inputs, max_new_tokens=self.max_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
        )
        written = generated[:, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor([ends] if isinstance(ends, int) else ends or [], device=written.device)
        ended = torch.isin(written, ends).any(dim=1) | torch.tensor(written.shape[1] < self.max_tokens)
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [(clean(text), not end) for text, end in zip(texts, ended.tolist(), strict=True)]

    def _moved(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)

    def _inputs(self, questions: Sequence[tuple[str, Image.Image | None]]) -> Any:
        if getattr(self.processor, "chat_template", None) is None:
            texts = [text for text, _ in questions]
            images = {"images": [image for _, image in questions]} if self.sees else {}
            return self.processor(text=texts, padding=True, return_tensors="pt", **images)
        chats = [[{"role": "user", "content": self._content(*question)}] for question in questions]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        if self.sees:
            return self.processor.apply_chat_template(chats, **options, processor_kwargs={"padding": True})
        return self.processor.apply_chat_template(chats, **options, padding=True)

    def _content(self, text: str, image: Image.Image | None) -> Any:
        text = self.plain(text)
        if not self.sees:
            return text
        return [{"type": "image", "image": image}, {"type": "text", "text": text}]
