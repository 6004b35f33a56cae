import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.layouts import LAYOUTS, to_record


# Sentences in which people write what stands for an image elsewhere.
TEXTS = st.text(min_size=1).filter(str.strip) | st.sampled_from(["a <image> b", "<image>", "![x](y.png)"])
PATHS = st.from_regex(r"[a-z]{1,8}/[a-z]{1,8}\.(png|jpg)", fullmatch=True)
URLS = PATHS.map("https://a.example/{}".format)
SOURCES = st.binary(min_size=1) | URLS | PATHS.map("/data/{}".format)
IMAGES = SOURCES.map(ImagePart)


@st.composite
def parts(draw, max_size: int = 6) -> tuple:
    """Texts and images, with one text at least."""
    found = draw(st.lists(TEXTS | IMAGES, max_size=max_size))
    found.insert(draw(st.integers(0, len(found))), draw(TEXTS))
    return tuple(found)


@settings(max_examples=50, deadline=None)
@given(parts(), st.booleans())
def test_the_own_layout_is_what_it_writes(found, is_caption):
    has_images = any(isinstance(part, ImagePart) for part in found)
    kind = "caption" if is_caption and has_images else "interleaved" if has_images else "text"
    document = Document(kind, found, "here")
    record = to_record(document)
    assert LAYOUTS["documents"](record) == document
    # As people write it in JSON.
    short = [{key: value for key, value in part.items() if value is not None} for part in record["parts"]]
    for part in short:
        if "image" in part:
            part["image"] = part["image"]["bytes"] or part["image"]["path"]
    assert LAYOUTS["documents"]({"parts": short, "kind": kind}, "here") == document


def test_a_picture_becomes_a_file():
    picture = Image.effect_noise((9, 7), 50)
    (part,) = to_record(Document("caption", (ImagePart(picture),), "here"))["parts"]
    assert ImagePart(part["image"]["bytes"]).load().tobytes() == picture.tobytes()


@settings(max_examples=50, deadline=None)
@given(
    SOURCES,
    TEXTS.filter(lambda text: "<image>" not in text),
    st.sampled_from(["image", "jpg", "PNG", "webp", "image_url", "url"]),
    st.sampled_from(["caption", "text", "txt"]),
    st.booleans(),
    st.booleans(),
)
def test_pairs(source, text, image_column, text_column, as_feature, in_json):
    value = source
    if as_feature:
        value = {
            "bytes": source if isinstance(source, bytes) else None,
            "path": source if isinstance(source, str) else "x",
        }
    record = {image_column: value, "width": 3, "json" if in_json else text_column: text}
    if in_json:
        record["json"] = {text_column: text, "width": 3}
    document = LAYOUTS["caption"](record)
    assert (document.kind, document.parts) == ("caption", (ImagePart(source), text.strip()))


@settings(max_examples=50, deadline=None)
@given(parts(), st.data())
def test_obelics(found, data):
    images = [part.source if isinstance(part, ImagePart) else None for part in found]
    texts = [part if isinstance(part, str) else None for part in found]
    document = LAYOUTS["obelics"]({"images": images, "texts": texts, "metadata": "[]"})
    assert document.parts == found
    assert document.kind == ("interleaved" if any(images) else "text")


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.lists(st.tuples(st.integers(0, 9), URLS), max_size=4))
def test_mmc4(sentences, places):
    places = [(index % len(sentences), url) for index, url in places]
    info = [{"matched_text_index": index, "raw_url": url, "matched_sim": 0.3} for index, url in places]
    document = LAYOUTS["mmc4"]({"text_list": sentences, "image_info": info, "url": "https://b.example"})
    assert document.name == "https://b.example"
    assert sorted(part.source for part in document.images) == sorted(url for _, url in places)
    # Cut at its images, a document of sentences is the same document.
    expected, words = [], []
    for index, sentence in enumerate(sentences):
        for place, url in places:
            if place == index:
                expected += [" ".join(words)] if words else []
                expected.append(ImagePart(url))
                words = []
        words.append(sentence)
    assert list(document.parts) == [*expected, " ".join(words)]


HUMAN, GPT = {"from": "human"}, {"from": "gpt"}


@pytest.mark.parametrize(
    ("images", "values", "kind", "expected"),
    [
        # LLaVA-Pretrain: its instruction is left out.
        ("/a.jpg", ["Describe it.\n<image>", "a red bus "], "caption", ["/a.jpg", "a red bus"]),
        (["/a.jpg"], ["<image>", "a <image> tag"], "caption", ["/a.jpg", "a <image> tag"]),
        # Its mixtures: conversations, several images, none.
        ("/a.jpg", ["<image>\nQ?", "A", "R?", "B"], "interleaved", ["/a.jpg", "\nQ?\nA\nR?\nB"]),
        (["/a", "/b"], ["1: <image> 2: <image>", "A"], "interleaved", ["1: ", "/a", " 2: ", "/b", "\nA"]),
        (["/a", "/b"], ["<image>", "A", "<image>R?", "B"], "interleaved", ["/a", "\nA\n", "/b", "R?\nB"]),
        (["/a", "/b"], ["Q?", "A"], "interleaved", ["/a", "/b", "Q?\nA"]),
        (None, ["What is it?", "A <image> tag."], "text", ["What is it?\nA <image> tag."]),
        ("", ["Q?", "A"], "text", ["Q?\nA"]),
        (["/a", "/b"], ["<image>", "A", "Q?", "see <image>"], None, "has 2 images, but its user's texts have 1 marks"),
        (["/a", "/b"], ["<image><image><image>", "A"], None, "has 2 images, but its user's texts have 3 marks"),
    ],
)
def test_llava(images, values, kind, expected):
    turns = [{**(GPT if index % 2 else HUMAN), "value": value} for index, value in enumerate(values)]
    record = {"id": "7", "conversations": turns} | ({} if images is None else {"image": images})
    if kind is None:
        with pytest.raises(Unusable, match=f"^images cannot be placed: data: 7 {expected}"):
            LAYOUTS["llava"](record, "data")
        return
    document = LAYOUTS["llava"](record, "data")
    assert document.name == "data: 7"
    assert document.kind == kind
    assert [part.source if isinstance(part, ImagePart) else part for part in document.parts] == expected


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_text(text):
    assert LAYOUTS["text"]({"text": text, "url": "u"}) == Document("text", (text,), "u")


@pytest.mark.parametrize(
    ("layout", "record", "message"),
    [
        (
            "documents",
            {"parts": [{"text": "a", "image": "b.png"}]},
            "not a record of this layout: here: a part must have either",
        ),
        ("documents", {"parts": [{"text": 5}]}, "not a record of this layout: here: a text is 5"),
        ("documents", {"parts": [{"text": "a"}], "kind": "video"}, "the kind is 'video'"),
        (
            "documents",
            {"parts": [{"text": "a"}, {"image": b"x"}], "kind": "text"},
            "its kind is text, but it has images",
        ),
        ("documents", {"parts": [{"image": b"x"}]}, "^no text: here"),
        ("documents", {"parts": []}, "^no text: here"),
        ("documents", {"parts": None}, "parts is None, not a list"),
        ("caption", {"jpg": b"x", "txt": None, "__key__": "00012"}, "^no text: here: 00012"),
        ("caption", {"jpg": b"x", "txt": " \n"}, "^no text: here"),
        ("caption", {"jpg": None, "txt": "a"}, "^no image: here"),
        ("caption", {"jpg": {"bytes": None, "path": None}, "txt": "a"}, "^no image: here"),
        ("caption", {"jpg": b"x", "json": {"width": 3}}, "^no text: here"),
        ("caption", {"jpg": b"x", "label": 3}, r"^not a record of this layout: .*columns \['jpg', 'label'\]"),
        ("caption", {"jpg": 5, "txt": "a"}, "^not a record of this layout: here: an image is 5"),
        ("llava", {"conversations": [{"speaker": "user", "content": "a"}]}, "^not a record .* a message is"),
        (
            "caption",
            {"jpg": b"x", "txt": "<image> or <image>"},
            "^images cannot be placed: here: 1 images, but 2 marks",
        ),
        ("caption", {"jpg": b"x", "png": b"y", "txt": "a"}, "^unread media: here: png would be lost"),
        ("obelics", {"images": [None], "texts": []}, "1 images, but 0 texts"),
        ("obelics", {"images": [None, "a.png"], "texts": [None, None]}, "holds neither an image nor a text"),
        ("obelics", {"images": ["a.png"], "texts": [None]}, "^no text: here"),
        (
            "mmc4",
            {"text_list": ["a"], "image_info": [{"matched_text_index": 1}]},
            "matched_text_index is 1, not an index of the 1 sentences",
        ),
        ("mmc4", {"text_list": ["a"], "image_info": [{"matched_text_index": 0}]}, "^no image: here"),
        ("text", {"content": "a"}, r"^not a record of this layout: .*columns \['content'\]"),
        ("text", {"text": None}, "^not a record of this layout: here: a text is None"),
        ("text", {"text": "\n"}, "^no text: here"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(layout, record, message):
    with pytest.raises(Unusable, match=message):
        LAYOUTS[layout](record, "here")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = ["parts", "image", "txt", "json", "conversations", "images", "texts", "text_list", "image_info", "text"]
KEYS = ["text", "image", "from", "value", "bytes", "path", "matched_text_index", "raw_url", "image_name", "caption"]
RECORDS = st.dictionaries(
    st.sampled_from(COLUMNS),
    VALUES
    | st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3), max_size=3)
    | st.lists(st.text(max_size=4), max_size=3),
)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(record=RECORDS)
def test_any_record_is_a_document_or_unusable(layout, record):
    try:
        document = LAYOUTS[layout](record)
    except Unusable as error:
        assert error.reason in {
            "not a record of this layout",
            "no text",
            "no image",
            "images cannot be placed",
            "unread media",
        }
        return
    assert any(isinstance(part, str) and part.strip() for part in document.parts)
    assert (document.kind == "text") == (not document.images)


@settings(max_examples=50, deadline=None)
@given(RECORDS, st.sampled_from(list(LAYOUTS)))
def test_a_line_of_json_is_its_record(record, layout):
    """With bytes left out, of which JSON has none."""
    line = json.dumps(record, default=lambda _: "bytes")

    def outcome(record: dict) -> Document | tuple:
        try:
            return LAYOUTS[layout](record, "here")
        except Unusable as error:
            return error.args

    folder = {"__folder__": "/data"}
    assert outcome({"__line__": line, **folder}) == outcome({**json.loads(line), **folder})
