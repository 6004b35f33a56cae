"""Several adapters on one model, loaded by transformers or by PEFT: the outputs of each are those that it has alone."""

from functools import cache

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from tiny import byte_tokenizer, tiny_decoder, tiny_mm1, tiny_vision

from mm1_hf import MM1ConnectorConfig, MM1ForConditionalGeneration, assemble


LAYERS = r"model\.language_model\.layers\..*\."
CONNECTOR = ["model.connector"]
# By the name of the adapter. "a" and "proj" are parts of the names of other weights.
ADAPTERS = {
    "a": {"target_modules": LAYERS + "(q_proj|v_proj)"},
    "proj": {"target_modules": LAYERS + "(q_proj|v_proj)"},
    "wider": {"target_modules": LAYERS + "q_proj", "r": 8},
    "others": {"target_modules": LAYERS + "(o_proj|up_proj)"},
    "whole": {"target_modules": LAYERS + "q_proj", "modules_to_save": CONNECTOR},
    "whole too": {"target_modules": LAYERS + "v_proj", "modules_to_save": CONNECTOR},
    "dora": {"target_modules": LAYERS + "v_proj", "use_dora": True, "modules_to_save": CONNECTOR},
}

# Models that differ from the base.
FOREIGN = {
    "shallower connector": {"depth": 1},
    "deeper connector": {"depth": 3},
    "other connector": {"kind": "mlp"},
    "more layers": {"layers": 3},
    "fewer layers": {"layers": 1},
}


def trained(model, seed: int = 0, **fields):
    """A model with an adapter that does something."""
    adapted = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, **fields}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return adapted.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    assembled().save_pretrained(folder / "base")
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        trained(base(folder), seed, **fields).save_pretrained(folder / name)
    return folder


def assembled(layers: int = 2, depth: int = 2, kind: str = "c_abstractor"):
    sizes = {"num_tokens": 4, "hidden_size": 32, "depth": depth} if kind == "c_abstractor" else {}
    connector = MM1ConnectorConfig(connector_type=kind, **sizes)
    decoder = tiny_decoder(num_hidden_layers=layers)
    return assemble(tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), verbose=False)[0].eval()


def base(folder):
    return MM1ForConditionalGeneration.from_pretrained(folder / "base").eval()


@pytest.fixture(scope="module")
def batch():
    image = torch.arange(3 * 56 * 56, dtype=torch.int64).view(3, 56, 56).remainder(251).to(torch.uint8)
    return tiny_mm1()[1](text="a<image>bcde", images=image, return_tensors="pt")


@pytest.fixture(scope="module")
def alone(folder, batch):
    """The logits of one adapter alone on the base model, or of the base model."""

    @cache
    def logits_of(name: str | None):
        return logits(PeftModel.from_pretrained(base(folder), folder / name) if name else base(folder), batch)

    return logits_of


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def assert_is(model, batch, expected):
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_the_adapters_differ(alone):
    outputs = [alone(name) for name in (None, *ADAPTERS)]
    assert all(
        not torch.allclose(one, other, atol=1e-3) for index, one in enumerate(outputs) for other in outputs[:index]
    )


def test_adapters_side_by_side_by_transformers(folder, batch, alone, tmp_path):
    model = base(folder)
    for name in ADAPTERS:
        model.load_adapter(str(folder / name), adapter_name=name)
        assert model.active_adapters() == [name]
        assert not any(weight.requires_grad for key, weight in model.named_parameters() if ".lora_" in key)
        assert_is(model, batch, alone(name))
    for name in ("a", "whole", "wider", "whole too", "others", "dora", "proj"):
        model.set_adapter(name)
        assert_is(model, batch, alone(name))
    model.set_adapter(["a", "proj"])
    assert model.active_adapters() == ["a", "proj"]
    model.set_adapter("whole")
    model.disable_adapters()
    assert_is(model, batch, alone(None))
    model.enable_adapters()
    assert_is(model, batch, alone("whole"))
    model.save_pretrained(tmp_path)
    assert_is(PeftModel.from_pretrained(base(folder), tmp_path), batch, alone("whole"))
    model.delete_adapter("whole")
    assert_is(model, batch, alone(*model.active_adapters()))
    model.set_adapter("wider")
    model.delete_adapter(["wider", "a"])
    assert_is(model, batch, alone(*model.active_adapters()))
    with pytest.raises(ValueError, match=r"no adapter named 'whole'\. The model has these adapters: 'proj', 'others'"):
        model.set_adapter("whole")
    model.delete_adapter(["proj", "others", "whole too", "dora"])
    assert_is(model, batch, alone(None))
    with pytest.raises(ValueError, match="no adapter to enable"):
        model.enable_adapters()


def test_adapters_side_by_side_by_peft(folder, batch, alone, tmp_path):
    model = PeftModel.from_pretrained(base(folder), folder / "a", adapter_name="a")
    for name in [*ADAPTERS][1:]:
        model.load_adapter(folder / name, adapter_name=name)
    for name in ("whole", "wider", "whole too", "a", "dora", "proj", "others"):
        model.set_adapter(name)
        assert_is(model, batch, alone(name))
    with model.disable_adapter():
        assert_is(model, batch, alone(None))
    model.save_pretrained(tmp_path, selected_adapters=["whole too"])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["whole too"]
    assert_is(PeftModel.from_pretrained(base(folder), tmp_path / "whole too"), batch, alone("whole too"))
    model.set_adapter("wider")
    model.merge_adapter()
    assert_is(model, batch, alone("wider"))
    model.unmerge_adapter()
    model.delete_adapter("whole")
    model.set_adapter("a")
    assert_is(model, batch, alone("a"))


def test_a_weighted_adapter_is_what_it_is_on_a_plain_llama(tmp_path):
    """The decoder is that Llama, so that the logits of a text are equal too."""
    mm1 = assembled()
    llama = tiny_decoder(mm1.config.text_config.vocab_size)
    llama.load_state_dict(
        {
            name.replace("model.language_model.", "model."): weight
            for name, weight in mm1.state_dict().items()
            if "language_model" in name or "lm_head" in name
        }
    )
    ids = {"input_ids": torch.arange(1, 12)[None]}
    outputs = []
    for model, layers in ((mm1, LAYERS), (llama, LAYERS.replace("language_model\\.", ""))):
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=layers + "(q_proj|v_proj)"), adapter_name="a")
        adapted.add_adapter("b", LoraConfig(r=4, target_modules=layers + "(q_proj|v_proj)"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if ".lora_" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        adapted.add_weighted_adapter(["a", "b"], [0.7, 0.4], "both", combination_type="linear")
        adapted.set_adapter("both")
        outputs.append(logits(adapted, ids))
        adapted.base_model.set_adapter(["a", "b"])
        outputs.append(logits(adapted, ids))
    torch.testing.assert_close(outputs[:2], outputs[2:])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)


def test_one_adapter_takes_the_place_of_another(folder, batch, alone):
    model = base(folder)
    model.load_adapter(str(folder / "a"))
    model.load_adapter(str(folder / "proj"), adapter_name="default", hotswap=True)
    assert_is(model, batch, alone("proj"))
    with pytest.raises(ValueError, match=r"cannot take the place of 'default': 4 of its weights do not match"):
        model.load_adapter(str(folder / "wider"), adapter_name="default", hotswap=True)
    model = PeftModel.from_pretrained(base(folder), folder / "a")
    hotswap_adapter(model, str(folder / "proj"), adapter_name="default")
    assert_is(model, batch, alone("proj"))


def test_an_adapter_is_trained_beside_another(folder, batch, alone):
    model = base(folder)
    model.load_adapter(str(folder / "a"), adapter_name="a")
    model.load_adapter(str(folder / "whole"), adapter_name="whole", is_trainable=True)
    trainable = {
        name for name, weight in model.named_parameters() if weight.requires_grad and "base_layer" not in name
    }
    assert {name for name in trainable if ".lora_" in name or ".modules_to_save." in name} == {
        name for name, _ in model.named_parameters() if ".whole." in name
    }
    model.add_adapter(LoraConfig(r=2, target_modules=LAYERS + "k_proj"), "fresh")
    assert model.active_adapters() == ["fresh"]
    assert_is(model, batch, alone(None))


@pytest.mark.parametrize("way", ["peft", "transformers"])
@pytest.mark.parametrize("other", FOREIGN)
def test_a_refused_adapter_leaves_the_others(way, other, folder, batch, alone, tmp_path):
    trained(assembled(**FOREIGN[other]), **ADAPTERS["whole"]).save_pretrained(tmp_path)
    refused = pytest.raises(ValueError, match=r"was made for another base model: .*base_model_name_or_path")
    if way == "peft":
        with refused:
            PeftModel.from_pretrained(base(folder), tmp_path)
        model = PeftModel.from_pretrained(base(folder), folder / "whole", adapter_name="whole")
        with refused:
            model.load_adapter(tmp_path, adapter_name="refused")
        model.set_adapter("whole")
    else:
        model = base(folder)
        with refused:
            model.load_adapter(str(tmp_path))
        assert_is(model, batch, alone(None))
        model.load_adapter(str(folder / "whole"), adapter_name="whole")
        with refused:
            model.load_adapter(str(tmp_path), adapter_name="refused")
        assert model.active_adapters() == ["whole"] and list(model.peft_config) == ["whole"]
    assert_is(model, batch, alone("whole"))
