"""Examples that share their images, from conversations to packed rows and to what a model learns of them."""

import pytest
import torch
from conversations import assistant, user
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import png
from tiny import tiny_mm1
from transformers import TrainingArguments

from mm1_hf.data.documents import Unusable
from mm1_hf.data.examples import ChatEncoder, ExampleEncoder
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.packed_dataset import PackedDataset
from mm1_hf.data.packing import build_row
from mm1_hf.data.shared_images import SharedImages, fill, shared_length, take_apart


QUESTIONS = [("What is it?", "A cat."), ("Colour?", "Grey."), ("How many animals are there?", "One."), ("A?", "b")]


def chat(questions=QUESTIONS, images=1, system=None, **columns):
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns += [turn for question, answer in questions for turn in (user(question), assistant(answer))]
    pictures = [{"bytes": png(index), "path": None} for index in range(images)]
    return LAYOUTS["chat"]({"messages": turns, "images": pictures, **columns}, "a record")


@pytest.fixture(scope="module")
def parts():
    return tiny_mm1()


def encoded(document, processor, length=512, kind=ChatEncoder):
    (found,) = kind(processor, length).encode([document])
    return found


def row_of(processor, examples, length):
    row = build_row(examples, length)
    encoder = ChatEncoder(processor, length)
    pixels = [encoder.pixel_values(example) for example in examples if example.images]
    batch = {name: value[None] for name, value in row.items()}
    return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})


@pytest.mark.parametrize("system", [None, "Be short."])
@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("encoder", [ChatEncoder, ExampleEncoder])
def test_a_row_with_branches_trains_as_one_row_for_each_exchange(parts, encoder, images, system):
    model, processor = parts
    model.train()
    document = take_apart(chat(images=images, system=system))
    single = [encoded(each, processor, kind=encoder)[0] for each in document.documents]
    joined = encoded(document, processor, kind=encoder)
    if images:
        (example,) = joined
        assert len(example.branches) == len(QUESTIONS) and len(example.images) == images
        assert len(example.input_ids) < sum(len(example.input_ids) for example in single)
    results = []
    for batches in ([row_of(processor, joined, 400)], [row_of(processor, [example], 300) for example in single]):
        targets = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        model.zero_grad()
        losses = [model(**batch, num_items_in_batch=targets).loss for batch in batches]
        sum(losses).backward()
        gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        results.append([sum(losses).detach(), *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_every_branch_is_the_rest_of_its_exchange(parts):
    _, processor = parts
    document = take_apart(chat())
    (example,) = encoded(document, processor)
    shared = len(example.input_ids) - sum(example.branches)
    assert "<image>" not in processor.decode(example.input_ids[shared:])
    rests = torch.from_numpy(example.input_ids)[shared:].split(list(example.branches))
    for rest, alone in zip(rests, document.documents, strict=True):
        whole = encoded(alone, processor)[0].input_ids
        assert [*example.input_ids[:shared], *rest.tolist()] == whole.tolist()
    assert processor.decode(example.input_ids[example.learned]) == "".join(
        f"{each}<|im_end|>" for _, each in QUESTIONS
    )


def test_exchanges_that_do_not_fit_together_become_several_examples(parts):
    _, processor = parts
    document = take_apart(chat(QUESTIONS * 3))
    whole = encoded(document, processor, 1024)[0]
    longest = max(len(encoded(each, processor)[0].input_ids) for each in document.documents)
    pieces = encoded(document, processor, longest + 20)
    assert len(pieces) > 2 and sum((piece.branches for piece in pieces), ()) == whole.branches
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert all(len(piece.images) == 1 and len(piece.input_ids) <= longest + 20 for piece in pieces)
    refused = encoded(document, processor, longest - 1)
    assert isinstance(refused, Unusable) and refused.reason == "chat longer than a row"


def test_what_does_not_stand_alone_stays_whole():
    later = [user("What is it?"), assistant("A cat."), user("<image> And this?"), assistant("A dog.")]
    pictures = [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}]
    first = [{**later[0], "content": "<image> What is it?"}, *later[1:]]
    for document in (
        chat(QUESTIONS[:1]),
        LAYOUTS["chat"]({"messages": first, "images": pictures}, ""),
        LAYOUTS["chat"]({"prompt": later[:3], "completion": later[3:], "images": pictures[:1]}, ""),
        LAYOUTS["chat"]({"messages": [*later[:2], assistant("Or not."), user("?"), assistant("!")]}, ""),
        LAYOUTS["caption"]({"image": pictures[0], "caption": "A cat."}, ""),
    ):
        assert take_apart(document) is document


def test_images_behind_the_first_question_come_to_the_front():
    turns = [user("What is it? <image>"), assistant("A cat."), user("Colour?"), assistant("Grey.")]
    document = take_apart(
        LAYOUTS["chat"]({"messages": turns, "images": [{"bytes": png(0), "path": None}]}, "a record")
    )
    assert isinstance(document, SharedImages)
    for each in document.documents:
        assert [part["type"] for part in each.messages[0]["content"]] == ["image", "text"]
        assert len(each.images) == 1 and each.parts[0] is document.images[0]
    assert [each.name for each in document.documents] == ["a record, exchange 1", "a record, exchange 2"]


def test_one_unusable_exchange_makes_the_record_unusable(parts):
    _, processor = parts
    refused = encoded(take_apart(chat([*QUESTIONS, ("Why?", "b" * 600)])), processor)
    assert isinstance(refused, Unusable) and "a record, exchange 5 has" in str(refused)


def test_packed_data_holds_every_image_once_and_every_exchange(parts):
    import datasets

    _, processor = parts
    records = [
        {
            "messages": [
                turn for pair in QUESTIONS[: 1 + index % 4] for turn in map(lambda f, t: f(t), (user, assistant), pair)
            ],
            "images": [{"bytes": png(index), "path": None}],
        }
        for index in range(9)
    ]
    data = datasets.Dataset.from_list(records).cast_column("images", datasets.List(datasets.Image(decode=False)))
    encoder = ChatEncoder(processor, 256)
    packed = PackedDataset(data, encoder, separate_exchanges=True)
    rows = [packed[index] for index in range(len(packed))]
    tiles = sum(len(row["pixel_values"]) for row in rows)
    examples = [example for row in packed.rows for _, example in row]
    assert tiles == len(examples) >= 9
    assert sum(max(len(example.branches), 1) for example in examples) == sum(1 + index % 4 for index in range(9))
    for row in rows:
        placeholders = int((row["input_ids"] == processor.image_token_id).sum())
        assert placeholders == len(row["pixel_values"]) * processor.num_image_tokens
    assert packed.drops.report()["the data set"]["seen"] == 9
    whole = PackedDataset(data, encoder)
    assert sum(len(row) for row in whole.rows) == 9 and not any(
        example.branches for row in whole.rows for _, example in row
    )


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=8), min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=60)
def test_the_shared_length_is_the_longest_without_a_target(rows, data):
    import numpy as np

    starts = [data.draw(st.integers(1, len(row) - 1)) for row in rows]
    learned = [np.arange(len(row)) >= start for row, start in zip(rows, starts, strict=True)]
    shared = shared_length([np.array(row) for row in rows], learned)
    assert all(row[:shared] == rows[0][:shared] for row in rows) and shared <= min(starts)
    assert shared == min(starts) or len({row[shared] for row in rows}) > 1


@given(st.lists(st.integers(1, 8), max_size=20))
def test_groups_are_filled_in_order(lengths):
    groups = fill(lengths, 8)
    assert [index for group in groups for index in group] == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in group) for group in groups]
    assert all(each <= 8 for each in sums)
    assert all(each + lengths[after[0]] > 8 for each, after in zip(sums, groups[1:], strict=False))


def test_the_trainer_needs_packed_rows_for_it(parts, tmp_path):
    from mm1_hf.training.sft import MM1SFTTrainer

    model, processor = parts
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(
        ValueError, match="separate_exchanges=True makes examples that share their images in a packed row"
    ):
        MM1SFTTrainer(model, arguments, processing_class=processor, separate_exchanges=True)
