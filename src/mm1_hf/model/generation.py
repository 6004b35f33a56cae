"""`generate()` with images: which tiles a call still has to encode, and what a draft model is given."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers.generation import EarlyExitCandidateGenerator
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import ProcessorMixin

from .versions import CHUNKS_IMAGES, ENCODES_IMAGES_FIRST
from .vision import require_tiles


class DraftInputs(dict):
    """
    Image features of the model, under the name of their modality, with the tiles for a draft model, which encodes them
    by itself. transformers passes the features to a draft model, although its encoder would give others.

    Args:
        tiles: `(tiles, 3, height, width)`.
    """

    def __init__(self, tiles: torch.Tensor):
        super().__init__()
        self.tiles = tiles


class EarlyExitDraft(EarlyExitCandidateGenerator):
    """Drafts with the decoder's first layers. transformers sets the number of layers in the configuration of the whole
    model, where MM1 has none."""

    def get_candidates(self, input_ids: torch.LongTensor, **kwargs: Any) -> tuple[torch.LongTensor, torch.Tensor]:
        """
        Args:
            input_ids, kwargs: as transformers' candidate generators take them, and so is the output.
        """
        config = self.assistant_model.config.get_text_config()
        layers = config.num_hidden_layers
        config.num_hidden_layers = self.assistant_early_exit
        try:
            return super(EarlyExitCandidateGenerator, self).get_candidates(input_ids)
        finally:
            config.num_hidden_layers = layers


class ImageGenerationMixin:
    """Methods of MM1 that `generate()` calls and that have to do with images."""

    config: Any

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        pixel_values: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        assistant_model: Any = None,
        **kwargs: Any,
    ) -> Any:
        """
        Same as transformers' `generate`, with images.

        A chat may be continued from its cache: `pixel_values` then hold either the tiles of the new turns alone or
        those of the whole chat. Tiles that are in the cache are not encoded again. An `assistant_model` that is an MM1
        encodes the tiles by itself; another one drafts from the text alone.

        Args:
            inputs: `(batch, sequence)`, the same as `input_ids`.
            args, kwargs: as transformers' `generate` takes them. A processor may be given as a tokenizer.
            pixel_values: `(tiles, 3, height, width)`, see the forward method. 0 tiles are the same as None.
            mm_encoder_outputs: see the forward method.
            assistant_model: a smaller model, whose drafts this one checks.

        Raises:
            ValueError: the model refuses the tiles; the number of image tokens does not match theirs; the cache ends
                inside an image; the assistant model needs another number of image tokens for each tile; or
                transformers cannot do what is asked for: assisted decoding from a filled cache or from embeddings,
                token healing of images, or chunked prefill of embeddings or, before its release 5.24, of images.
        """
        for name in ("tokenizer", "assistant_tokenizer"):
            if isinstance(kwargs.get(name), ProcessorMixin):
                kwargs[name] = kwargs[name].tokenizer
        if pixel_values is not None:
            require_tiles(pixel_values, self.config.vision_config)
            pixel_values = pixel_values if len(pixel_values) else None
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        cached = cached_length(kwargs)
        has_images = pixel_values is not None or bool(mm_encoder_outputs)
        self._require_possible(args, kwargs, assistant_model, cached, has_images)
        if input_ids is not None or kwargs.get("inputs_embeds") is not None:
            pixel_values, mm_encoder_outputs = self._images_to_encode(
                input_ids, pixel_values, mm_encoder_outputs, cached, kwargs
            )
        if assistant_model is not None:
            kwargs["assistant_model"] = assistant_model
            if pixel_values is not None and isinstance(assistant_model, ImageGenerationMixin):
                self._require_same_places(assistant_model)
            if pixel_values is not None and ENCODES_IMAGES_FIRST:
                mm_encoder_outputs = DraftInputs(pixel_values)
        # transformers would pass None to the encoder.
        images = {"pixel_values": pixel_values, "mm_encoder_outputs": mm_encoder_outputs}
        kwargs |= {name: given for name, given in images.items() if given is not None}
        return super().generate(inputs, *args, **kwargs)  # ty: ignore[missing-attribute] -- GenerationMixin's

    def _require_possible(
        self, args: tuple, kwargs: dict[str, Any], assistant_model: Any, cached: int, has_images: bool
    ) -> None:
        given = kwargs.get("generation_config", args[0] if args else None)

        def asked(name: str) -> Any:
            value = kwargs.get(name)
            return getattr(given, name, None) if value is None else value

        if has_images and asked("token_healing"):
            raise ValueError(
                "transformers' token healing makes the prompt into text and back, and would lose its image tokens. Leave "
                "token_healing unset for prompts with images."
            )
        drafts = ("prompt_lookup_num_tokens", "assistant_early_exit")
        if cached and (assistant_model is not None or any(asked(name) is not None for name in drafts)):
            raise ValueError(
                f"The cache holds {cached} tokens, and transformers' assisted decoding would read them a second time. "
                "Continue from a cache without assistant_model, prompt_lookup_num_tokens and assistant_early_exit, or "
                "pass the whole prompt without a cache."
            )
        if kwargs.get("inputs_embeds") is not None and (assistant_model is not None or asked("assistant_early_exit")):
            raise ValueError(
                "A draft model cannot read inputs_embeds, which are the embeddings of another model. Pass input_ids, or "
                "leave assistant_model and assistant_early_exit unset."
            )
        if asked("prefill_chunk_size") is None:
            return
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "transformers' chunked prefill reads input_ids alone and would ignore inputs_embeds. Pass input_ids, or "
                "leave prefill_chunk_size unset."
            )
        if has_images and not CHUNKS_IMAGES:
            raise ValueError(
                "Before its release 5.24, transformers drops the images of a prompt that is read in chunks. Leave "
                "prefill_chunk_size unset, or install a later release."
            )

    def _require_same_places(self, assistant_model: Any) -> None:
        own, other = (
            (model.config.connector_config.num_tokens, model.config.image_token_id)
            for model in (self, assistant_model)
        )
        if own != other:
            raise ValueError(
                f"A draft model reads the prompt of this model, in which every tile is {own[0]} tokens with the id "
                f"{own[1]}, but the assistant_model needs {other[0]} tokens with the id {other[1]}. Give an "
                "assistant_model with the same connector_config.num_tokens and the same tokenizer, or one that reads text "
                "alone."
            )

    def _images_to_encode(
        self,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
        cached: int,
        kwargs: Mapping[str, Any],
    ) -> tuple[torch.Tensor | None, dict[str, BaseModelOutputWithPooling] | None]:
        """The tiles, or their features, whose image tokens are not in the cache yet."""
        outputs = (mm_encoder_outputs or {}).get("image")
        if outputs is not None and pixel_values is not None:
            raise ValueError("Give either pixel_values or mm_encoder_outputs, not both.")
        given = pixel_values if outputs is None else cast(torch.Tensor, outputs.pooler_output)
        inputs_embeds = kwargs.get("inputs_embeds")
        if given is None and inputs_embeds is not None:
            # The images may be in the embeddings already.
            return pixel_values, mm_encoder_outputs
        places = self._image_places(input_ids, inputs_embeds)
        attention_mask = kwargs.get("attention_mask")
        if attention_mask is not None and attention_mask.shape[-1] > places.shape[1]:
            # The tokens of the cache are in the mask, but not in the prompt.
            cached = 0
        old, whole = places[:, :cached].sum(1).tolist(), places.sum(1).tolist()
        per_tile = self.config.connector_config.num_tokens
        # Of features, those that were cut into pieces have no tiles any more.
        number = 0 if given is None else len(given) * per_tile if outputs is None else given[..., 0].numel()
        if number == sum(whole) - sum(old):
            return (pixel_values, mm_encoder_outputs) if number else (None, None)
        if number != sum(whole):
            raise ValueError(mismatch(sum(whole) - sum(old), number, per_tile))
        if any(count % per_tile for count in old):
            raise ValueError(
                f"The cache ends inside an image: it holds {old} image tokens of each row, but an image tile has "
                f"{per_tile}. Crop the cache at the beginning or at the end of an image."
            )
        keep = [
            index >= count // per_tile
            for count, total in zip(old, whole, strict=True)
            for index in range(total // per_tile)
        ]
        if given is None or not any(keep):
            return None, None
        rest = given[torch.tensor(keep, device=given.device)]
        return (rest, None) if outputs is None else (None, {"image": BaseModelOutputWithPooling(pooler_output=rest)})

    def _image_places(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """`(batch, sequence)`, true at image tokens, of the embeddings where they are given."""
        if inputs_embeds is None:
            return input_ids == self.config.image_token_id  # ty: ignore[invalid-explicit-return] -- a tensor
        return image_embeddings(self, inputs_embeds)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """
        Args:
            input_ids, next_sequence_length, attention_mask, inputs_embeds, is_first_iteration, kwargs:
                as transformers' method takes them. `generate()` looks for these names in the signature: without
                `inputs_embeds` it refuses embeddings.
        """
        if not is_first_iteration and kwargs.get("pixel_values", kwargs.get("mm_encoder_outputs")) is not None:
            # transformers says of no step of a draft model that it is the first, and would drop the prompt's images.
            is_first_iteration = cached_length(kwargs) == 0
            if not is_first_iteration:
                # Up to 5.17, it would pass on features in every step. Can go when 5.18 is the oldest release.
                kwargs.pop("mm_encoder_outputs", None)
        return super().prepare_inputs_for_generation(  # ty: ignore[missing-attribute] -- NextTokenHeadMixin's
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _expand_inputs_for_generation(self, expand_size: int = 1, input_ids: Any = None, **model_kwargs: Any) -> Any:
        # Up to 5.17 transformers repeats `pixel_values` tile by tile, for beams and several answers, which would give a
        # row the tiles of another. Later releases encode images before, and repeat what each row has. Can go when one of
        # them is the oldest release of the range.
        tiles = model_kwargs.pop("pixel_values", None)
        if tiles is not None and expand_size > 1:
            places = self._image_places(input_ids, model_kwargs.get("inputs_embeds"))
            rows = tiles.split((places.sum(dim=1) // self.config.connector_config.num_tokens).tolist())
            tiles = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # ty: ignore[missing-attribute] -- as above
            expand_size=expand_size, input_ids=input_ids, **model_kwargs
        )
        if tiles is not None:
            model_kwargs["pixel_values"] = tiles
        return input_ids, model_kwargs

    def _get_candidate_generator(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        assistant_model: Any = None,
        target_tokenizer: Any = None,
        **kwargs: Any,
    ) -> Any:
        if generation_config.assistant_early_exit is not None:
            return EarlyExitDraft(
                assistant_model=self,  # ty: ignore[invalid-argument-type] -- a mixin of models
                generation_config=generation_config,
                model_kwargs=model_kwargs,
                **{name: kwargs[name] for name in ("input_ids", "inputs_tensor", "logits_processor")},
            )
        if assistant_model is not None:
            encoded = model_kwargs.get("mm_encoder_outputs")
            tiles = encoded.tiles if isinstance(encoded, DraftInputs) else model_kwargs.get("pixel_values")
            images = ("mm_encoder_outputs", "pixel_values")
            draft_kwargs = {name: value for name, value in model_kwargs.items() if name not in images}
            # A draft model with a tokenizer of its own is given the prompt as text, in which no image has a place.
            if tiles is not None and target_tokenizer is None and isinstance(assistant_model, ImageGenerationMixin):
                draft_kwargs["pixel_values"] = tiles
            model_kwargs = draft_kwargs
        return super()._get_candidate_generator(  # ty: ignore[missing-attribute] -- as above
            generation_config=generation_config,
            model_kwargs=model_kwargs,
            assistant_model=assistant_model,
            target_tokenizer=target_tokenizer,
            **kwargs,
        )


def mismatch(tokens: Any, features: int, per_tile: int) -> str:
    """
    The error of a text whose image tokens do not fit its tiles.

    Args:
        tokens: number of image tokens in the text.
        features: number of image tokens that the tiles become.
        per_tile: number of image tokens that one tile becomes.
    """
    # TRL recognises this error by its first words, so keep them.
    start = f"Image features and image tokens do not match, tokens: {tokens}, features: {features}. "
    if not features:
        return start + (
            "The text has image tokens, but no pixel_values came with it. Pass the tiles that the processor made "
            "together with the text; they are also needed where a chat is continued with a new image."
        )
    return start + (
        f"Every tile of pixel_values needs {per_tile} image tokens in the text. Build text and tiles together with the "
        "model's processor. pixel_values hold the tiles of the whole batch, one after the other, so a slice of the rows "
        "needs exactly the tiles of these rows; and the text must not be truncated or edited afterwards."
    )


def image_embeddings(model: Any, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """
    Finds the image tokens among embeddings.

    Args:
        model: an MM1 model.
        inputs_embeds: `(batch, sequence, hidden)`.

    Returns:
        `(batch, sequence)`, true where the embedding is that of the image token.
    """
    image_token = torch.full((), model.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
    return (inputs_embeds == model.get_input_embeddings()(image_token)).all(-1)


def cached_length(kwargs: Mapping[str, Any]) -> int:
    """Number of tokens in the cache that a call of `generate` continues from."""
    # Both names are taken since transformers 5.24.
    cache = kwargs.get("cache") if kwargs.get("past_key_values") is None else kwargs["past_key_values"]
    return 0 if cache is None else int(cache.get_seq_length())


__all__ = ["ImageGenerationMixin"]
