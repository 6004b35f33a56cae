"""MM1's decoder: a pre-norm transformer with RMSNorm, SwiGLU and rotary positions, dense or with layers of experts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation, use_kernel_forward_from_hub
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
    MoeModelOutputWithPast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_mm1 import MM1TextConfig
from .losses import LiveTargets, chunked_head_loss, live_targets, router_losses, z_loss
from .segments import (
    boundary_kwargs,
    example_counts,
    mask_padding,
    packed_mask,
    require_packed_inputs,
    segment_positions,
    segments_from_positions,
)
from .versions import CACHE, takes_cache


logger = logging.get_logger(__name__)


@dataclass
class MM1CausalLMOutput(CausalLMOutputWithPast):
    r"""
    Output of MM1's models that have a head.

    Args:
        loss (`torch.Tensor`, *optional*, returned with `labels`):
            Scalar: cross-entropy over the targets, plus the z-loss if configured, plus `aux_loss` multiplied by this
            batch's share of `num_items_in_batch`.
        logits (`torch.Tensor` of shape `(batch, sequence, vocabulary)`, *optional*): None with `skip_logits`.
        past_key_values (`Cache`, *optional*):
            Keys and values of all tokens so far. Since transformers 5.24 the field is called `cache`.
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            The decoder's input and the output of each layer, `(batch, sequence, hidden)` each.
        attentions (`tuple[torch.Tensor]`, *optional*): one `(batch, heads, sequence, sequence)` per layer.
        router_logits (`tuple[torch.Tensor]`, *optional*): one `(batch * sequence, experts)` per sparse layer.
        aux_loss (`torch.Tensor`, *optional*):
            Scalar: the router's load-balancing loss and z-loss over this batch, each multiplied by its coefficient.
            For decoders other than `mm1_text`, only the load-balancing loss.
        image_hidden_states (`torch.Tensor` of shape `(tiles, tokens, hidden)`, *optional*): the connector's output.
        image_outputs (`BaseModelOutputWithPooling`, *optional*):
            Output of the image encoder and the connector, in evaluation mode.
    """

    router_logits: tuple[torch.Tensor, ...] | None = None
    aux_loss: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@use_kernel_forward_from_hub("RMSNorm")
class MM1TextRMSNorm(nn.Module):
    """Root-mean-square norm whose statistics are computed in float32."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        exact = hidden_states.float()
        normed = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normed.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class MM1TextRotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary positions, `(batch, sequence, head_dim)` each."""

    def __init__(self, config: MM1TextConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init_fn: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            rope_init_fn = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = rope_init_fn(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: MM1TextConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """Inverse frequencies `(head_dim / 2,)` of unscaled rotary positions; their cosines have the factor 1."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates `heads` `(batch, heads, sequence, head_dim)` by the angles whose cosines and sines are `cos` and `sin`,
    `(batch, 1, sequence, head_dim)` each. A pair consists of channel `i` of the first half and of the second half."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def eager_attention_forward(
    module: "MM1TextAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights; the reference to which the fused implementations are compared."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MM1TextAttention(nn.Module):
    """Causal self-attention with grouped key-value heads; biases and a norm on queries and keys are optional."""

    def __init__(self, config: MM1TextConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        q_size, kv_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.attention_output_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = MM1TextRMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = MM1TextRMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)
        key = self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = (angles.unsqueeze(1) for angles in position_embeddings)
        query, key = rotate(query.transpose(1, 2), cos, sin), rotate(key.transpose(1, 2), cos, sin)
        if past_key_values is not None:
            # The cache of transformers' continuous batching changes the arguments of the attention.
            key, value = past_key_values.update(key, value, self.layer_idx, kwargs=kwargs)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        # vLLM's attention returns `(sequence, heads * head_dim)`, the others `(batch, sequence, heads, head_dim)`.
        return self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1)), weights


class MM1TextMLP(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, config: MM1TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


@use_experts_implementation
class MM1TextExperts(nn.Module):
    """
    The experts of a sparse layer, each a SwiGLU feed-forward layer, with weights `(experts, 2 * intermediate, hidden)`
    and `(experts, hidden, intermediate)`. The forward method here is the reference implementation; transformers can
    replace it with a grouped or a batched one.
    """

    def __init__(self, config: MM1TextConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.hidden_dim = config.hidden_size
        self.intermediate_dim = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * self.intermediate_dim, self.hidden_dim))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim, self.intermediate_dim))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.zeros_like(hidden_states)
        # With expert parallelism, the index `num_experts` marks tokens whose expert is on another rank.
        # trf-ignore: TRF056. A loop over the chosen experts needs their indices on the host; grouped_mm needs no loop.
        for expert in top_k_index.unique().tolist():
            if expert == self.num_experts:
                continue
            token, choice = (top_k_index == expert).nonzero(as_tuple=True)
            gate, up = F.linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            expert_output = F.linear(self.act_fn(gate) * up, self.down_proj[expert])
            expert_output = expert_output * top_k_weights[token, choice, None]
            output.index_add_(0, token, expert_output.to(output.dtype))
        return output


class MM1TextTopKRouter(nn.Module):
    """Chooses the experts of each token. It computes in float32, whatever the dtype of the model."""

    def __init__(self, config: MM1TextConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.capacity_factor = config.expert_capacity_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(
        self, hidden_states: torch.Tensor, capacity_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states: `(batch * sequence, hidden)`.
            capacity_mask:
                `(batch, sequence)`, 0 for padding. If it is given, the experts' capacity is limited; without it no
                choice is dropped.

        Returns:
            Router logits `(batch * sequence, experts)` in float32; gates `(batch * sequence, top_k)` in the input's
            dtype, 0 for a dropped choice; and the chosen experts `(batch * sequence, top_k)`.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits = F.linear(hidden_states.float(), self.weight.float())
        gates, experts = logits.softmax(dim=-1).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        if capacity_mask is not None and self.capacity_factor is not None:
            gates = gates * choices_within_capacity(experts, capacity_mask, logits.shape[-1], self.capacity_factor)
        return logits, gates.to(hidden_states.dtype), experts


def choices_within_capacity(
    experts: torch.Tensor, token_mask: torch.Tensor, num_experts: int, capacity_factor: float
) -> torch.Tensor:
    """
    Decides which choices of experts are kept: AXLearn's rule, applied to each row separately. Each expert accepts up
    to `max(1, int(tokens * capacity_factor / num_experts))` of a row's choices, where `tokens` counts the row's tokens
    without padding. All first choices come before the second choices, each in the order of the tokens.

    Args:
        experts: `(batch * sequence, top_k)`, the chosen experts, best first.
        token_mask: `(batch, sequence)`, 0 for padding, which is sent to no expert and does not raise the capacity.
        num_experts: number of experts of the layer.
        capacity_factor: see `expert_capacity_factor` of [`MM1TextConfig`].

    Returns:
        `(batch * sequence, top_k)`, true for the choices that are kept.
    """
    rows, length = token_mask.shape
    real = token_mask.ne(0)
    # The capacity is not rounded down, because places are whole numbers: the comparison gives the same result.
    capacity = (real.sum(dim=1) * capacity_factor / num_experts).clamp(min=1)
    queue = experts.view(rows, length, -1).transpose(1, 2)
    taken = (F.one_hot(queue, num_experts) * real[:, None, :, None]).flatten(1, 2)
    place = (taken.cumsum(dim=1) * taken).sum(dim=-1)
    kept = (place > 0) & (place <= capacity[:, None])
    return kept.view_as(queue).transpose(1, 2).flatten(0, 1)


class MM1TextSparseMLP(nn.Module):
    """A feed-forward layer of experts: each token is sent to its top-k experts, unless their capacity is used up."""

    def __init__(self, config: MM1TextConfig):
        super().__init__()
        self.gate = MM1TextTopKRouter(config)
        self.experts = MM1TextExperts(config)

    def forward(self, hidden_states: torch.Tensor, capacity_mask: torch.Tensor | None = None) -> torch.Tensor:
        tokens = hidden_states.flatten(0, 1)
        _, gates, experts = self.gate(tokens, capacity_mask)
        return self.experts(tokens, experts, gates).view_as(hidden_states)


class MM1TextDecoderLayer(GradientCheckpointingLayer):
    """Attention and a feed-forward layer, each with a norm before it and a residual connection around it."""

    def __init__(self, config: MM1TextConfig, layer_idx: int):
        super().__init__()
        self.self_attn = MM1TextAttention(config, layer_idx)
        self.is_sparse = config.is_sparse_layer(layer_idx)
        # CODEPATH: mm1-3b-moe and the other sparse presets have experts in every n-th layer; dense presets have none.
        self.mlp = MM1TextSparseMLP(config) if self.is_sparse else MM1TextMLP(config)
        self.input_layernorm = MM1TextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MM1TextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    @takes_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        capacity_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        normed = self.post_attention_layernorm(hidden_states)
        return hidden_states + (self.mlp(normed, capacity_mask) if self.is_sparse else self.mlp(normed))


class MM1TextPreTrainedModel(PreTrainedModel):
    """Base class of the decoder's models. It initialises weights and tells transformers what the models support."""

    config: MM1TextConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MM1TextDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(MM1TextTopKRouter, index=0),
        "hidden_states": MM1TextDecoderLayer,
        "attentions": MM1TextAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MM1TextExperts):
            init.normal_(cast(torch.Tensor, module.gate_up_proj), mean=0.0, std=std)
            init.normal_(cast(torch.Tensor, module.down_proj), mean=0.0, std=std)
        elif isinstance(module, MM1TextTopKRouter):
            init.normal_(module.weight, mean=0.0, std=std)


class MM1TextModel(MM1TextPreTrainedModel):
    """
    MM1's decoder without a head.

    Args:
        config: configuration of the decoder.

    Example:

    ```python
    >>> import torch
    >>> from mm1_hf import MM1Config, MM1TextModel

    >>> model = MM1TextModel(MM1Config.from_preset("mm1-tiny").text_config).eval()
    >>> two_packed = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "segment_ids": torch.tensor([[1, 1, 2, 2]])}
    >>> model(**two_packed).last_hidden_state.shape
    torch.Size([1, 4, 64])

    ```
    """

    def __init__(self, config: MM1TextConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [MM1TextDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = MM1TextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MM1TextRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        use_expert_capacity: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        r"""
        Args:
            input_ids: `(batch, sequence)`.
            attention_mask: `(batch, past + sequence)`, 0 for padding.
            position_ids: `(batch, sequence)`. In training, positions that restart within a row begin a new segment.
            past_key_values: keys and values of earlier tokens.
            inputs_embeds: `(batch, sequence, hidden)`, given instead of `input_ids`.
            use_cache:
                whether to return `past_key_values`. Always off for packed rows; in training no cache is created.
            segment_ids: `(batch, sequence)`, number of the segment that each token belongs to, 0 for padding.
                Tokens see only their own segment, and positions restart with each segment. A negative number marks a
                branch of the last segment before it; see [`mm1_hf.model.segments`].
            use_expert_capacity:
                whether `expert_capacity_factor` limits the experts. Unset, it does in training without a cache.
            kwargs: further arguments of transformers' decoders, such as `output_hidden_states`.

        Returns:
            `last_hidden_state` `(batch, sequence, hidden)`, and the further outputs that the arguments ask for.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given, or `segment_ids` have another
                shape than the tokens, are given with a filled cache or with an `attention_mask` that marks more than
                padding, or have branches, which flash attention cannot compute.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_expert_capacity is None:
            use_expert_capacity = self.training and past_key_values is None

        if segment_ids is None and self.training and past_key_values is None:
            segment_ids = segments_from_positions(position_ids, attention_mask, inputs_embeds.shape[:2])
        if segment_ids is not None:
            require_packed_inputs(segment_ids, inputs_embeds.shape[:2], attention_mask, past_key_values)
            segment_ids = mask_padding(segment_ids, attention_mask)
            past_key_values, attention_mask = None, None
            mask_position_ids = segment_positions(segment_ids)
            position_ids = mask_position_ids if position_ids is None else position_ids
            boundaries = boundary_kwargs(segment_ids, self.config._attn_implementation)
            # Attention that takes the boundaries needs no mask.
            causal_mask = None if boundaries else packed_mask(segment_ids, self.config, inputs_embeds.dtype)
            kwargs.update(boundaries)
        else:
            # Training reads each row once, so a cache would only cost memory; besides, transformers ignores restarting
            # positions when it builds the mask with a cache.
            if use_cache and past_key_values is None and not self.training:
                past_key_values = DynamicCache(config=self.config)
            if position_ids is None:
                past = past_key_values.get_seq_length() if past_key_values is not None else 0
                position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0) + past
            mask_position_ids = position_ids
            causal_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                # Under the name that the installed transformers has for it.
                **{CACHE: past_key_values},
            )

        capacity_mask = None
        # CODEPATH: mm1-3b-moe and the other sparse presets if a capacity is configured; dense presets have no experts.
        if use_expert_capacity and self.config.num_experts and self.config.expert_capacity_factor is not None:
            token_mask = router_token_mask(segment_ids, attention_mask, inputs_embeds)
            capacity_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2]) if token_mask is None else token_mask
        cache: Any = {CACHE: past_key_values}
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=mask_position_ids,
                capacity_mask=capacity_mask,
                **cache,
                **kwargs,
            )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **cache)


class NextTokenHeadMixin:
    """
    Methods that MM1's models with a head share. They compute the loss over the targets, and logits only where they are
    needed. In `generate()` they refuse packed rows and lift the limit on the experts' capacity.
    """

    config: Any
    lm_head: nn.Linear
    loss_function: Callable

    def scale_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Changes the logits as the decoder's own model does after the head; `mm1_text` leaves them unchanged."""
        return logits

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Computes logits `(..., vocabulary)` from hidden states `(..., hidden)`."""
        return self.scale_logits(self.lm_head(hidden_states))

    def logits_and_loss(
        self,
        hidden_states: torch.Tensor,
        targets: LiveTargets | None,
        skip_logits: bool,
        logits_to_keep: int | torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
        z_loss_coef: float,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | float]:
        """
        Computes the logits and the loss.

        Args:
            hidden_states: `(batch, sequence, hidden)`.
            targets: the targets; without them there is no loss.
            skip_logits: whether to compute the head only at the targets' positions, and to return no logits.
            logits_to_keep: number of last positions whose logits are returned, 0 for all.
            num_items_in_batch: number of targets in the whole batch that this micro-batch belongs to.
            z_loss_coef: weight of the softmax z-loss.

        Returns:
            The logits, the sum of cross-entropy and weighted z-loss, and this micro-batch's share of the targets of
            the whole batch.
        """
        logits = None if skip_logits else self.compute_logits(slice_positions(hidden_states, logits_to_keep))
        if targets is None:
            return logits, None, 1.0
        live = targets.tokens.numel()
        # A batch without a target has the loss 0, not 0 / 0, which would make all weights NaN.
        num_items = live if num_items_in_batch is None else num_items_in_batch
        if isinstance(num_items, torch.Tensor):
            num_items = num_items.to(hidden_states.device).clamp(min=1)
        else:
            num_items = max(num_items, 1)
        if logits is None and self._head_is_plain(hidden_states):
            live_states = hidden_states.flatten(0, 1)[targets.index]
            head = self.lm_head
            loss = chunked_head_loss(live_states, head.weight, head.bias, targets.tokens, num_items, z_loss_coef)
            return None, loss, live / num_items
        if logits is not None and isinstance(logits_to_keep, int) and logits_to_keep == 0:
            live_logits = logits.flatten(0, 1)[targets.index]
        else:
            live_logits = self.compute_logits(hidden_states.flatten(0, 1)[targets.index])
        loss = self.loss_function(
            logits=live_logits,
            labels=None,
            shift_labels=targets.tokens,
            vocab_size=live_logits.shape[-1],
            num_items_in_batch=num_items,
        )
        if z_loss_coef:
            loss = loss + z_loss_coef * z_loss(live_logits, num_items)
        return logits, loss, live / num_items

    def _head_is_plain(self, hidden_states: torch.Tensor) -> bool:
        """Whether the logits are no more than one product with the head's weights, and the loss is transformers'. Adapters,
        hooks, quantised or split weights and changed logits need the head to be called."""
        head = self.lm_head
        return bool(
            type(head) is nn.Linear
            and type(head.weight) in (nn.Parameter, torch.Tensor)
            and "forward" not in vars(head)
            and not (head._forward_hooks or head._forward_pre_hooks)
            and not (head._backward_hooks or head._backward_pre_hooks)
            and self.loss_function is ForCausalLMLoss
            and self.scale_logits(hidden_states) is hidden_states
            # Under a compiler, chunks would make the graph depend on the number of targets.
            and not torch.compiler.is_compiling()
        )

    def _validate_model_kwargs(self, model_kwargs: dict) -> None:
        if model_kwargs.get("segment_ids") is not None:
            raise ValueError(
                "generate() continues one example per row and refuses segment_ids. Give each example its own row, "
                "padded on the left, and an attention_mask."
            )
        super()._validate_model_kwargs(model_kwargs)  # ty: ignore[missing-attribute] -- GenerationMixin's

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
        model_inputs = super().prepare_inputs_for_generation(  # ty: ignore[missing-attribute] -- as above
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        # CODEPATH: sparse presets if a capacity is configured; no published preset configures one.
        if getattr(self.config.get_text_config(), "expert_capacity_factor", None) is not None:
            # With a limit, second choices come after the first choices of later tokens. Each new token could then
            # change the outputs of earlier ones.
            model_inputs["use_expert_capacity"] = False
        return model_inputs


class MM1TextForCausalLM(MM1TextPreTrainedModel, NextTokenHeadMixin, GenerationMixin):
    """
    MM1's decoder with its head.

    Args:
        config: configuration of the decoder.

    Example:

    ```python
    >>> import torch
    >>> from mm1_hf import MM1Config, MM1TextForCausalLM

    >>> model = MM1TextForCausalLM(MM1Config.from_preset("mm1-tiny").text_config).eval()
    >>> tokens = torch.tensor([[5, 6, 7]])
    >>> model(input_ids=tokens, labels=tokens).logits.shape
    torch.Size([1, 3, 512])

    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # ty: ignore[invalid-assignment] -- it is read as lists
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: MM1TextConfig):
        super().__init__(config)
        self.model = MM1TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
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
        num_items_in_batch: torch.Tensor | int | None = None,
        use_expert_capacity: bool | None = None,
        **kwargs: Any,
    ) -> MM1CausalLMOutput:
        r"""
        Args:
            input_ids, attention_mask, past_key_values, inputs_embeds, use_cache, segment_ids:
                see [`MM1TextModel.forward`].
            position_ids:
                see [`MM1TextModel.forward`]. With labels, positions that restart within a row begin a new segment also
                in evaluation.
            labels: `(batch, sequence)`, the token at each position, or -100 where it is not a target.
            logits_to_keep: number of last positions whose logits are returned, 0 for all.
            skip_logits:
                whether to compute the head only at positions whose next token is a target, and to return no logits.
                Unset, this is done in training with labels.
            output_router_logits: whether to return the router logits; unset, the configuration decides.
            num_items_in_batch: number of targets in the whole batch, of which this call may see only a part.
            use_expert_capacity:
                whether `expert_capacity_factor` limits the experts. Unset, it does in training without a cache and
                whenever labels are given.
            kwargs:
                further arguments of [`MM1TextModel.forward`], and `shift_labels` `(batch, sequence)`: labels already
                shifted one position to the left.

        Returns:
            With labels the loss, a scalar; unless they are skipped, the logits `(batch, sequence, vocabulary)`.

        Raises:
            ValueError: [`MM1TextModel.forward`] refuses the inputs; `skip_logits` is true without labels; or the
                trainer computes the loss itself (for example with label smoothing) and would leave out losses that the
                configuration adds.
        """
        # Not in the signature, because Trainer expects each batch of an evaluation to hold every argument whose name
        # contains "label".
        shift_labels = kwargs.pop("shift_labels", None)
        given = labels if shift_labels is None else shift_labels
        targets = None if given is None else live_targets(labels, shift_labels, segment_ids)
        skip_logits = resolve_skip_logits(skip_logits, self.training, targets)
        if given is not None:
            if segment_ids is None and past_key_values is None:
                segment_ids = segments_from_positions(position_ids, attention_mask, given.shape)
            use_expert_capacity = use_expert_capacity is None or use_expert_capacity
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        is_sparse = self.config.num_experts > 0
        if self.training and targets is None and num_items_in_batch is not None:
            require_loss_in_the_logits(
                self.config.z_loss_coef, self.config if is_sparse else None, output_router_logits
            )
        need_router = is_sparse and (output_router_logits or targets is not None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            segment_ids=segment_ids,
            output_router_logits=need_router,
            use_expert_capacity=use_expert_capacity,
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
        if need_router:
            token_mask = router_token_mask(segment_ids, attention_mask, outputs.last_hidden_state)
            aux_loss = weighted_router_loss(self.config, outputs.router_logits, token_mask)
            if loss is not None:
                warn_of_lost_router_losses(aux_loss, self.model)
                loss = loss + share * aux_loss.to(loss.device)
        return MM1CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if output_router_logits else None,
            aux_loss=aux_loss,
            **{CACHE: getattr(outputs, CACHE)},
        )


def slice_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """
    The positions that logits are wanted of, as transformers' `logits_to_keep` names them.

    Args:
        hidden_states: `(batch, sequence, hidden)`.
        logits_to_keep:
            how many of the last positions, 0 for all; or the positions themselves, `(positions,)` for all rows or
            `(batch, positions)`; or a boolean mask `(batch, sequence)`.

    Returns:
        `(batch, positions, hidden)`; of a mask `(positions, hidden)`.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    if logits_to_keep.ndim == 2:
        return hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)
    return hidden_states[:, logits_to_keep]


def resolve_skip_logits(skip_logits: bool | None, training: bool, targets: LiveTargets | None) -> bool:
    """
    Whether to skip the logits: the given `skip_logits`, or by default in training with labels.

    Raises:
        ValueError: `skip_logits` is true, but there are no labels, so neither logits nor a loss would be returned.
    """
    if skip_logits and targets is None:
        raise ValueError(
            "skip_logits=True returns a loss instead of logits, so it needs labels. Pass labels, or leave "
            "skip_logits unset."
        )
    return training and targets is not None if skip_logits is None else skip_logits


def require_loss_in_the_logits(
    z_loss_coef: float, sparse_config: PreTrainedConfig | None, output_router_logits: bool
) -> None:
    """
    Checks a training step without labels, in which the trainer keeps the labels and computes the loss from the logits.
    Trainer does so for `label_smoothing_factor` and `compute_loss_func`.

    Args:
        z_loss_coef: weight of the softmax z-loss.
        sparse_config: configuration of the decoder if it has experts, otherwise None.
        output_router_logits: whether the outputs contain the router's losses, as `aux_loss`.

    Raises:
        ValueError: the model adds losses that the trainer would leave out.
    """
    lost: dict[str, float | None] = {"z_loss_coef": z_loss_coef}
    if not output_router_logits:
        names = ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef")
        lost |= {name: getattr(sparse_config, name, None) for name in names}
    lost = {name: weight for name, weight in lost.items() if weight}
    if lost:
        raise ValueError(
            "With label_smoothing_factor or compute_loss_func, Trainer computes the loss from the logits, and would "
            "leave out losses that the model itself would add: "
            f"{', '.join(f'{name}={weight}' for name, weight in lost.items())}. Set these to 0 in the configuration, "
            "or train without label_smoothing_factor and compute_loss_func."
        )
    if sparse_config is not None:
        logger.warning_once(
            "Trainer computes the loss from the logits. The router's losses count only if the compute_loss_func adds "
            "the outputs' aux_loss to the loss; label smoothing does not add it."
        )


def router_token_mask(
    segment_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, hidden_states: torch.Tensor
) -> torch.Tensor | None:
    """How often each position counts in the router's losses, `(batch, sequence)`, 0 for padding. It is made from
    `segment_ids` if they are given, otherwise from `attention_mask`. It is None if every position counts once.

    A shared beginning counts once for each of its branches, so that the losses are those of separate rows."""
    if segment_ids is not None:
        return example_counts(mask_padding(segment_ids, attention_mask))
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return None
    # With a cache the mask also covers earlier tokens, but the statistics are those of the new tokens.
    return attention_mask[:, -hidden_states.shape[1] :]


def weighted_router_loss(
    config: MM1TextConfig, router_logits: tuple[torch.Tensor, ...], token_mask: torch.Tensor | None
) -> torch.Tensor:
    """Sum of the load-balancing loss and the z-loss of an `mm1_text` router, each multiplied by its coefficient."""
    balance, z = router_losses(router_logits, token_mask, config.aux_loss_reduction)
    return config.router_aux_loss_coef * balance + config.router_z_loss_coef * z


def warn_of_lost_router_losses(aux_loss: torch.Tensor, decoder: PreTrainedModel) -> None:
    """Warns if the router's losses have no gradient. Re-entrant gradient checkpointing runs the layers without
    gradients, so router logits recorded in that pass have none."""
    if (
        torch.is_grad_enabled()
        and decoder.training
        and decoder.is_gradient_checkpointing
        and not aux_loss.requires_grad
        and any(parameter.requires_grad for parameter in decoder.parameters())
    ):
        logger.warning_once(
            "Gradient checkpointing with use_reentrant=True gives the router's losses no gradient: they are reported, "
            "but do not train the model. Set gradient_checkpointing_kwargs={'use_reentrant': False}."
        )


__all__ = ["MM1TextForCausalLM", "MM1TextModel", "MM1TextPreTrainedModel"]
