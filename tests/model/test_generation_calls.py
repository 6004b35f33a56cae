"""The rarer ways in which transformers and its users call `generate()`, with images in the prompt."""

import copy
import warnings

import pytest
import torch
from generating import NEW, answer, far_from_initial, greedy, prompt
from tiny import DECODER_SIZES, TINY_DECODERS, byte_tokenizer, tiny_decoder, tiny_mm1, tiny_vision
from transformers import GenerationConfig, StaticCache

from mm1_hf import MM1ConnectorConfig, MM1TextConfig, MM1TextForCausalLM, assemble
from mm1_hf.model.versions import CACHE, CHUNKS_IMAGES


SETTINGS = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 256}


@pytest.fixture(scope="module")
def model():
    model, _ = tiny_mm1()
    return far_from_initial(model)


@pytest.fixture(scope="module")
def sparse():
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
    decoder = TINY_DECODERS["mm1_text-sparse"]()
    made, _ = assemble(tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), verbose=False)
    return far_from_initial(made, 7)


def draft(width: int = 64, num_tokens: int = 4):
    decoder = tiny_decoder(hidden_size=width, num_hidden_layers=1)
    connector = MM1ConnectorConfig(num_tokens=num_tokens, hidden_size=32)
    made, _ = assemble(tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), verbose=False)
    return far_from_initial(made, 9)


def two_rows(model):
    """A batch, padded on the left, of which the rows have one and two images."""
    rows = [prompt(model, 3, 0, 4), prompt(model, 0, 2, 0)]
    length = max(row["input_ids"].shape[1] for row in rows)
    ids = [
        torch.nn.functional.pad(row["input_ids"], (length - row["input_ids"].shape[1], 0), value=256) for row in rows
    ]
    masks = [
        torch.nn.functional.pad(torch.ones_like(row["input_ids"]), (length - row["input_ids"].shape[1], 0))
        for row in rows
    ]
    pixels = torch.cat([row["pixel_values"] for row in rows])
    return {"input_ids": torch.cat(ids), "attention_mask": torch.cat(masks), "pixel_values": pixels}


def from_embeddings(model, inputs, **settings):
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    return model.generate(inputs_embeds=embeds, **rest, **{**SETTINGS, **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str
)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_embeddings_give_the_tokens_of_ids(model, sparse, kind, settings):
    made = model if kind == "dense" else sparse
    for inputs in (prompt(made, 3, 0, 4, 0), prompt(made, 5), two_rows(made)):
        assert torch.equal(from_embeddings(made, inputs, **settings), answer(made, inputs, **settings))


def test_several_answers_from_embeddings_see_their_own_images(model):
    inputs = two_rows(model)
    given = [method(model, inputs, num_beams=3, num_return_sequences=2) for method in (from_embeddings, answer)]
    assert torch.equal(*given)


def test_embeddings_with_the_images_in_them_need_no_tiles(model):
    inputs = prompt(model, 3, 0, 4)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    images = model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)
    embeds[inputs["input_ids"] == model.config.image_token_id] = images
    assert torch.equal(model.generate(inputs_embeds=embeds, **SETTINGS), greedy(model, inputs))


def test_embeddings_and_ids_together(model):
    inputs = prompt(model, 3, 0, 4)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(answer(model, {**inputs, "inputs_embeds": embeds}), greedy(model, inputs))


@pytest.mark.parametrize("kind", ["mm1_text", "mm1_text-sparse"])
def test_the_decoder_alone_generates_from_embeddings_as_a_llama_does(kind):
    for decoder in (TINY_DECODERS[kind](), tiny_decoder()):
        far_from_initial(decoder, 3)
        ids = torch.tensor([[5, 6, 7, 8]])
        given = decoder.generate(inputs_embeds=decoder.get_input_embeddings()(ids), **SETTINGS)
        assert torch.equal(given, decoder.generate(ids, **SETTINGS)[:, 4:])


@pytest.mark.parametrize("width", [64, 32])
@pytest.mark.parametrize("schedule", ["constant", "heuristic", "heuristic_transient"])
def test_a_draft_of_an_mm1_changes_nothing_and_sees_the_images(model, width, schedule):
    inputs, assistant = prompt(model, 3, 0, 4, 0, 3), draft(width)
    assistant.generation_config.num_assistant_tokens_schedule = schedule
    encoded = []
    handle = assistant.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: encoded.append([*args, *kwargs.values()][0]), with_kwargs=True
    )
    given = answer(model, inputs, assistant_model=assistant)
    handle.remove()
    assert torch.equal(given, greedy(model, inputs))
    (tiles,) = encoded
    assert torch.equal(tiles, inputs["pixel_values"])


def test_a_perfect_draft_is_accepted(model):
    """Which takes a draft that saw the same images."""
    inputs = prompt(model, 3, 0, 4, 0, 3)
    lengths = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assistant = copy.deepcopy(model)
    assistant._forward_pre_hooks.clear()
    assistant.generation_config.num_assistant_tokens = 3
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    given = answer(model, inputs, assistant_model=assistant)
    handle.remove()
    assert torch.equal(given, greedy(model, inputs))
    assert len(lengths) == 2, "each forward pass accepts three tokens and adds one"


@pytest.mark.parametrize("vocab_size", [None, 257])
def test_a_draft_that_reads_text_alone_changes_nothing(model, vocab_size):
    """One with the same tokenizer, and one with another."""
    inputs = prompt(model, 3, 0, 4, 0, 3)
    other = {}
    if vocab_size is not None:
        _, processor = tiny_mm1()
        other = {"tokenizer": processor, "assistant_tokenizer": byte_tokenizer()}
    sizes = {**DECODER_SIZES, "vocab_size": vocab_size or model.config.text_config.vocab_size}
    assistant = far_from_initial(MM1TextForCausalLM(MM1TextConfig(**sizes)), 4)
    assert torch.equal(answer(model, inputs, assistant_model=assistant, **other), greedy(model, inputs))


def test_an_mm1_drafts_for_a_text_model(model):
    sizes = {**DECODER_SIZES, "vocab_size": model.config.text_config.vocab_size}
    target = far_from_initial(MM1TextForCausalLM(MM1TextConfig(**sizes)), 4)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(target.generate(ids, assistant_model=model, **SETTINGS), target.generate(ids, **SETTINGS))


def test_the_first_layers_draft(model):
    inputs = prompt(model, 3, 0, 4)
    assert torch.equal(answer(model, inputs, assistant_early_exit=1), greedy(model, inputs))
    assert model.config.text_config.num_hidden_layers == 2


def test_a_prompt_is_read_in_chunks(model):
    inputs = prompt(model, 3, 0, 4, 0, 3)
    text = prompt(model, 7)
    assert torch.equal(answer(model, text, prefill_chunk_size=2), greedy(model, text))
    if not CHUNKS_IMAGES:
        with pytest.raises(ValueError, match="drops the images of a prompt that is read in chunks"):
            answer(model, inputs, prefill_chunk_size=5)
        pytest.skip("before 5.24 transformers drops the images of a prompt that is read in chunks")
    for size in (1, 5, 6):
        assert torch.equal(answer(model, inputs, prefill_chunk_size=size), greedy(model, inputs))


@pytest.mark.parametrize("tiles", ["new", "all"])
@pytest.mark.parametrize("how", ["ids", "new ids", "embeddings", "static", "chunks"])
def test_a_chat_goes_on_from_its_cache(model, how, tiles):
    """With the tiles of the new turn alone, or with those of the whole chat as the processor makes them."""
    if how == "chunks" and not CHUNKS_IMAGES:
        pytest.skip("before 5.24 transformers drops the images of a prompt that is read in chunks")
    if how == "new ids" and tiles == "all":
        pytest.skip("the tiles of the whole chat do not belong to the new ids")
    first, turn = prompt(model, 3, 0, 4), prompt(model, 2, 0, 2)
    cache = {CACHE: StaticCache(config=model.config.get_text_config(), max_cache_len=48)} if how == "static" else {}
    started = model.generate(**first, return_dict_in_generate=True, **SETTINGS, **cache)
    whole = torch.cat([started.sequences, turn["input_ids"]], dim=1)
    every = torch.cat([first["pixel_values"], turn["pixel_values"]])
    expected = answer(model, {"input_ids": whole, "pixel_values": every})
    encoded = []
    handle = model.model.vision_tower.register_forward_hook(lambda _, args, __: encoded.append(len(args[0])))
    given = {"pixel_values": turn["pixel_values"] if tiles == "new" else every, CACHE: started[CACHE]}
    if how == "embeddings":
        continued = model.generate(inputs_embeds=model.get_input_embeddings()(whole), **given, **SETTINGS)
    elif how == "new ids":
        new = whole[:, started[CACHE].get_seq_length() :]
        continued = answer(model, {"input_ids": new, "attention_mask": torch.ones_like(whole), **given})
    else:
        chunks = {"prefill_chunk_size": 3} if how == "chunks" else {}
        continued = answer(model, {"input_ids": whole, **given}, **chunks)
    handle.remove()
    assert torch.equal(continued, expected)
    assert encoded == [1], "what is in the cache is not encoded again"


def test_a_batch_of_chats_goes_on_from_its_cache(model):
    first = two_rows(model)
    started = model.generate(**first, return_dict_in_generate=True, **SETTINGS)
    turns = [prompt(model, 2, 0, 2), prompt(model, 2, 0, 2, 0)]
    turns[0]["input_ids"] = torch.nn.functional.pad(turns[0]["input_ids"], (4, 0), value=5)
    new = torch.cat([turn["input_ids"] for turn in turns])
    old = first["pixel_values"]
    whole = {
        "input_ids": torch.cat([started.sequences, new], dim=1),
        "attention_mask": torch.nn.functional.pad(first["attention_mask"], (0, NEW + new.shape[1]), value=1),
        "pixel_values": torch.cat([old[:1], turns[0]["pixel_values"], old[1:], turns[1]["pixel_values"]]),
    }
    continued = answer(model, {**whole, CACHE: started[CACHE]})
    assert torch.equal(continued, answer(model, whole))


def refused(model, message, inputs, **settings):
    with pytest.raises(ValueError, match=message):
        answer(model, inputs, **settings)


def test_what_cannot_be_right_is_refused_by_its_cause(model):
    first, turn = prompt(model, 3, 0, 4), prompt(model, 2, 0, 2)

    def cache():
        return {CACHE: model.generate(**first, return_dict_in_generate=True, **SETTINGS)[CACHE]}

    whole = {"input_ids": torch.cat([first["input_ids"], torch.zeros(1, NEW, dtype=torch.long), turn["input_ids"]], 1)}
    refused(model, "no pixel_values came with it", whole, **cache())
    refused(model, "tokens: 4, features: 12", {**whole, "pixel_values": torch.rand(3, 3, 56, 56)}, **cache())
    tiles = {"pixel_values": turn["pixel_values"]}
    for assisted in ({"assistant_model": model}, {"prompt_lookup_num_tokens": 2}, {"assistant_early_exit": 1}):
        refused(model, "holds 16 tokens, and transformers' assisted", {**whole, **tiles}, **cache(), **assisted)
    cut = cache()
    cut[CACHE].crop(-(cut[CACHE].get_seq_length() - 5))
    whole["pixel_values"] = torch.cat([first["pixel_values"], turn["pixel_values"]])
    refused(model, "ends inside an image", whole, **cut)
    refused(model, "token healing", first, token_healing=True)
    embeds = {"inputs_embeds": model.get_input_embeddings()(first["input_ids"])}
    refused(model, "cannot read inputs_embeds", {**first, **embeds}, assistant_model=model)
    refused(model, "would ignore inputs_embeds", {**first, **embeds}, prefill_chunk_size=2)
    refused(model, "no pixel_values came", {"input_ids": first["input_ids"]})
    negative = {"guidance_scale": 1.5, "negative_prompt_ids": first["input_ids"]}
    refused(model, "no pixel_values came", first, **negative)
    refused(model, "every tile is 4 tokens .* needs 1 tokens", first, assistant_model=draft(num_tokens=1))


def test_words_to_stop_at_are_looked_up_with_the_processor(model):
    _, processor = tiny_mm1()
    inputs = prompt(model, 3, 0, 4)
    stop = processor.tokenizer.decode(greedy(model, inputs)[0, 1:2])
    settings = {"max_new_tokens": NEW, "stop_strings": [stop]}
    stopped = [answer(model, inputs, **settings, tokenizer=each) for each in (processor, processor.tokenizer)]
    assert torch.equal(*stopped)
    assert processor.get_vocab() == processor.tokenizer.get_vocab()


def test_requests_are_batched_continuously(model):
    """Of text alone: transformers takes no images there."""
    if CACHE != "cache":
        pytest.skip("before 5.24 transformers batches text models alone")
    texts = [prompt(model, 5), prompt(model, 7)]
    configuration = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=256)
    batched = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = batched.generate_batch(
            [text["input_ids"][0].tolist() for text in texts], generation_config=configuration
        )
    given = [result.generated_tokens for _, result in sorted(results.items())]
    assert given == [greedy(model, text)[0].tolist() for text in texts]
