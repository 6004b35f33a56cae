import pytest

from mm1_hf import MM1Config, preset_names
from mm1_hf.accounting.parameters import count_parameters
from mm1_hf.accounting.presets_page import read_preset, source_of


PUBLISHED = {
    "mm1-proxy-9m",
    "mm1-proxy-85m",
    "mm1-proxy-302m",
    "mm1-proxy-1.2b",
    "mm1-ablation-1.2b",
    "mm1-ablation-2.9b",
    "mm1-3b",
    "mm1-7b",
    "mm1-30b",
    "mm1-3b-moe",
    "mm1-7b-moe",
    "mm1.5-1b",
    "mm1.5-3b",
    "mm1.5-7b",
    "mm1.5-30b",
    "mm1.5-1b-moe",
    "mm1.5-3b-moe",
}
FOR_TESTS = {"mm1-tiny", "mm1-tiny-moe"}

# width, layers and heads by 12 * layers * width ** 2, and the papers' N
SHAPES = {
    "mm1-proxy-9m": (256, 12, 4, 9e6),
    "mm1-proxy-85m": (768, 12, 12, 85e6),
    "mm1-proxy-302m": (1024, 24, 16, 302e6),
    "mm1-proxy-1.2b": (2048, 24, 32, 1.2e9),
    "mm1-ablation-1.2b": (2048, 24, 32, 1.2e9),
    "mm1-ablation-2.9b": (3072, 26, 24, 2.9e9),
    "mm1-3b": (3072, 26, 24, 2.9e9),
    "mm1-7b": (4096, 32, 32, 6.4e9),
    "mm1-30b": (7168, 48, 56, 30e9),
    "mm1-3b-moe": (3072, 26, 24, 2.9e9),
    "mm1-7b-moe": (4096, 32, 32, 6.4e9),
    "mm1.5-1b": (2048, 24, 32, 1.2e9),
    "mm1.5-3b": (3072, 26, 24, 2.9e9),
    "mm1.5-7b": (4096, 32, 32, 6.4e9),
    "mm1.5-30b": (7168, 48, 56, 30e9),
    "mm1.5-1b-moe": (2048, 24, 32, 1.2e9),
    "mm1.5-3b-moe": (3072, 26, 24, 2.9e9),
}


def leaves(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def has(config, key):
    for name in key.split("."):
        if name not in config:
            return False
        config = config[name]
    return True


def backbone(name):
    """N of the preset's decoder with every MLP dense."""
    config = MM1Config.from_preset(name)
    config.text_config.num_experts = 0
    return count_parameters(config).decoder.parameters


def test_every_published_size_has_a_preset():
    assert set(preset_names()) == PUBLISHED | FOR_TESTS


@pytest.mark.parametrize("name", sorted(PUBLISHED | FOR_TESTS))
def test_the_configuration_says_what_the_file_says(name):
    def compare(given, config):
        for key, value in given.items():
            actual = config[key] if isinstance(config, dict) else getattr(config, key)
            if isinstance(value, dict):
                compare(value, actual)
            else:
                assert actual == value, key

    compare(read_preset(name)["config"], MM1Config.from_preset(name))


@pytest.mark.parametrize("name", sorted(PUBLISHED | FOR_TESTS))
def test_every_value_is_marked(name):
    preset = read_preset(name)
    allowed = {"ours"} if name in FOR_TESTS else {"paper", "inferred", "unverified"}
    assert {source_of(preset, key) for key in leaves(preset["config"])} <= allowed
    # No mark outlives the value it was made for.
    assert all(has(preset["config"], key) for key in preset["sources"])
    assert all(figure["source"] in allowed for figure in preset.get("stated", {}).values())
    assert preset["notes"]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_unpublished_values_are_not_passed_off_as_the_papers(name):
    preset = read_preset(name)
    text = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for key in (*(f"text_config.{field}" for field in text), "image_token_id", "vision_feature_layer"):
        assert source_of(preset, key) == "inferred", key


def test_a_value_without_a_mark_is_an_error():
    with pytest.raises(ValueError, match=r"text_config\.hidden_size.*Add it"):
        source_of({"sources": {"text_config.vocab_size": "paper"}}, "text_config.hidden_size")


def test_the_longest_matching_key_marks_a_value():
    preset = {"sources": {"text_config": "inferred", "text_config.num_experts": "paper"}}
    assert source_of(preset, "text_config.num_experts") == "paper"
    assert source_of(preset, "text_config.num_experts_per_tok") == "inferred"
    assert source_of(preset, "text_config.rope_parameters.rope_theta") == "inferred"


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_shapes_follow_the_rules_they_are_inferred_by(name, shape):
    width, layers, heads, _ = shape
    text = MM1Config.from_preset(name).text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (width, layers, heads)
    assert text.intermediate_size == -(-8 * width // (3 * 256)) * 256
    assert text.moe_intermediate_size == text.intermediate_size
    assert text.head_dim * heads == width


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_the_backbone_is_as_large_as_the_paper_says(name, shape):
    nominal = shape[-1]
    # A 256-wide decoder's MLP of 683 is rounded up to 768: an eighth more.
    tolerance = 0.14 if name == "mm1-proxy-9m" else 0.03
    assert backbone(name) == pytest.approx(nominal, rel=tolerance)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_stated_backbones_are_those_of_the_shapes(name):
    stated = read_preset(name).get("stated", {}).get("backbone_parameters")
    # MM1.5 states none; MM1-3B's and 7B's come from secondary notes.
    assert (stated is None) == name.startswith("mm1.5")
    if stated is not None:
        assert stated["value"] == SHAPES[name][-1]
        assert (stated["source"] == "unverified") == (name in ("mm1-3b", "mm1-7b"))


def test_mixtures_of_experts():
    three, seven = (MM1Config.from_preset(name).text_config for name in ("mm1-3b-moe", "mm1-7b-moe"))
    assert (three.num_experts, three.moe_layer_period, three.num_experts_per_tok) == (64, 2, 2)
    assert (seven.num_experts, seven.moe_layer_period, seven.num_experts_per_tok) == (32, 4, 2)
    assert (three.router_aux_loss_coef, three.router_z_loss_coef) == (0.01, 0.001)
    assert count_parameters(MM1Config.from_preset("mm1-3b-moe")).decoder.parameters == pytest.approx(64e9, rel=0.03)
    # What the notes of the 7B-MoE say; no total is claimed for it.
    assert count_parameters(MM1Config.from_preset("mm1-7b-moe")).decoder.parameters == pytest.approx(40.0e9, rel=2e-3)
    assert "total_parameters" not in read_preset("mm1-7b-moe")["stated"]


def test_the_final_models_differ_from_the_ablations_in_their_encoder():
    ablation, final, tiled = (
        MM1Config.from_preset(name).vision_config for name in ("mm1-ablation-1.2b", "mm1-3b", "mm1.5-3b")
    )
    assert (ablation.image_size, final.image_size, tiled.image_size) == (336, 378, 672)
    assert (ablation.hidden_size, final.hidden_size, tiled.hidden_size) == (1024, 1280, 1280)
    assert final.hidden_act == "quick_gelu"
    assert MM1Config.from_preset("mm1-30b").z_loss_coef == 1e-4
    assert source_of(read_preset("mm1-30b"), "z_loss_coef") == "unverified"


def test_overrides_replace_fields_of_a_preset():
    config = MM1Config.from_preset("mm1-tiny", image_token_id=7, connector_config={"connector_type": "mlp"})
    assert config.image_token_id == 7
    assert config.connector_config.num_tokens == 16


@pytest.mark.parametrize("load", [MM1Config.from_preset, read_preset])
@pytest.mark.parametrize("name", ["mm1-4b", "", "../presets/mm1-3b"])
def test_an_unknown_preset_is_answered_with_the_known_ones(load, name):
    with pytest.raises(ValueError) as error:
        load(name)
    assert all(known in str(error.value) for known in preset_names())
