"""
Counts the floating-point operations of an MM1, by a formula that both the planner and the logged MFU use.

Matrix multiplications and convolutions are counted, with 2 operations for a multiply-add. Attention counts only the
pairs of query and key that attend to each other: it is causal, and limited to a segment of a packed row. Many
published MFU figures count every pair of the row instead, and are therefore higher. The head is counted only at the
positions that have a target, because the model computes it only there. Norms, activations, softmax, rotary positions
and the optimizer are not counted, nor is the recomputation by gradient checkpointing: the count is the work that the
model needs, not the work that the hardware does.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mm1_hf.accounting.parameters import active_share, expert_parameters
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.connectors import AttentionPooling, CAbstractor
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.vision_sizes import vision_grid_size


@dataclass(frozen=True)
class Flops:
    """
    Floating-point operations of each part.

    Args:
        encoder: operations of the image encoder.
        connector: operations of the connector.
        decoder: operations of the decoder, without its head.
        head: operations of the projection to the vocabulary.
    """

    encoder: float
    connector: float
    decoder: float
    head: float

    @property
    def total(self) -> float:
        """The sum over all parts."""
        return self.encoder + self.connector + self.decoder + self.head


@dataclass(frozen=True)
class FlopsFormula:
    """
    The floating-point operations of an MM1's forward pass as a linear function of the contents of a batch.

    Args:
        encoder_per_tile, connector_per_tile: operations of the encoder and of the connector for each tile.
        decoder_per_position: operations of the decoder's matrices for each position; of its experts, only those to
            which a token is sent are counted.
        decoder_per_pair: operations of attention for each pair of query and key.
        head_per_target: operations of the projection to the vocabulary for each target.
    """

    encoder_per_tile: float
    connector_per_tile: float
    decoder_per_position: float
    decoder_per_pair: float
    head_per_target: float

    def forward(self, *, positions: float, tiles: float, targets: float, pairs: float) -> Flops:
        """
        Operations of one forward pass.

        Args:
            positions: number of positions of all rows, including image tokens and padding.
            tiles: number of tiles; an image that is not split is one tile.
            targets: number of positions that have a target.
            pairs: number of pairs of query and key that attend to each other; [`causal_pairs`] computes it.
        """
        return Flops(
            encoder=self.encoder_per_tile * tiles,
            connector=self.connector_per_tile * tiles,
            decoder=self.decoder_per_position * positions + self.decoder_per_pair * pairs,
            head=self.head_per_target * targets,
        )

    def training(
        self, *, positions: float, tiles: float, targets: float, pairs: float, frozen: Collection[str] = ()
    ) -> Flops:
        """
        Operations of a forward and a backward pass, together three times those of the forward pass if nothing is
        frozen. No gradient of the weights is computed for a frozen part. A frozen encoder has no backward pass at all,
        and neither has a frozen connector behind a frozen encoder.

        Args:
            positions, tiles, targets, pairs: the arguments of [`forward`].
            frozen: the frozen parts, any of `"encoder"`, `"connector"` and `"decoder"`.
        """
        forward = self.forward(positions=positions, tiles=tiles, targets=targets, pairs=pairs)
        behind_encoder = "encoder" in frozen
        connector = 3 if "connector" not in frozen else 1 if behind_encoder else 2
        attention = self.decoder_per_pair * pairs
        decoder = 3 * forward.decoder
        head = 3 * forward.head
        if "decoder" in frozen:
            decoder = 2 * (forward.decoder - attention) + 3 * attention
            head = 2 * forward.head
        return Flops((1 if behind_encoder else 3) * forward.encoder, connector * forward.connector, decoder, head)


def causal_pairs(*lengths: int) -> int:
    """
    The number of pairs of query and key that attend to each other in a row of examples; examples do not attend to each
    other.

    Args:
        lengths: number of positions of each example.

    Example:

    ```python
    >>> from mm1_hf.accounting.flops import causal_pairs

    >>> causal_pairs(4), causal_pairs(2, 2)
    (10, 6)

    ```
    """
    return sum(length * (length + 1) // 2 for length in lengths)


def flops_formula(
    model_or_config: MM1ForConditionalGeneration | MM1Config, tile_size: int | None = None
) -> FlopsFormula:
    """
    Derives the formula of an MM1 from its weights and configuration. In decoders other than `mm1_text`, attention with
    a sliding window is counted as full attention.

    Args:
        model_or_config: an MM1 or its configuration.
        tile_size: side of a tile, in pixels; unset, that of the configuration.

    Example:

    ```python
    >>> from mm1_hf import MM1Config
    >>> from mm1_hf.accounting.flops import causal_pairs, flops_formula

    >>> formula = flops_formula(MM1Config.from_preset("mm1-3b"))
    >>> row = formula.training(positions=4096, tiles=16, targets=1792, pairs=causal_pairs(4096))
    >>> f"{row.total:.1e}"
    '1.3e+14'

    ```
    """
    model = model_or_config
    if isinstance(model, MM1Config):
        with torch.device("meta"):
            model = MM1ForConditionalGeneration(model)
    config, decoder = model.config, model.model.language_model
    if tile_size is not None:
        config = copy.deepcopy(config)
        config.vision_config.image_size = tile_size
        config.connector_config.grid_size = tile_size // config.vision_config.patch_size
    text, share = config.text_config, active_share(decoder)
    experts = expert_parameters(decoder)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    decoder_weights = sum(weight.numel() * (share if weight in experts else 1) for weight in _matrices(decoder))
    return FlopsFormula(
        encoder_per_tile=_encoder(model.model.vision_tower),
        connector_per_tile=_connector(model.model.connector, config.connector_config),
        decoder_per_position=2 * decoder_weights,
        decoder_per_pair=4 * text.num_hidden_layers * text.num_attention_heads * head_dim,
        head_per_target=2 * model.lm_head.weight.numel(),
    )


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The matrices that tokens are multiplied by: linear layers, routers and experts, but not embedding tables."""
    tables = {inner.weight for inner in module.modules() if isinstance(inner, nn.Embedding)}
    experts = expert_parameters(module)
    return [
        weight for weight in module.parameters() if (weight.ndim == 2 and weight not in tables) or weight in experts
    ]


def _convolutions(module: nn.Module) -> int:
    return sum(inner.weight.numel() for inner in module.modules() if isinstance(inner, nn.Conv2d))


def _encoder(tower: PreTrainedModel) -> float:
    # The tower's own configuration: that of the model also counts layers after the feature layer, which are not built.
    config = tower.config
    patches = vision_grid_size(config) ** 2
    names = {name.rsplit(".", 1)[-1] for name, _ in tower.named_parameters()}
    prefix = bool(names & {"class_embedding", "cls_token"}) + (getattr(config, "num_register_tokens", None) or 0)
    tokens = patches + prefix
    weights = sum(weight.numel() for weight in _matrices(tower))
    attention = 4 * config.num_hidden_layers * config.hidden_size * tokens**2
    return 2 * (weights * tokens + _convolutions(tower) * patches) + attention


def _connector(connector: nn.Module, config: Any) -> float:
    patches, tokens = config.grid_size**2, config.num_tokens
    if isinstance(connector, CAbstractor):
        total = tokens * sum(weight.numel() for weight in _matrices(connector))
        for stage, places in ((connector.stage1, patches), (connector.stage2, tokens)):
            for block in stage:
                gates = _convolutions(block.get_submodule("squeeze_excite"))
                # The gates are computed once per tile, from the mean of each channel.
                total += gates + (_convolutions(block) - gates) * places
        return 2 * total
    if isinstance(connector, AttentionPooling):
        # The queries are the same for every tile, and are projected only once, so they are not counted.
        width = config.vision_hidden_size
        per_patch, per_token = 2 * width**2, width**2 + width * config.text_hidden_size
        return 2 * (patches * per_patch + tokens * per_token) + 4 * width * patches * tokens
    return 2 * tokens * sum(weight.numel() for weight in _matrices(connector))
