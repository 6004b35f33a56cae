"""
How many floating-point operations an MM1 needs: the formula that the planner and the logged MFU share.

What counts: matrix multiplications and convolutions, a multiply-add as 2. Attention counts the pairs of query and key that
may see each other: causal, and within a segment of a packed row. Many published MFU figures count every pair of the row
instead and come out higher. The head counts at the positions that have a target, as the model runs it. Norms, activations,
softmax, rotary positions and optimizer are left out, and so is what gradient checkpointing computes again: this is the work
that the model needs, not what the hardware is given.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mm1_hf.accounting.parameters import active_share, expert_parameters
from mm1_hf.model.configuration_mm1 import MM1Config, vision_grid_size
from mm1_hf.model.connectors import AttentionPooling, CAbstractor
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration


@dataclass(frozen=True)
class Flops:
    """
    Floating-point operations of each part.

    Args:
        encoder: the image encoder's.
        connector: the connector's.
        decoder: the decoder's, without its head.
        head: those of the projection to the vocabulary.
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
    An MM1's floating-point operations, linear in what a batch holds.

    Args:
        encoder_per_tile, connector_per_tile: of the forward pass.
        decoder_per_position: of the decoder's matrices; of the experts, those that a token is sent to.
        decoder_per_pair: of attention, for each pair of query and key.
        head_per_target: of the projection to the vocabulary.
    """

    encoder_per_tile: float
    connector_per_tile: float
    decoder_per_position: float
    decoder_per_pair: float
    head_per_target: float

    def forward(self, *, positions: float, tiles: float, targets: float, pairs: float) -> Flops:
        """
        One forward pass.

        Args:
            positions: of all rows, image tokens and padding among them.
            tiles: images, or tiles of split ones.
            targets: positions whose next token is learned.
            pairs: query and key that see each other; [`causal_pairs`] of a row's examples.
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
        Forward and backward: three times the forward pass. Of a part in `frozen` the weights get no gradient; the encoder
        then has no backward pass at all, nor has the connector where the encoder is frozen too.

        Args:
            positions, tiles, targets, pairs: as [`forward`] takes them.
            frozen: of `"encoder"`, `"connector"` and `"decoder"`.
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
    Pairs of query and key in a row of examples of these lengths, which do not see each other.

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
    The formula of an MM1, read off its weights and configuration. A foreign decoder's sliding windows count as full
    attention.

    Args:
        model_or_config: an MM1 or its configuration.
        tile_size: side of the tiles in pixels; unset, the configured one.

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
    """What tokens are multiplied by: linear layers, routers and experts, not the tables that are looked up or added."""
    tables = {inner.weight for inner in module.modules() if isinstance(inner, nn.Embedding)}
    experts = expert_parameters(module)
    return [
        weight for weight in module.parameters() if (weight.ndim == 2 and weight not in tables) or weight in experts
    ]


def _convolutions(module: nn.Module) -> int:
    return sum(inner.weight.numel() for inner in module.modules() if isinstance(inner, nn.Conv2d))


def _encoder(tower: PreTrainedModel) -> float:
    # Its own configuration: the whole model's also counts the layers behind the feature layer, which are not built.
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
                # The gates are computed once for a tile, from the mean of its channels.
                total += gates + (_convolutions(block) - gates) * places
        return 2 * total
    if isinstance(connector, AttentionPooling):
        # The queries are the same for every tile and projected once for all of them.
        width = config.vision_hidden_size
        per_patch, per_token = 2 * width**2, width**2 + width * config.text_hidden_size
        return 2 * (patches * per_patch + tokens * per_token) + 4 * width * patches * tokens
    return 2 * tokens * sum(weight.numel() for weight in _matrices(connector))
