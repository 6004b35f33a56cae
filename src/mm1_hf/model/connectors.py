"""The connectors of MM1 (section 3.2). They turn the patches of tiles, `(tiles, patches, vision width)`, into image
tokens for the decoder, `(tiles, num_tokens, text width)`."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_mm1 import MM1ConnectorConfig


def interpolate_grid(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Interpolates a position embedding to another grid, with bicubic interpolation in float32: in half precision the
    values would be shifted.

    Args:
        table: `(positions, dim)`, a square grid in row-major order.
        height, width: size of the new grid in patches.

    Returns:
        `(height * width, dim)` in `table`'s dtype; `table` itself if the size of the grid does not change.
    """
    positions, dim = table.shape
    side = round(positions**0.5)
    if (height, width) == (side, side):
        return table
    grid = table.float().view(1, side, side, dim).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(height * width, dim).to(table.dtype)


def square_side(patches: torch.Tensor) -> int:
    """
    Number of patches along one side of a tile's square grid.

    Args:
        patches: `(tiles, patches, dim)`.
    """
    return round(patches.shape[1] ** 0.5)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of `(batch, channels, height, width)`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # The permuted view keeps the convolutions before and after it in the channels-last memory format, in which
        # they are faster.
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualNorm(LayerNorm2d):
    """The norm at the end of a block's residual branch. Its weight and bias are initialised to 0, so that the block at
    first passes on only its shortcut: training starts from the encoder's features, not from the output of random
    blocks."""


class ConvNorm(nn.Module):
    """
    Convolution without bias that keeps height and width, then LayerNorm over the channels.

    Args:
        in_channels, out_channels:
            number of channels of the input and of the output, `(batch, channels, height, width)`.
        kernel_size: side of the kernel, an odd number.
        groups: number of groups; a convolution with as many groups as channels is depthwise.
    """

    norm_class = LayerNorm2d

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.norm = self.norm_class(out_channels, eps=1e-5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(features))


class ResidualConvNorm(ConvNorm):
    """The last convolution of a residual branch, and its norm."""

    norm_class = ResidualNorm


class SqueezeExcite(nn.Module):
    """
    Scales each channel by a gate that is computed from the means of all channels.

    Args:
        channels: number of channels of the input `(batch, channels, height, width)`.
        squeezed: hidden width of the gate.
    """

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        gate = features.mean((2, 3), keepdim=True)
        gate = self.expand(F.silu(self.reduce(gate)))
        return features * gate.sigmoid()


class RegNetBlock(nn.Module):
    """
    RegNet's bottleneck block as in Honeybee's C-Abstractor: a 1x1 convolution, a depthwise 3x3 convolution,
    squeeze-and-excitation a quarter as wide as the block's input, a 1x1 convolution, and the shortcut.

    Args:
        in_channels: number of channels of the input `(batch, channels, height, width)`.
        channels: number of channels inside the block and of its output.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, channels)
        self.conv2 = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        self.squeeze_excite = SqueezeExcite(channels, round(0.25 * in_channels))
        self.conv3 = ResidualConvNorm(channels, channels)
        self.shortcut = nn.Identity() if in_channels == channels else ConvNorm(in_channels, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(self.conv1(features))
        hidden = F.silu(self.conv2(hidden))
        hidden = self.conv3(self.squeeze_excite(hidden))
        return F.silu(hidden + self.shortcut(features))


class CAbstractor(nn.Module):
    """
    Honeybee's C-Abstractor, MM1's final connector: convolution blocks, adaptive average pooling to a square grid of
    tokens, the same number of blocks again, and a two-layer read-out. The position embedding is interpolated if the
    grid of patches is not the configured one.

    Args:
        config: configuration of the connector, with the sizes that [`MM1Config`] fills in.
    """

    def __init__(self, config: MM1ConnectorConfig):
        super().__init__()
        self.pooled_size = round(config.num_tokens**0.5)
        self.position_embedding = nn.Parameter(torch.empty(1, config.grid_size**2, config.vision_hidden_size))
        widths = [config.vision_hidden_size] + [config.hidden_size] * (2 * config.depth)
        blocks = [RegNetBlock(*pair) for pair in pairwise(widths)]
        self.stage1 = nn.Sequential(*blocks[: config.depth])
        self.stage2 = nn.Sequential(*blocks[config.depth :])
        self.readout = nn.Sequential(
            nn.Linear(widths[-1], config.text_hidden_size),
            nn.SiLU(),
            nn.Linear(config.text_hidden_size, config.text_hidden_size),
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        side = square_side(patches)
        hidden = patches + interpolate_grid(self.position_embedding[0], side, side)
        hidden = hidden.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        hidden = self.stage1(hidden)
        hidden = F.adaptive_avg_pool2d(hidden, self.pooled_size)
        hidden = self.stage2(hidden)
        return self.readout(hidden.permute(0, 2, 3, 1).flatten(1, 2))


class AveragePooling(nn.Module):
    """
    Averages the grid of patches down to a square grid of tokens, then projects each token.

    Args:
        config: configuration of the connector, with the sizes that [`MM1Config`] fills in.
    """

    def __init__(self, config: MM1ConnectorConfig):
        super().__init__()
        self.pooled_size = round(config.num_tokens**0.5)
        self.projection = nn.Linear(config.vision_hidden_size, config.text_hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        side = square_side(patches)
        grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        pooled = F.adaptive_avg_pool2d(grid, self.pooled_size)
        return self.projection(pooled.permute(0, 2, 3, 1).flatten(1, 2))


class AttentionPooling(nn.Module):
    """
    One attention layer in which learned queries attend to the patches, with a norm on both, and a projection of the
    result. The paper does not state the number of layers or heads.

    Args:
        config: configuration of the connector, with the sizes that [`MM1Config`] fills in.
    """

    def __init__(self, config: MM1ConnectorConfig):
        super().__init__()
        width = config.vision_hidden_size
        self.num_heads = config.num_attention_heads
        self.queries = nn.Parameter(torch.empty(1, config.num_tokens, width))
        self.query_norm = nn.LayerNorm(width)
        self.patch_norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.projection = nn.Linear(width, config.text_hidden_size)

    def _heads(self, features: torch.Tensor) -> torch.Tensor:
        return features.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        queries, patches = self.query_norm(self.queries), self.patch_norm(patches)
        attended = F.scaled_dot_product_attention(
            self._heads(self.q_proj(queries)).expand(patches.shape[0], -1, -1, -1),
            self._heads(self.k_proj(patches)),
            self._heads(self.v_proj(patches)),
        )
        pooled = self.queries + self.o_proj(attended.transpose(1, 2).flatten(2))
        return self.projection(pooled)


class LinearProjection(nn.Linear):
    """
    One linear layer on each patch.

    Args:
        config: configuration of the connector, with the sizes that [`MM1Config`] fills in.
    """

    def __init__(self, config: MM1ConnectorConfig):
        super().__init__(config.vision_hidden_size, config.text_hidden_size)


class MLPProjection(nn.Sequential):
    """
    Two linear layers with a GELU between them on each patch, as in LLaVA-1.5's projector.

    Args:
        config: configuration of the connector, with the sizes that [`MM1Config`] fills in.
    """

    def __init__(self, config: MM1ConnectorConfig):
        super().__init__(
            nn.Linear(config.vision_hidden_size, config.text_hidden_size),
            nn.GELU(),
            nn.Linear(config.text_hidden_size, config.text_hidden_size),
        )


CONNECTORS: dict[str, type[nn.Module]] = {
    "c_abstractor": CAbstractor,
    "average": AveragePooling,
    "attention": AttentionPooling,
    "linear": LinearProjection,
    "mlp": MLPProjection,
}


def build_connector(config: MM1ConnectorConfig) -> nn.Module:
    """
    Builds the connector of a configuration. It turns `(tiles, patches, vision width)` into
    `(tiles, num_tokens, text width)`.

    Args:
        config: configuration of the connector, with the sizes that [`MM1Config`] fills in.

    Example:

    ```python
    >>> import torch
    >>> from mm1_hf import MM1ConnectorConfig
    >>> from mm1_hf.model.connectors import build_connector

    >>> config = MM1ConnectorConfig(connector_type="average", num_tokens=4)
    >>> config.fit(vision_hidden_size=32, text_hidden_size=64, grid_size=6)
    >>> build_connector(config)(torch.zeros(2, 36, 32)).shape
    torch.Size([2, 4, 64])

    ```
    """
    return CONNECTORS[config.connector_type](config)
