"""Documents to examples: every token and image exactly once, and no image cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.examples import ExampleEncoder


PROCESSOR = tiny_mm1()[1]
PROCESSOR.image_processor.image_splitting = "none"
EOS = PROCESSOR.tokenizer.eos_token_id
IMAGE = ImagePart(Image.new("RGB", (56, 40), "red"))


def encoder(length: int = 64, max_images: int | None = None) -> ExampleEncoder:
    return ExampleEncoder(PROCESSOR, length, max_images)


def encode(
    *parts: str | ImagePart, kind: str = "interleaved", length: int = 64, max_images: int | None = None
) -> list:
    return encoder(length, max_images).encode([Document(kind, parts, "a document")])[0]


parts = st.lists(st.one_of(st.just(IMAGE), st.text("abc <>|image", min_size=0, max_size=40)), max_size=12)


@given(parts, st.sampled_from([6, 9, 20, 64]), st.sampled_from([None, 1, 3]))
@settings(max_examples=300, deadline=None)
def test_every_token_and_image_is_kept_once_and_no_image_is_cut(parts, length, max_images):
    """But for pieces without a target: images, after at most one token of text, which nothing before it predicts."""
    pieces = encode(*parts, length=length, max_images=max_images)
    if not any(isinstance(part, str) and part for part in parts):
        assert isinstance(pieces, Unusable) and pieces.reason == "no text"
        return
    expected, targets = [], []
    for part in parts:
        ids = [PROCESSOR.image_token_id] * 4 if part is IMAGE else list(part.encode())
        expected += ids if part is IMAGE else PROCESSOR.tokenizer(part, split_special_tokens=True)["input_ids"]
        targets += [part is not IMAGE] * len(ids)
    if isinstance(pieces, Unusable):
        assert pieces.reason == "nothing to learn from" and sum(targets) == 1
        return
    kept = np.concatenate([piece.input_ids for piece in pieces]).tolist()
    images = sum(len(piece.images) for piece in pieces)
    assert images + pieces[0].left_out == parts.count(IMAGE)
    assert all(piece.left_out == 0 for piece in pieces[1:])
    if len(kept) == len(expected) + 1:
        assert kept == [*expected, EOS]
        starts = np.cumsum([0, *(len(piece.input_ids) for piece in pieces[:-1])])
        learned = np.array([*targets, True])
        learned[starts] = False
        assert np.concatenate([piece.learned for piece in pieces]).tolist() == learned.tolist()
    else:
        left = iter([*expected, EOS])
        assert all(token in left for token in kept), "the pieces are in order"
        lost = len(expected) + 1 - len(kept) - 4 * pieces[0].left_out
        # A piece that is left out has at most one token of text, and begins where a part does not fit.
        assert 0 <= lost <= len(parts) + 1
    for piece in pieces:
        assert 0 < len(piece.input_ids) <= length
        assert piece.learned.any()
        assert max_images is None or len(piece.images) <= max_images
        assert (piece.input_ids == PROCESSOR.image_token_id).sum() == 4 * len(piece.images)
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)


def test_text_that_spells_a_special_token_stays_text():
    (piece,) = encode("an <image> and <eos>", kind="text")
    assert PROCESSOR.image_token_id not in piece.input_ids
    assert (piece.input_ids == EOS).sum() == 1 and piece.input_ids[-1] == EOS
    assert PROCESSOR.tokenizer.decode(piece.input_ids[:-1]) == "an <image> and <eos>"


def test_a_caption_is_not_cut():
    assert len(encode(IMAGE, "w" * 59, kind="caption")) == 1
    refused = encode(IMAGE, "w" * 60, kind="caption")
    assert isinstance(refused, Unusable) and refused.reason == "caption longer than a row"
    refused = encode(IMAGE, IMAGE, "two", kind="caption", max_images=1)
    assert refused.reason == "caption longer than a row"


def test_an_image_longer_than_a_row_is_refused():
    split = tiny_mm1()[1]
    split.image_processor.image_splitting = "dynamic"
    (refused,) = ExampleEncoder(split, 16).encode([Document("interleaved", ("a", IMAGE), "a document")])
    assert isinstance(refused, Unusable) and refused.reason == "image longer than a row"


def test_a_broken_image_is_found_before_and_when_it_is_decoded():
    assert encode("a", ImagePart(b"no image")).reason == "corrupt image"
    assert encode("a", ImagePart("/nowhere.png")).reason == "missing file"


@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize("indicators", ["none", "index", "seps"])
def test_tokens_and_tiles_are_those_of_the_processor(images, indicators):
    """Also of a document whose images are split over two rows: how they are cut is decided by the whole document."""
    processor = tiny_mm1()[1]
    processor.image_processor.image_splitting = "dynamic"
    processor.image_processor.indicators = indicators
    pictures = [Image.new("RGB", (100 + 30 * index, 80), (9 * index, 50, 200)) for index in range(images)]
    document = Document("interleaved", tuple(part for picture in pictures for part in (ImagePart(picture), "so")), "a")
    expected = processor(text="<image>so" * images, images=[pictures], return_tensors="np")
    for length in (4096, 80):
        own = ExampleEncoder(processor, length)
        (pieces,) = own.encode([document])
        assert len(pieces) == 1 or length == 80
        ids = np.concatenate([piece.input_ids for piece in pieces])
        assert ids[:-1].tolist() == expected["input_ids"][0].tolist()
        tiles = np.concatenate([own.pixel_values(piece) for piece in pieces if piece.images])
        np.testing.assert_array_equal(tiles, expected["pixel_values"])


def test_a_row_that_cannot_hold_an_image_is_refused():
    with pytest.raises(ValueError, match="cannot hold one image of 4 tokens"):
        encoder(length=5)
    with pytest.raises(ValueError, match="max_images is 0"):
        encoder(max_images=0)


def test_images_without_text_in_their_row_are_left_out_and_counted():
    pieces = encode("before", *[IMAGE] * 12, "after", length=4096, max_images=4)
    assert [len(piece.images) for piece in pieces] == [4, 4]
    assert [piece.left_out for piece in pieces] == [4, 0] and [piece.begins for piece in pieces] == [True, False]
    pieces = encode(*[IMAGE] * 12, "after", length=4096, max_images=4)
    assert [(len(piece.images), piece.left_out, piece.begins) for piece in pieces] == [(4, 8, True)]


def test_no_document_takes_another_with_it():
    """Halves of characters, which no tokenizer can read, and errors of any type of a tokenizer that reads many at once."""
    good = Document("text", ("good",), "good")
    documents = [good, Document("text", ("half \ud83d",), "half"), good]
    found = encoder().encode(documents)
    assert [isinstance(each, Unusable) for each in found] == [False, True, False]
    assert (
        found[1].reason == "text is not valid Unicode" and "half: character 5 of a text is \\ud83d" in found[1].detail
    )
    assert found[0][0].input_ids.tolist() == found[2][0].input_ids.tolist()


class PanicException(BaseException):
    """As pyo3 raises it."""


@pytest.mark.parametrize("error", [TypeError, MemoryError, RecursionError, OverflowError, PanicException])
def test_whatever_a_tokenizer_raises_is_the_document_s_reason(error, monkeypatch):
    own = encoder()
    tokenize = own._tokenize

    def raising(texts):
        if any("bad" in text for text in texts):
            raise error("no")
        return tokenize(texts)

    monkeypatch.setattr(own, "_tokenize", raising)
    documents = [Document("text", (text,), text) for text in ("a", "bad", "b", "c", "bad", "d")]
    found = own.encode(documents)
    assert [isinstance(each, Unusable) for each in found] == [False, True, False, False, True, False]
    assert str(found[1]) == f"unreadable record ({error.__name__}): bad: no"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_run_can_be_stopped_inside_of_a_record(error, monkeypatch):
    own = encoder()

    def raising(texts):
        raise error

    monkeypatch.setattr(own, "_tokenize", raising)
    with pytest.raises(error):
        own.encode([Document("text", ("a",), "a")])


def test_pixels_of_another_size_than_the_placeholders_are_refused():
    class Growing(ImagePart):
        def load(self):
            return Image.new("RGB", (112, 40))

    (piece,) = encode("a", Growing(IMAGE.source))
    with pytest.raises(
        Unusable, match=r"image of another size: a document: an image has 40 x 112 pixels .* said 40 x 56"
    ):
        encoder().pixel_values(piece)


def test_an_error_of_the_image_processor_is_the_example_s_reason(monkeypatch):
    own = encoder()
    (piece,) = own.encode([Document("interleaved", ("a", IMAGE), "a document")])[0]
    monkeypatch.setattr(own.processor.image_processor, "_samples", lambda images: 1 / 0)
    with pytest.raises(Unusable, match=r"unreadable record \(ZeroDivisionError\)"):
        own.pixel_values(piece)
