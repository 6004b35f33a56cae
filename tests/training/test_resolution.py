"""A loaded model set to larger tiles: what it computes, what it saves, and what it refuses."""

import pytest
import torch
from tiny import tiny_mm1
from transformers import AutoModelForImageTextToText

from mm1_hf import MM1ConnectorConfig
from mm1_hf.training.resolution import set_tile_size


REDUCING = MM1ConnectorConfig(num_tokens=4, hidden_size=32)


@pytest.mark.parametrize(
    ("vision", "connector"),
    [
        ("clip", REDUCING),
        ("siglip", REDUCING),
        ("aimv2", MM1ConnectorConfig(connector_type="attention", num_tokens=4, num_attention_heads=2)),
        ("dinov2", MM1ConnectorConfig(connector_type="average", num_tokens=4)),
    ],
)
@pytest.mark.parametrize("tile_size", [112, 42])
def test_tables_are_interpolated_once_and_for_good(vision, connector, tile_size, tmp_path):
    model, processor = tiny_mm1(vision, connector)
    grid = tile_size // 14
    pixels = torch.randn(2, 3, tile_size, tile_size)
    with torch.no_grad():
        on_the_way = model.model.get_image_features(pixels).pooler_output
    weights = [weight for weight in model.parameters() if weight.ndim == 2]
    set_tile_size(model, processor, tile_size)
    assert (model.config.vision_config.image_size, model.config.connector_config.grid_size) == (tile_size, grid)
    assert processor.num_image_tokens == 4
    with torch.no_grad():
        stored = model.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(stored, on_the_way)
    tables = [weight for name, weight in model.named_parameters() if "position_embedding" in name]
    assert tables and all(weight.numel() // 32 in (grid**2, grid**2 + 1) for weight in tables)
    shared = {weight.data_ptr() for weight in model.parameters()}
    assert sum(weight.data_ptr() in shared for weight in weights) > len(weights) - 2, "nothing else is copied"

    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        # Tensors mapped from a file lie at other addresses, where matrix products round differently.
        again = loaded.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(again, stored, atol=1e-5, rtol=1e-5)
    assert type(processor).from_pretrained(tmp_path).image_processor.size["height"] == tile_size


def test_a_connector_that_does_not_reduce_makes_more_tokens():
    model, processor = tiny_mm1(connector=MM1ConnectorConfig(connector_type="mlp"))
    set_tile_size(model, processor, 84)
    inputs = processor(text="<image>", images=torch.zeros(3, 84, 84, dtype=torch.uint8), return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[model.config.image_token_id] * 36]
    assert model.model.get_image_features(inputs["pixel_values"]).pooler_output.shape == (1, 36, 64)


@pytest.mark.parametrize("splitting", ["static", "dynamic"])
def test_split_images_train_the_larger_table(splitting):
    model, processor = tiny_mm1()
    table = model.model.vision_tower.embeddings.position_embedding.weight
    table.requires_grad_(False)
    set_tile_size(model, processor, 84)
    table = model.model.vision_tower.embeddings.position_embedding.weight
    assert not table.requires_grad and not model.training, "what was frozen stays so"
    table.requires_grad_(True)
    processor.image_processor.image_splitting = splitting
    inputs = processor(text="<image>A", images=torch.zeros(3, 84, 252, dtype=torch.uint8), return_tensors="pt")
    # Two by two, or one by three padded least by four; and the overview.
    assert inputs["pixel_values"].shape[1:] == (3, 84, 84) and len(inputs["pixel_values"]) >= 5
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    model(**inputs, labels=labels).loss.backward()
    assert table.shape[0] == 37 and table.grad.abs().amax(dim=1).gt(0).all()


@pytest.mark.parametrize(
    ("connector", "tile_size", "message"),
    [
        (
            REDUCING,
            100,
            "tile_size=100 is not a multiple of the encoder's patch size, 14. Take a multiple, such as 98",
        ),
        (REDUCING, 0, "tile_size=0 is not a multiple"),
        (REDUCING, 14, "num_tokens=4 is more than the 1 patches"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_and_change_nothing(connector, tile_size, message):
    model, processor = tiny_mm1(connector=connector)
    with pytest.raises(ValueError, match=message):
        set_tile_size(model, processor, tile_size)
    assert model.config.vision_config.image_size == processor.image_processor.size["height"] == 56
    assert model.config.connector_config.grid_size == 4


def test_split_weights_are_refused():
    model, processor = tiny_mm1()
    model._is_distributed_loading_by_transformers = True
    with pytest.raises(ValueError, match="save it, and load the saved model"):
        set_tile_size(model, processor, 112)
