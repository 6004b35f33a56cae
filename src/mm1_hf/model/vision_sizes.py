"""Side lengths of the images and patches of any image encoder, read from its configuration."""

from transformers.configuration_utils import PreTrainedConfig


def vision_sizes(vision_config: PreTrainedConfig) -> tuple[int, int]:
    """
    The side lengths of an encoder's image and of its patches, in pixels.

    Args:
        vision_config: configuration of the encoder.

    Raises:
        ValueError: the encoder does not see square images cut into square patches.
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
    Number of patches along one side of a tile at the encoder's configured resolution.

    Args:
        vision_config: configuration of the encoder.

    Raises:
        ValueError: no patch fits in a tile, or the encoder does not see square images cut into square patches.
    """
    image_size, patch_size = vision_sizes(vision_config)
    if not 0 < patch_size <= image_size:
        raise ValueError(
            f"No patch of {patch_size} pixels fits in a tile of {image_size} pixels: give the vision_config a "
            "patch_size from 1 to its image_size."
        )
    return image_size // patch_size
