"""Sizes of encoders of any class."""

import pytest
from transformers import CLIPVisionConfig, Dinov2Config, Siglip2VisionConfig, SiglipVisionConfig

from mm1_hf.model.vision_sizes import vision_grid_size, vision_sizes


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (CLIPVisionConfig(image_size=336, patch_size=14), 24),
        # SigLIP's so400m: the last 6 pixels belong to no patch.
        (SiglipVisionConfig(image_size=384, patch_size=14), 27),
        (Dinov2Config(image_size=[518, 518], patch_size=[14, 14]), 37),
    ],
)
def test_the_grid_is_the_encoder_s(config, grid):
    assert vision_grid_size(config) == grid


def test_an_encoder_of_oblong_images_is_refused():
    with pytest.raises(ValueError, match="square"):
        vision_grid_size(Dinov2Config(image_size=[224, 448]))


def test_naflex_encoders_are_refused_by_their_fields():
    """SigLIP 2's fixed-resolution checkpoints are of SigLIP's own type; its NaFlex ones know no square tile."""
    with pytest.raises(
        ValueError, match=r"'siglip2_vision_model' configuration has image_size=None and patch_size=16"
    ):
        vision_sizes(Siglip2VisionConfig())
