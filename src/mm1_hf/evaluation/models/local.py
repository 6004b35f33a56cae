"""A model of transformers in this process, which answers requests in batches."""

import gc
import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image
from transformers import PreTrainedModel, StoppingCriteriaList

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.evaluation.models.features import FeatureCache, picture_key
from mm1_hf.evaluation.models.likelihood import Row, append_tokens, rows_of, score
from mm1_hf.evaluation.models.prompts import Prompt, PromptWriter
from mm1_hf.evaluation.models.stopping import StopStrings, cut
from mm1_hf.evaluation.models.weights import weights_digest
from mm1_hf.evaluation.modes import evaluation_mode
from mm1_hf.evaluation.requests import Answer, Request
from mm1_hf.model.image_pixels import to_uint8_pixels


# Plain greedy decoding, whatever the generation configuration that was saved with the model.
DECODING: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}
_LARGEST_BATCH = 64
_EMBEDDING_BYTES = 2**28


class Ready:
    """
    A prompt whose images have been read.

    Args:
        prompt: the prompt.
        images: its images in the form that the model needs.
    """

    def __init__(self, prompt: Prompt, images: list[Any]):
        self.prompt = prompt
        self.images = images


class LocalModel:
    """
    Any image-text-to-text model of transformers, with its processor. It is asked in batches of similar length, the
    longest first; prompts are padded, and its answers do not depend on which requests share a batch.

    Args:
        model: the model, on the device where it is to run.
        processor: its processor.
        batch_size: number of prompts per batch. Unset, it begins with 64 and is halved whenever memory runs out.
        name: name of the model for the record: a Hub id or folder.
        revision: its revision, for the record.

    Raises:
        ValueError: the model has an encoder for its text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        *,
        batch_size: int | None = None,
        name: str = "",
        revision: str | None = None,
    ):
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"A {type(model).__name__} reads its prompt by an encoder. Only models that continue their prompt can be "
                "evaluated in this process; serve this one, and evaluate the endpoint."
            )
        self.model: Any = model
        self.processor = processor
        self.batch_size = batch_size or _LARGEST_BATCH
        self.name = name
        self.revision = revision
        self._may_halve = batch_size is None
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._writer = PromptWriter(processor)
        self._embeddings = FeatureCache(_EMBEDDING_BYTES)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """
        Answers requests of any mixture of kinds, lengths and numbers of images, in their order.

        Args:
            requests: the requests.

        Raises:
            ValueError: as [`LocalModel.answers`].
        """
        answers = dict(self.answers(requests))
        return [answers[index] for index in range(len(requests))]

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """
        Answers requests, and returns the answers as soon as they are there.

        Args:
            requests: the requests. Their images are read batch by batch.

        Returns:
            Pairs of the index of a request and its answer, in any order.

        Raises:
            ValueError: the model cannot do what a request asks for, such as a chat without a chat template.
        """
        self._require_possible(requests)
        prompts = [self._writer.write(request) for request in requests]
        groups: dict[Any, list[int]] = {}
        for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            asked = () if request.continuations else (request.max_new_tokens, request.stop)
            groups.setdefault((prompt.special, asked), []).append(index)
        for group in groups.values():
            # The longest first, because memory runs out there if anywhere.
            group.sort(key=lambda index: (len(prompts[index].images), len(prompts[index].text)), reverse=True)
            start = 0
            while start < len(group):
                batch = group[start : start + self.batch_size]
                found = self._answer_or_halve(
                    [requests[index] for index in batch],
                    [prompts[index] for index in batch],
                    (prompts[index] for index in group[start + len(batch) :]),
                )
                if found is not None:
                    yield from zip(batch, found, strict=True)
                    start += len(batch)

    def _require_possible(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not request.continuations and request.max_new_tokens < 1:
                raise ValueError("A request has no continuations and max_new_tokens of 0. Set one of them.")
            if not all(request.continuations):
                raise ValueError("A continuation is an empty text, which has no log-likelihood. Leave it out.")
            if request.whole is not None:
                self._require_mixed()

    def _require_mixed(self) -> None:
        raise ValueError(
            f"Some images are to be split and others not, but a {type(self.processor).__name__} treats all images alike. "
            "Evaluate this model without mixed resolution (--split-last)."
        )

    @torch.no_grad()
    def _answer_or_halve(
        self, requests: list[Request], prompts: list[Prompt], following: Iterable[Prompt]
    ) -> list[Answer] | None:
        """The answers, or None if memory ran out and the batch size has been halved."""
        try:
            with evaluation_mode(self.model):
                return self._answer_batch(requests, prompts, following)
        except Exception as error:
            if not self._may_halve or self.batch_size == 1 or not should_reduce_batch_size(error):
                raise
        # Outside of the handler, where the error no longer holds the batch's tensors.
        self.batch_size //= 2
        gc.collect()
        clear_device_cache()
        return None

    def _answer_batch(
        self, requests: list[Request], prompts: list[Prompt], following: Iterable[Prompt]
    ) -> list[Answer]:
        readies = self._loaded(prompts, following)
        usable = [index for index, ready in enumerate(readies) if isinstance(ready, Ready)]
        answers = {index: ready for index, ready in enumerate(readies) if isinstance(ready, Answer)}

        def ask(indices: list[int]) -> list[Answer]:
            ready: list[Any] = [readies[index] for index in indices]
            if not ready:
                return []
            if requests[0].continuations:
                return self._score(ready, [requests[index].continuations for index in indices])
            return self._generate(ready, requests[0].max_new_tokens, requests[0].stop)

        try:
            found = ask(usable)
        except Exception as error:
            refused = {} if should_reduce_batch_size(error) else self._refused(readies)
            if not refused:
                raise
            answers |= refused
            usable = [index for index in usable if index not in refused]
            found = ask(usable)
        answers |= dict(zip(usable, found, strict=True))
        return [answers[index] for index in range(len(prompts))]

    def _refused(self, readies: Sequence[Ready | Answer]) -> dict[int, Answer]:
        """The prompts with images that the processor refuses, each tried alone, and its reason."""
        refused = {}
        for index, ready in enumerate(readies):
            if isinstance(ready, Ready) and ready.images:
                try:
                    self._encode([ready], [ready.prompt.text], ready.prompt.special, "left")
                # Processors raise many types of exceptions for images that they cannot process.
                except Exception as error:
                    refused[index] = Answer(
                        error=f"the processor refuses the prompt: {str(error) or type(error).__name__}"
                    )
        return refused

    def _loaded(self, prompts: Sequence[Prompt], following: Iterable[Prompt]) -> list[Ready | Answer]:
        """Each prompt with its images, or what is wrong with one of them. The following prompts are asked later."""
        readies: list[Ready | Answer] = []
        for prompt in prompts:
            try:
                readies.append(Ready(prompt, [_rgb(part) for part in prompt.images]))
            except ValueError as error:
                readies.append(Answer(error=str(error)))
        return readies

    def _encode(self, readies: Sequence[Ready], texts: Sequence[str], special: bool, side: str) -> dict[str, Any]:
        """The model's inputs for a batch, on its device."""
        images = [ready.images for ready in readies]
        inputs = self.processor(
            text=list(texts),
            images=images if any(images) else None,
            padding=True,
            padding_side=side,
            add_special_tokens=special,
            return_tensors="pt",
        )
        return dict(inputs.to(self.model.device, self.model.dtype))

    @property
    def context(self) -> int | None:
        """Largest number of tokens of prompt and answer together, or None if the configuration does not say it."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def _generate(self, readies: list[Ready], max_new_tokens: int, stop: tuple[str, ...]) -> list[Answer]:
        special = readies[0].prompt.special
        inputs = self._encode(readies, [ready.prompt.text for ready in readies], special, "left")
        longest = int(inputs["attention_mask"].sum(1).max())
        if self.context is not None and longest + max_new_tokens > self.context:
            if len(readies) > 1:
                # Those that fit must not be shortened by the others.
                return [self._generate([ready], max_new_tokens, stop)[0] for ready in readies]
            if longest >= self.context:
                return [_too_long(longest, self.context)]
            max_new_tokens = self.context - longest
        width = inputs["input_ids"].shape[1]
        criteria = [StopStrings(self.tokenizer, stop, width)] if stop else []
        tokens = self.model.generate(
            **inputs,
            **DECODING,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=StoppingCriteriaList(criteria),
        )
        texts = self.tokenizer.batch_decode(
            tokens[:, width:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [Answer(text=cut(text, stop)) for text in texts]

    def _score(self, readies: list[Ready], continuations: list[tuple[str, ...]]) -> list[Answer]:
        rows = [
            row
            for owner, (ready, texts) in enumerate(zip(readies, continuations, strict=True))
            for row in rows_of(self.tokenizer, owner, ready.prompt.text, ready.prompt.special, texts)
        ]
        scores: list[dict[int, tuple[float, bool]]] = [{} for _ in readies]
        errors: dict[int, Answer] = {}
        # Without the tokenizer's special tokens are rows whose prompt is empty.
        for special in (True, False):
            same = [row for row in rows if row.special == special]
            for start in range(0, len(same), self.batch_size):
                self._score_rows(readies, same[start : start + self.batch_size], scores, errors)
        return [
            errors[owner] if owner in errors else _scored([own[index] for index in range(len(own))])
            for owner, own in enumerate(scores)
        ]

    def _score_rows(
        self,
        readies: list[Ready],
        rows: list[Row],
        scores: list[dict[int, tuple[float, bool]]],
        errors: dict[int, Answer],
    ) -> None:
        """Writes the scores of the rows to those of their requests, or why there are none to the errors."""
        prompts = self._encode(
            [readies[row.owner] for row in rows], [row.text for row in rows], rows[0].special, "right"
        )
        inputs, starts = append_tokens(prompts, rows, self.tokenizer.pad_token_id)
        longest = inputs["input_ids"].shape[1]
        if self.context is not None and longest > self.context:
            if len(rows) > 1:
                for row in rows:
                    self._score_rows(readies, [row], scores, errors)
            else:
                errors[rows[0].owner] = _too_long(longest, self.context)
            return
        first = min(starts) - 1
        logits = self._logits(inputs, torch.arange(first, longest, device=self.model.device))
        for own, start, row in zip(logits, starts, rows, strict=True):
            for index, targets in row.members:
                begin = start - 1 - first
                scores[row.owner][index] = score(own[begin : begin + len(targets)], targets)

    def _logits(self, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
        """`(batch, positions, vocabulary)`."""
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            return self.model(**inputs, use_cache=False, logits_to_keep=positions).logits
        return self.model(**inputs, use_cache=False).logits[:, positions]

    @torch.no_grad()
    def embed_images(self, images: Sequence[ImagePart]) -> torch.Tensor:
        """
        Embeds pictures for retrieval: the mean over all features that the model makes of a picture as a whole.

        Args:
            images: the pictures. What is computed of them is kept.

        Returns:
            `(images, width)` in float32 on the CPU. Rows have the length 1, so that products are cosine similarities; the
            row of a picture that cannot be decoded is 0.
        """
        with evaluation_mode(self.model):
            rows = [self._embedding(part) for part in images]
        width = max((len(row) for row in rows if row is not None), default=1)
        return torch.stack([torch.zeros(width) if row is None else row for row in rows])

    def _embedding(self, part: ImagePart) -> torch.Tensor | None:
        try:
            key = picture_key(part)
            row = self._embeddings.get(key)
            if row is None:
                row = torch.nn.functional.normalize(self._embed(part).float().mean(0), dim=0).cpu()
                self._embeddings.put(key, row, row.numel() * row.element_size())
        except Unusable:
            return None
        return row

    def _embed(self, part: ImagePart) -> torch.Tensor:
        """Features `(features, width)` of a picture: here, what the model's decoder reads of it."""
        ready = Ready(Prompt(self._writer.image_mark or "", (part,), None, True), [_rgb(part)])
        inputs = self._encode([ready], [ready.prompt.text], True, "left")
        function = self.model.get_image_features
        taken = inspect.signature(function).parameters
        features: Any = function(**{name: value for name, value in inputs.items() if name in taken}).pooler_output
        # Families differ in whether they give a tensor, or a list of one for each image.
        features = (
            torch.cat([each.flatten(0, -2) for each in features]) if isinstance(features, list | tuple) else features
        )
        return features.flatten(0, -2)

    def describe(self) -> dict[str, object]:
        """What a record of the evaluation says about the model: its name, revision, dtype, tile settings, versions."""
        template = self._writer.template
        return {
            "kind": "local",
            "name": self.name,
            "revision": self.revision or getattr(self.model.config, "_commit_hash", None),
            "class": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
            "parameters": self.model.num_parameters(),
            "weights": weights_digest(self.model),
            "tiling": self._tiling(),
            "chat_template": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
            "decoding": DECODING,
            "batch_size": self.batch_size,
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "pillow")},
        }

    def _tiling(self) -> dict[str, Any] | None:
        return None


def _rgb(part: ImagePart) -> Image.Image:
    """The picture in RGB, as MM1's own processor reads it: families differ in which other modes they read."""
    return Image.fromarray(to_uint8_pixels(part.load(), 0, True, True, None).permute(1, 2, 0).numpy())


def _scored(scores: Sequence[tuple[float, bool]]) -> Answer:
    return Answer(
        log_likelihoods=tuple(likelihood for likelihood, _ in scores), greedy=tuple(greedy for _, greedy in scores)
    )


def _too_long(length: int, context: int) -> Answer:
    return Answer(
        error=f"the prompt is {length} tokens long, but prompt and answer together may have {context} (the model's "
        "max_position_embeddings). Ask with fewer shots, or with fewer tiles per image."
    )
