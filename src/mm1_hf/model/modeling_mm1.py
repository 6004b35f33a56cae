"""MM1: an image encoder, a connector and a decoder (MM1, section 3; MM1.5, section 3)."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling, MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, torch_compilable_check
from transformers.utils.generic import accepts_precomputed_kwargs, merge_with_config_defaults

from .adapters import AdapterLoadingMixin
from .configuration_mm1 import MM1Config, MM1TextConfig
from .connectors import AttentionPooling, CAbstractor, ResidualNorm, build_connector
from .foreign_decoders import (
    balance_coefficient,
    branch_mask,
    build_decoder,
    keeps_own_cache,
    num_experts,
    require_packed_path,
)
from .generation import ImageGenerationMixin, image_embeddings, mismatch
from .losses import live_targets
from .modeling_mm1_text import (
    MM1CausalLMOutput,
    MM1TextModel,
    NextTokenHeadMixin,
    require_loss_in_the_logits,
    resolve_skip_logits,
    router_token_mask,
    warn_of_lost_router_losses,
    weighted_router_loss,
)
from .quantization import keep_precise
from .segments import (
    boundary_kwargs,
    has_branches,
    mask_padding,
    require_packed_inputs,
    segment_positions,
    segments_from_positions,
)
from .versions import CACHE, is_paged, takes_cache
from .vision import build_vision_tower, encode, normalize_levels, require_tiles
from .vision_sizes import vision_sizes


@dataclass
class MM1ModelOutput(MoeModelOutputWithPast):
    r"""
    Output of [`MM1Model`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, sequence, hidden)`): output of the decoder's last norm.
        past_key_values (`Cache`, *optional*):
            Keys and values of all tokens so far. Since transformers 5.24 the field is called `cache`.
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            The decoder's input and the output of each layer, `(batch, sequence, hidden)` each.
        attentions (`tuple[torch.Tensor]`, *optional*): one `(batch, heads, sequence, sequence)` per layer.
        router_logits (`tuple[torch.Tensor]`, *optional*): one `(batch * sequence, experts)` per sparse layer.
        image_hidden_states (`torch.Tensor` of shape `(tiles, tokens, hidden)`, *optional*): the connector's output.
        image_outputs (`BaseModelOutputWithPooling`, *optional*):
            Output of [`MM1Model.get_image_features`], in evaluation mode.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


class MM1PreTrainedModel(AdapterLoadingMixin, PreTrainedModel):
    """Base class of MM1's models. It initialises weights and tells transformers what the models support."""

    config: MM1Config
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """Same as transformers' `from_pretrained`, except that `quantization_config` leaves the encoder, the connector
        and the head unquantised, unless it lists the modules to leave out itself."""
        if quantization_config is not None:
            kwargs["quantization_config"] = keep_precise(quantization_config)
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers decides by looking for a decorator in this file. The experts are in the decoder, whose class is
        # asked separately.
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.connector_config.initializer_range
        if isinstance(module, CAbstractor):
            init.trunc_normal_(module.position_embedding, mean=0.0, std=std)
        elif isinstance(module, ResidualNorm):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, AttentionPooling):
            init.trunc_normal_(module.queries, mean=0.0, std=std)


class MM1Model(MM1PreTrainedModel):
    """
    The image encoder, the connector and the decoder, without a head (MM1, section 3.2).

    Args:
        config: configuration of the whole model.

    Example:

    ```python
    >>> import torch
    >>> from mm1_hf import MM1Config, MM1Model

    >>> config = MM1Config.from_preset("mm1-tiny")
    >>> model = MM1Model(config).eval()
    >>> tiles = torch.zeros(2, 3, config.vision_config.image_size, config.vision_config.image_size)
    >>> model.get_image_features(tiles).pooler_output.shape
    torch.Size([2, 4, 64])
    >>> model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.shape
    torch.Size([1, 3, 64])

    ```
    """

    vision_tower: PreTrainedModel
    connector: nn.Module
    language_model: PreTrainedModel

    def __init__(self, config: MM1Config):
        super().__init__(config)
        self.vision_tower = build_vision_tower(
            config.vision_config, config.vision_feature_layer, config.vision_feature_norm
        )
        self.connector = build_connector(config.connector_config)
        self.language_model = build_decoder(config.text_config)
        self.post_init()

    @accepts_precomputed_kwargs("image")
    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        r"""
        Turns tiles into image tokens for the decoder.

        Args:
            pixel_values:
                `(tiles, 3, height, width)`, square, with sides of any multiple of the patch size. There may be 0
                tiles. uint8 tiles are normalised here with the configuration's `pixel_mean` and `pixel_scale`.
            kwargs: further arguments of the encoder, such as `output_hidden_states`.

        Returns:
            The encoder's output, with the image tokens `(tiles, num_tokens, hidden)` as its `pooler_output`.

        Raises:
            ValueError: `pixel_values` are not tiles of as many channels as the encoder takes, in floating point or uint8;
                the tiles are not a square grid of whole patches; their resolution is not the configured one,
                although the connector keeps every patch; or they are uint8, but the configuration has no `pixel_mean`.
        """
        require_tiles(pixel_values, self.config.vision_config)
        connector_config = self.config.connector_config
        if pixel_values.shape[0] == 0:
            # Some encoders fail on a batch of 0 tiles.
            shape = (0, connector_config.num_tokens, connector_config.text_hidden_size)
            return BaseModelOutputWithPooling(pooler_output=pixel_values.new_zeros(shape, dtype=self.dtype))
        if pixel_values.dtype == torch.uint8:
            pixel_values = normalize_levels(pixel_values, self.config.pixel_mean, self.config.pixel_scale)
        with torch.set_grad_enabled(torch.is_grad_enabled() and needs_gradient(self.vision_tower)):
            outputs, patches = encode(
                self.vision_tower,
                pixel_values,
                final_norm=self.config.vision_feature_norm,
                **kwargs,
            )
        tokens = self.connector(patches)
        if tokens.shape[1] != connector_config.num_tokens:
            raise ValueError(
                f"The {connector_config.connector_type} connector keeps one token per patch: these tiles gave "
                f"{tokens.shape[1]} tokens each, but the model is configured for {connector_config.num_tokens}. Use "
                f"tiles of {self.config.vision_config.image_size} pixels, or a connector that reduces the patches to "
                "num_tokens."
            )
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=tokens,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, num_features: int
    ) -> torch.Tensor:
        """
        Finds the placeholder tokens for images.

        Args:
            input_ids: `(batch, sequence)`.
            inputs_embeds: `(batch, sequence, hidden)`, used if `input_ids` is None.
            num_features: number of image tokens of all tiles of the batch together.

        Returns:
            `(batch, sequence)`, true at placeholder tokens.

        Raises:
            ValueError: the number of placeholder tokens is not `num_features`.
        """
        if input_ids is not None:
            mask = input_ids == self.config.image_token_id
        else:
            mask = image_embeddings(self, cast(torch.Tensor, inputs_embeds))
        count = mask.sum()
        torch_compilable_check(
            count == num_features,
            lambda: mismatch(count, num_features, self.config.connector_config.num_tokens),
        )
        return mask

    @takes_cache
    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> MM1ModelOutput:
        r"""
        Args:
            input_ids: `(batch, sequence)`, with `num_tokens` placeholder tokens for every tile.
            pixel_values:
                `(tiles, 3, height, width)`, the tiles of the whole batch in the order of their placeholders in the
                text; normalised, or uint8. 0 tiles are the same as None.
            attention_mask: `(batch, past + sequence)`, 0 for padding.
            position_ids: `(batch, sequence)`. In training, positions that restart within a row begin a new segment.
            past_key_values: keys and values of earlier tokens.
            inputs_embeds: `(batch, sequence, hidden)`, given instead of `input_ids`.
            use_cache: whether to return `past_key_values`. Always off for packed rows; off by default in training.
            segment_ids:
                `(batch, sequence)`, number of the segment that each token belongs to, 0 for padding. A negative number marks
                a branch of the last segment before it; see [`mm1_hf.model.segments`].
            mm_encoder_outputs:
                Output of [`get_image_features`] under the key `"image"`, given instead of `pixel_values`.
            kwargs: further arguments of the decoder, such as `output_hidden_states`.

        Raises:
            ValueError: [`MM1Model.get_image_features`] refuses the tiles; the number of placeholder tokens does not match
                that of the tiles; both or neither of
                `input_ids` and `inputs_embeds` are given, or both `pixel_values` and `mm_encoder_outputs`;
                `segment_ids` have another shape than the tokens, or are given with a filled cache, with an
                `attention_mask` that marks more than padding or to a decoder that cannot keep segments or branches apart;
                `torch.nn.DataParallel` has split the batch.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        image_outputs: Any = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("Give either pixel_values or mm_encoder_outputs, not both.")
        if getattr(self, "_is_replica", False):
            raise ValueError(
                "torch.nn.DataParallel splits pixel_values without regard to the rows that the tiles belong to. Start "
                "one process per GPU instead, with torchrun or accelerate launch."
            )

        if pixel_values is not None:
            # Before the tiles are counted.
            require_tiles(pixel_values, self.config.vision_config)
            pixel_values = pixel_values if len(pixel_values) else None
        # A serving engine would end with the error of a search without images, whatever one of its users has written.
        is_prefill = begins_rows(past_key_values) and not keeps_own_cache(self.language_model)
        num_features = 0
        if pixel_values is not None:
            num_features = pixel_values.shape[0] * self.config.connector_config.num_tokens
        elif image_outputs is not None:
            num_features = image_outputs.pooler_output.shape[:-1].numel()
        # The host waits here for the number of placeholders, so it is read before the encoder's work is queued.
        # Embeddings without images are not searched: the images may be in them already, and other tokens may have the
        # embedding of the image token, as all tokens have that were added together with it and not yet trained.
        placeholders = (
            self.get_placeholder_mask(input_ids, inputs_embeds, num_features)
            if num_features or (is_prefill and input_ids is not None)
            else None
        )

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            image_outputs = self.get_image_features(pixel_values, return_dict=True)
        image_tokens = None
        if num_features and placeholders is not None:
            image_tokens = image_outputs.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            index = placeholders.flatten().nonzero_static(size=num_features).squeeze(1).to(inputs_embeds.device)
            flat = inputs_embeds.flatten(0, 1).index_copy(0, index, image_tokens.flatten(0, 1))
            inputs_embeds = flat.view_as(inputs_embeds)
        elif is_prefill:
            inputs_embeds = self._join_collectives(inputs_embeds)

        text_inputs = self._text_inputs(
            inputs_embeds, attention_mask, position_ids, past_key_values, use_cache, segment_ids
        )
        outputs = self.language_model(inputs_embeds=inputs_embeds, **text_inputs, **kwargs)
        return MM1ModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=getattr(outputs, "attentions", None),
            router_logits=getattr(outputs, "router_logits", None),
            image_hidden_states=image_tokens,
            # It holds the encoder's patches, which training has no use for.
            image_outputs=None if self.training else image_outputs,
            **{CACHE: getattr(outputs, CACHE, None)},
        )

    def _join_collectives(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """With several processes, runs the encoder and the connector also for a batch without images, because the
        other processes wait for this one in collective operations. Their input is a black tile; their output is
        multiplied by 0 and added to the embeddings."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return inputs_embeds
        config = self.config.vision_config
        side = vision_sizes(config)[0]
        black = inputs_embeds.new_zeros(1, getattr(config, "num_channels", 3), side, side)
        tokens = self.get_image_features(black, return_dict=True).pooler_output
        return inputs_embeds + 0 * tokens.sum().to(inputs_embeds.dtype)

    def _text_inputs(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        segment_ids: torch.Tensor | None,
    ) -> dict:
        """The arguments of the decoder. A decoder of transformers gets packed rows as restarting positions, without a
        mask or a cache: from these transformers builds a mask that keeps segments apart, also for sliding windows. Of
        branches it knows nothing, so rows with branches come with a mask for each kind of layer."""
        if use_cache is None:
            use_cache = self.config.text_config.use_cache and not self.training
        if segment_ids is None and self.training and past_key_values is None:
            segment_ids = segments_from_positions(position_ids, attention_mask, inputs_embeds.shape[:2])
        if segment_ids is None:
            return {
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                CACHE: past_key_values,
                "use_cache": use_cache,
            }
        require_packed_inputs(segment_ids, inputs_embeds.shape[:2], attention_mask, past_key_values)
        segment_ids = mask_padding(segment_ids, attention_mask)
        if isinstance(self.language_model, MM1TextModel):
            return {"segment_ids": segment_ids, "position_ids": position_ids, "use_cache": False}
        require_packed_path(self.language_model, inputs_embeds)
        mask = branch_mask(self.language_model, inputs_embeds, segment_ids) if has_branches(segment_ids) else None
        return {
            "attention_mask": mask,
            "position_ids": segment_positions(segment_ids),
            CACHE: None,
            "use_cache": False,
            **boundary_kwargs(segment_ids, self.language_model.config._attn_implementation),
        }


class MM1ForConditionalGeneration(MM1PreTrainedModel, ImageGenerationMixin, NextTokenHeadMixin, GenerationMixin):
    """
    MM1 with its language-model head, for text with images anywhere in it: it predicts the next token and generates
    answers and captions.

    Args:
        config: configuration of the whole model.

    Example:

    ```python
    >>> import torch
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration

    >>> config = MM1Config.from_preset("mm1-tiny")
    >>> model = MM1ForConditionalGeneration(config).eval()
    >>> image, text = [config.image_token_id] * config.connector_config.num_tokens, [5, 6, 7]
    >>> tile = torch.zeros(1, 3, config.vision_config.image_size, config.vision_config.image_size)
    >>> model(input_ids=torch.tensor([image + text]), pixel_values=tile).logits.shape
    torch.Size([1, 7, 512])

    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: MM1Config):
        super().__init__(config)
        self.model = MM1Model(config)
        text_config = config.text_config
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=config.lm_head_bias)
        embeddings = self.model.language_model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values, kwargs: same as in [`MM1Model.get_image_features`], and so are the output and the errors.
        """
        return self.model.get_image_features(pixel_values, **kwargs)

    def scale_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Changes the logits as transformers' causal language model of this decoder does after its head: Cohere and
        Falcon-H1 multiply them, Granite divides them, Gemma 2 caps them."""
        config = self.config.text_config
        for name in ("logit_scale", "lm_head_multiplier"):
            if getattr(config, name, None) is not None:
                logits = logits * getattr(config, name)
        if getattr(config, "logits_scaling", None) is not None:
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        output_router_logits: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        use_expert_capacity: bool | None = None,
        **kwargs: Any,
    ) -> MM1CausalLMOutput:
        r"""
        Args:
            input_ids, pixel_values, attention_mask, past_key_values, inputs_embeds, use_cache, segment_ids:
                see [`MM1Model.forward`].
            mm_encoder_outputs: see [`MM1Model.forward`].
            position_ids:
                see [`MM1Model.forward`]. With labels, positions that restart within a row begin a new segment also in
                evaluation.
            labels:
                `(batch, sequence)`, the token at each position, or -100 where it is not a target: at image tokens, at
                padding and at each segment's first token. They are used as given; [`mm1_hf.data.collation`] builds
                them.
            logits_to_keep: number of last positions whose logits are returned, 0 for all.
            skip_logits:
                whether to compute the head only at positions whose next token is a target, and to return no logits.
                Unset, this is done in training with labels.
            output_router_logits: whether to return the router logits; unset, the decoder's configuration decides.
            num_items_in_batch: number of targets in the whole batch, of which this call may see only a part.
            use_expert_capacity:
                whether `expert_capacity_factor` limits the experts of an `mm1_text` decoder. Unset, it does in
                training without a cache and whenever labels are given.
            kwargs:
                further arguments of [`MM1Model.forward`], and `shift_labels` `(batch, sequence)`: labels already
                shifted one position to the left.

        Raises:
            ValueError: [`MM1Model.forward`] refuses the inputs; `skip_logits` is true without labels; or the trainer
                computes the loss itself (for example with label smoothing) and would leave out losses that the
                configuration adds.
        """
        # Not in the signature, because Trainer expects each batch of an evaluation to hold every argument whose name
        # contains "label".
        shift_labels = kwargs.pop("shift_labels", None)
        given = labels if shift_labels is None else shift_labels
        targets = None if given is None else live_targets(labels, shift_labels, segment_ids)
        skip_logits = resolve_skip_logits(skip_logits, self.training, targets)
        text_config = self.config.text_config
        if given is not None:
            if segment_ids is None and past_key_values is None:
                segment_ids = segments_from_positions(position_ids, attention_mask, given.shape)
            use_expert_capacity = use_expert_capacity is None or use_expert_capacity
        if isinstance(text_config, MM1TextConfig):
            kwargs["use_expert_capacity"] = use_expert_capacity
        if output_router_logits is None:
            output_router_logits = getattr(text_config, "output_router_logits", False)
        is_sparse = num_experts(text_config) > 0
        if self.training and targets is None and num_items_in_batch is not None:
            require_loss_in_the_logits(
                self.config.z_loss_coef, text_config if is_sparse else None, output_router_logits
            )
        need_router = is_sparse and (output_router_logits or targets is not None)
        if need_router:
            kwargs["output_router_logits"] = True
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            segment_ids=segment_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **{CACHE: past_key_values},
            **kwargs,
        )
        logits, loss, share = self.logits_and_loss(
            outputs.last_hidden_state,
            targets,
            skip_logits,
            logits_to_keep,
            num_items_in_batch,
            self.config.z_loss_coef,
        )
        aux_loss = None
        if need_router and outputs.router_logits:
            token_mask = router_token_mask(segment_ids, attention_mask, outputs.last_hidden_state)
            if isinstance(text_config, MM1TextConfig):
                aux_loss = weighted_router_loss(text_config, outputs.router_logits, token_mask)
            else:
                if token_mask is not None:
                    # transformers' loss divides by the number of tokens that count, and one without any would be NaN.
                    token_mask = torch.where(token_mask.any(), token_mask, torch.ones_like(token_mask))
                balance = load_balancing_loss_func(
                    outputs.router_logits, num_experts(text_config), text_config.num_experts_per_tok, token_mask
                )
                aux_loss = cast(float, balance_coefficient(text_config)) * cast(torch.Tensor, balance)
            if loss is not None:
                warn_of_lost_router_losses(aux_loss, self.model.language_model)
                loss = loss + share * aux_loss.to(loss.device)
        return MM1CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if output_router_logits else None,
            aux_loss=aux_loss,
            image_hidden_states=outputs.image_hidden_states,
            image_outputs=outputs.image_outputs,
            **{CACHE: getattr(outputs, CACHE)},
        )


def begins_rows(past_key_values: Cache | None) -> bool:
    """Whether no tokens precede these. A static cache keeps its length on the device, where compiled code cannot read
    it; compiled code with such a cache only decodes, so the answer is then False."""
    if past_key_values is None or is_paged(past_key_values):
        return True
    length = past_key_values.get_seq_length()
    if isinstance(length, torch.Tensor) and torch.compiler.is_compiling():
        return False
    return bool(length == 0)


def needs_gradient(module: nn.Module) -> bool:
    """Whether any weight of `module` is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


__all__ = ["MM1ForConditionalGeneration", "MM1Model", "MM1PreTrainedModel"]
