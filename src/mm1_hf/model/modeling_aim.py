"""AIM, version 1: a vision transformer that was trained to predict the next patch, used here without a causal mask
(MM1, section 3.2)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_aim import AIMVisionConfig


def sincos_positions(height: int, width: int, dim: int, device: torch.device | None = None) -> torch.Tensor:
    """
    AIM's fixed position embedding: the first half of the channels encodes the column and the second half the row, each
    by sines followed by cosines.

    Args:
        height, width: size of the grid in patches.
        dim: number of channels.
        device: device of the result.

    Returns:
        `(height * width, dim)` in float32, in row-major order.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))
    rows, columns = (
        torch.arange(size, dtype=torch.float32, device=device)[:, None] * frequencies for size in (height, width)
    )
    rows, columns = (torch.cat([angles.sin(), angles.cos()], dim=-1) for angles in (rows, columns))
    grid = [columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)]
    return torch.cat(grid, dim=-1).flatten(0, 1)


def eager_attention_forward(
    module: "AIMVisionAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights; the reference to which the fused implementations are compared."""
    weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class AIMVisionEmbeddings(nn.Module):
    """
    Embeds the patches of tiles and adds their positions.

    Args:
        config: configuration of the encoder.
    """

    def __init__(self, config: AIMVisionConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.patch_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values)
        height, width = patches.shape[-2:]
        patches = self.patch_norm(patches.flatten(2).transpose(1, 2))
        positions = sincos_positions(height, width, patches.shape[-1], patches.device)
        return patches + positions.to(patches.dtype)


class AIMVisionAttention(nn.Module):
    """
    Self-attention among all patches, without biases.

    Args:
        config: configuration of the encoder.
    """

    def __init__(self, config: AIMVisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(attended.flatten(2)), weights


class AIMVisionMLP(nn.Module):
    """
    Feed-forward layer: two linear layers without biases, with an activation between them.

    Args:
        config: configuration of the encoder.
    """

    def __init__(self, config: AIMVisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act_fn(self.fc1(hidden_states)))


class AIMVisionLayer(GradientCheckpointingLayer):
    """
    Attention and a feed-forward layer, each with a norm before it and a residual connection around it.

    Args:
        config: configuration of the encoder.
    """

    def __init__(self, config: AIMVisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = AIMVisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AIMVisionMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class AIMVisionPreTrainedModel(PreTrainedModel):
    """Base class of AIM's models. It tells transformers what the models support."""

    config: AIMVisionConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["AIMVisionLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": AIMVisionLayer, "attentions": AIMVisionAttention}


class AIMVisionModel(AIMVisionPreTrainedModel):
    """
    AIM's encoder. It takes any grid of patches and has no class token.

    Args:
        config: configuration of the encoder.

    Example:

    ```python
    >>> import torch
    >>> from mm1_hf import AIMVisionConfig, AIMVisionModel

    >>> config = AIMVisionConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, image_size=56)
    >>> AIMVisionModel(config)(torch.zeros(1, 3, 56, 56)).last_hidden_state.shape
    torch.Size([1, 16, 32])

    ```
    """

    def __init__(self, config: AIMVisionConfig):
        super().__init__(config)
        self.embeddings = AIMVisionEmbeddings(config)
        self.layers = nn.ModuleList([AIMVisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        r"""
        Args:
            pixel_values: `(tiles, 3, height, width)`, normalised by ImageNet's mean and standard deviation.
            kwargs: further arguments of transformers' encoders, such as `output_hidden_states`.

        Returns:
            `last_hidden_state` `(tiles, patches, hidden)`, the output of the last norm.
        """
        hidden_states = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


__all__ = ["AIMVisionModel", "AIMVisionPreTrainedModel"]
