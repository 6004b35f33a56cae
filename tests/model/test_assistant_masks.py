"""The assistant's tokens, found without transformers' help, against what it finds itself since 5.18."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.model import processing_mm1
from mm1_hf.model.assistant_masks import assistant_mask


IMAGE = {"type": "image", "image": Image.new("RGB", (56, 56), "teal")}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


CHATS = {
    "images around": [
        {"role": "user", "content": [IMAGE, text("What?"), IMAGE]},
        {"role": "assistant", "content": [text("Teal.")]},
    ],
    "several turns": [
        {"role": "user", "content": [text("Hi")]},
        {"role": "assistant", "content": [text("Hello, you.")]},
        {"role": "user", "content": [IMAGE, text("And?")]},
        {"role": "assistant", "content": [text("Teal")]},
    ],
    "no images": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
    "no answer": [{"role": "user", "content": [IMAGE, text("What?")]}],
}


@pytest.fixture(scope="module")
def processor():
    return tiny_mm1()[1]


def apply(processor, chats, monkeypatch, own: bool, **settings):
    monkeypatch.setattr(processing_mm1, "ALIGNS_ASSISTANT_MASKS", not own)
    return processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **settings
    )


@pytest.mark.parametrize("name", CHATS)
def test_the_marked_tokens_spell_what_the_assistant_says(name, processor, monkeypatch):
    inputs = apply(processor, CHATS[name], monkeypatch, own=True, return_tensors="pt")
    marked = inputs["input_ids"][0][inputs["assistant_masks"][0].bool()]
    said = [turn["content"] for turn in CHATS[name] if turn["role"] == "assistant"]
    said = [words if isinstance(words, str) else words[0]["text"] for words in said]
    assert processor.decode(marked) == "".join(f"{words}<|im_end|>" for words in said)


@pytest.mark.skipif(not processing_mm1.ALIGNS_ASSISTANT_MASKS, reason="this transformers gives other tokens")
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_has_the_masks_that_transformers_gives(side, processor, monkeypatch):
    padded = {"return_tensors": "pt", "processor_kwargs": {"padding": True, "padding_side": side}}
    own, theirs = (apply(processor, list(CHATS.values()), monkeypatch, which, **padded) for which in (True, False))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    # And so it does unpadded, as lists.
    own, theirs = (apply(processor, list(CHATS.values()), monkeypatch, which) for which in (True, False))
    assert own["assistant_masks"] == theirs["assistant_masks"] and own["input_ids"] == theirs["input_ids"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 6)), min_size=1, max_size=8))
def test_characters_move_by_what_was_written_out_before_them(parts):
    """Words, some of them the assistant's, with placeholders between that grow; one token a character."""
    spans, replacements, expected, old, new = [], [], [], 0, 0
    for length, is_assistant, grown in parts:
        if is_assistant:
            spans.append((old, old + length))
        expected += [int(is_assistant)] * length
        old, new = old + length, new + length
        replacements.append({"span": (old, old + 1), "new_span": (new, new + grown + 1)})
        expected += [0] * (grown + 1)
        old, new = old + 1, new + grown + 1
    offsets = [(0, 0), *((place, place + 1) for place in range(new)), (0, 0)]
    assert assistant_mask(spans, offsets, replacements) == [0, *expected, 0]
