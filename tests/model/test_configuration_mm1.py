import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig

from mm1_hf import MM1Config, MM1ConnectorConfig, MM1TextConfig


VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
TEXT = {
    "model_type": "mm1_text",
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
CONNECTOR = {"num_tokens": 4, "hidden_size": 16}


def mm1(**fields) -> MM1Config:
    return MM1Config(
        **{
            "vision_config": dict(VISION),
            "text_config": dict(TEXT),
            "connector_config": dict(CONNECTOR),
            "image_token_id": 63,
            **fields,
        }
    )


def test_the_default_is_the_final_encoder_behind_the_paper_s_connector():
    config = MM1Config()
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (378, 14)
    assert config.vision_config.hidden_size == 1280
    assert config.connector_config.connector_type == "c_abstractor"
    assert config.connector_config.num_tokens == 144
    assert config.connector_config.grid_size == 27
    assert config.text_config.model_type == "mm1_text"
    assert (config.vision_feature_layer, config.vision_feature_norm) == (-1, False)


def test_the_connector_takes_its_neighbours_sizes():
    connector = mm1().connector_config
    assert (connector.vision_hidden_size, connector.text_hidden_size, connector.grid_size) == (32, 48, 4)


@pytest.mark.parametrize("parts", ["dicts", "objects"])
def test_a_saved_configuration_comes_back_equal(parts, tmp_path):
    config = mm1(
        text_config={**TEXT, "num_experts": 4},
        z_loss_coef=1e-4,
        lm_head_bias=True,
        vision_feature_layer=-2,
        pixel_mean=[0.5] * 3,
        pixel_scale=[0.25] * 3,
    )
    if parts == "objects":
        config = mm1(
            vision_config=CLIPVisionConfig(**{k: v for k, v in VISION.items() if k != "model_type"}),
            text_config=LlamaConfig(vocab_size=64, hidden_size=48, num_attention_heads=4, num_hidden_layers=2),
            connector_config=MM1ConnectorConfig(**CONNECTOR),
        )
    config.save_pretrained(tmp_path)
    again = MM1Config.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert type(again.text_config) is type(config.text_config)
    # What other tools read from the file before they have any of our code.
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"]["AutoModelForImageTextToText"] == "modeling_mm1.MM1ForConditionalGeneration"
    assert saved["auto_map"]["AutoModel"] == "modeling_mm1.MM1Model"
    assert saved["image_token_id"] == 63


@pytest.mark.parametrize("tied", [False, True])
def test_tying_follows_the_decoder_unless_given(tied):
    assert mm1(text_config={**TEXT, "tie_word_embeddings": tied}).tie_word_embeddings is tied
    assert mm1(text_config={**TEXT, "tie_word_embeddings": tied}, tie_word_embeddings=True).tie_word_embeddings is True


@pytest.mark.parametrize("connector_type", ["linear", "mlp"])
def test_unreduced_connectors_have_a_token_per_patch(connector_type):
    assert mm1(connector_config={"connector_type": connector_type}).connector_config.num_tokens == 16
    with pytest.raises(ValueError, match="one token per patch, 16"):
        mm1(connector_config={"connector_type": connector_type, "num_tokens": 4})


@pytest.mark.parametrize(
    ("connector", "message"),
    [
        ({"depth": 4}, "depth is 4"),
        ({"depth": -1}, "depth is -1"),
        ({"num_tokens": 5}, "square"),
        ({"num_tokens": 0}, "num_tokens=0"),
        ({"num_tokens": -4}, "num_tokens=-4"),
        ({"connector_type": "average", "num_tokens": 6}, "square"),
        ({"connector_type": "attention", "num_tokens": 0}, "num_tokens=0"),
        ({"num_tokens": 25}, "more than the 16 patches"),
        ({"connector_type": "attention", "num_tokens": 17}, "more than the 16 patches"),
        ({"connector_type": "attention", "num_tokens": 5, "num_attention_heads": 5}, "does not divide"),
        ({"num_tokens": 4, "vision_hidden_size": 33}, "vision_hidden_size is 33"),
        ({"num_tokens": 4, "text_hidden_size": 47}, "text_hidden_size is 47"),
        ({"num_tokens": 4, "grid_size": 5}, "grid_size is 5"),
        ({"num_tokens": 4, "hidden_size": 0}, "hidden_size=0"),
        ({"connector_type": "attention", "num_tokens": 4, "num_attention_heads": 0}, "num_attention_heads=0"),
    ],
)
def test_bad_connectors_are_refused_by_name(connector, message):
    with pytest.raises(ValueError, match=message):
        mm1(connector_config=connector)


def test_an_unknown_connector_is_refused():
    with pytest.raises(Exception, match="connector_type"):
        MM1ConnectorConfig(connector_type="mlp2x_gelu")


@pytest.mark.parametrize("token", [-1, 64])
def test_an_image_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=f"image_token_id={token}"):
        mm1(image_token_id=token)


@pytest.mark.parametrize(
    "statistics",
    [
        {"pixel_mean": [0.5] * 3},
        {"pixel_scale": [0.5] * 3},
        {"pixel_mean": [0.5] * 3, "pixel_scale": [0.5]},
        {"pixel_mean": [], "pixel_scale": []},
    ],
)
def test_image_statistics_hold_one_number_per_channel(statistics):
    with pytest.raises(ValueError, match=r"pixel_mean=.* and pixel_scale=.* must both hold 3 numbers"):
        mm1(**statistics)


@pytest.mark.parametrize("layer", [-4, 3, 100])
def test_a_feature_layer_that_the_encoder_lacks_is_refused(layer):
    with pytest.raises(ValueError, match=f"vision_feature_layer={layer} is not a hidden state .* 2 layers"):
        mm1(vision_feature_layer=layer)


@pytest.mark.parametrize("layer", [-3, -1, 0, 2])
def test_every_hidden_state_of_the_encoder_may_be_the_feature_layer(layer):
    assert mm1(vision_feature_layer=layer).vision_feature_layer == layer


@pytest.mark.parametrize("patch_size", [0, 57])
def test_an_encoder_whose_patches_do_not_fit_a_tile_is_refused(patch_size):
    with pytest.raises(ValueError, match=f"No patch of {patch_size} pixels fits in a tile of 56"):
        mm1(vision_config={**VISION, "patch_size": patch_size})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"hidden_size": 44, "num_attention_heads": 4}, "head_dim=11"),
        ({"hidden_size": 50, "num_attention_heads": 4}, "hidden_size=50"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3"),
        ({"num_experts": 2, "num_experts_per_tok": 0}, "num_experts_per_tok=0"),
        ({"num_experts": 2, "moe_layer_period": 5}, "moe_layer_period=5"),
        ({"num_experts": 2, "moe_layer_period": 0}, "moe_layer_period=0"),
        ({"num_experts": -1}, "num_experts=-1"),
        *[
            ({name: value}, f"{name}={value}")
            for name in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
            )
            for value in (0, -1)
        ],
        ({"num_experts": 2, "moe_intermediate_size": 0}, "moe_intermediate_size=0"),
    ],
)
def test_bad_decoders_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        MM1TextConfig(**{**TEXT, **fields})


def test_wrong_types_are_refused():
    with pytest.raises(Exception, match="num_experts"):
        MM1TextConfig(**{**TEXT, "num_experts": "many"})


def test_head_dim_may_differ_from_the_width_over_the_heads():
    config = MM1TextConfig(**{**TEXT, "hidden_size": 50, "head_dim": 16})
    assert config.head_dim == 16


@pytest.mark.parametrize(
    ("period", "sparse"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (2, [1, 3, 5, 7]), (4, [3, 7]), (3, [2, 5])]
)
def test_sparse_layers_are_every_nth_counted_from_the_first(period, sparse):
    config = MM1TextConfig(**{**TEXT, "num_hidden_layers": 8, "num_experts": 4, "moe_layer_period": period})
    assert [layer for layer in range(8) if config.is_sparse_layer(layer)] == sparse


# A busy machine is no failure.
@settings(deadline=None)
@given(layers=st.integers(1, 60), period=st.integers(1, 60))
def test_a_dense_decoder_has_no_sparse_layer_and_a_sparse_one_at_least_one(layers, period):
    fields = {**TEXT, "num_hidden_layers": layers, "moe_layer_period": period}
    assert not any(MM1TextConfig(**fields).is_sparse_layer(layer) for layer in range(layers))
    if period <= layers:
        sparse = MM1TextConfig(**fields, num_experts=4)
        assert sum(sparse.is_sparse_layer(layer) for layer in range(layers)) == layers // period


def test_plans_name_only_what_the_decoder_has():
    dense, sparse = MM1TextConfig(**TEXT), MM1TextConfig(**TEXT, num_experts=4, moe_layer_period=1, qk_norm=True)
    assert not [name for name in dense.base_model_tp_plan if "expert" in name or "_norm" in name]
    assert "layers.*.mlp.gate_proj" in dense.base_model_tp_plan
    assert not dense.base_model_ep_plan
    assert "layers.*.mlp.gate_proj" not in sparse.base_model_tp_plan
    assert {"layers.*.mlp.experts", "layers.*.self_attn.q_norm"} <= sparse.base_model_tp_plan.keys()
    assert sparse.base_model_ep_plan
    assert "base_model_tp_plan" not in dense.to_dict()
