"""The ways to texts and to captions from end to end, in this process."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engine_documents import run_here
from image_server import image_server, picture
from PIL import Image

from mm1_hf.corpus.ways import captions, text
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.readers import read
from mm1_hf.model import fetching


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def write_pairs(folder: Path, server: str) -> None:
    """Pairs in all forms, some of them broken, doubled or hostile."""
    folder.mkdir()
    lying = picture(20)[:16] + (60_000).to_bytes(4, "big") + picture(20)[20:]
    small = io.BytesIO()
    Image.new("RGB", (50, 50)).save(small, "PNG")
    (folder / "photos").mkdir()
    for seed in (1, 2):
        (folder / "photos" / f"{seed}.png").write_bytes(picture(seed))
    (folder.parent / "secret.png").write_bytes(picture(9))
    lines = [
        {"image": "photos/1.png", "caption": "The first of the photos"},
        {"image": "photos/1.png", "caption": "The first photo once more"},
        {"image": "photos/2.png", "caption": "img_2.png"},
        {"image": "../secret.png", "caption": "A file that is not theirs"},
        {"image": "file:///etc/hostname", "caption": "A file that is not theirs"},
        {"image_url": f"{server}/image/5.png", "text": "An image of the web"},
        {"image_url": f"{server}/image/6.png#part", "text": "Another image of the web"},
        {"image_url": f"{server}/image/6.png", "text": "The same address once more"},
        {"image_url": f"{server}/noai/7.png", "text": "An image whose owner says no"},
        {"image_url": f"{server}/liar", "text": "A page that says it is an image"},
        {"image_url": f"{server}/loopback", "text": "A redirect to this very machine"},
        {"image_url": f"{server}/metadata", "text": "A redirect to the machine's network"},
        {"image": [], "caption": "No image at all here"},
        {"other": 1},
    ]
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in lines) + "{broken\n")
    images = [picture(1), picture(10), lying, small.getvalue(), picture(11)[:-900], b""]
    table = pa.table({"jpg": images, "txt": [f"Row number {'abcdefg'[row]} of the table" for row in range(6)]})
    pq.write_table(table, folder / "pairs.parquet")
    with tarfile.open(folder / "pairs.tar", "w") as archive:
        for name, content in (
            ("a.png", picture(12)),
            ("a.txt", b"A sample of the archive"),
            ("../../b.png", picture(13)),
            ("../../b.txt", b"A name that leads outside"),
            ("c.png", picture(10)),
            ("c.txt", b"The image of a row of the table"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / "broken.parquet").write_bytes(b"PAR1 no table")
    (folder / "broken.tar").write_bytes(b"no archive")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def records_of(folder: Path, layout: str) -> list[tuple[str, ...]]:
    """The documents of a finished data set, as the reader and the layout find them."""
    found = []
    for record in read(folder / "data", layout):
        document = LAYOUTS[layout](record)
        texts = [part for part in document.parts if isinstance(part, str)]
        found.append((*texts, *(image.read() for image in document.images)))
    return sorted(found, key=str)


def test_captions(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching, "ALLOWED_HOSTS", {"127.0.0.1"})
    before = None
    with image_server() as (server, seen):
        write_pairs(tmp_path / "in", server)
        for name, tasks, format in (("1", 1, "parquet"), ("1 again", 1, "parquet"), ("3", 3, "webdataset")):
            settings = captions.Settings((str(tmp_path / "in"),), str(tmp_path / name), format, download=True)
            counted = run_here(captions.stages(settings), tasks)
            found = records_of(tmp_path / name, "caption")
            assert found == (before or found)
            before = found
            paths = [path for path, _ in seen.asked]
            assert paths.count("/image/6.png") == 1
            seen.asked.clear()
    assert files_of(tmp_path / "1" / "data") == files_of(tmp_path / "1 again" / "data")
    images = [image for _, image in found]
    expected = [picture(seed) for seed in (1, 5, 6, 10, 12, 13)]
    assert sorted(images) == sorted(expected)
    assert counted["read pairs"] == {
        "files read": 5,
        "kept": 18,
        "image kept": 18,
        "dropped: outside of the data's folder": 2,
        "dropped: no image": 2,
        "dropped: not a record of this layout": 1,
        "dropped: corrupt record": 1,
        "dropped: corrupt file": 1,
        "dropped: corrupt archive": 1,
    }
    assert counted["captions"] == {
        "kept": 17,
        "image kept": 17,
        "dropped: caption is an address or a file name": 1,
    }
    assert counted["same address"] == {"kept": 15, "image kept": 15, "dropped: image address seen before": 2}
    fetched = {label: number for label, number in counted["images fetched"].items() if "dropped" in label}
    assert fetched == {"image dropped: opted out": 1, "image dropped: address not public": 2}
    assert counted["size of images"] == {
        "kept": 15,
        "image kept": 8,
        "image dropped: corrupt image": 3,
        "image dropped: size": 1,
    }
    assert counted["image left"] == {"kept": 8, "image kept": 8, "dropped: no image left": 7}
    assert counted["same image"]["dropped: image seen before"] == 8 - len(expected)


def test_named_columns_and_extras(tmp_path):
    (tmp_path / "in").mkdir()
    images = [picture(1), picture(2)]
    flat = io.BytesIO()
    Image.new("RGB", (200, 200), "red").save(flat, "PNG")
    table = pa.table(
        {"PICTURE": [*images, flat.getvalue()], "re_caption": ["One of the images"] * 3, "text": ["x"] * 3}
    )
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    settings = captions.Settings(
        (str(tmp_path / "in" / "a.parquet"),),
        str(tmp_path / "out"),
        image_column="PICTURE",
        text_column="re_caption",
        drop_blurred=True,
    )
    counted = run_here(captions.stages(settings), 1)
    assert records_of(tmp_path / "out", "caption") == sorted(
        (("One of the images", image) for image in images), key=str
    )
    assert counted["blurred images"]["image dropped: blurred"] == 1
    settings = captions.Settings(settings.inputs, str(tmp_path / "none"), text_column="nothing")
    counted = run_here(captions.stages(settings), 1)
    assert counted["read pairs"]["dropped: not a record of this layout"] == 3


SENTENCES = (
    "The old harbour town lies between two hills and has a market that opens early in the morning.",
    "Fishermen bring what they caught in the night, and the cooks of the small restaurants choose first.",
    "A stone bridge from the time of the first mayor leads over the river to the fields.",
    "In winter the wind is strong enough to move the boats that lie on the beach.",
    "Every child knows the tale of the bell that rang by itself when the great flood came.",
    "The library has kept the letters of sailors who wrote home from all parts of the world.",
    "Since the railway closed, a bus goes to the next city three times a day.",
    "Most houses are painted in light colours, which have to be renewed after every stormy year.",
)


def prose(start: int) -> str:
    """A text of good quality that shares no five words in a row with those of other numbers."""
    sentences = (SENTENCES[(start + place) % len(SENTENCES)] for place in range(len(SENTENCES)))
    words = " ".join(sentences).split()
    return " ".join(f"{chr(97 + start)}{word}" if place % 4 == 3 else word for place, word in enumerate(words))


def write_texts(folder: Path) -> None:
    folder.mkdir()
    pages = [
        f"<main><p>{prose(0)}</p><img src=a.png></main><nav>Home Products</nav>",
        f"<p>{prose(1)}</p>",
        "<img src=a.png>",
    ]
    for number, page in enumerate(pages):
        (folder / f"{number}.html").write_text(page)
    lines = [
        prose(2),
        f"  {prose(2).capitalize()}\n",
        f"{prose(3)} One more sentence is here.",
        prose(3),
        "Too short.",
        "darn " + prose(4),
    ]
    records = "".join(json.dumps({"text": line, "url": "https://a.example", "image": "x"}) + "\n" for line in lines)
    (folder / "lines.jsonl").write_text(records + '{"no": "text"}\n\xff\n', encoding="latin-1")
    pq.write_table(pa.table({"text": [prose(5), None], "meta": [1, 2]}), folder / "table.parquet")
    (folder / "plain.txt").write_text(prose(6))


def test_texts(tmp_path):
    write_texts(tmp_path / "in")
    (tmp_path / "bad words").write_text("darn\n")
    before = None
    for name, tasks, format in (("1", 1, "parquet"), ("1 again", 1, "parquet"), ("4", 4, "webdataset")):
        settings = text.Settings(
            (str(tmp_path / "in"),), str(tmp_path / name), format, bad_words=str(tmp_path / "bad words")
        )
        counted = run_here(text.stages(settings), tasks)
        found = records_of(tmp_path / name, "text")
        assert found == (before or found)
        before = found
    assert files_of(tmp_path / "1" / "data") == files_of(tmp_path / "1 again" / "data")
    texts = [each for (each,) in found]
    assert len(texts) == 6
    assert {prose(number) for number in (0, 1, 5, 6)} < set(texts)
    assert not any("Products" in each for each in texts)
    assert counted["read texts"] == {
        "files read": 6,
        "kept": 10,
        "dropped: no text": 1,
        "dropped: not a record of this layout": 2,
        "dropped: corrupt record": 1,
    }
    # Its two words are all of the text.
    assert counted["repetition (Gopher)"] == {"kept": 9, "dropped: top_2_gram": 1}
    assert counted["quality (Gopher)"] == {"kept": 9}
    assert counted["bad words"] == {"kept": 8, "dropped: bad word": 1}
    assert counted["same text"] == {"kept": 7, "dropped: duplicate": 1}
    assert counted["near-duplicates"] == {"kept": 6, "dropped: near-duplicate": 1}


@pytest.mark.parametrize("way", [text, captions])
def test_inputs_that_are_not_there(way, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is no file or folder"):
        way.stages(way.Settings((str(tmp_path / "nowhere"),), str(tmp_path / "out")))
    with pytest.raises(ValueError, match="holds no file that can be read"):
        way.stages(way.Settings((str(tmp_path / "empty"),), str(tmp_path / "out")))
