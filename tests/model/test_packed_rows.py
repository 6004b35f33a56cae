"""Packed rows under every attention implementation, and through Trainer: the traps that make examples of a row see each
other without an error."""

import pytest
import torch
from flash import torch_varlen_attention, use_flash
from packed_models import DECODERS, IMAGE, SPARSE, TOKENS, build, close, concatenate, step, tiles, words
from transformers import AutoModelForCausalLM
from transformers.utils import find_labels, is_flash_attn_2_available

from mm1_hf import MM1ForConditionalGeneration, MM1TextForCausalLM
from mm1_hf.model.segment_attention import SEGMENT_SDPA


LENGTHS = [9, 6, 9]


def examples() -> list[dict[str, torch.Tensor]]:
    """Three: an image between words, words alone, an image before words."""
    image, pixels = [IMAGE] * TOKENS, tiles(2)
    return [
        {"input_ids": torch.tensor([words(2, 0) + image + words(3, 1)]), "pixel_values": pixels[:1]},
        {"input_ids": torch.tensor([words(6, 2)])},
        {"input_ids": torch.tensor([image + words(5, 3)]), "pixel_values": pixels[1:]},
    ]


def packed(padding: int = 0) -> dict[str, torch.Tensor]:
    """The three in one row."""
    ids = torch.cat([each["input_ids"] for each in examples()], dim=1)
    segments = [number for number, length in enumerate(LENGTHS, start=1) for _ in range(length)] + [0] * padding
    return {
        "input_ids": torch.nn.functional.pad(ids, (0, padding)),
        "pixel_values": tiles(2),
        "segment_ids": torch.tensor([segments]),
    }


def positions(padding: int = 0) -> torch.Tensor:
    return torch.tensor([[position for length in [*LENGTHS, padding] for position in range(length)]])


def labels_of(ids: torch.Tensor, starts: list[int] = (0,)) -> torch.Tensor:
    labels = ids.masked_fill(ids == IMAGE, -100)
    labels[:, starts] = -100
    return labels


PACKED_STARTS = [0, 9, 15]


def separate_logits(model) -> torch.Tensor:
    return torch.cat([model(**each).logits for each in examples()], dim=1)


# Attention implementations


@pytest.fixture
def flex_uncompiled():
    """Flex attention computes the same without its compiler, in milliseconds."""
    # On a CPU it has no backward.
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.usefixtures("flex_uncompiled")
@pytest.mark.parametrize("use_cache", [None, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_flex_keeps_segments_apart(kind, mask, use_cache):
    model = build(kind)
    expected = separate_logits(model)
    model.set_attn_implementation("flex_attention")
    batch = packed(padding=3)
    if mask:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    output = model(**batch, use_cache=use_cache)
    assert output.past_key_values is None
    close(output.logits[:, :24], expected)
    # Without segments the neighbours show.
    assert (model(**{**batch, "segment_ids": None}).logits[:, :24] - expected).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", DECODERS)
def test_compiled_flex_keeps_segments_apart(kind):
    model = build(kind)
    expected = separate_logits(model)
    model.set_attn_implementation("flex_attention")
    torch._dynamo.reset()
    # With a second shape Dynamo makes a captured sliding window symbolic, and torch 2.13's C++ template for flex attention
    # then names a size that it does not declare ("cur_kvSplitSize2 was not declared"): static shapes only, on a CPU.
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False), torch.no_grad():
        close(model(**packed(padding=3)).logits[:, :24], expected)


@pytest.mark.parametrize("use_cache", [None, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_segment_sdpa_learns_what_sdpa_learns(kind, use_cache):
    model = build(kind).train()
    batch = {name: torch.cat([value, value.flip(1)]) for name, value in packed(padding=3).items()}
    # Turned round, an image's tokens are as many, and segments still lie side by side.
    labels = batch["input_ids"].masked_fill((batch["input_ids"] == IMAGE) | (batch["segment_ids"] == 0), -100)
    results = []
    for attention in ("sdpa", SEGMENT_SDPA):
        model.set_attn_implementation({"text_config": attention})
        model.zero_grad()
        output = model(**batch, labels=labels, use_cache=use_cache)
        output.loss.backward()
        results.append([output.logits, *(parameter.grad.clone() for parameter in model.parameters())])
    for sdpa, segmented in zip(*results, strict=True):
        close(segmented, sdpa)


@pytest.mark.parametrize("kind", DECODERS)
def test_segment_sdpa_serves_rows_of_one_example_too(kind):
    model = build(kind)
    ids = torch.tensor([words(9, 1), words(9, 2)])
    mask = torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
    expected = model(ids, attention_mask=mask).logits[mask.bool()]
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    model.set_attn_implementation({"text_config": SEGMENT_SDPA})
    close(model(ids, attention_mask=mask).logits[mask.bool()], expected)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False), tokens)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention has no backward on a CPU")
@pytest.mark.parametrize("kind", DECODERS)
def test_flex_gradients_equal_separate_ones(kind):
    # torch compiles flex attention for heads of at least 16 dimensions.
    model = build(kind, head_dim=16).train().cuda()
    results = []
    for attention in ("sdpa", "flex_attention"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        batch = {name: value.cuda() for name, value in packed().items()}
        model(**batch, labels=labels_of(batch["input_ids"], PACKED_STARTS)).loss.backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    for sdpa, flex in zip(*results, strict=True):
        torch.testing.assert_close(flex, sdpa, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("use_cache", [None, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_flash_gets_the_boundaries_and_no_mask(kind, mask, use_cache, monkeypatch):
    """Two rows: of restarting positions flash attention by itself reads only a single one's."""
    model = build(kind)
    expected = separate_logits(model)
    boundaries = use_flash(monkeypatch, model.model.language_model)
    batch = packed(padding=3)
    batch = {name: torch.cat([value, value]) for name, value in batch.items()}
    if mask:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    output = model(**batch, use_cache=use_cache)
    assert output.past_key_values is None
    close(output.logits[:, :24], expected.expand(2, -1, -1))
    assert boundaries[-1].tolist() == [0, 9, 15, 24, 27, 36, 42, 51, 54]


@pytest.mark.parametrize("kind", ["mm1_text", "mistral"])
def test_flash_reads_restarting_positions_in_training(kind, monkeypatch):
    model = build(kind)
    expected = separate_logits(model)
    boundaries = use_flash(monkeypatch, model.model.language_model)
    batch = packed()
    batch = {name: torch.cat([value, value]) for name, value in batch.items() if name != "segment_ids"}
    close(model.train()(**batch, position_ids=positions()).logits, expected.expand(2, -1, -1))
    assert boundaries[-1].tolist() == [0, 9, 15, 24, 33, 39, 48]


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()), reason="needs a GPU and the flash-attn package"
)
@pytest.mark.parametrize("kind", DECODERS)
def test_flash_kernels_keep_segments_apart(kind):
    model = build(kind).cuda().bfloat16()
    move = {"device": "cuda"}
    expected = [model(**{k: v.to(**move) for k, v in each.items()}).logits for each in examples()]
    model.set_attn_implementation({"text_config": "flash_attention_2"})
    logits = model(**{k: v.to(**move) for k, v in packed(padding=3).items()}).logits[:, :24]
    torch.testing.assert_close(logits, torch.cat(expected, dim=1), atol=0.1, rtol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has this kernel for GPUs alone")
@pytest.mark.parametrize("kind", DECODERS)
def test_torch_s_own_flash_kernel_keeps_segments_apart(kind, monkeypatch):
    model = build(kind).cuda().bfloat16()
    expected = [model(**{name: value.cuda() for name, value in each.items()}).logits for each in examples()]
    boundaries = use_flash(monkeypatch, model.model.language_model, torch_varlen_attention)
    logits = model(**{name: value.cuda() for name, value in packed(padding=3).items()}).logits[:, :24]
    torch.testing.assert_close(logits, torch.cat(expected, dim=1), atol=0.1, rtol=0.1)
    assert boundaries


# Traps


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("trap", ["mask", "cache"])
def test_trap_transformers_finds_packed_rows_only_without_mask_and_cache(trap, attention):
    """Llama itself leaks, without a word, behind an all-ones mask or the default cache; inside an MM1 it does not."""
    model = build("llama")
    model.set_attn_implementation(attention)
    source = AutoModelForCausalLM.from_config(model.config.text_config, attn_implementation=attention).eval()
    source.model.load_state_dict(model.model.language_model.state_dict())
    source.lm_head.load_state_dict(model.lm_head.state_dict())
    first, second = torch.tensor([words(5, 7)]), torch.tensor([words(7, 8)])
    ids = torch.cat([first, second], dim=1)
    kwargs = {"use_cache": True} if trap == "cache" else {"attention_mask": torch.ones_like(ids), "use_cache": False}
    restart = torch.tensor([[*range(5), *range(7)]])
    alone = source(second).logits
    assert (source(ids, position_ids=restart, **kwargs).logits[:, 5:] - alone).abs().max() > 0.01
    close(model(ids, segment_ids=torch.tensor([[1] * 5 + [2] * 7]), **kwargs).logits[:, 5:], alone)
    close(model.train()(ids, position_ids=restart, **kwargs).logits[:, 5:], alone)
    close(model.eval()(ids, position_ids=restart, labels=ids, **kwargs).logits[:, 5:], alone)


@pytest.mark.parametrize("kind", ["mm1_text", "mistral"])
@pytest.mark.parametrize("mask", [False, True])
def test_trap_an_evaluation_loss_reads_restarting_positions_too(kind, mask):
    """The default cache, which evaluation has and training has not, would hide them."""
    model = build(kind)
    batch = {**packed(), "position_ids": positions()}
    del batch["segment_ids"]
    if mask:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    labels = labels_of(batch["input_ids"], PACKED_STARTS)
    output = model(**batch, labels=labels)
    close(output.logits, separate_logits(model))
    close(output.loss, model.train()(**batch, labels=labels).loss)
    # Without labels such positions may be those of a prompt with a cache to come: there segments have to be named.
    assert model.eval()(**batch).past_key_values.get_seq_length() == 24


@pytest.mark.parametrize("kind", ["mm1_text", "gemma3_text"])
def test_trap_a_ready_made_mask_beside_segments_is_refused(kind):
    model = build(kind)
    batch = packed()
    block = batch["segment_ids"][0, :, None] == batch["segment_ids"][0, None, :]
    with pytest.raises(
        ValueError, match=r"segment_ids say which tokens attend to which, and so does this attention_mask \(\(1, 1, 24"
    ):
        model(**batch, attention_mask=block.tril()[None, None])
    with pytest.raises(ValueError, match=r"attention_mask \(dict\)"):
        model(**batch, attention_mask={"full_attention": block.tril()[None, None]})


@pytest.mark.parametrize("kind", DECODERS)
def test_trap_trl_leaves_the_head_out(kind):
    """TRL runs the base model itself, without labels: in training it has to find the segments all the same."""
    model = build(kind)
    expected = torch.cat([model.model(**each).last_hidden_state for each in examples()], dim=1)
    batch = {**packed(), "position_ids": positions(), "attention_mask": torch.ones(1, 24, dtype=torch.long)}
    del batch["segment_ids"]
    close(model.model.train()(**batch, use_cache=False).last_hidden_state, expected)


def test_positions_of_left_padding_are_no_segments():
    """`generate()` and evaluation with a loss give such positions: each row stays one example."""
    model = build()
    ids, mask = torch.tensor([[0, 0, 0, *words(6, 2)]]), torch.tensor([[0] * 3 + [1] * 6])
    labels = ids.masked_fill(mask == 0, -100)
    restart = torch.tensor([[1, 1, 1, *range(6)]])
    for training in (False, True):
        output = model.train(training)(
            ids, attention_mask=mask, position_ids=restart, labels=labels, skip_logits=False
        )
        close(output.logits[:, 3:], model(ids[:, 3:]).logits)


@pytest.mark.parametrize("kind", ["mm1_text", "llama"])
def test_segments_of_another_shape_are_refused(kind):
    batch = packed()
    batch["segment_ids"] = batch["segment_ids"][:, :-1]
    with pytest.raises(ValueError, match=r"segment_ids has the shape \(1, 23\), and the tokens are \(1, 24\)"):
        build(kind)(**batch)


# Trainer


@pytest.mark.parametrize("model_class", [MM1ForConditionalGeneration, MM1TextForCausalLM])
def test_trainer_s_evaluation_asks_for_nothing_but_labels(model_class):
    """It computes a loss only where a batch has every argument whose name holds "label"."""
    assert find_labels(model_class) == ["labels"]


def separate_rows() -> list[dict[str, torch.Tensor]]:
    """The three examples as rows, the shorter one padded."""
    rows = []
    for each in examples():
        missing = 9 - each["input_ids"].shape[1]
        labels = labels_of(each["input_ids"])
        rows.append(
            {
                "input_ids": torch.nn.functional.pad(each["input_ids"], (0, missing)),
                "attention_mask": torch.nn.functional.pad(torch.ones_like(each["input_ids"]), (0, missing)),
                "labels": torch.nn.functional.pad(labels, (0, missing), value=-100),
                "pixel_values": each.get("pixel_values", torch.zeros(0, 3, 56, 56)),
            }
        )
    return rows


@pytest.mark.parametrize(("kind", "fields"), [*((kind, {}) for kind in DECODERS), ("mm1_text", SPARSE)])
@pytest.mark.parametrize("how", ["segment_ids", "position_ids"])
def test_trap_a_step_of_trainer_on_packed_rows_equals_one_on_separate_rows(kind, fields, how, tmp_path):
    """Composite models leak inside Trainer, which leaves the decoder's own `use_cache` on; and a collator that adds an
    all-ones mask hides restarting positions. Router losses count
    the same tokens either way."""
    ids = packed()["input_ids"]
    row = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        how: packed()["segment_ids"] if how == "segment_ids" else positions(),
        "pixel_values": tiles(2),
        "labels": labels_of(ids, PACKED_STARTS),
    }
    expected, expected_loss = step(
        build(kind, **fields),
        separate_rows(),
        concatenate,
        tmp_path,
        per_device_train_batch_size=3,
        per_device_eval_batch_size=3,
    )
    got, loss = step(build(kind, **fields), [row], concatenate, tmp_path, per_device_train_batch_size=1)
    start = dict(build(kind, **fields).named_parameters())
    assert max((expected[name] - start[name]).abs().max() for name in start) > 0.01
    for name, weight in got.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert loss == pytest.approx(expected_loss, rel=1e-4)
