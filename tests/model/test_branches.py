"""Branches of packed rows: several examples that share their beginning, compared with one row per example."""

import pytest
import torch
from flash import use_flash
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_models import DECODERS, IMAGE, SPARSE, TEXT, TOKENS, build, close, concatenate, step, tiles, words
from transformers import CONFIG_MAPPING, AutoModel

from mm1_hf.model.losses import live_targets
from mm1_hf.model.modeling_mm1_text import router_token_mask
from mm1_hf.model.segment_attention import SEGMENT_SDPA
from mm1_hf.model.segments import example_counts, packed_mask, preceding_columns, segment_positions


# Examples that share a beginning: its words after an image, and the words of each branch. The last one has no branches.
GROUPS = [(2, [5, 3, 7]), (0, [4, 2]), (4, [])]
KINDS = [*((kind, {}) for kind in DECODERS), ("mm1_text", SPARSE), ("mixtral", {"num_local_experts": 4})]


def rows_of(groups) -> tuple[list[list[list[int]]], torch.Tensor]:
    """For each group its examples as token ids, and the tiles of the groups' images."""
    pixels = tiles(len(groups))
    found = []
    for number, (shared, branches) in enumerate(groups):
        beginning = [*words(1, number), *[IMAGE] * TOKENS, *words(shared, 10 + number)]
        found.append([[*beginning, *words(length, 20 + length)] for length in branches] or [beginning])
    return found, pixels


def apart() -> dict[str, torch.Tensor]:
    """One row per example."""
    groups, pixels = rows_of(GROUPS)
    flat = [(row, pixels[index], learned_from(index)) for index, rows in enumerate(groups) for row in rows]
    width = max(len(row) for row, *_ in flat)
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row, *_ in flat]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, *_ in flat]),
        "labels": torch.tensor([labelled(row, start) + [-100] * (width - len(row)) for row, _, start in flat]),
        "pixel_values": torch.stack([tile for _, tile, _ in flat]),
    }


def learned_from(index: int) -> int:
    """The first target of a group's examples: the first token of its branches."""
    shared, branches = GROUPS[index]
    return 1 + TOKENS + (shared if branches else 1)


def labelled(row: list[int], start: int) -> list[int]:
    return [-100] * start + row[start:]


def together(padding: int = 3) -> dict[str, torch.Tensor]:
    """All examples in one row, with the shared beginnings once."""
    groups, pixels = rows_of(GROUPS)
    ids, labels, segments = [], [], []
    for index, rows in enumerate(groups):
        shared = 1 + TOKENS + GROUPS[index][0]
        ids += rows[0][:shared]
        labels += labelled(rows[0], learned_from(index))[:shared]
        segments += [index + 1] * shared
        for branch, row in enumerate(rows if GROUPS[index][1] else [], start=1):
            ids += row[shared:]
            labels += labelled(row, learned_from(index))[shared:]
            segments += [-branch] * len(row[shared:])
    row = {"input_ids": ids, "labels": labels, "segment_ids": segments}
    fill = {"input_ids": 0, "labels": -100, "segment_ids": 0}
    return {name: torch.tensor([value + [fill[name]] * padding]) for name, value in row.items()} | {
        "pixel_values": pixels
    }


def learned(model, batch) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return [loss, *(torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in model.parameters())]


@pytest.mark.parametrize("implementation", ["eager", "sdpa", SEGMENT_SDPA])
@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_loss_and_gradients_are_those_of_separate_rows(kind, fields, implementation):
    model = build(kind, **fields).train()
    if implementation == SEGMENT_SDPA and not model.model.language_model._supports_flash_attn:
        pytest.skip("does not pass boundaries on")
    expected = learned(model, apart())
    model.set_attn_implementation({"text_config": implementation})
    got = learned(model, together())
    assert together()["input_ids"].numel() < 0.6 * apart()["input_ids"].numel()
    assert max(float(each.abs().max()) for each in expected[1:]) > 0.01
    for one, other in zip(got, expected, strict=True):
        close(one, other)
    # The trap: without branches, the examples see each other.
    wrong = together()
    wrong["segment_ids"] = wrong["segment_ids"].abs()
    assert (model(**wrong).loss - expected[0]).abs() > 1e-3


@pytest.mark.parametrize("implementation", ["sdpa", SEGMENT_SDPA])
@pytest.mark.parametrize("kind", ["mm1_text", "llama", "gemma3_text"])
def test_bfloat16_is_as_close_as_it_can_be(kind, implementation):
    """Its rounding must not be taken for branches that see each other."""
    model = build(kind).to(torch.bfloat16)
    expected = model(**apart() | {"pixel_values": apart()["pixel_values"].bfloat16()}).loss
    model.set_attn_implementation({"text_config": implementation})
    got = model(**together() | {"pixel_values": together()["pixel_values"].bfloat16()}).loss
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", DECODERS)
def test_flex_attention_keeps_branches_apart(kind):
    model = build(kind)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        expected = model(**apart()).loss
        model.set_attn_implementation("flex_attention")
        close(model(**together()).loss, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention has no backward on a CPU")
@pytest.mark.parametrize("implementation", ["sdpa", SEGMENT_SDPA, "flex_attention"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_gpu_learns_the_same_of_branches(kind, implementation):
    # torch compiles flex attention for heads of at least 16 dimensions.
    model = build(kind, head_dim=16).train().cuda()
    rows, row = ({name: value.cuda() for name, value in batch.items()} for batch in (apart(), together()))
    expected = learned(model, rows)
    model.set_attn_implementation({"text_config": implementation})
    for one, other in zip(learned(model, row), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", ["mm1_text", "llama"])
def test_flash_attention_is_refused(kind, monkeypatch):
    model = build(kind)
    use_flash(monkeypatch, model.model.language_model)
    with pytest.raises(
        ValueError, match=r"have branches .* cannot compute: it only knows where segments begin and end"
    ):
        model(**together())


def test_decoders_that_cannot_follow_a_mask_are_refused_by_name():
    fields = {"attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"], "head_dim": 8}
    sizes = {name: value for name, value in TEXT.items() if not name.endswith("token_id")}
    decoder = AutoModel.from_config(CONFIG_MAPPING["llama4_text"](**sizes, **fields, num_local_experts=2))
    model = build()
    model.model.language_model = decoder
    batch = together() | {"labels": None}
    with pytest.raises(ValueError, match=r"Llama4TextModel \(llama4_text\) cannot keep the branches of a packed row"):
        model.model(**{name: value for name, value in batch.items() if name != "labels"})


def test_a_step_of_trainer_is_that_of_separate_rows(tmp_path):
    batch = apart()
    rows = [{name: value[index : index + 1] for name, value in batch.items()} for index in range(6)]
    expected, expected_loss = step(
        build(**SPARSE), rows, concatenate, tmp_path, per_device_train_batch_size=6, per_device_eval_batch_size=6
    )
    got, loss = step(build(**SPARSE), [together()], concatenate, tmp_path, per_device_train_batch_size=1)
    for name, weight in got.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert loss == pytest.approx(expected_loss, rel=1e-4)


# The rule of segment_ids


TREES = st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 4), max_size=4)), min_size=1, max_size=4)


def ids_of(trees, padding) -> list[int]:
    ids = []
    for number, (shared, branches) in enumerate(trees, start=1):
        ids += [number] * shared
        for branch, length in enumerate(branches, start=1):
            ids += [-branch] * length
    return ids + [0] * padding


@given(TREES, st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_every_token_sees_its_own_example_in_order(trees, padding):
    segments = torch.tensor([ids_of(trees, padding)])
    config = CONFIG_MAPPING["llama"](attn_implementation="sdpa")
    mask = packed_mask(segments, config, torch.float32)[0, 0]
    window = packed_mask(segments, config, torch.float32, window=2)[0, 0]
    positions, preceding = segment_positions(segments)[0], preceding_columns(segments)[0]
    column, counts = 0, []
    for shared, branches in trees:
        beginning = list(range(column, column + shared))
        counts += [max(len(branches), 1)] * shared + [1] * sum(branches)
        column += shared
        examples = [beginning]
        for length in branches:
            examples.append(beginning + list(range(column, column + length)))
            column += length
        for example in examples:
            for place, token in enumerate(example):
                assert mask[token].nonzero().flatten().tolist() == example[: place + 1]
                assert window[token].nonzero().flatten().tolist() == example[max(place - 1, 0) : place + 1]
                assert positions[token] == place
                assert not place or preceding[token] == example[place - 1]
    assert example_counts(segments)[0].tolist() == counts + [0] * padding
    assert not mask[:column, column:].any() and not mask[column:, :column].any()


def test_the_last_shared_token_predicts_the_first_of_every_branch():
    segments = torch.tensor([[1, 1, -1, -1, -2, 2, 2, 0]])
    labels = torch.tensor([[-100, -100, 12, 13, 14, -100, 16, -100]])
    live = live_targets(labels, None, segments)
    assert live.index.tolist() == [1, 2, 1, 5] and live.tokens.tolist() == [12, 13, 14, 16]


def test_a_shared_beginning_counts_once_for_each_branch():
    segments, hidden = torch.tensor([[1, 1, -1, -2, -3, 0]]), torch.zeros(1, 6, 4)
    assert router_token_mask(segments, None, hidden).tolist() == [[3, 3, 1, 1, 1, 0]]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    assert router_token_mask(segments, mask, hidden).tolist() == [[2, 2, 1, 1, 0, 0]]
