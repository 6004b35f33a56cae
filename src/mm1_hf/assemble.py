"""Assembles an MM1 and its processor from an image encoder and a decoder."""

import copy
import re
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging

from .model.configuration_mm1 import ConnectorType, MM1Config, MM1ConnectorConfig
from .model.image_processing_mm1 import MM1ImageProcessor
from .model.modeling_mm1 import MM1ForConditionalGeneration
from .model.processing_mm1 import MM1Processor
from .model.vision import resize_positions
from .model.vision_sizes import vision_grid_size


IMAGE_TOKEN = "<image>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")

# If embedding rows are added, their total is rounded up to a multiple of this, for faster matrix products.
_VOCABULARY_MULTIPLE = 64
# Image mean and standard deviation that encoders were trained with, for encoders passed without an image processor.
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_IMAGE_STATISTICS = {
    "aim_vision_model": _IMAGENET,
    "aimv2_vision_model": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": _IMAGENET,
    "dinov2_with_registers": _IMAGENET,
    "dinov3_vit": _IMAGENET,
    "siglip_vision_model": ((0.5,) * 3, (0.5,) * 3),
}
# Configurations derive these fields from the number of layers, so they must not be copied when layers are cut off.
_LAYER_DEPENDENT_FIELDS = ("out_features", "out_indices", "stage_names")

Source = str | PathLike | PreTrainedModel


def assemble(
    vision: Source,
    text: Source,
    connector: ConnectorType | MM1ConnectorConfig = "c_abstractor",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: BaseImageProcessor | None = None,
    image_size: int | None = None,
    vision_feature_layer: int = -1,
    dtype: torch.dtype | None = None,
    verbose: bool = True,
) -> tuple[MM1ForConditionalGeneration, MM1Processor]:
    """
    Assembles an MM1 (MM1, section 3.2). The weights of encoder and decoder are kept; the connector is new and has to
    be trained.

    The encoder's layers after the one that is used are removed. The image token, and the two tokens of ChatML where
    they are missing, are added to the tokenizer, whose existing tokens keep their ids. New embedding rows are set to
    the mean of the existing rows. On text without images the model computes the same logits as the decoder alone,
    which is checked.

    Args:
        vision: the image encoder: a folder, a Hub id or a loaded model. Of a model of images and text, such as CLIP,
            only the image encoder is used.
        text: the decoder, with its head: a folder, a Hub id or a loaded model.
        connector: a connector type or a connector configuration.
        tokenizer: the decoder's tokenizer; required if `text` is a loaded model.
        image_processor:
            Any image processor. An [`MM1ImageProcessor`] is used unchanged; of any other one, only the mean and the
            standard deviation are used. Unset, it is loaded with the encoder, or, if `vision` is a loaded model, has
            the mean and the standard deviation that are known for its type.
        image_size: side of a tile, in pixels; unset, the encoder's image size. For another size, the encoder's
            position embeddings are interpolated.
        vision_feature_layer: the encoder layer whose output goes to the connector: -1 is the last layer, 1 the first.
        dtype: dtype of the assembled weights; unset, that of the decoder.
        verbose: whether to print what was done.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        ValueError: a part is missing or does not fit, or the decoder would not compute the same logits as before.

    Example:

    ```python
    >>> from transformers import CLIPVisionConfig, CLIPVisionModel, GPT2Tokenizer, LlamaConfig, LlamaForCausalLM
    >>> from mm1_hf import MM1ConnectorConfig, assemble

    >>> tokenizer = GPT2Tokenizer().train_new_from_iterator(["A cat."], vocab_size=300)
    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> vision = CLIPVisionModel(CLIPVisionConfig(image_size=56, patch_size=14, **sizes))
    >>> text = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    >>> connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
    >>> model, processor = assemble(vision, text, connector, tokenizer=tokenizer, verbose=False)
    >>> model.config.text_config.model_type, processor.num_image_tokens
    ('llama', 4)

    ```
    """
    notes: list[str] = []
    vision_model, image_processor = _load_vision(vision, image_processor)
    text_model, tokenizer = _load_text(text, tokenizer)
    dtype = text_model.dtype if dtype is None else dtype

    vision_config, vision_weights = _fit_vision(vision_model, vision_feature_layer, image_size, notes)
    tokenizer = _add_tokens(tokenizer, notes)
    text_config, text_weights = _fit_text(text_model, len(tokenizer), notes)
    head_bias = text_weights.get("lm_head.bias") is not None

    connector_config = (
        connector if isinstance(connector, MM1ConnectorConfig) else MM1ConnectorConfig(connector_type=connector)
    )
    config = MM1Config(
        vision_config=vision_config,
        text_config=text_config,
        connector_config=copy.deepcopy(connector_config),
        image_token_id=cast(int, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)),
        lm_head_bias=head_bias,
        tie_word_embeddings=bool(text_config.tie_word_embeddings),
    )
    model = _build(config, vision_weights, text_weights, torch.promote_types(text_model.dtype, dtype))
    notes.append(
        f"connector: {config.connector_config.connector_type}, {config.connector_config.num_tokens} tokens per tile "
        f"of {config.vision_config.image_size} pixels; new, has to be trained"
    )
    # Compared in the decoder's own dtype: rounding to another dtype can change the logits of rare tokens completely.
    cast_parameters(model.model.language_model, text_model.dtype)
    cast_parameters(model.lm_head, text_model.dtype)
    _check_text_logits(text_model, model)
    cast_parameters(model, dtype)

    model.generation_config = copy.deepcopy(text_model.generation_config)
    _end_turns(model, tokenizer)
    if not isinstance(image_processor, MM1ImageProcessor):
        side = config.connector_config.grid_size * config.vision_config.patch_size
        image_processor = MM1ImageProcessor(
            size={"height": side, "width": side},
            image_mean=list(image_processor.image_mean),
            image_std=list(image_processor.image_std),
            image_splitting="none",
        )
        notes.append("images: one tile each; for more, set processor.image_processor.image_splitting")
    model.config.pixel_mean, model.config.pixel_scale = _level_statistics(image_processor, config.vision_config)
    processor = MM1Processor(image_processor, tokenizer, num_image_tokens=config.connector_config.num_tokens)
    if verbose:
        print("mm1_hf.assemble\n" + "\n".join(f"  {note}" for note in notes))
    return model, processor


def _load_vision(source: Source, image_processor: Any) -> tuple[PreTrainedModel, Any]:
    model = source if isinstance(source, PreTrainedModel) else AutoModel.from_pretrained(source)
    if image_processor is None and not isinstance(source, PreTrainedModel):
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    # Models of images and text such as CLIP and SigLIP hold their encoder under this name.
    model = getattr(model, "vision_model", model)
    model_type = model.config.model_type
    vision_grid_size(model.config)
    if image_processor is None:
        if model_type not in _IMAGE_STATISTICS:
            raise ValueError(
                f"The mean and standard deviation that the {model_type!r} encoder was trained with are not known. "
                "Pass its image_processor."
            )
        mean, std = _IMAGE_STATISTICS[model_type]
        image_processor = cast(Any, BaseImageProcessor(image_mean=mean, image_std=std))
        image_processor.image_mean, image_processor.image_std = mean, std
    return model, image_processor


def _level_statistics(
    image_processor: MM1ImageProcessor, vision_config: PreTrainedConfig
) -> tuple[list[float] | None, list[float] | None]:
    """
    `pixel_mean` and `pixel_scale` of the configuration, by which the model normalises uint8 tiles; both are `None` if
    the image processor has no mean or standard deviation, or only one of `do_rescale` and `do_normalize` is on.
    """
    statistics = (image_processor.image_mean, image_processor.image_std)
    if None in statistics or image_processor.do_rescale != image_processor.do_normalize:
        return None, None
    channels = getattr(vision_config, "num_channels", 3)
    mean, std = (np.broadcast_to(values, channels).tolist() for values in statistics)
    return mean, std


def _load_text(
    source: Source, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(source, PreTrainedModel):
        if tokenizer is None:
            raise ValueError(
                "A decoder that is passed as a loaded model does not include its tokenizer: pass tokenizer= too."
            )
        model = source
    else:
        config = AutoConfig.from_pretrained(source)
        # Some models of images and text, MM1 among them, are in this table too.
        if type(config) not in AutoModelForCausalLM._model_mapping or config.get_text_config() is not config:
            raise ValueError(
                f"{source} holds a {config.model_type!r} model, which is not a decoder. Pass a causal language model."
            )
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        tokenizer = cast(Any, AutoTokenizer.from_pretrained(source)) if tokenizer is None else tokenizer
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(model).__name__} has no head. Load the decoder with AutoModelForCausalLM, which loads the head."
        )
    return model.eval(), copy.deepcopy(tokenizer)


def _fit_vision(
    model: PreTrainedModel, feature_layer: int, image_size: int | None, notes: list[str]
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """The encoder's configuration and weights, cut to the layers that are used and interpolated to the image size."""
    layers = model.config.num_hidden_layers
    used = layers + 1 + feature_layer if feature_layer < 0 else feature_layer
    if not 1 <= used <= layers:
        raise ValueError(
            f"vision_feature_layer={feature_layer} is not one of the encoder's {layers} layers: pass -1 (the last) to "
            f"{-layers}, or 1 to {layers}."
        )
    weights = {
        name: weight
        for name, weight in model.state_dict().items()
        if (number := re.search(r"(?:^|\.)layers?\.(\d+)\.", name)) is None or int(number[1]) < used
    }
    grid = vision_grid_size(model.config)
    if image_size is not None and image_size != model.config.image_size:
        if image_size % model.config.patch_size:
            raise ValueError(
                f"image_size={image_size} is not a multiple of the encoder's patch size, {model.config.patch_size}. "
                "Pass a multiple of it."
            )
        new_grid = image_size // model.config.patch_size
        resized = resize_positions(weights, grid, new_grid)
        if any(resized[name].shape != weight.shape for name, weight in weights.items()):
            notes.append(
                f"image encoder: position embeddings interpolated from {grid} x {grid} to {new_grid} x {new_grid}"
            )
        weights = resized
    fields = {name: value for name, value in model.config.to_dict().items() if name not in _LAYER_DEPENDENT_FIELDS}
    fields.update(num_hidden_layers=used, image_size=image_size or model.config.image_size)
    # Switches off weights that only the encoder's pre-training uses: here they would never get a gradient.
    fields.update({name: False for name in ("use_mask_token", "vision_use_head", "use_head") if name in fields})
    notes.insert(0, f"image encoder: {model.config.model_type}, {used} of {layers} layers")
    return type(model.config)(**fields), weights


def _add_tokens(tokenizer: PreTrainedTokenizerBase, notes: list[str]) -> PreTrainedTokenizerBase:
    before = len(tokenizer)
    missing = [
        token
        for token in (*CHAT_TOKENS, IMAGE_TOKEN)
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id)
    ]
    # Many models have more embedding rows than their tokenizer has tokens; new tokens use these spare rows first.
    tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    added = ", ".join(f"{token} = {tokenizer.convert_tokens_to_ids(token)}" for token in missing) or "none"
    notes.append(f"tokenizer: {before} tokens keep their ids; added: {added}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"tokenizer: had no padding token, pads with {tokenizer.eos_token}")
    # Generation needs padding on the left; the training collator pads on the right by itself.
    tokenizer.padding_side = "left"
    return tokenizer


def _vocabulary_rows(model: PreTrainedModel) -> int:
    return cast(nn.Embedding, model.get_input_embeddings()).num_embeddings


def _fit_text(
    model: PreTrainedModel, vocab_size: int, notes: list[str]
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """The decoder's configuration and weights, with rows for the new tokens; the head's are named `lm_head.*`."""
    config = copy.deepcopy(model.config)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    rows = _vocabulary_rows(model)
    new_rows = (
        max(rows, -(-vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE) - rows if vocab_size > rows else 0
    )
    base = model.base_model
    weights = dict(base.state_dict())
    name = next(name for name, module in base.named_modules() if module is embeddings)
    weights[f"{name}.weight"] = _extend(weights[f"{name}.weight"], new_rows)
    weights["lm_head.weight"] = _extend(head.weight.detach(), new_rows)
    if getattr(head, "bias", None) is not None:
        weights["lm_head.bias"] = _extend(head.bias.detach(), new_rows)
    config.vocab_size = rows + new_rows
    tied = head.weight is embeddings.weight
    config.tie_word_embeddings = tied
    notes.append(
        f"decoder: {config.model_type}, {config.num_hidden_layers} layers, head {'tied' if tied else 'not tied'}; "
        f"{rows} embedding rows" + (f" and {new_rows} new ones, set to their mean" if new_rows else "")
    )
    return config, weights


def _extend(weight: torch.Tensor, rows: int) -> torch.Tensor:
    if rows == 0:
        return weight
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows, *weight.shape[1:])])


def _build(
    config: MM1Config, vision: dict[str, torch.Tensor], text: dict[str, torch.Tensor], dtype: torch.dtype
) -> MM1ForConditionalGeneration:
    state = {f"model.vision_tower.{name}": weight for name, weight in vision.items()}
    state |= {
        name if name.startswith("lm_head") else f"model.language_model.{name}": weight for name, weight in text.items()
    }
    # The loading report would warn of the new connector and of the encoder's unused norm, which are both expected.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # With `output_loading_info` a pair is returned, although the annotation says a model.
        loaded: Any = MM1ForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        model, info = loaded
    finally:
        logging.set_verbosity(verbosity)
    missing = [name for name in info["missing_keys"] if not name.startswith("model.connector.")]
    if missing or info["mismatched_keys"]:
        raise ValueError(
            f"The encoder or the decoder lacks weights that its configuration requires. Missing: {missing}; with "
            f"another shape: {info['mismatched_keys']}. Pass parts whose weights match their configurations."
        )
    return model.eval()


@torch.no_grad()
def _check_text_logits(source: PreTrainedModel, model: MM1ForConditionalGeneration) -> None:
    """
    Compares the logits of both for a few tokens: they differ if the decoder's own class does something outside its
    base model, for example scale the logits, that an MM1 does not do.
    """
    vocab_size = _vocabulary_rows(source)
    tokens = torch.arange(1, 9, device=source.device).remainder(vocab_size).unsqueeze(0)
    expected = source(input_ids=tokens).logits.float()
    given = model(input_ids=tokens.to(model.device)).logits[..., : expected.shape[-1]].float().to(expected.device)
    # Both run the same operations; only the head's matrix product has another shape, because of its new rows.
    tolerance = (1e-4 if source.dtype == torch.float32 else 2e-2) * max(1.0, expected.abs().max().item())
    difference = (given - expected).abs().max().item()
    if not difference <= tolerance:
        suspects = [name for name in source.config.to_dict() if re.search(r"scal|multiplier|softcap|bias|logit", name)]
        raise ValueError(
            f"In an MM1, the {source.config.model_type!r} decoder gives other logits than by itself (they differ by "
            f"{difference:.3g}), because its own class does something that an MM1 does not do. Fields of its "
            f"configuration that may be the cause: {', '.join(suspects) or 'none found by name'}. Use another "
            "decoder, or report this one."
        )


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights in place, but unlike `module.to(dtype)` not the buffers: rotary frequencies need float32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _end_turns(model: MM1ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes generation stop at the end of a turn, and never generate an image token."""
    generation = model.generation_config
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    ends = [*ends, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(CHAT_TOKENS[1])]
    generation.eos_token_id = list(dict.fromkeys(end for end in ends if end is not None))
    generation.pad_token_id = tokenizer.pad_token_id
    generation.suppress_tokens = [model.config.image_token_id]


__all__ = ["assemble"]
