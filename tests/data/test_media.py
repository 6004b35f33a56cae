"""The images of records: their forms, the folder that they must lie in, and media that would be lost."""

import base64
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import png
from PIL import Image

from mm1_hf.data.documents import Unusable
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.media import given_image, images_in, local_file, record_image, require_read


@pytest.fixture
def folder(tmp_path):
    """The folder of a data set, with a picture inside, one outside, and links to both."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for path in (data / "a.png", data / "images" / "b.png", tmp_path / "secret.png", tmp_path / "data-2.png"):
        path.write_bytes(png(9))
    (data / "inside.png").symlink_to(data / "a.png")
    (data / "outside.png").symlink_to(tmp_path / "secret.png")
    (data / "up").symlink_to(tmp_path)
    return data


def test_files_of_the_folder_are_read(folder):
    inside = [
        "a.png",
        "./a.png",
        "images/b.png",
        "images/../a.png",
        "inside.png",
        "missing.png",
        str(folder / "a.png"),
    ]
    for path in [*inside, f"file://{folder}/a.png", f"FILE://localhost{folder}/a.png", f"file://{folder}/a%2Epng"]:
        found = local_file(path, str(folder))
        assert os.path.realpath(found).startswith(str(folder)), path
        assert given_image(path, {"__folder__": str(folder)}, "r") == found


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "images/../../secret.png",
        "outside.png",
        "up/secret.png",
        "../data-2.png",
        "{above}/secret.png",
        "file://{above}/secret.png",
        "/etc/hostname",
        "a.png\0",
    ],
)
def test_files_outside_of_the_folder_are_refused(path, folder):
    path = path.format(above=folder.parent)
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    where = {"__folder__": str(folder)}
    records = {
        "caption": {"image": path, "text": "a"},
        "documents": {"parts": [{"text": "a"}, {"image": {"bytes": None, "path": path}}]},
        "obelics": {"images": [None, path], "texts": ["a", None]},
        "mmc4": {"text_list": ["a"], "image_info": [{"matched_text_index": 0, "image_name": path}]},
        "chat": {"messages": chat, "images": [path]},
        "llava": {"conversations": turns, "image": path},
        "llava_chat": {"conversations": turns, "image": path},
    }
    for layout, record in records.items():
        with pytest.raises(Unusable, match=r"^outside of the data's folder: .*image_folder"):
            LAYOUTS[layout](record | where, "r")
        if "file:" not in path:
            assert LAYOUTS[layout](record, "r").images[0].source == path, "a user's own records may name any file"
    part = {"messages": [{"role": "user", "content": [{"type": "image", "path": path}]}, chat[1]]}
    with pytest.raises(Unusable, match="outside"):
        LAYOUTS["chat"](part | where, "r")
    with pytest.raises(Unusable, match="outside"):
        local_file("a.png", "")


def test_a_snapshot_of_the_hub_may_link_to_its_own_files(tmp_path):
    repository = tmp_path / "datasets--a--b"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1234").write_bytes(png(9))
    (tmp_path / "other").write_bytes(png(9))
    (snapshot / "a.png").symlink_to("../../blobs/1234")
    (snapshot / "b.png").symlink_to("../../../other")
    assert local_file("a.png", str(snapshot)) == str(snapshot / "a.png")
    with pytest.raises(Unusable, match="outside"):
        local_file("b.png", str(snapshot))


@pytest.mark.parametrize(
    "address", ["s3://bucket/a.png", "ftp://a.example/b.png", "hf://datasets/a/b.png", "file://host/a"]
)
def test_addresses_of_other_kinds_are_refused_by_name(address):
    with pytest.raises(Unusable, match=address):
        given_image(address, {}, "r")


def test_forms_of_an_image_are_one_picture(folder):
    data = (folder / "a.png").read_bytes()
    encoded = base64.b64encode(png(9) + bytes(300)).decode()
    for value in (
        data,
        bytearray(data),
        memoryview(data),
        "a.png",
        folder / "a.png",
        {"bytes": data, "path": "elsewhere.png"},
        {"bytes": None, "path": "a.png"},
        {"url": f"file://{folder}/a.png"},
        Image.open(folder / "a.png"),
        encoded,
        f"data:image/png;base64,{encoded}",
        f"DATA:image/png;base64,{encoded}",
    ):
        found = record_image(value, {"__folder__": str(folder)}, "r").load()
        assert found.tobytes() == Image.open(folder / "a.png").tobytes(), value


def test_arrays_are_images_for_the_collator_alone():
    array = np.zeros((2, 3, 3), np.uint8)
    assert given_image(array, {}, "r") is array
    with pytest.raises(Unusable, match="give bytes, a path"):
        record_image(array, {}, "r")


@pytest.mark.parametrize(
    "value", [None, "", " ", b"", [], {}, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}]
)
def test_nothing_is_no_image(value):
    assert images_in(value, "r") == images_in([value, value], "r") == images_in((value,), "r") == []
    with pytest.raises(Unusable, match="no image: r: entry 1 of 2 is empty"):
        images_in(["a.png", value], "r")
    with pytest.raises(Unusable, match=r"^no image"):
        record_image(value, {}, "r")


def test_one_image_or_a_list_of_json_are_images():
    assert images_in("a.png", "r") == ["a.png"]
    assert images_in('["a.png", "b.png"]', "r") == ["a.png", "b.png"]
    with pytest.raises(Unusable, match="not JSON"):
        images_in("[a.png", "r")


MEDIA = {
    "image": "a.png",
    "image_2": "a.png",
    "images2": ["a.png"],
    "left_image": "a.png",
    "imageB": "a.png",
    "image_url_2": "https://a.example/b.png",
    "img_path": "a.png",
    "photos": ["a.png"],
    "screenshot": "a.png",
    "video": "a.mp4",
    "video_url": "https://a.example/b.mp4",
    "frames": ["a.png"],
    "audio": {"array": [0.0], "sampling_rate": 8000},
    "audio_path": "a.wav",
    "mp4": b"\0\0",
    "left.png": b"\0\0",
    "face": b"\x89PNG\r\n",
    "anything": {"bytes": b"\0", "path": None},
    "deep": {"inside": [{"bytes": None, "path": "a.png"}]},
    "picture": Image.new("RGB", (2, 2)),
    "thing": Image.new("RGB", (2, 2)),
    "note": "data:image/png;base64,AAAA",
}
ABOUT_MEDIA = {
    "image_id": "12",
    "image_width": "640",
    "image_source": "coco/train2017",
    "image_phash": "0af3",
    "num_images": 2,
    "has_image": True,
    "image_correspondence_ratings": [5, None],
    "video_id": "x7",
    "audio_transcript": "Hello.",
    "image_info": [{"face": 1}],
    "frames": [1, 2],
    "images": [],
    "image_url": None,
    "cls": b"3",
    "embedding": b"\x93NUMPY",
    "url": "https://a.example/page",
    "score": 0.5,
    "meta": '{"a": 1}',
}


@pytest.mark.parametrize("column", MEDIA)
def test_media_that_no_layout_reads_are_refused_by_name(column):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    lost = {column: MEDIA[column]}
    with pytest.raises(Unusable, match=f"^unread media: r: {column} would be lost"):
        LAYOUTS["text"]({"text": "a"} | lost, "r")
    if column != "image":
        with pytest.raises(Unusable, match=f"^unread media: r: {column} would be lost"):
            LAYOUTS["chat"]({"messages": chat} | lost, "r")
    message = {"role": "user", "content": "q"} | lost
    with pytest.raises(Unusable, match=f"^unread media: .*{column}"):
        LAYOUTS["chat"]({"messages": [message, chat[1]]}, "r")


def test_what_is_about_media_is_not_media():
    for column, value in ABOUT_MEDIA.items():
        require_read({column: value}, (), 0, "r")


def test_addresses_beside_as_many_images_are_theirs():
    require_read({"image_url": "https://a.example/b.png", "image_path": "b.png"}, (), 1, "r")
    require_read({"image_urls": ["a", "b"]}, (), 2, "r")
    for record, images in [({"image_urls": ["a", "b"]}, 1), ({"image_url": "a"}, 0), ({"video_url": "a"}, 1)]:
        with pytest.raises(Unusable, match="unread media"):
            require_read(record, (), images, "r")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.text(max_size=12))
def test_any_value_is_an_image_or_unusable(value, column):
    for read in (
        lambda: record_image(value, {"__folder__": "/data"}, "r"),
        lambda: images_in(value, "r"),
        lambda: require_read({column: value}, (), 0, "r"),
    ):
        try:
            read()
        except Unusable as error:
            assert str(error)
