import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import byte_tokenizer, tiny_decoder, tiny_mm1, tiny_vision
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    ViTConfig,
    ViTModel,
)

from mm1_hf import MM1ConnectorConfig, MM1ImageProcessor, assemble


CONNECTOR = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
TOKENS = torch.arange(3, 20).unsqueeze(0)


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model(input_ids=tokens).logits


def close(given, expected) -> None:
    """Equal weights of other shapes, or mapped from a file to other addresses, may round products differently."""
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vision", ["clip", "siglip", "aimv2", "dinov2"])
def test_parts_keep_their_weights(vision):
    encoder, decoder = tiny_vision(vision), tiny_decoder()
    model, processor = assemble(encoder, decoder, CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
    kept, own = model.model.language_model.state_dict(), decoder.model.state_dict()
    # The embeddings have rows for more tokens.
    assert kept.keys() == own.keys() and all(torch.equal(kept[name][: len(own[name])], own[name]) for name in own)
    close(logits(model)[..., :257], logits(decoder))
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = encoder(pixels, output_hidden_states=True).hidden_states[-1][:, -16:]
        given = model.model.vision_tower(pixels).last_hidden_state[:, -16:]
    close(given, expected)
    assert processor.num_image_tokens == 4


def test_ids_stay_and_new_tokens_go_behind():
    decoder, tokenizer = tiny_decoder(), byte_tokenizer()
    before = dict(tokenizer.get_vocab())
    model, processor = assemble(tiny_vision(), decoder, CONNECTOR, tokenizer=tokenizer, verbose=False)
    after = processor.tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    assert tokenizer.get_vocab() == before, "the caller's tokenizer is left alone"
    assert decoder.get_input_embeddings().num_embeddings == 257, "and so is the decoder"
    assert processor.image_token_id == model.config.image_token_id == 259
    embeddings = model.get_input_embeddings().weight
    assert embeddings.shape[0] == 320 == model.config.text_config.vocab_size
    mean = decoder.get_input_embeddings().weight.mean(dim=0)
    torch.testing.assert_close(embeddings[257:], mean.expand(63, -1))


def test_free_embedding_rows_are_used_first():
    model, _ = assemble(
        tiny_vision(), tiny_decoder(vocab_size=270), CONNECTOR, tokenizer=byte_tokenizer(), verbose=False
    )
    assert model.config.text_config.vocab_size == 270


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_stays_tied_through_saving(tied, tmp_path):
    decoder = tiny_decoder(tie_word_embeddings=tied)
    model, processor = assemble(tiny_vision(), decoder, CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    close(logits(loaded), logits(model))
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied


def test_heads_with_bias_scale_and_another_name_come_along():
    sizes = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    decoders = [
        PhiForCausalLM(PhiConfig(num_attention_heads=4, **sizes)),
        GraniteForCausalLM(GraniteConfig(num_attention_heads=4, logits_scaling=7.0, **sizes)),
        GPTNeoXForCausalLM(GPTNeoXConfig(num_attention_heads=4, **sizes)),
    ]
    torch.nn.init.normal_(decoders[0].lm_head.bias)
    for decoder in decoders:
        model, _ = assemble(tiny_vision(), decoder.eval(), CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
        torch.testing.assert_close(logits(model)[..., :257], logits(decoder), msg=type(decoder).__name__)


def test_a_decoder_that_would_compute_otherwise_is_refused():
    class Odd(GraniteForCausalLM):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits * 3
            return outputs

    config = GraniteConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=1.0,
    )
    with pytest.raises(ValueError, match=r"gives other logits than by itself.*logits_scaling"):
        assemble(tiny_vision(), Odd(config).eval(), CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)


@pytest.mark.parametrize("vision", ["clip", "dinov2"])
@pytest.mark.parametrize(("layer", "kept"), [(-1, 3), (-2, 2), (1, 1)])
def test_the_encoder_is_cut_behind_the_layer_that_is_used(vision, layer, kept, tmp_path):
    encoder = tiny_vision(vision)
    model, _ = assemble(
        encoder, tiny_decoder(), CONNECTOR, tokenizer=byte_tokenizer(), vision_feature_layer=layer, verbose=False
    )
    assert (model.config.vision_config.num_hidden_layers, model.config.vision_feature_layer) == (kept, -1)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        expected = encoder(pixels, output_hidden_states=True).hidden_states[layer]
        close(loaded.model.vision_tower(pixels).last_hidden_state, expected)


@pytest.mark.parametrize("vision", ["clip", "siglip", "aimv2", "dinov2"])
def test_another_tile_size_interpolates_the_position_embeddings_for_good(vision):
    arguments = {"tokenizer": byte_tokenizer(), "verbose": False}
    small, _ = assemble(tiny_vision(vision), tiny_decoder(), CONNECTOR, **arguments)
    large, processor = assemble(tiny_vision(vision), tiny_decoder(), CONNECTOR, image_size=112, **arguments)
    assert large.config.vision_config.image_size == 112
    assert processor.image_processor.size["height"] == 112
    assert large.config.connector_config.grid_size == 8
    pixels = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        interpolated_on_the_way = small.model.get_image_features(pixels).last_hidden_state
        stored = large.model.get_image_features(pixels).last_hidden_state
    torch.testing.assert_close(stored, interpolated_on_the_way)


def test_image_statistics_follow_the_encoder(tmp_path):
    _, processor = tiny_mm1("siglip")
    assert tuple(processor.image_processor.image_mean) == (0.5, 0.5, 0.5)
    _, processor = tiny_mm1("dinov2")
    assert tuple(processor.image_processor.image_std) == (0.229, 0.224, 0.225)

    tiny_vision().save_pretrained(tmp_path)
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    _, processor = assemble(tmp_path, tiny_decoder(), CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
    assert tuple(processor.image_processor.image_mean) == (0.1, 0.2, 0.3)

    given = MM1ImageProcessor(size={"height": 56, "width": 56}, image_splitting="static")
    _, processor = assemble(
        tiny_vision(), tiny_decoder(), CONNECTOR, tokenizer=byte_tokenizer(), image_processor=given, verbose=False
    )
    assert processor.image_processor is given


def test_the_model_normalises_uint8_tiles_as_the_processor_does(tmp_path):
    model, processor = tiny_mm1("dinov2")
    prompt = "<image>what?"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    given = processor(images=image, text=prompt, return_tensors="pt")
    levels = processor(images=image, text=prompt, return_tensors="pt", do_rescale=False, do_normalize=False)
    assert levels["pixel_values"].dtype == torch.uint8
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**given).logits
        for each in (model, loaded):
            torch.testing.assert_close(each(**levels).logits, expected, rtol=1e-5, atol=1e-5)
        # The casts of pipelines and of accelerate leave integers alone.
        half = copy.deepcopy(model).to(torch.bfloat16)
        assert torch.equal(half(**levels.to(torch.bfloat16)).logits, half(**given.to(torch.bfloat16)).logits)


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"image_mean": 0.5, "image_std": 0.25}, [0.5] * 3, [0.25] * 3),
        ({"image_mean": [0.1, 0.2, 0.3], "do_rescale": False, "do_normalize": False}, [0.1, 0.2, 0.3], None),
        ({"do_normalize": False}, None, None),
    ],
)
def test_the_configuration_takes_the_image_processor_s_statistics(settings, mean, std):
    given = MM1ImageProcessor(size={"height": 56, "width": 56}, **settings)
    arguments = {"tokenizer": byte_tokenizer(), "image_processor": given, "verbose": False}
    config = assemble(tiny_vision(), tiny_decoder(), CONNECTOR, **arguments)[0].config
    assert config.pixel_mean == mean
    assert config.pixel_scale == (std or (mean and list(given.image_std)))


def test_takes_folders(tmp_path):
    tiny_vision().save_pretrained(tmp_path / "vision")
    CLIPImageProcessor().save_pretrained(tmp_path / "vision")
    decoder = tiny_decoder()
    decoder.save_pretrained(tmp_path / "text")
    byte_tokenizer().save_pretrained(tmp_path / "text")
    model, processor = assemble(tmp_path / "vision", str(tmp_path / "text"), CONNECTOR, verbose=False)
    close(logits(model)[..., :257], logits(decoder))
    assert processor(text="a")["input_ids"] == [byte_tokenizer()("a")["input_ids"]]


def test_takes_the_encoder_of_a_model_of_images_and_text():
    config = CLIPConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
        ).to_dict(),
        text_config=CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
        ).to_dict(),
    )
    model, _ = assemble(CLIPModel(config), tiny_decoder(), CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
    assert model.config.vision_config.model_type == "clip_vision_model"


def test_generation_ends_turns_and_writes_no_image_tokens():
    model, processor = tiny_mm1()
    generation = model.generation_config
    assert generation.eos_token_id == [256, processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    with torch.no_grad():
        model.lm_head.weight[processor.image_token_id] = 100 * model.lm_head.weight.abs().sum()
    tokens = model.generate(**processor(text="abc", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert processor.image_token_id not in tokens


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [None, torch.float32, torch.bfloat16])
def test_weights_are_cast_and_rotary_frequencies_are_not(source, target):
    decoder = tiny_decoder().to(source)
    model, _ = assemble(tiny_vision(), decoder, CONNECTOR, tokenizer=byte_tokenizer(), dtype=target, verbose=False)
    assert {parameter.dtype for parameter in model.parameters()} == {target or source}
    frequencies = model.model.language_model.rotary_emb.inv_freq
    assert torch.equal(frequencies, tiny_decoder().model.rotary_emb.inv_freq)


def test_the_new_connector_is_initialised():
    """Loading builds it in memory that holds whatever was there before."""
    for _ in range(3):
        poison = [torch.full((1000,), float("nan")) for _ in range(100)]
        del poison
        model, _ = tiny_mm1()
        for name, parameter in model.model.connector.named_parameters():
            if name.endswith("conv3.norm.weight"):
                assert torch.equal(parameter, torch.zeros_like(parameter)), "a block begins as its shortcut"
            elif "norm.weight" in name:
                assert torch.equal(parameter, torch.ones_like(parameter)), name
            elif name.endswith("bias"):
                assert torch.equal(parameter, torch.zeros_like(parameter)), name
            else:
                assert 0.01 < parameter.std() < 0.03, name


def test_says_what_it_did(capsys):
    assemble(tiny_vision(), tiny_decoder(), CONNECTOR, tokenizer=byte_tokenizer(), vision_feature_layer=-2)
    said = capsys.readouterr().out
    for words in (
        "2 of 3 layers",
        "257 tokens keep their ids",
        "<image> = 259",
        "63 new ones",
        "c_abstractor, 4 tokens",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, "pass tokenizer="),
        ({"vision_feature_layer": -4}, "not one of the encoder's 3 layers"),
        ({"vision_feature_layer": 0}, "not one of the encoder's 3 layers"),
        ({"image_size": 100}, "not a multiple of the encoder's patch size, 14"),
        ({"connector": MM1ConnectorConfig(num_tokens=144)}, "more than the 16 patches"),
        ({"text": BertModel(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))}, "has no head"),
        (
            {"vision": ViTModel(ViTConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))},
            "not known. Pass its image_processor",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    arguments = {
        "vision": tiny_vision(),
        "text": tiny_decoder(),
        "connector": CONNECTOR,
        "tokenizer": byte_tokenizer(),
        "verbose": False,
    }
    with pytest.raises(ValueError, match=message):
        assemble(**arguments | change)


def test_a_recurrent_decoder_works_but_refuses_packed_rows():
    decoder = MambaForCausalLM(MambaConfig(vocab_size=257, hidden_size=32, num_hidden_layers=1)).eval()
    model, _ = assemble(tiny_vision(), decoder, CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
    with pytest.raises(ValueError, match=r"MambaModel .mamba. has layers that carry a state"):
        model(input_ids=TOKENS, segment_ids=torch.ones_like(TOKENS))
