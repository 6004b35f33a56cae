"""Configuration of AIM, the image encoder with a reconstructive loss in MM1's ablations (MM1, section 3.2)."""

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


# Type of a field that may be left unset and is filled in when the configuration is built: type checkers see the value
# that is read later, which is not None.
if TYPE_CHECKING:
    FilledInt = Any
else:
    FilledInt = int | None


@strict
class AIMVisionConfig(PreTrainedConfig):
    r"""
    Configuration of the encoder of AIM, version 1. The defaults are those of AIM-600M, except that only the first 20
    of its 24 layers are built, as in MM1. For version 2, use transformers' `Aimv2VisionModel`.

    Args:
        hidden_size (`int`, defaults to 1536): width of the encoder.
        intermediate_size (`int`, *optional*):
            Hidden width of the feed-forward layers; unset, four times `hidden_size`.
        num_hidden_layers (`int`, defaults to 20): number of layers.
        num_attention_heads (`int`, defaults to 12): number of attention heads.
        num_channels (`int`, defaults to 3): number of channels of the images.
        image_size (`int`, defaults to 224): side of a tile in pixels.
        patch_size (`int`, defaults to 14): side of a patch in pixels.
        hidden_act (`str`, defaults to `"gelu"`): activation of the feed-forward layers.
        layer_norm_eps (`float`, defaults to 1e-6): small number added to the variance in the norms.
        attention_dropout (`float`, defaults to 0.0): fraction of the attention weights dropped in training.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.

    Raises:
        ValueError: `hidden_size` is not a multiple of `num_attention_heads` and of 4.

    Example:

    ```python
    >>> from mm1_hf import AIMVisionConfig

    >>> AIMVisionConfig(hidden_size=2048, num_attention_heads=16, num_hidden_layers=24).intermediate_size
    8192

    ```
    """

    model_type = "aim_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 1536
    intermediate_size: FilledInt = None
    num_hidden_layers: int = 20
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        self.auto_map = {
            "AutoConfig": "configuration_aim.AIMVisionConfig",
            "AutoModel": "modeling_aim.AIMVisionModel",
        }
        super().__post_init__(**kwargs)
        # `@strict` checks this again afterwards, but its error is not a ValueError.
        self.validate_architecture()

    def validate_architecture(self):
        """
        Checks that the width can be divided among the heads and the position embedding. `@strict` also calls it.

        Raises:
            ValueError: `hidden_size` is not a multiple of `num_attention_heads` and of 4.
        """
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads} "
                "and of 4: the position embedding has a sine and a cosine for each of two axes."
            )


__all__ = ["AIMVisionConfig"]
