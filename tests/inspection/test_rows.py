import base64
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from conversations import conversations
from mixtures import png, records
from PIL import Image
from tiny import tiny_mm1

from mm1_hf import MM1ConnectorConfig
from mm1_hf.data.collation import IGNORED, MM1Collator
from mm1_hf.data.documents import Document, ImagePart
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.inspection.rows import read_tokens
from mm1_hf.inspection.sources import inspect_chat, inspect_data, inspect_document, inspect_mixture
from mm1_hf.training.runs import build_run
from mm1_hf.training.settings import PretrainingSettings, SFTSettings, load_settings


CHAT = [{"role": "user", "content": "What is (0, 1, 1), it?"}, {"role": "assistant", "content": "A cat."}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_mm1()[0].save_pretrained(folder)
    processor().save_pretrained(folder)
    return str(folder)


def processor(**settings):
    made = tiny_mm1()[1]
    for name, value in ({"image_splitting": "dynamic"} | settings).items():
        setattr(made.image_processor, name, value)
    return made


def picture(height: int, width: int) -> Image.Image:
    levels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def texts(reading, kind: str) -> str:
    return "".join(place.text for place in reading.positions if place.kind == kind)


def numbers(reading) -> list[int]:
    """Of what is wrongly learned."""
    return [int(warning.rpartition(": ")[2]) for warning in reading.warnings]


@pytest.mark.parametrize(
    ("settings", "indicators"),
    [
        ({"position_indicators": "none"}, ""),
        ({"position_indicators": "index"}, "(0, 1, 1)(0, 1, 2)(0, 2, 1)(0, 2, 2)(0, 0, 0)"),
        ({"position_indicators": "seps"}, ",<n>,:"),
        (
            {"position_indicators": "index", "overview_position": "before"},
            "(0, 0, 0)(0, 1, 1)(0, 1, 2)(0, 2, 1)(0, 2, 2)",
        ),
    ],
)
def test_a_chat_is_taken_apart_as_the_collator_makes_it(settings, indicators):
    own = processor(**settings)
    example = {"messages": CHAT, "images": [picture(100, 100)]}
    row = inspect_chat(own, example, "a row")
    (reading,) = row.readings
    batch = MM1Collator(own)([example])
    assert [place.token_id for place in reading.positions] == batch["input_ids"][0].tolist()
    assert [place.label for place in reading.positions] == batch["labels"][0].tolist()
    assert texts(reading, "indicator") == indicators
    assert "".join(place.text for place in reading.positions if place.learned) == "A cat.<|im_end|>"
    assert not reading.warnings
    assert [place.tile for place in reading.positions if place.kind == "image"] == [
        tile for tile in range(5) for _ in range(4)
    ]
    names = ["1,1", "1,2", "2,1", "2,2"]
    before = settings.get("overview_position") == "before"
    assert [tile.name for tile in row.tiles] == (["overview", *names] if before else [*names, "overview"])


def test_tiles_are_the_encoders_without_the_normalisation():
    own = processor()
    images = [picture(100, 60), picture(30, 90)]
    row = inspect_chat(own, {"messages": CHAT, "images": images}, "a row")
    raw = own.image_processor([images], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    shown = np.stack([np.asarray(tile.picture) for tile in row.tiles])
    np.testing.assert_array_equal(shown, raw.permute(0, 2, 3, 1))
    assert [tile.image for tile in row.tiles] == sorted(tile.image for tile in row.tiles)
    own.image_processor.do_rescale = own.image_processor.do_normalize = False
    again = inspect_chat(own, {"messages": CHAT, "images": images}, "a row")
    np.testing.assert_array_equal(np.stack([np.asarray(tile.picture) for tile in again.tiles]), shown)


@pytest.mark.parametrize("columns", ["messages", "prompt and completion"])
def test_what_trls_collator_teaches_wrongly_is_flagged(columns):
    own = processor(position_indicators="index")
    example = {"messages": CHAT} if columns == "messages" else {"prompt": CHAT[:1], "completion": CHAT[1:]}
    ours, trls = inspect_chat(own, example | {"images": [picture(100, 100)]}, "a row", "trl").readings
    assert (ours.name, ours.warnings) == ("mm1", [])
    assert trls.name == "trl"
    learned = "".join(place.text for place in trls.positions if place.learned)
    if columns == "messages":
        # Everything is, the question and the image's 5 tiles of 4 tokens among it.
        assert trls.count("image", learned=True) == trls.count("image") == 20
        assert numbers(trls) == [20, 45, 1]
        assert learned.startswith("<|im_start|>user")
    else:
        assert not trls.warnings and learned.startswith("A cat.")


def test_text_alone_has_no_tiles():
    row = inspect_chat(processor(), {"messages": CHAT}, "a row", "trl")
    assert row.images == row.tiles == () and [reading.count("image") for reading in row.readings] == [0, 0]


def test_characters_of_several_tokens_are_whole():
    words = "Schön 猫 \U0001f600!"
    chat = [*CHAT[:1], {"role": "assistant", "content": words}]
    (reading,) = inspect_chat(processor(), {"messages": chat}, "a row").readings
    assert words in texts(reading, "text")
    assert "\ufffd" not in texts(reading, "text")


def test_a_conversation_of_a_layout_is_shown_as_a_chat():
    record = {"messages": CHAT, "images": [picture(20, 30)]}
    made = processor(image_splitting="none")
    (of_layout,) = inspect_document(made, LAYOUTS["chat"](record, "a chat")).readings
    (of_collator,) = inspect_chat(made, record, "a chat").readings
    assert [(each.token_id, each.label) for each in of_layout.positions] == [
        (each.token_id, each.label) for each in of_collator.positions
    ]


def test_a_document_is_shown_whole():
    parts = ("one ", ImagePart(picture(100, 50)), " two ", ImagePart(picture(20, 30)), " three")
    row = inspect_document(processor(image_splitting="none"), Document("interleaved", parts, "a page"))
    (reading,) = row.readings
    assert (row.title, len(row.tiles), reading.count("image")) == ("a page", 2, 8)
    assert texts(reading, "text") == "one  two  three<eos>"
    assert not reading.positions[0].learned and all(place.learned for place in reading.positions[-5:])


@pytest.fixture
def settings(saved, tmp_path) -> str:
    sources = {}
    for kind in ("caption", "text"):
        datasets.Dataset.from_list(records(kind, 60)).to_parquet(tmp_path / f"{kind}.parquet")
        sources[kind] = {"path": str(tmp_path / f"{kind}.parquet"), "layout": "documents"}
    written = {"model": saved, "output_dir": str(tmp_path / "run"), "sources": sources, "sequence_length": 64}
    written |= {"batch_size": 4, "rows_per_device": 2, "lanes": 2, "window": 16}
    written["arguments"] = {"use_cpu": True, "bf16": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return str(tmp_path / "run.yaml")


@pytest.fixture
def chat_settings(settings, tmp_path) -> str:
    """Those of a fine-tuning."""
    conversations(60).to_parquet(tmp_path / "chats.parquet")
    written = yaml.safe_load(Path(settings).read_text(encoding="utf-8"))
    source = {"path": str(tmp_path / "chats.parquet"), "layout": "chat", "weight": 1.0}
    written |= {"sources": {"chats": source}, "image_splitting": "none", "resolution": 56}
    (tmp_path / "chats.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return str(tmp_path / "chats.yaml")


@pytest.fixture
def unpooled_settings(chat_settings, tmp_path) -> str:
    """With a connector of a token for each patch, and larger tiles than the saved model's."""
    model, processor = tiny_mm1(connector=MM1ConnectorConfig(connector_type="linear", num_tokens=16))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "linear")
    written = yaml.safe_load(Path(chat_settings).read_text(encoding="utf-8"))
    written |= {"model": str(tmp_path / "linear"), "resolution": 84, "sequence_length": 128}
    (tmp_path / "linear.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return str(tmp_path / "linear.yaml")


@pytest.fixture
def apart_settings(chat_settings, tmp_path) -> str:
    """With several questions about each image, which do not see each other."""
    rows = [{"messages": CHAT * 3, "images": [{"bytes": png(index), "path": None}]} for index in range(60)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "questions.parquet")
    written = yaml.safe_load(Path(chat_settings).read_text(encoding="utf-8"))
    source = {"path": str(tmp_path / "questions.parquet"), "layout": "chat", "weight": 1.0, "separate_exchanges": True}
    written |= {"sources": {"questions": source}, "sequence_length": 640}
    (tmp_path / "apart.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return str(tmp_path / "apart.yaml")


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        (PretrainingSettings, "settings"),
        (SFTSettings, "chat_settings"),
        (SFTSettings, "unpooled_settings"),
        (SFTSettings, "apart_settings"),
    ],
)
def test_rows_of_a_mixture_are_those_that_training_reads(kind, run, request):
    settings = load_settings(kind, request.getfixturevalue(run))
    loader = build_run(settings).trainer.get_train_dataloader()
    batches = [batch for batch, _ in zip(loader, range(3), strict=False)]
    for number in range(6):
        row = inspect_mixture(settings, number)
        (reading,) = row.readings
        batch, place = batches[number // 2], number % 2
        for name, values in (
            ("input_ids", [place.token_id for place in reading.positions]),
            ("labels", [place.label for place in reading.positions]),
            ("segment_ids", [place.segment for place in reading.positions]),
        ):
            assert batch[name][place].tolist() == values, name
        assert len(row.segments) == int(batch["segment_ids"][place].max()) > 1
        assert not reading.warnings
        assert reading.branches == (3 * len(row.segments) if run == "apart_settings" else 0)
    tiles = sum(len(inspect_mixture(settings, number).tiles) for number in (0, 1))
    assert tiles == len(batches[0].get("pixel_values", ()))


def test_padding_and_first_tokens_that_are_learned_are_flagged(settings):
    row = inspect_mixture(load_settings(PretrainingSettings, settings), 0)
    (reading,) = row.readings
    wrong = [place if place.segment else type(place)(**vars(place) | {"label": 7}) for place in reading.positions]
    starts = [place for place in wrong if place.segment == 2][:1]
    wrong[wrong.index(starts[0])] = type(starts[0])(**vars(starts[0]) | {"label": 7})
    padding = sum(not place.segment for place in wrong)
    found = numbers(type(reading)("wrong", tuple(wrong)))
    # Captions begin with their image, whose first token is a placeholder.
    image_first = [1] if starts[0].kind == "image" else []
    assert found == [*image_first, *([padding] if padding else []), 1]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_chats_are_read_from_data_sets(kind, saved, tmp_path):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    chats = [
        [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": word}]}]
        for word in ("One.", "Two.")
    ]
    (tmp_path / "red.png").write_bytes(png(255))
    if kind == "parquet":
        rows = [{"messages": chat, "images": [{"bytes": png(255), "path": None}]} for chat in chats]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    else:
        lines = [json.dumps({"messages": chat, "image": "red.png"}) for chat in chats]
        (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    row = inspect_data(saved, tmp_path / f"train.{kind}", row=1)
    (reading,) = row.readings
    assert "".join(place.text for place in reading.positions if place.learned) == "Two.<|im_end|>"
    assert len(row.tiles) == 5 and row.tiles[0].picture.getpixel((20, 20)) == (255, 0, 0)


def test_pictures_may_stand_in_the_messages(saved, tmp_path):
    """Some in parts, by a path from the data's folder, one beside."""
    (tmp_path / "red.png").write_bytes(png(255))
    encoded = base64.b64encode(png(0)).decode()
    parts = [
        {"type": "image", "path": "red.png"},
        {"type": "image"},
        {"type": "image", "base64": encoded},
        {"type": "text", "text": "Which is red?"},
    ]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "The first."}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": chat, "image": "red.png"}), encoding="utf-8")
    row = inspect_data(saved, tmp_path / "train.jsonl")
    levels = {tile.image: tile.picture.getpixel((20, 20)) for tile in row.tiles}
    assert levels == {0: (255, 0, 0), 1: (255, 0, 0), 2: (0, 0, 0)}
    assert not row.readings[0].warnings
    ours, theirs = inspect_data(saved, tmp_path / "train.jsonl", labels="trl").readings
    assert theirs.count("image") == ours.count("image") == 4 * len(row.tiles)


@pytest.mark.parametrize("layout", ["llava_chat", "llava", "chat"])
def test_pictures_may_lie_in_a_folder_of_their_own(layout, saved, tmp_path):
    (tmp_path / "pictures").mkdir()
    picture(40, 30).save(tmp_path / "pictures" / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    record = {"image": "a.png"} | ({"messages": CHAT} if layout == "chat" else {"conversations": turns})
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "data.jsonl").write_text(json.dumps(record))
    row = inspect_data(saved, tmp_path / "json", layout=layout, image_folder=tmp_path / "pictures")
    assert [(image.height, image.width) for image in row.images] == [(40, 30)]
    with pytest.raises(ValueError, match="there is no folder"):
        inspect_data(saved, tmp_path / "json", layout=layout, image_folder=tmp_path / "none")


def test_documents_are_read_from_data_sets(saved, tmp_path):
    rows = [{"image": {"bytes": png(index), "path": None}, "text": f"number {index}"} for index in range(3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    row = inspect_data(saved, tmp_path, layout="caption", row=2)
    assert texts(row.readings[0], "text") == "number 2<eos>"
    assert row.title.startswith("row 2 of") and len(row.tiles) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 9}, "has no row 9; it has 1"),
        ({"layout": "captions"}, "There is no layout 'captions'"),
        ({"layout": "caption"}, "is not of the layout 'caption'"),
        ({"layout": "text", "labels": "trl"}, "leave out layout 'text'"),
    ],
)
def test_what_cannot_be_shown_is_said(options, message, saved, tmp_path):
    datasets.Dataset.from_list([{"messages": CHAT}]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        inspect_data(saved, tmp_path / "train.parquet", **options)


def test_placeholders_without_tiles_are_refused():
    own = processor()
    broken = {"messages": CHAT, "images": [picture(20, 20)]}
    row = inspect_chat(own, broken, "a row")
    ids = torch.tensor([place.token_id for place in row.readings[0].positions])
    with pytest.raises(ValueError, match="20 placeholders, but 4 tiles of 4 tokens each"):
        read_tokens("mm1", own, ids.tolist(), [IGNORED] * len(ids), [1] * len(ids), 4)
