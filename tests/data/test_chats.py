"""Conversations as examples and packed rows: the same tokens, labels and pixels as the collator's."""

import base64
import pickle
import re

import datasets
import numpy as np
import pytest
import torch
from conversations import assistant, conversations, user
from mixtures import png
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.chats import Chat, require_generation_marks
from mm1_hf.data.collation import IGNORED, MM1Collator
from mm1_hf.data.documents import Unusable
from mm1_hf.data.examples import ChatEncoder
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.packed_dataset import PackedDataset


RED, WIDE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (200, 60), "blue")


@pytest.fixture
def processor():
    return tiny_mm1()[1]


PLACES = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
RECORDS = {
    "no image": {"messages": [user("q"), assistant("a <image> <|im_end|>")]},
    "one image": {"messages": [{"role": "system", "content": "s"}, user("q"), assistant("a")], "images": [WIDE]},
    "image column": {"messages": [user("q"), assistant("a")], "image": RED},
    "two images, two turns": {
        "messages": [user(PLACES), assistant("a1"), user("q2"), assistant("a2")],
        "images": [RED, WIDE],
    },
    "three images": {"messages": [user("q"), assistant("a")], "images": [RED, WIDE, RED]},
    "own image": {"messages": [user([{"type": "image", "image": WIDE, "text": None}]), assistant("a")]},
    "prompt": {
        "prompt": [user("q1"), assistant("a1"), user("q2")],
        "completion": [assistant("a2")],
        "images": [RED],
    },
}


@pytest.mark.parametrize("splitting", ["none", "static", "dynamic"])
@pytest.mark.parametrize("record", RECORDS)
def test_examples_are_what_the_collator_makes(record, splitting, processor):
    processor.image_processor.image_splitting = splitting
    processor.image_processor.position_indicators = "index"
    batch = MM1Collator(processor)([RECORDS[record]])
    encoder = ChatEncoder(processor, 2048)
    ((example,),) = encoder.encode([LAYOUTS["chat"](RECORDS[record], "r")])
    ids = torch.from_numpy(example.input_ids).long()
    assert torch.equal(ids, batch["input_ids"][0])
    assert torch.equal(torch.where(torch.from_numpy(example.learned), ids, IGNORED), batch["labels"][0])
    assert bool(example.images) == ("pixel_values" in batch)
    if example.images:
        assert torch.equal(encoder.pixel_values(example), batch["pixel_values"])


def test_other_documents_stay_what_they_are(processor):
    chat, text = LAYOUTS["chat"](RECORDS["prompt"], "r"), LAYOUTS["text"]({"text": "plain"}, "r")
    first, (second,) = ChatEncoder(processor, 2048).encode([chat, text])
    assert processor.decode(first[0].input_ids[first[0].learned]) == "a2<|im_end|>"
    assert processor.decode(second.input_ids[second.learned]) == "lain<eos>"


@pytest.mark.parametrize(
    ("record", "room", "reason"),
    [
        ({"messages": [user("q")]}, 64, "nothing to learn from"),
        ({"messages": [user("q"), assistant("a" * 80)]}, 64, r"chat longer than a row: r has \d+ tokens and 0 images"),
        ({"messages": [user("q"), assistant("a")], "images": [{"bytes": b"x", "path": None}]}, 64, "corrupt image"),
    ],
)
def test_a_chat_that_cannot_be_an_example_says_why(record, room, reason, processor):
    (refused,) = ChatEncoder(processor, room).encode([LAYOUTS["chat"](record, "r")])
    assert isinstance(refused, Unusable)
    assert re.match(reason, str(refused))


def test_one_chat_that_the_template_refuses_does_not_spoil_the_others(processor):
    processor.chat_template = (
        "{% if messages|length > 4 %}{{ raise_exception('Too long.') }}{% endif %}" + processor.chat_template
    )
    long = {"messages": [user("q"), assistant("a")] * 3}
    records = [RECORDS["no image"], RECORDS["one image"], long, RECORDS["prompt"], {"messages": [user("q")]}]
    encoder = ChatEncoder(processor, 2048)
    encoded = encoder.encode([LAYOUTS["chat"](record, f"r{index}") for index, record in enumerate(records)])
    assert "r2: Too long." in str(encoded[2]) and "r4 has no assistant" in str(encoded[4])
    for index in (0, 1, 3):
        ((alone,),) = encoder.encode([LAYOUTS["chat"](records[index], "r")])
        assert np.array_equal(encoded[index][0].input_ids, alone.input_ids)
        assert np.array_equal(encoded[index][0].learned, alone.learned)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q"}, "the record has the columns .'question'"),
        ({"messages": "q"}, "a message is"),
        ({"messages": [user(PLACES), assistant("a")], "images": [RED]}, "has 1 images, but its chat has 2 places"),
        ({"messages": [user([{"type": "image"}]), assistant("a")]}, "has 0 images, but its chat has 1 places"),
        ({"prompt": "q", "completion": "a"}, "must be chats"),
    ],
)
def test_records_of_another_layout_are_refused(record, message):
    with pytest.raises(Unusable, match=message):
        LAYOUTS["chat"](record, "r")


def test_images_come_in_every_form(processor, tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    expected = Image.open(tmp_path / "a.png").tobytes()
    parts = [
        {"type": "image", "image": {"bytes": png(7), "path": None}},
        {"type": "image", "path": "a.png"},
        {"type": "image", "base64": base64.b64encode(png(7)).decode()},
        {"type": "image"},
    ]
    record = {"messages": [user(parts), assistant("a")], "images": ["a.png"], "__folder__": str(tmp_path)}
    chat = LAYOUTS["chat"](record, "r")
    assert isinstance(chat, Chat)
    assert [image.load().tobytes() for image in chat.images] == [expected] * 4


def test_llava_keeps_its_roles():
    turns = [("human", "<image>\nWhat?"), ("gpt", " A cat. "), ("human", "And here? <image>"), ("gpt", "A dog.")]
    record = {"conversations": [{"from": who, "value": text} for who, text in turns], "image": [RED, WIDE]}
    chat = LAYOUTS["llava_chat"](record, "r")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]
    assert chat.messages[2]["content"] == [{"type": "text", "text": "And here?"}, {"type": "image"}]
    unmarked = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "x"}], "image": RED}
    assert LAYOUTS["llava_chat"](unmarked, "r").messages[0]["content"][0] == {"type": "image"}
    with pytest.raises(Unusable, match="no user turn"):
        LAYOUTS["llava_chat"]({"conversations": [{"from": "gpt", "value": "x"}], "image": RED}, "r")


def test_a_template_without_marks_is_refused(processor):
    unmarked = processor.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    for template in (unmarked, None, {"default": unmarked}):
        with pytest.raises(ValueError, match="chat template has no"):
            require_generation_marks(template)
    processor.chat_template = unmarked
    with pytest.raises(ValueError, match="chat template has no"):
        ChatEncoder(processor, 64)
    with pytest.raises(ValueError, match="chat template has no"):
        MM1Collator(processor)([RECORDS["no image"]])


# Packed data sets


def test_every_conversation_is_in_one_row_with_its_images(processor):
    processor.image_processor.image_splitting = "none"
    dataset = conversations(30)
    packed = PackedDataset(dataset, ChatEncoder(processor, 160), window=8)
    assert 2 * len(packed) < len(dataset)
    found = {}
    for row in packed:
        tiles = list(row.get("pixel_values", ()))
        for segment in range(1, int(row["segment_ids"].max()) + 1):
            ids, labels = (row[name][row["segment_ids"] == segment] for name in ("input_ids", "labels"))
            number = processor.decode(labels[labels != IGNORED])[:3]
            own = int((ids == processor.image_token_id).sum()) // processor.num_image_tokens
            found[int(number)] = ids, labels, [tiles.pop(0) for _ in range(own)]
        assert not tiles
    assert sorted(found) == list(range(30))
    for number, (ids, labels, tiles) in found.items():
        batch = MM1Collator(processor)([dataset[number]])
        assert torch.equal(ids, batch["input_ids"][0]) and torch.equal(labels, batch["labels"][0])
        assert not tiles if "pixel_values" not in batch else torch.equal(torch.stack(tiles), batch["pixel_values"])


def test_a_packed_data_set_travels_to_data_workers(processor):
    packed = PackedDataset(conversations(6), ChatEncoder(processor, 160))
    there = pickle.loads(pickle.dumps(packed))
    for own, other in zip(packed, there, strict=True):
        assert own.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in own.items())


def test_an_unknown_layout_is_refused(processor):
    with pytest.raises(ValueError, match="There is no layout 'chats'; choose one of documents, caption"):
        PackedDataset(conversations(3), ChatEncoder(processor, 160), layout="chats")


def test_a_record_that_fits_no_row_is_named(processor):
    with pytest.raises(ValueError, match=r"cannot be packed: chat longer than a row: record \d+ has \d+ tokens"):
        PackedDataset(conversations(30), ChatEncoder(processor, 40))


def test_a_record_that_cannot_be_packed_is_left_out_and_counted(processor):
    """Also where only the pixels of an image turn out to be broken when the row is read."""
    records = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"{n}"}]}
        for n in range(30)
    ]
    good = PackedDataset(datasets.Dataset.from_list(records), ChatEncoder(processor, 160))
    records[7]["messages"][0]["content"] = None
    packed = PackedDataset(datasets.Dataset.from_list(records), ChatEncoder(processor, 160))
    counts = packed.drops.report()["the data set"]
    assert counts["seen"] == 30 and sum(counts["dropped"].values()) == 1
    assert sum(int(row["segment_ids"].max()) for row in packed) == 29
    assert sum(int(row["segment_ids"].max()) for row in good) == 30
