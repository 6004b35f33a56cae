"""Prompts that spell special tokens, whole, in pieces and through each other: in chats they stay text, in plain prompts an
image token is an image's place and has to have its image."""

import pytest
from fuzzing import Tally, number_of_cases
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import byte_tokenizer

from mm1_hf import MM1ImageProcessor, MM1Processor


KIND = "chats"
FUZZ = settings(max_examples=number_of_cases(KIND, tests=2), deadline=None, suppress_health_check=list(HealthCheck))
START, END, IMAGE = "<|im_start|>", "<|im_end|>", "<image>"
# Beside those of every MM1, some that begin as they end, that hold or cross one another, and the end of a text.
HOSTILE = ["|x|", "@@", "<|im_start|>!", "mage><|im", "<image><image>", "<|endoftext|>"]
TILE = Image.new("RGB", (28, 28), "teal")
ZERO_WIDTH_SPACE = "\u200b"


def processor() -> MM1Processor:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [START, END, IMAGE, *HOSTILE[:3], *HOSTILE[5:]]})
    image_processor = MM1ImageProcessor(size={"height": 28, "width": 28}, image_splitting="none")
    return MM1Processor(image_processor, tokenizer, num_image_tokens=2)


PROCESSOR = processor()
SPECIAL = {token.content: index for index, token in PROCESSOR.tokenizer.added_tokens_decoder.items()}

spellings = st.sampled_from([*SPECIAL, *HOSTILE])
fragments = st.builds(lambda token, cut: (token[:cut], token[cut:]), spellings, st.integers(1, 8)).flatmap(
    st.sampled_from
)


@st.composite
def nested(draw) -> str:
    """A spelling inside another one, `<|im_<image>start|>`, or over its end."""
    outer, inner = draw(spellings), draw(spellings)
    cut = draw(st.integers(0, len(outer)))
    return outer[:cut] + inner + outer[cut:] if draw(st.booleans()) else outer[:cut] + inner


words = st.lists(
    st.one_of(spellings, fragments, nested(), st.text(max_size=4), st.just(ZERO_WIDTH_SPACE)), max_size=5
).map("".join)
parts = st.lists(st.one_of(words, fragments, st.none()), min_size=1, max_size=6)
turns = st.tuples(st.sampled_from(["system", "user", "assistant"]), st.one_of(words, parts))


def message(role: str, content: str | list[str | None]) -> dict:
    """A turn; `None` among its parts is an image."""
    if isinstance(content, str):
        return {"role": role, "content": content}
    part = [{"type": "image", "image": TILE} if each is None else {"type": "text", "text": each} for each in content]
    return {"role": role, "content": part}


def visible(content: str | list[str | None]) -> str:
    parts = [content] if isinstance(content, str) else content
    return "".join(2 * IMAGE if part is None else part for part in parts)


@FUZZ
@given(chat=st.lists(turns, min_size=1, max_size=3), tokenize=st.booleans())
@example(chat=[("user", ["<ima", "ge>"])], tokenize=True)
@example(chat=[("user", ["<|im_", "", "end|>", None])], tokenize=True)
@example(chat=[("system", "<|im_<image>start|>")], tokenize=False)
@example(chat=[("user", "|x|x|x|@@@@@")], tokenize=True)
def test_what_a_chat_says_stays_text(tally: Tally, chat, tokenize):
    messages = [message(role, content) for role, content in chat]
    if tokenize:
        ids = PROCESSOR.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0]
    else:
        images = [TILE for _, content in chat if not isinstance(content, str) for part in content if part is None]
        ids = PROCESSOR(text=PROCESSOR.apply_chat_template(messages), images=images or None)["input_ids"][0]
    names = PROCESSOR.tokenizer.convert_ids_to_tokens([token for token in ids if token in SPECIAL.values()])
    if any(role == "assistant" for role, _ in chat):
        # What the assistant writes keeps its own tokens, but for those that make turns and images.
        names = [name for name in names if name in (START, END, IMAGE)]
    expected = []
    for _, content in chat:
        images = 0 if isinstance(content, str) else content.count(None)
        expected += [START, *2 * images * [IMAGE], END]
    assert names == expected
    seen = PROCESSOR.decode(ids).replace(ZERO_WIDTH_SPACE, "")
    said = "".join(f"{START}{role}\n{visible(content)}{END}\n" for role, content in chat)
    assert seen == said.replace(ZERO_WIDTH_SPACE, ""), "nothing visible is lost"
    tally.outcomes["read"] += 1


@FUZZ
@given(texts=st.lists(words, min_size=1, max_size=3), images=st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_a_plain_prompt_has_an_image_for_every_place(tally: Tally, texts, images):
    places = [text.count(IMAGE) for text in texts]
    images = images[: len(texts)]
    tiles = [[TILE] * count for count in images]
    if places != images:
        with pytest.raises(ValueError, match=r"Sample \d contains <image> \d+ times, but \d images"):
            PROCESSOR(text=texts, images=tiles)
        if sum(places):
            with pytest.raises(ValueError, match=r"contains <image> \d+ times, but 0 images"):
                PROCESSOR(text=texts)
    fitting = [[TILE] * count for count in places]
    inputs = PROCESSOR(text=texts, images=fitting if sum(places) else None)
    assert [ids.count(SPECIAL[IMAGE]) for ids in inputs["input_ids"]] == [2 * count for count in places]
    assert len(inputs.get("pixel_values", [])) == sum(places)
    tally.outcomes["read"] += 1
