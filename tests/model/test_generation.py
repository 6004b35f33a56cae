"""`generate()` in the ways that transformers offers, with images in the prompt."""

import copy

import pytest
import torch
from generating import NEW, answer, far_from_initial, greedy, prompt
from tiny import tiny_mm1
from transformers import CompileConfig, StaticCache

from mm1_hf import MM1TextConfig, MM1TextForCausalLM


@pytest.fixture(scope="module")
def model():
    model, _ = tiny_mm1()
    return far_from_initial(model)


@pytest.mark.parametrize("parts", [(3, 0, 4), (0, 2, 0, 3, 0), (5,)])
@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_greedy_is_the_argmax_of_the_whole_row(model, parts, settings):
    inputs = prompt(model, *parts)
    assert torch.equal(answer(model, inputs, **settings), greedy(model, inputs))


def test_sampling_follows_its_seed_and_draws_from_the_model_s_distribution(model):
    inputs = prompt(model, 3, 0, 4)

    def draw(seed, **settings):
        torch.manual_seed(seed)
        return answer(model, inputs, do_sample=True, **settings)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1, temperature=3.0), draw(2, temperature=3.0))
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    logits[model.config.image_token_id] = -torch.inf
    first = draw(3, num_return_sequences=2000, max_new_tokens=1, top_k=0)[:, 0]
    frequencies = torch.bincount(first, minlength=len(logits)) / 2000
    # Half the sum of differences of 2,000 draws from the same distribution over these tokens stays well below this.
    expected = logits.softmax(-1)
    assert 0.5 * (frequencies - expected).abs().sum() < 1.2 * (expected * (1 - expected) / 2000).sqrt().sum()


def test_several_sequences_of_one_prompt_see_its_images(model):
    inputs = prompt(model, 2, 0, 3, 0)
    together = answer(model, inputs, num_beams=4, num_return_sequences=3)
    assert together.shape == (3, NEW)
    assert torch.equal(together[:1], answer(model, inputs, num_beams=4))
    assert len({tuple(sequence) for sequence in together.tolist()}) == 3


def test_beams_find_what_an_exhaustive_search_finds(model):
    inputs = prompt(model, 0, 2, 0)
    beams = model.generate(
        **inputs,
        max_new_tokens=2,
        num_beams=256,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=256,
        output_scores=True,
        return_dict_in_generate=True,
    )
    ids, tokens = inputs["input_ids"], model.lm_head.out_features
    with torch.no_grad():
        first = model(**inputs).logits[:, -1]
        first[:, model.config.image_token_id] = -torch.inf
        rows = torch.cat([ids.expand(tokens, -1), torch.arange(tokens)[:, None]], dim=1)
        keep = torch.arange(tokens) != model.config.image_token_id
        embeds = model.get_input_embeddings()(rows[keep])
        encoded = model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)
        embeds[rows[keep] == model.config.image_token_id] = encoded.repeat(int(keep.sum()), 1)
        second = model(inputs_embeds=embeds).logits[:, -1]
        second[:, model.config.image_token_id] = -torch.inf
    total = first.log_softmax(-1)[0, keep][:, None] + second.log_softmax(-1)
    best = divmod(int(total.argmax()), tokens)
    assert beams.sequences[0, -2:].tolist() == [torch.arange(tokens)[keep][best[0]].item(), best[1]]


@pytest.mark.parametrize("how", ["model", "prompt lookup"])
def test_guessing_ahead_changes_nothing(model, how):
    """Neither an assistant that reads text alone nor words found again in the prompt."""
    inputs = prompt(model, 3, 0, 4, 0, 3)
    if how == "model":
        torch.manual_seed(0)
        assistant = MM1TextForCausalLM(
            MM1TextConfig(
                vocab_size=model.config.text_config.vocab_size,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=1,
                num_attention_heads=4,
            )
        ).eval()
        settings = {"assistant_model": assistant}
    else:
        # The last word stands before an image too, whose tokens are what comes next there.
        inputs["input_ids"] = torch.cat([inputs["input_ids"], inputs["input_ids"][:, 2:3]], dim=1)
        assert inputs["input_ids"][0, 3] == model.config.image_token_id
        settings = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1}
    assert torch.equal(answer(model, inputs, **settings), greedy(model, inputs))


def test_a_compiled_step_is_compiled_once(model):
    inputs = prompt(model, 3, 0, 4)
    expected = greedy(model, inputs)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    cache = StaticCache(config=model.config.text_config, max_cache_len=32)
    with torch.no_grad():
        outputs = model(**inputs, past_key_values=cache)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        outputs.logits[..., model.config.image_token_id] = -torch.inf
        given = [outputs.logits[:, -1].argmax(-1)]
        for _ in range(NEW - 1):
            logits = compiled(input_ids=given[-1][:, None], past_key_values=cache).logits[:, -1]
            logits[:, model.config.image_token_id] = -torch.inf
            given.append(logits.argmax(-1))
    assert torch.equal(torch.stack(given, dim=1), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_generate_compiles_its_step_once(model):
    """As it does by itself on a GPU, whenever the cache is static."""
    inputs = prompt(model, 3, 0, 4)
    compilation = CompileConfig(backend="eager", mode="default", fullgraph=True)
    compilation._compile_all_devices = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        given = answer(model, inputs, cache_implementation="static", compile_config=compilation)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch.equal(given, greedy(model, inputs))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="generate() compiles its step by itself on a GPU")
def test_generate_compiles_its_step_on_a_gpu(model):
    inputs = {name: value.cuda() for name, value in prompt(model, 3, 0, 4).items()}
    model = copy.deepcopy(model).cuda()
    expected = greedy(model, inputs)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert torch.equal(answer(model, inputs, cache_implementation="static"), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_repeated_rows_keep_their_own_tiles(model, how):
    """Of rows with one, two and no images, as beams and several answers repeat them."""
    rows = [prompt(model, 3, 0, 4), prompt(model, 0, 2, 0), prompt(model, 5, 2)]
    tiles = [row["pixel_values"] for row in rows if row.get("pixel_values") is not None]
    ids = [row["input_ids"][0] for row in rows]
    length = max(map(len, ids))
    batch = {
        "input_ids": torch.stack([torch.nn.functional.pad(row, (length - len(row), 0), value=256) for row in ids]),
        "attention_mask": torch.stack([(torch.arange(length) >= length - len(row)).long() for row in ids]),
        "pixel_values": torch.cat(tiles),
    }
    repeats = max(how.values())
    input_ids, kwargs = model._expand_inputs_for_generation(
        expand_size=repeats, is_encoder_decoder=False, input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]
    )
    expected = [tiles[0]] * repeats + [tiles[1]] * repeats
    assert torch.equal(kwargs["pixel_values"], torch.cat(expected))
    assert torch.equal(input_ids, batch["input_ids"].repeat_interleave(repeats, dim=0))
    torch.manual_seed(0)
    together = model.generate(**batch, max_new_tokens=2, eos_token_id=None, pad_token_id=256, **how)
    if "num_beams" in how:
        alone = [model.generate(**row, max_new_tokens=2, eos_token_id=None, pad_token_id=256, **how) for row in rows]
        assert together[:, -2:].tolist() == [row[0, -2:].tolist() for row in alone]
