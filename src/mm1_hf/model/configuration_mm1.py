"""Configurations of MM1: of the whole model, of its connector and of the `mm1_text` decoder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import transformers
from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from .configuration_aim import AIMVisionConfig
from .versions import warn_if_untested
from .vision_sizes import vision_grid_size


ConnectorType = Literal["c_abstractor", "average", "attention", "linear", "mlp"]

# The connectors that keep one token per patch. MM1 ablates only connectors that reduce the tokens; these are here to
# measure what the reduction costs.
_UNREDUCED = ("linear", "mlp")
_PAPER_TOKENS = 144
_PRESETS = Path(__file__).parent / "presets"
# The final model's ViT-H/14.
_DEFAULT_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 378,
    "projection_dim": 1024,
}

# Types of fields that may be left unset and are filled in when the configuration is built. `@strict` checks the value
# that was given, which may be None; type checkers see the value that is read later, which is not None.
if TYPE_CHECKING:
    Part = FilledInt = FilledBool = FilledRope = Any
else:
    Part, FilledRope = dict | PreTrainedConfig | None, RopeParameters | dict | None
    FilledInt, FilledBool = int | None, bool | None


@strict
class MM1ConnectorConfig(PreTrainedConfig):
    r"""
    Configuration of the connector between the image encoder and the decoder (MM1, section 3.2).

    Args:
        connector_type (`str`, defaults to `"c_abstractor"`):
            `"c_abstractor"` (MM1's final choice, taken from Honeybee), `"average"` and `"attention"` reduce a tile's
            patches to `num_tokens` tokens; `"linear"` and `"mlp"` keep one token per patch.
        num_tokens (`int`, *optional*):
            Image tokens per tile. Unset, it is the paper's 144 for the reducing connectors and the number of patches
            for the others. `"c_abstractor"` and `"average"` need a square number. If it equals the number of patches,
            nothing is reduced.
        depth (`int`, defaults to 3):
            C-Abstractor only: number of convolution blocks before the pooling, and the same number after it (0 to 3).
            With 0, only the position embedding, the pooling and the read-out remain.
        hidden_size (`int`, defaults to 1024): C-Abstractor only: number of channels of its convolutions.
        num_attention_heads (`int`, defaults to 16): attention pooling only: number of attention heads.
        vision_hidden_size (`int`, *optional*): width of the encoder's patches. [`MM1Config`] fills it in.
        text_hidden_size (`int`, *optional*): width of the decoder. [`MM1Config`] fills it in.
        grid_size (`int`, *optional*):
            Number of patches along one side of a tile at the configured resolution. [`MM1Config`] fills it in. The
            C-Abstractor stores its position embedding for this grid and interpolates it for any other grid.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the truncated normal distribution, as in Honeybee, that initialises the position
            embedding and the queries.

    Raises:
        ValueError: the depth is not 0 to 3, another size is below 1, or the connector cannot produce `num_tokens`.

    Example:

    ```python
    >>> from mm1_hf import MM1Config, MM1ConnectorConfig

    >>> MM1ConnectorConfig().num_tokens
    144
    >>> connector = MM1ConnectorConfig(connector_type="average", num_tokens=64)
    >>> MM1Config(connector_config=connector).connector_config.grid_size
    27

    ```
    """

    model_type = "mm1_connector"
    base_config_key = "connector_config"

    connector_type: ConnectorType = "c_abstractor"
    num_tokens: FilledInt = None
    depth: int = 3
    hidden_size: int = 1024
    num_attention_heads: int = 16
    vision_hidden_size: FilledInt = None
    text_hidden_size: FilledInt = None
    grid_size: FilledInt = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.num_tokens is None and self.connector_type not in _UNREDUCED:
            self.num_tokens = _PAPER_TOKENS
        super().__post_init__(**kwargs)
        # `@strict` checks this again afterwards, but its error is not a ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """
        Checks that the connector's own fields are valid and fit each other. `@strict` also calls it.

        Raises:
            ValueError: a field is invalid, or two fields contradict each other.
        """
        if not 0 <= self.depth <= 3:
            raise ValueError(f"The connector's depth is {self.depth}; it must be 0, 1, 2 or 3 (3 is the paper's).")
        if self.num_tokens is not None and self.num_tokens < 1:
            raise ValueError(f"num_tokens={self.num_tokens} must be at least 1: every tile gives at least one token.")
        _require_positive(self, "hidden_size", "num_attention_heads")
        if self.connector_type in ("c_abstractor", "average") and round(self.num_tokens**0.5) ** 2 != self.num_tokens:
            raise ValueError(
                f"A {self.connector_type} connector pools to a square grid, so its number of tokens must be a square "
                f"number; got num_tokens={self.num_tokens}. The paper uses 64 and 144."
            )

    def fit(self, vision_hidden_size: int, text_hidden_size: int, grid_size: int) -> None:
        """
        Fills in the sizes that the encoder and the decoder determine.

        Args:
            vision_hidden_size: width of the encoder's patches.
            text_hidden_size: width of the decoder.
            grid_size: number of patches along one side of a tile.

        Raises:
            ValueError: one of these sizes was already set to another value, `num_tokens` does not suit the number of
                patches, or the attention heads do not divide the encoder's width.
        """
        for name, value in (
            ("vision_hidden_size", vision_hidden_size),
            ("text_hidden_size", text_hidden_size),
            ("grid_size", grid_size),
        ):
            given = getattr(self, name)
            if given is not None and given != value:
                raise ValueError(
                    f"connector_config.{name} is {given}, but the other parts of the model make it {value}. Leave it "
                    "out of the connector's configuration, which is filled in, or change the part that should fit it."
                )
            setattr(self, name, value)
        patches = grid_size**2
        if self.connector_type in _UNREDUCED:
            if self.num_tokens not in (None, patches):
                raise ValueError(
                    f"A {self.connector_type} connector keeps one token per patch, {patches} at this resolution; got "
                    f"num_tokens={self.num_tokens}. Leave num_tokens out, or choose a connector that reduces the "
                    "patches: 'c_abstractor', 'average' or 'attention'."
                )
            self.num_tokens = patches
        elif self.num_tokens > patches:
            raise ValueError(
                f"num_tokens={self.num_tokens} is more than the {patches} patches of a tile "
                f"({grid_size} x {grid_size}). Give at most {patches}, or a larger vision_config.image_size."
            )
        if self.connector_type == "attention" and vision_hidden_size % self.num_attention_heads:
            raise ValueError(
                f"Attention pooling splits the encoder's width {vision_hidden_size} over "
                f"num_attention_heads={self.num_attention_heads}, which does not divide it. Give a number of heads "
                "that does."
            )


@strict
class MM1TextConfig(PreTrainedConfig):
    r"""
    Configuration of MM1's decoder, dense or with sparse (mixture-of-experts) layers. Its fields have the same names as
    in transformers' decoders. The defaults are those of the ablations' 1.2B decoder; the paper gives parameter counts
    but no shapes, so the shape is inferred from `12 * layers * width ** 2`.

    Args:
        vocab_size (`int`, defaults to 32128): number of rows of the token embeddings and of the head.
        hidden_size (`int`, defaults to 2048): width of the decoder.
        intermediate_size (`int`, defaults to 5632): hidden width of a dense feed-forward layer.
        num_hidden_layers (`int`, defaults to 24): number of decoder layers.
        num_attention_heads (`int`, defaults to 32): number of query heads.
        num_key_value_heads (`int`, *optional*): number of key-value heads; unset, `num_attention_heads`.
        head_dim (`int`, *optional*): width of one attention head; unset, `hidden_size / num_attention_heads`.
        hidden_act (`str`, defaults to `"silu"`): activation of the feed-forward layers' gates.
        max_position_embeddings (`int`, defaults to 4096): longest row, in tokens, that the decoder is meant for.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.
        rms_norm_eps (`float`, defaults to 1e-5): small number added to the mean square in the norms.
        use_cache (`bool`, defaults to `True`): whether a call that leaves `use_cache` unset returns `past_key_values`.
        tie_word_embeddings (`bool`, defaults to `False`): whether the head shares the embeddings' weight.
        rope_parameters (`dict`, *optional*):
            Base and scaling of the rotary positions, as in transformers' decoders; unset, base 10,000 without scaling.
        attention_bias (`bool`, defaults to `False`): bias in the query, key and value projections.
        attention_output_bias (`bool`, *optional*):
            Bias in the output projection; unset, the value of `attention_bias`.
        attention_dropout (`float`, defaults to 0.0): fraction of the attention weights dropped in training.
        qk_norm (`bool`, defaults to `False`): RMSNorm over each head of queries and keys, before the rotation.
        num_experts (`int`, defaults to 0): number of experts in a sparse layer; 0 makes a dense decoder.
        num_experts_per_tok (`int`, defaults to 2):
            Number of experts that each token is sent to (MM1, section 4.3: top-2).
        moe_intermediate_size (`int`, *optional*): hidden width of one expert; unset, `intermediate_size`.
        moe_layer_period (`int`, defaults to 2): every n-th layer is sparse; 2 makes layers 1, 3, 5, ... sparse.
        norm_topk_prob (`bool`, defaults to `True`): whether the chosen experts' gates are rescaled to sum to 1.
        expert_capacity_factor (`float`, *optional*):
            Limits how many choices of one row each expert accepts, to
            `max(1, int(tokens * expert_capacity_factor / num_experts))`, where `tokens` is the row's number of tokens
            without padding. The first choices of all tokens come before the second choices, each in the order of the
            tokens; a choice that finds its expert full is dropped. The limit applies in training and whenever a loss
            is computed, never in `generate()`. Unset, no choice is dropped. MM1 does not state a value; AXLearn's
            default is 2.0.
        output_router_logits (`bool`, defaults to `False`):
            Whether a call that leaves `output_router_logits` unset returns `router_logits`, and `aux_loss` even
            without labels.
        router_aux_loss_coef (`float`, defaults to 0.01):
            Weight of the load-balancing loss (MM1, section 4.3). A dense decoder always sets it to 0.
        router_z_loss_coef (`float`, defaults to 0.001): weight of the router's z-loss (MM1, section 4.3).
        aux_loss_reduction (`str`, defaults to `"sum"`):
            Whether the router's two losses are summed (`"sum"`) or averaged (`"mean"`) over the sparse layers.
        z_loss_coef (`float`, defaults to 0.0):
            Weight of the softmax z-loss, `mean(logsumexp(logits) ** 2)`. An MM1 uses the value in [`MM1Config`]
            instead.
        pad_token_id (`int`, *optional*): the padding token; its embedding gets no gradient.
        bos_token_id (`int`, *optional*): the token that begins a text.
        eos_token_id (`int` or `list[int]`, *optional*): the token or tokens that end a text.

    Raises:
        ValueError: a size is below 1, the numbers of heads do not divide, `head_dim` is odd, or the number of experts,
            their number per token, their capacity factor or their layer period is out of range.

    Example:

    ```python
    >>> from mm1_hf import MM1TextConfig

    >>> config = MM1TextConfig(num_experts=64, num_hidden_layers=6)
    >>> [layer for layer in range(6) if config.is_sparse_layer(layer)]
    [1, 3, 5]

    ```
    """

    model_type = "mm1_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ["past_key_values", "cache", "router_logits", "aux_loss"]
    default_theta = 10000.0

    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
    }
    base_model_ep_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    vocab_size: int = 32128
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: FilledInt = None
    head_dim: FilledInt = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: FilledRope = None
    attention_bias: bool = False
    attention_output_bias: FilledBool = None
    attention_dropout: float | int = 0.0
    qk_norm: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 2
    moe_intermediate_size: FilledInt = None
    moe_layer_period: int = 2
    norm_topk_prob: bool = True
    expert_capacity_factor: float | int | None = None
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.01
    router_z_loss_coef: float = 0.001
    aux_loss_reduction: Literal["sum", "mean"] = "sum"
    z_loss_coef: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        # These checks come first, because the defaults below are computed from these fields.
        _require_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        _require_positive(self, "num_attention_heads", "num_key_value_heads", "head_dim", "moe_intermediate_size")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads="
                    f"{self.num_attention_heads}. Make it one, or give head_dim, the width of one head."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.attention_output_bias is None:
            self.attention_output_bias = self.attention_bias
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        self.auto_map = {
            "AutoConfig": "configuration_mm1.MM1TextConfig",
            "AutoModel": "modeling_mm1_text.MM1TextModel",
            "AutoModelForCausalLM": "modeling_mm1_text.MM1TextForCausalLM",
        }
        # transformers warns about entries of a plan that match no module, so the plans list only modules that exist.
        absent = [] if self.qk_norm else [".q_norm", ".k_norm"]
        # transformers saves only this one of its plans with a configuration. The saved plan of a dense decoder, which
        # is None, must not replace that of a sparse decoder made from it.
        kwargs.pop("base_model_ep_plan", None)
        if not self.num_experts:
            absent.append(".mlp.experts")
            # With any other value, TRL's trainers expect `aux_loss` in the outputs, and fail because it is None.
            self.router_aux_loss_coef = 0.0
            self.base_model_ep_plan = None  # ty: ignore[invalid-attribute-access] -- read from the instance
        elif self.moe_layer_period == 1:
            absent += [".mlp.gate_proj", ".mlp.up_proj", ".mlp.down_proj"]
        plan = type(self).base_model_tp_plan or {}
        self.base_model_tp_plan = {  # ty: ignore[invalid-attribute-access] -- read from the instance
            name: style for name, style in plan.items() if not any(part in name for part in absent)
        }
        super().__post_init__(**kwargs)
        # `@strict` checks this again afterwards, but its error is not a ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """
        Checks that the decoder's fields are valid and fit each other. `@strict` also calls it.

        Raises:
            ValueError: a field is invalid, or two fields contradict each other.
        """
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}: each key-value head serves a group of query heads."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: the rotary embedding rotates pairs of channels.")
        if self.num_experts < 0:
            raise ValueError(f"num_experts={self.num_experts} is negative; give 0 for a dense decoder.")
        if self.num_experts:
            if not 1 <= self.num_experts_per_tok <= self.num_experts:
                raise ValueError(
                    f"num_experts_per_tok={self.num_experts_per_tok} must be from 1 to num_experts={self.num_experts}."
                )
            if self.expert_capacity_factor is not None and not self.expert_capacity_factor > 0:
                raise ValueError(
                    f"expert_capacity_factor={self.expert_capacity_factor} must be above 0, or None to drop no "
                    "choice. With top-2 routing, 2.0 leaves room for every choice if the experts are chosen evenly."
                )
            if not 1 <= self.moe_layer_period <= self.num_hidden_layers:
                raise ValueError(
                    f"moe_layer_period={self.moe_layer_period} makes no layer of {self.num_hidden_layers} sparse; "
                    f"give a number from 1 (every layer) to {self.num_hidden_layers} (the last one)."
                )

    def is_sparse_layer(self, layer_idx: int) -> bool:
        """
        Whether a layer has experts. A `moe_layer_period` of 2 gives experts to layers 1, 3, 5, ...; one of 4 to layers
        3, 7, ...

        Args:
            layer_idx: index of the layer, counted from 0.
        """
        return self.num_experts > 0 and (layer_idx + 1) % self.moe_layer_period == 0


@strict
class MM1Config(PreTrainedConfig):
    r"""
    Configuration of MM1: any image encoder, a connector and any decoder. The default combines the 1.2B decoder of the
    ablations with the final model's image encoder (ViT-H/14 at 378 pixels; MM1, sections 3.2 and 4).

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the image encoder: any vision transformer of transformers.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder: `mm1_text` or any decoder of transformers.
        connector_config (`dict` or [`MM1ConnectorConfig`], *optional*): configuration of the connector.
        image_token_id (`int`, defaults to 32000): the placeholder token for images in the text.
        vision_feature_layer (`int`, defaults to -1):
            Index of the encoder's hidden state that feeds the connector: 0 is the output of the embeddings, -1 that of
            the last layer. Layers after this hidden state are not built. The paper does not say which hidden state it
            uses.
        vision_feature_norm (`bool`, defaults to `False`):
            Whether the encoder's final norm is applied to that hidden state.
        z_loss_coef (`float`, defaults to 0.0):
            Weight of the softmax z-loss `mean(logsumexp(logits) ** 2)` (MM1 uses this loss for its 30B model).
        lm_head_bias (`bool`, defaults to `False`): whether the decoder's head has a bias, as in Phi.
        tie_word_embeddings (`bool`, *optional*):
            Whether the head shares the embeddings' weight; unset, the value in the decoder's configuration.
        pixel_mean (`list[float]`, *optional*):
            Mean of each channel, for pixel values scaled to 0..1. With it the model normalises uint8 tiles; tiles in
            floating point must already be normalised. [`mm1_hf.assemble`] copies it from the image processor.
        pixel_scale (`list[float]`, *optional*): standard deviation of each channel, used and copied like `pixel_mean`.

    Raises:
        ValueError: the parts do not fit each other; only one of `pixel_mean` and `pixel_scale` is given, or one of
            them does not hold one number per channel.

    Example:

    ```python
    >>> from mm1_hf import MM1Config

    >>> config = MM1Config.from_preset("mm1-3b")
    >>> config.connector_config.num_tokens
    144

    ```
    """

    model_type = "mm1"
    # Not `sub_configs_defaults`, which would also fill in the defaults: transformers has it since 5.20 only.
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "connector_config": MM1ConnectorConfig}
    keys_to_ignore_at_inference = [
        "past_key_values",
        "cache",
        "router_logits",
        "aux_loss",
        "image_hidden_states",
        "image_outputs",
    ]
    # The parts' configurations have their own plans.
    base_model_fsdp_plan = None  # ty: ignore[invalid-assignment] -- transformers' annotation leaves None out

    vision_config: Part = None
    text_config: Part = None
    connector_config: Part = None
    image_token_id: int = 32000
    vision_feature_layer: int = -1
    vision_feature_norm: bool = False
    z_loss_coef: float = 0.0
    lm_head_bias: bool = False
    tie_word_embeddings: FilledBool = None
    pixel_mean: list[float | int] | None = None
    pixel_scale: list[float | int] | None = None

    def __post_init__(self, **kwargs):
        self.vision_config = _built("vision_config", self.vision_config, _DEFAULT_VISION)
        self.text_config = _built("text_config", self.text_config, {"model_type": MM1TextConfig.model_type})
        self.connector_config = _built(
            "connector_config", self.connector_config, {"model_type": MM1ConnectorConfig.model_type}
        )
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self.connector_config.fit(
            self.vision_config.hidden_size, self.text_config.hidden_size, vision_grid_size(self.vision_config)
        )
        self.auto_map = {
            "AutoConfig": "configuration_mm1.MM1Config",
            "AutoModel": "modeling_mm1.MM1Model",
            "AutoModelForImageTextToText": "modeling_mm1.MM1ForConditionalGeneration",
            "AutoModelForMultimodalLM": "modeling_mm1.MM1ForConditionalGeneration",
        }
        # `@strict` checks this again afterwards, but its error is not a ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """
        Checks that the parts fit each other. `@strict` also calls it.

        Raises:
            ValueError: the parts do not fit each other.
        """
        vocab_size = self.text_config.vocab_size
        if not 0 <= self.image_token_id < vocab_size:
            raise ValueError(
                f"image_token_id={self.image_token_id} is outside the decoder's vocabulary of {vocab_size} tokens. "
                f"Give an id from 0 to {vocab_size - 1}, or a text_config with a larger vocab_size (mm1_hf.assemble "
                "does both)."
            )
        num_channels = getattr(self.vision_config, "num_channels", 3)
        statistics = (self.pixel_mean, self.pixel_scale)
        if statistics != (None, None) and any(values is None or len(values) != num_channels for values in statistics):
            raise ValueError(
                f"pixel_mean={self.pixel_mean} and pixel_scale={self.pixel_scale} must both hold {num_channels} "
                "numbers, one per channel, or both be None. Copy the image processor's image_mean and image_std."
            )
        # The hidden states are the output of the embeddings and that of each layer.
        num_layers = self.vision_config.num_hidden_layers
        if not -num_layers - 1 <= self.vision_feature_layer <= num_layers:
            raise ValueError(
                f"vision_feature_layer={self.vision_feature_layer} is not a hidden state of an image encoder with "
                f"{num_layers} layers. Give a number from 0 (the output of the embeddings) to {num_layers} (that of "
                f"the last layer), or from -1 (the last layer) down to {-num_layers - 1} (the embeddings)."
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "MM1Config":
        """
        The configuration of one of the papers' models. `docs/presets.md` marks which of its numbers the papers state
        and which are inferred.

        Args:
            name: name of a preset, one of [`preset_names`], for example `"mm1-3b"` or `"mm1.5-1b-moe"`.
            overrides: fields of [`MM1Config`] that replace the preset's values.

        Raises:
            ValueError: there is no preset of this name.

        Example:

        ```python
        >>> from mm1_hf import MM1Config

        >>> MM1Config.from_preset("mm1-3b-moe").text_config.num_experts
        64
        >>> MM1Config.from_preset("mm1-3b", vision_feature_layer=-2).vision_feature_layer
        -2

        ```
        """
        names = preset_names()
        if name not in names:
            source = (
                f"The presets are: {', '.join(names)}."
                if names
                else "Presets are part of the mm1_hf package, which is not installed: install it."
            )
            raise ValueError(f"There is no preset {name!r}. {source}")
        preset = json.loads((_PRESETS / f"{name}.json").read_text(encoding="utf-8"))
        return cls(**{**preset["config"], **overrides})


def preset_names() -> list[str]:
    """
    The names of the presets for [`MM1Config.from_preset`]. The list is empty if only the model's files were loaded
    from the Hub, without this package.

    Example:

    ```python
    >>> from mm1_hf import preset_names

    >>> [name for name in preset_names() if name.startswith("mm1-3b")]
    ['mm1-3b', 'mm1-3b-moe']

    ```
    """
    return sorted(path.stem for path in _PRESETS.glob("*.json"))


def _built(name: str, given: Any, default: dict[str, Any]) -> PreTrainedConfig:
    """Configuration of a part, built from its fields unless it is built already."""
    if isinstance(given, PreTrainedConfig):
        return given
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"{name} is a {type(given).__name__}; give a dict of its fields, or a configuration.")
    values = dict(default if given is None else given)
    model_type = values.pop("model_type", default["model_type"])
    if model_type == MM1ConnectorConfig.model_type:
        return MM1ConnectorConfig(**values)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} has the model type {model_type!r}, which transformers {transformers.__version__} does not know. "
            "Install a transformers that has this model, or import the package that registers it."
        )
    return CONFIG_MAPPING[model_type](**values)


def _require_positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")


# A saved MM1's configuration names the model type of each part, and transformers looks these types up. The package's
# own types are registered in this file because it is also loaded from the Hub, where nothing else of the package is
# imported.
for part in (AIMVisionConfig, MM1TextConfig):
    if part.model_type not in CONFIG_MAPPING:
        AutoConfig.register(part.model_type, part)

# Every way to load an MM1 imports this file.
warn_if_untested()


__all__ = ["MM1Config", "MM1ConnectorConfig", "MM1TextConfig", "preset_names"]
