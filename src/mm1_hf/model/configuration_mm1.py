"""Configurations of MM1: the whole model, its connector and its own decoder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.modeling_rope_utils import RopeParameters

from .configuration_aim import AIMVisionConfig


ConnectorType = Literal["c_abstractor", "average", "attention", "linear", "mlp"]

# The connectors that keep one token per patch (MM1 ablates only reducing ones; these answer "is the reduction worth it?").
_UNREDUCED = ("linear", "mlp")
_PAPER_TOKENS = 144
_PRESETS = Path(__file__).parent / "presets"

# Fields that may be left out, and hold a value once the configuration is built and fitted. `@strict` checks what is given;
# type checkers are told what can be read.
if TYPE_CHECKING:
    Part = FilledInt = FilledBool = FilledRope = Any
else:
    Part, FilledRope = dict | PreTrainedConfig | None, RopeParameters | dict | None
    FilledInt, FilledBool = int | None, bool | None


@strict
class MM1ConnectorConfig(PreTrainedConfig):
    r"""
    Configuration of the part between the image encoder and the decoder (MM1, section 3.2).

    Args:
        connector_type (`str`, defaults to `"c_abstractor"`):
            `"c_abstractor"` (MM1's final choice, after Honeybee), `"average"` and `"attention"` reduce a tile's patches
            to `num_tokens`; `"linear"` and `"mlp"` keep one token per patch.
        num_tokens (`int`, *optional*):
            Image tokens per tile. Unset, it is the paper's 144 for the reducing connectors and the number of patches
            for the others. `"c_abstractor"` and `"average"` need a square number; as many as there are patches means
            no reduction.
        depth (`int`, defaults to 3):
            C-Abstractor only: convolution blocks before the pooling, and again after it (0 to 3). 0 leaves the pooling
            and the read-out.
        hidden_size (`int`, defaults to 1024): C-Abstractor only: channels of its convolutions.
        num_attention_heads (`int`, defaults to 16): attention pooling only.
        vision_hidden_size (`int`, *optional*): width of the patches. [`MM1Config`] fills it in.
        text_hidden_size (`int`, *optional*): width of the decoder. [`MM1Config`] fills it in.
        grid_size (`int`, *optional*):
            Patches along one side of a tile at the configured resolution. [`MM1Config`] fills it in. The C-Abstractor's
            position embedding has this grid and is interpolated for any other.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial position embedding and queries (Honeybee's truncated normal).

    Raises:
        ValueError: a depth outside 0 to 3, a number of tokens that the connector cannot produce.

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
        # Here too, because what `@strict` raises afterwards is no ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """
        Checks what the connector's own fields say of each other; part of `@strict`'s validation.

        Raises:
            ValueError: they contradict each other.
        """
        if not 0 <= self.depth <= 3:
            raise ValueError(f"The connector's depth is {self.depth}; give 0, 1, 2 or 3 (the paper's).")
        if self.num_tokens is not None and self.num_tokens < 1:
            raise ValueError(f"A tile becomes at least one token; got num_tokens={self.num_tokens}.")
        _require_positive(self, "hidden_size", "num_attention_heads")
        if self.connector_type in ("c_abstractor", "average") and round(self.num_tokens**0.5) ** 2 != self.num_tokens:
            raise ValueError(
                f"A {self.connector_type} connector pools to a square grid, so its number of tokens must be a square "
                f"number; got num_tokens={self.num_tokens}. The paper uses 64 and 144."
            )

    def fit(self, vision_hidden_size: int, text_hidden_size: int, grid_size: int) -> None:
        """
        Takes over the sizes of the neighbouring parts.

        Args:
            vision_hidden_size: width of the encoder's patches.
            text_hidden_size: width of the decoder.
            grid_size: patches along one side of a tile.

        Raises:
            ValueError: a size was given before and differs, or the patches are too few for `num_tokens`.
        """
        for name, value in (
            ("vision_hidden_size", vision_hidden_size),
            ("text_hidden_size", text_hidden_size),
            ("grid_size", grid_size),
        ):
            given = getattr(self, name)
            if given is not None and given != value:
                raise ValueError(
                    f"connector_config.{name} is {given}, but the model's other parts make it {value}. Leave it out of "
                    "the connector's configuration (it is filled in), or change the part that it should fit."
                )
            setattr(self, name, value)
        patches = grid_size**2
        if self.connector_type in _UNREDUCED:
            if self.num_tokens not in (None, patches):
                raise ValueError(
                    f"A {self.connector_type} connector keeps one token per patch, {patches} at this resolution; got "
                    f"num_tokens={self.num_tokens}. Leave num_tokens out, or take 'c_abstractor', 'average' or "
                    "'attention' to reduce."
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
                f"num_attention_heads={self.num_attention_heads}, which does not divide it."
            )


@strict
class MM1TextConfig(PreTrainedConfig):
    r"""
    Configuration of MM1's decoder, dense or with sparse (mixture-of-experts) layers. Its field names are those of
    transformers' own decoders. The defaults are the 1.2B ablation decoder; the paper gives parameter counts but no
    shapes, so the shape is inferred from `12 * layers * width ** 2`.

    Args:
        vocab_size (`int`, defaults to 32128): rows of the token embeddings and of the head.
        hidden_size (`int`, defaults to 2048): width of the decoder.
        intermediate_size (`int`, defaults to 5632): hidden width of a dense feed-forward layer.
        num_hidden_layers (`int`, defaults to 24): decoder layers.
        num_attention_heads (`int`, defaults to 32): heads of the queries.
        num_key_value_heads (`int`, *optional*): heads of keys and values; unset, `num_attention_heads`.
        head_dim (`int`, *optional*): width of one attention head; unset, `hidden_size / num_attention_heads`.
        hidden_act (`str`, defaults to `"silu"`): activation of the feed-forward layers' gates.
        max_position_embeddings (`int`, defaults to 4096): longest row in tokens that the positions are meant for.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.
        rms_norm_eps (`float`, defaults to 1e-5): added to the mean square in the norms.
        use_cache (`bool`, defaults to `True`): whether outputs carry `past_key_values` where a call does not say.
        tie_word_embeddings (`bool`, defaults to `False`): whether the head shares the embeddings' weight.
        rope_parameters (`dict`, *optional*):
            Base and scaling of the rotary positions, as in transformers' decoders; unset, base 10,000, unscaled.
        attention_bias (`bool`, defaults to `False`): bias in the query, key and value projections.
        attention_output_bias (`bool`, *optional*): bias in the output projection; unset, as `attention_bias`.
        attention_dropout (`float`, defaults to 0.0): share of attention weights that training drops.
        qk_norm (`bool`, defaults to `False`): RMSNorm over each head of queries and keys, before the rotation.
        num_experts (`int`, defaults to 0): experts of a sparse layer; 0 is a dense decoder.
        num_experts_per_tok (`int`, defaults to 2): experts that each token is sent to (MM1, section 4.3: top-2).
        moe_intermediate_size (`int`, *optional*): hidden width of one expert; unset, `intermediate_size`.
        moe_layer_period (`int`, defaults to 2): every n-th layer is sparse: 2 makes layers 1, 3, 5, ... sparse.
        norm_topk_prob (`bool`, defaults to `True`): whether the chosen experts' gates are rescaled to sum to 1.
        expert_capacity_factor (`float`, *optional*):
            Limits each expert to `max(1, int(tokens * expert_capacity_factor / num_experts))` choices of a row of so many
            tokens without padding; first choices go first, in the tokens' order, and a choice that finds no room counts
            nothing. It holds in training and wherever a loss is computed, never in `generate()`. Unset, no choice is
            dropped. MM1 leaves it open; AXLearn's default is 2.0.
        output_router_logits (`bool`, defaults to `False`):
            Whether outputs carry `router_logits` also where no loss is computed.
        router_aux_loss_coef (`float`, defaults to 0.01):
            weight of the load-balancing loss (MM1, section 4.3); 0 in a dense decoder, whatever is given.
        router_z_loss_coef (`float`, defaults to 0.001): weight of the router's z-loss (MM1, section 4.3).
        aux_loss_reduction (`str`, defaults to `"sum"`): whether both are summed or averaged over the sparse layers.
        z_loss_coef (`float`, defaults to 0.0):
            Weight of the softmax z-loss, `mean(logsumexp(logits) ** 2)`. Inside an MM1, [`MM1Config`]'s counts.
        pad_token_id (`int`, *optional*): the padding token; its embedding gets no gradient.
        bos_token_id (`int`, *optional*): the token that begins a text.
        eos_token_id (`int` or `list[int]`, *optional*): the token or tokens that end one.

    Raises:
        ValueError: a size below 1, head counts that do not divide, more experts per token than experts, no room in the
            experts.

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
    keys_to_ignore_at_inference = ["past_key_values", "router_logits", "aux_loss"]
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
        # First, because the defaults below are computed from these.
        _require_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        _require_positive(self, "num_attention_heads", "num_key_value_heads", "head_dim", "moe_intermediate_size")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads="
                    f"{self.num_attention_heads}. Give head_dim if the heads are to be of another width."
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
        # Rules that match nothing make transformers warn, so the plans name only what this decoder has.
        absent = [] if self.qk_norm else [".q_norm", ".k_norm"]
        # Of the plans transformers saves this one; a dense decoder's would stay with the sparse one made from it.
        kwargs.pop("base_model_ep_plan", None)
        if not self.num_experts:
            absent.append(".mlp.experts")
            # TRL's trainers take any other for a sign of experts, and fail for want of them.
            self.router_aux_loss_coef = 0.0
            self.base_model_ep_plan = None  # ty: ignore[invalid-attribute-access] -- read from the instance
        elif self.moe_layer_period == 1:
            absent += [".mlp.gate_proj", ".mlp.up_proj", ".mlp.down_proj"]
        plan = type(self).base_model_tp_plan or {}
        self.base_model_tp_plan = {  # ty: ignore[invalid-attribute-access] -- read from the instance
            name: style for name, style in plan.items() if not any(part in name for part in absent)
        }
        super().__post_init__(**kwargs)
        # Here too, because what `@strict` raises afterwards is no ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """
        Checks what the decoder's fields say of each other; part of `@strict`'s validation.

        Raises:
            ValueError: they contradict each other.
        """
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}: each key-value head serves a whole group of queries."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: the rotary embedding turns pairs.")
        if self.num_experts < 0:
            raise ValueError(f"num_experts={self.num_experts} is negative; give 0 for a dense decoder.")
        if self.num_experts:
            if not 1 <= self.num_experts_per_tok <= self.num_experts:
                raise ValueError(
                    f"num_experts_per_tok={self.num_experts_per_tok} must be from 1 to num_experts={self.num_experts}."
                )
            if self.expert_capacity_factor is not None and not self.expert_capacity_factor > 0:
                raise ValueError(
                    f"expert_capacity_factor={self.expert_capacity_factor} must be above 0 (2.0 gives each of top-2's "
                    "choices room when all experts are used alike), or None to drop no choice."
                )
            if not 1 <= self.moe_layer_period <= self.num_hidden_layers:
                raise ValueError(
                    f"moe_layer_period={self.moe_layer_period} makes no layer of {self.num_hidden_layers} sparse; give "
                    f"a number from 1 (every layer) to {self.num_hidden_layers} (the last one)."
                )

    def is_sparse_layer(self, layer_idx: int) -> bool:
        """
        Whether a layer has experts: every 2 layers are 1, 3, 5, ...; every 4: 3, 7, ...

        Args:
            layer_idx: counted from 0.
        """
        return self.num_experts > 0 and (layer_idx + 1) % self.moe_layer_period == 0


@strict
class MM1Config(PreTrainedConfig):
    r"""
    Configuration of MM1: any image encoder, a connector and any decoder. The default is an MM1 of the ablations'
    1.2B decoder behind the final model's image encoder (ViT-H/14 at 378 pixels, MM1, sections 3.2 and 4).

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*): any of transformers' vision encoders.
        text_config (`dict` or `PreTrainedConfig`, *optional*): `mm1_text` or any of transformers' decoders.
        connector_config (`dict` or [`MM1ConnectorConfig`], *optional*): see there.
        image_token_id (`int`, defaults to 32000): the token that holds an image's place in the text.
        vision_feature_layer (`int`, defaults to -1):
            Which of the encoder's hidden states feeds the connector; -1 is the last layer's. The layers behind it are not
            built. The paper does not say which it took.
        vision_feature_norm (`bool`, defaults to `False`): whether the encoder's final norm is applied to it.
        z_loss_coef (`float`, defaults to 0.0):
            Weight of the softmax z-loss `mean(logsumexp(logits) ** 2)` (MM1 uses one for its 30B model).
        lm_head_bias (`bool`, defaults to `False`): whether the decoder's head has a bias, as Phi's has.
        tie_word_embeddings (`bool`, *optional*): unset, as the decoder's configuration says.
        pixel_mean (`list[float]`, *optional*):
            Mean of each channel, of levels in 0..1, by which the model normalises tiles that come as uint8; those in
            floating point come normalised. [`mm1_hf.assemble`] takes it from the image processor.
        pixel_scale (`list[float]`, *optional*): standard deviation of each channel, likewise.

    Raises:
        ValueError: parts that do not fit each other; one of `pixel_mean` and `pixel_scale` without the other, or not one
            number per channel.

    Example:

    ```python
    >>> from mm1_hf import MM1Config

    >>> config = MM1Config.from_preset("mm1-3b")
    >>> config.connector_config.num_tokens
    144

    ```
    """

    model_type = "mm1"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs={
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "patch_size": 14,
                "image_size": 378,
                "projection_dim": 1024,
            },
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="mm1_text"),
        "connector_config": SubConfigSpec(config_class=MM1ConnectorConfig),
    }
    keys_to_ignore_at_inference = ["past_key_values", "router_logits", "aux_loss", "image_hidden_states"]
    # The parts bring their own plans.
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
        # Here too, because what `@strict` raises afterwards is no ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """
        Checks that the parts fit each other; part of `@strict`'s validation.

        Raises:
            ValueError: they do not.
        """
        vocab_size = self.text_config.vocab_size
        if not 0 <= self.image_token_id < vocab_size:
            raise ValueError(
                f"image_token_id={self.image_token_id} lies outside the decoder's vocabulary of {vocab_size}. Give an "
                "id below that, or a text_config with a larger vocab_size (mm1_hf.assemble does both)."
            )
        num_channels = getattr(self.vision_config, "num_channels", 3)
        statistics = (self.pixel_mean, self.pixel_scale)
        if statistics != (None, None) and any(values is None or len(values) != num_channels for values in statistics):
            raise ValueError(
                f"pixel_mean={self.pixel_mean} and pixel_scale={self.pixel_scale} must both hold {num_channels} numbers, "
                "one per channel, or both be None: give the image processor's."
            )
        # The embeddings' output is a hidden state too.
        num_layers = self.vision_config.num_hidden_layers
        if not -num_layers - 1 <= self.vision_feature_layer <= num_layers:
            raise ValueError(
                f"vision_feature_layer={self.vision_feature_layer} names no hidden state of an image encoder of "
                f"{num_layers} layers. Give -1 for the last layer's, down to {-num_layers - 1} for the embeddings', or "
                f"count from the embeddings' 0 to {num_layers}."
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "MM1Config":
        """
        The configuration of one of the papers' models. Which of its numbers the papers state and which are inferred is
        marked in the documentation (`docs/presets.md`).

        Args:
            name: one of [`preset_names`], for example `"mm1-3b"` or `"mm1.5-1b-moe"`.
            overrides: fields of [`MM1Config`] to set instead of the preset's.

        Raises:
            ValueError: there is no such preset.

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
                else "Presets are part of the package: install mm1_hf."
            )
            raise ValueError(f"There is no preset {name!r}. {source}")
        preset = json.loads((_PRESETS / f"{name}.json").read_text(encoding="utf-8"))
        return cls(**{**preset["config"], **overrides})


def preset_names() -> list[str]:
    """
    The names that [`MM1Config.from_preset`] knows; empty where only the model's files were loaded from the Hub.

    Example:

    ```python
    >>> from mm1_hf import preset_names

    >>> [name for name in preset_names() if name.startswith("mm1-3b")]
    ['mm1-3b', 'mm1-3b-moe']

    ```
    """
    return sorted(path.stem for path in _PRESETS.glob("*.json"))


def vision_sizes(vision_config: PreTrainedConfig) -> tuple[int, int]:
    """
    The sides of an encoder's image and of its patches, in pixels.

    Args:
        vision_config: the encoder's.

    Raises:
        ValueError: the configuration is not that of a square-image patch encoder.
    """
    sizes = [getattr(vision_config, name, None) for name in ("image_size", "patch_size")]
    image_size, patch_size = (
        size[0] if isinstance(size, list | tuple) and len(set(size)) == 1 else size for size in sizes
    )
    if not (isinstance(image_size, int) and isinstance(patch_size, int)):
        raise ValueError(
            f"An MM1's image encoder sees square tiles cut into square patches; the {vision_config.model_type!r} "
            f"configuration has image_size={image_size} and patch_size={patch_size}. Use a vision transformer such as "
            "CLIP, SigLIP, AIMv2 or DINOv2."
        )
    return image_size, patch_size


def vision_grid_size(vision_config: PreTrainedConfig) -> int:
    """
    Patches along one side of a tile at the encoder's configured resolution.

    Args:
        vision_config: the encoder's.

    Raises:
        ValueError: not one patch fits, or [`vision_sizes`] finds none.
    """
    image_size, patch_size = vision_sizes(vision_config)
    if not 0 < patch_size <= image_size:
        raise ValueError(
            f"No patch of {patch_size} pixels fits in a tile of {image_size}: give the vision_config a patch_size from 1 "
            "to its image_size."
        )
    return image_size // patch_size


def _require_positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")


# A saved MM1 names its parts inside its configuration, and transformers looks those up by name. The files of the model
# register the package's own because they also load from the Hub, where nothing else of the package is imported.
for part in (AIMVisionConfig, MM1TextConfig):
    if part.model_type not in CONFIG_MAPPING:
        AutoConfig.register(part.model_type, part)


__all__ = ["MM1Config", "MM1ConnectorConfig", "MM1TextConfig", "preset_names"]
