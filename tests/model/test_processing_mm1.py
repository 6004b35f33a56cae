import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_mm1
from transformers import AutoProcessor


MODEL, PROCESSOR = tiny_mm1()
RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 48), "blue")


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(words):
    return {"type": "text", "text": words}


IMAGE = {"type": "image"}


def count_image_tokens(inputs):
    return (torch.as_tensor(inputs["input_ids"]) == PROCESSOR.image_token_id).sum(-1).tolist()


def test_returns_what_the_model_takes_and_nothing_else():
    inputs = PROCESSOR(text="a<image>b", images=RED, return_tensors="pt")
    assert list(inputs) == ["input_ids", "attention_mask", "pixel_values"]
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert PROCESSOR.decode(inputs["input_ids"][0]) == "a" + "<image>" * 4 + "b"


def test_text_alone_needs_no_images():
    inputs = PROCESSOR(text=["ab", "c"], padding=True, return_tensors="pt")
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert inputs["attention_mask"].tolist() == [[1, 1], [0, 1]], "padding is on the left, for generation"


def test_token_type_ids_only_when_asked():
    inputs = PROCESSOR(text="a<image>b", images=RED, return_mm_token_type_ids=True)
    assert inputs["mm_token_type_ids"] == [[0, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize(
    "images",
    [[RED, BLUE, RED], [[RED], [], [BLUE, RED]], ([RED], [], [BLUE, RED]), [[RED], None, [BLUE, RED]]],
)
def test_flat_and_nested_images_land_in_the_same_places(images):
    texts = ["<image>x", "y", "<image><image>z"]
    inputs = PROCESSOR(text=texts, images=images, padding=True, return_tensors="pt")
    assert count_image_tokens(inputs) == [4, 0, 8]
    one_by_one = [
        PROCESSOR.image_processor([image], return_tensors="pt")["pixel_values"] for image in (RED, BLUE, RED)
    ]
    torch.testing.assert_close(inputs["pixel_values"], torch.cat(one_by_one), rtol=0, atol=0)


def test_fewer_than_three_images_of_a_sample_are_split():
    settings = {"image_splitting": "static", "return_tensors": "pt", "padding": True}
    inputs = PROCESSOR(text=["<image>" * 2, "<image>" * 3], images=[RED] * 5, **settings)
    assert count_image_tokens(inputs) == [2 * 5 * 4, 3 * 4]
    assert inputs["pixel_values"].shape[0] == 2 * 5 + 3


def test_indicators_stand_in_the_text():
    inputs = PROCESSOR(text="<image>?", images=RED, image_splitting="static", position_indicators="index")
    tile = "<image>" * 4
    expected = f"(0, 1, 1){tile}(0, 1, 2){tile}(0, 2, 1){tile}(0, 2, 2){tile}(0, 0, 0){tile}?"
    assert PROCESSOR.decode(inputs["input_ids"][0]) == expected


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        ("<image>", None, "Sample 0 contains <image> 1 times, but 0 images were given"),
        (["a", "<image>"], [[RED], [BLUE]], "Sample 0 contains <image> 0 times"),
        (["<image>", "<image>"], [[RED], []], "Sample 1 contains <image> 1 times"),
        (["<image>"], [RED, BLUE], "contain <image> 1 times .* but 2 images"),
        (["<image>"] * 2, [[RED], [BLUE], [RED]], "2 texts, but 3 lists of images"),
        (["a", 3], None, "text must be a string or a list of strings"),
        (None, None, "text, images or both"),
    ],
)
def test_what_does_not_match_is_refused_by_name(texts, images, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR(text=texts, images=images)


def test_truncation_never_cuts_an_image():
    kept = PROCESSOR(text="<image>abcdef", images=RED, truncation=True, max_length=6)
    assert len(kept["input_ids"][0]) == 6
    with pytest.raises(ValueError, match=r"Sample 1 has 10 tokens, 4 of them for images.*max_length=10 or more"):
        PROCESSOR(text=["<image>a", "abcdef<image>"], images=[RED, RED], truncation=True, max_length=8)


def test_chat_template_renders_chatml():
    chat = [
        {"role": "system", "content": "Be brief."},
        user(IMAGE, text("What is it?")),
        {"role": "assistant", "content": [text("Red.")]},
    ]
    rendered = PROCESSOR.apply_chat_template(chat, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<image>What is it?<|im_end|>\n"
        "<|im_start|>assistant\nRed.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_generation_marks_hold_what_the_assistant_writes():
    chat = [user({"type": "image", "image": RED}, text("q")), {"role": "assistant", "content": "Red."}]
    inputs = PROCESSOR.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    learned = inputs["input_ids"][inputs["assistant_masks"].bool()]
    assert PROCESSOR.decode(learned) == "Red.<|im_end|>"


def test_chats_of_a_batch_keep_their_images_apart():
    chats = [[user({"type": "image", "image": RED}, text("q"))], [user(text("q"))]]
    inputs = PROCESSOR.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
    assert count_image_tokens(inputs) == [4, 0]


def test_an_unknown_part_is_refused():
    with pytest.raises(Exception, match="'text' and 'image', not 'video'"):
        PROCESSOR.apply_chat_template([user({"type": "video"})])


SPECIAL = sorted(PROCESSOR.tokenizer.get_added_vocab(), key=len)


@settings(max_examples=100, deadline=None)
@given(
    role=st.sampled_from(["system", "user", "assistant"]),
    pieces=st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=5)), min_size=1, max_size=6),
    as_parts=st.booleans(),
    tokenize=st.booleans(),
)
def test_words_never_become_special_tokens(role, pieces, as_parts, tokenize):
    words = "".join(pieces)
    chat = [{"role": role, "content": [text(words)] if as_parts else words}]
    if tokenize:
        ids = PROCESSOR.apply_chat_template(chat, tokenize=True)[0]
    else:
        ids = PROCESSOR(text=PROCESSOR.apply_chat_template(chat))["input_ids"][0]
    special = [token for token in ids if token in PROCESSOR.tokenizer.added_tokens_decoder]
    assert PROCESSOR.tokenizer.convert_ids_to_tokens(special) == ["<|im_start|>", "<|im_end|>"]
    seen = PROCESSOR.decode(ids).replace("\u200b", "")
    assert seen == f"<|im_start|>{role}\n{words}<|im_end|>\n".replace("\u200b", ""), "nothing visible is lost"


def test_paths_and_urls_are_not_rewritten(tmp_path):
    path = tmp_path / "a<image>b.png"
    RED.save(path)
    inputs = PROCESSOR.apply_chat_template(
        [user({"type": "image", "path": str(path)})], tokenize=True, return_dict=True
    )
    assert count_image_tokens(inputs) == [4]


def test_survives_saving(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(PROCESSOR)
    assert (loaded.num_image_tokens, loaded.chat_template) == (4, PROCESSOR.chat_template)
    first, second = (processor(text="a<image>", images=BLUE, return_tensors="np") for processor in (PROCESSOR, loaded))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_tells_serving_engines_the_counts():
    counts = PROCESSOR._get_num_multimodal_tokens([(64, 64), (10_000, 10_000)], image_splitting="dynamic")
    assert counts.num_image_tokens == [20, 40]
    assert counts.num_image_patches == [5, 10]


def test_a_tokenizer_without_the_image_token_is_refused():
    from tiny import byte_tokenizer

    from mm1_hf import MM1Processor

    with pytest.raises(ValueError, match="does not know '<image>'"):
        MM1Processor(PROCESSOR.image_processor, byte_tokenizer())
