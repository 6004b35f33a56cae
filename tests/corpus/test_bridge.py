import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from web_pages import picture

from mm1_hf.corpus.bridge import from_engine, image_of, to_engine
from mm1_hf.data.documents import Document, ImagePart


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
images = st.sampled_from([b"a file", "/folder/a.png", "https://a.example/a.png", "data:image/png;base64,AAAA"])


def joined(parts: tuple) -> tuple:
    """Neighbouring texts as one, which is all that the way through the engine changes."""
    found: list = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


def document(*parts) -> Document:
    made = tuple(part if isinstance(part, str) else ImagePart(part[0]) for part in parts)
    return Document("interleaved" if any(isinstance(part, ImagePart) for part in made) else "text", made, "name")


@given(st.lists(texts | st.tuples(images), min_size=1, max_size=8))
def test_a_document_comes_back_as_it_was(parts):
    before = document(*parts)
    found = from_engine(to_engine(before))
    assert (found.kind, found.name) == (before.kind, before.name)
    assert found.parts == joined(before.parts)


@given(st.lists(texts | st.tuples(images), min_size=1, max_size=8), st.data())
def test_a_dropped_image_leaves_the_text_around_it(parts, data):
    engine = to_engine(document(*parts))
    kept = data.draw(st.lists(st.booleans(), min_size=len(engine.media), max_size=len(engine.media)))
    engine.media = [medium for medium, keep in zip(engine.media, kept, strict=True) if keep]
    decisions = iter(kept)
    expected = [part for part in document(*parts).parts if isinstance(part, str) or next(decisions)]
    found = from_engine(engine)
    assert found.parts == joined(tuple(expected))
    assert found.kind == ("interleaved" if any(kept) else "text")


def test_the_kind_of_a_caption_stays():
    caption = Document("caption", (ImagePart(b"x"), "a whale"), "name")
    assert from_engine(to_engine(caption)) == caption


def test_sources_of_images_find_their_fields():
    engine = to_engine(document((b"x",), ("/a.png",), ("https://a.example/a.png",), ("data:,x",), "text"))
    assert [(image.media_bytes, image.path, image.url) for image in engine.media] == [
        (b"x", None, ""),
        (None, "/a.png", ""),
        (None, None, "https://a.example/a.png"),
        (None, None, "data:,x"),
    ]


def test_pil_images_become_files():
    (medium,) = to_engine(Document("caption", (ImagePart(Image.new("RGB", (3, 2))), "x"), "name")).media
    assert ImagePart(medium.media_bytes).size() == (2, 3)


def test_the_fetched_file_is_what_counts():
    (medium,) = to_engine(document(("https://a.example/a.png",), "text")).media
    medium.media_bytes = picture(1)
    assert image_of(medium) == ImagePart(picture(1))


def test_a_changed_text_is_refused_where_images_have_places():
    engine = to_engine(document("before", (b"x",), "after"))
    engine.text = engine.text[:-1]
    with pytest.raises(ValueError, match=r"The text of name had 11 characters .* and has 10 now: a step changed it"):
        from_engine(engine)
    engine.media = []
    assert from_engine(engine).parts == ("beforeafte",)
