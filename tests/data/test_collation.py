import pytest
import torch
from PIL import Image
from tiny import tiny_mm1
from transformers import AutoProcessor

from mm1_hf.data.collation import IGNORED, MM1Collator


MODEL, PROCESSOR = tiny_mm1()
RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")


def collate(*examples, **settings):
    return MM1Collator(PROCESSOR, **settings)(list(examples))


def learned(batch, row=0):
    ids, labels = batch["input_ids"][row], batch["labels"][row]
    kept = labels != IGNORED
    assert torch.equal(labels[kept], ids[kept]), "a label is the token itself: the model shifts"
    return PROCESSOR.decode(ids[kept])


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture(autouse=True)
def tiles(request):
    PROCESSOR.image_processor.image_splitting = "static"
    PROCESSOR.image_processor.position_indicators = "index"


def test_only_the_assistant_is_learned():
    chat = [{"role": "system", "content": "s"}, user("q1"), assistant("a1"), user("q2"), assistant("a2")]
    assert learned(collate({"messages": chat, "images": [RED]})) == "a1<|im_end|>a2<|im_end|>"


def test_only_the_completion_is_learned():
    example = {"prompt": [user("q1"), assistant("a1"), user("q2")], "completion": [assistant("a2")], "images": [RED]}
    assert learned(collate(example, {"prompt": [user("q")], "completion": [assistant("a")]}), 0) == "a2<|im_end|>"


def test_text_is_learned_without_its_images_and_their_indicators():
    batch = collate({"text": "x<image>(1, 2) hello <image>you", "images": [RED, BLUE]})
    assert learned(batch) == "(1, 2) hello you", "the first token has nothing before it to be told from"


def test_rows_are_padded_on_the_right_and_padding_is_not_learned():
    batch = collate({"text": "abcdef"}, {"text": "xyz"})
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert (learned(batch, 0), learned(batch, 1)) == ("bcdef", "yz")


def test_a_processor_saved_after_training_still_pads_on_the_left(tmp_path):
    collate({"text": "abcdef"}, {"text": "xyz"})
    PROCESSOR.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded(text=["abc", "x"], padding=True)["attention_mask"][1] == [0, 0, 1]


def test_the_first_entry_has_the_batch_s_size():
    batch = collate({"text": "<image>ab", "images": [RED]}, {"text": "c<image>d", "images": [BLUE]})
    assert list(batch) == ["input_ids", "attention_mask", "labels", "pixel_values"]
    assert batch["pixel_values"].shape[0] == 10


def test_text_only_batches_have_no_pixels():
    assert "pixel_values" not in collate({"text": "ab"}, {"text": "cd", "images": []})


def test_images_go_to_their_places_in_order():
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    with_places = collate({"messages": [user(parts), assistant("a")], "images": [RED, BLUE]})
    without = collate({"messages": [user("and"), assistant("a")], "images": [RED, BLUE]})
    own = [{"type": "image", "image": RED}, {"type": "text", "text": "and"}, {"type": "image", "image": BLUE}]
    carried = collate({"messages": [user(own), assistant("a")]})
    assert torch.equal(with_places["pixel_values"], without["pixel_values"])
    assert torch.equal(with_places["pixel_values"], carried["pixel_values"])
    assert torch.equal(with_places["input_ids"], carried["input_ids"])
    assert "and" in PROCESSOR.decode(without["input_ids"][0]).rsplit("<image>", 1)[1], "before the first user's words"


def test_the_caller_s_examples_stay_as_they_are():
    example = {"messages": [user([{"type": "image"}, {"type": "text", "text": "q"}]), assistant("a")], "images": [RED]}
    collate(example)
    assert example["messages"][0]["content"][0] == {"type": "image"}


def test_a_batch_trains_the_model():
    batch = collate(
        {"messages": [user("q"), assistant("a")], "images": [RED]}, {"messages": [user("q"), assistant("b")]}
    )
    loss = MODEL.train()(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    MODEL.eval()


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"text": "a"}, {"messages": [user("q")]}], "mixes messages, text"),
        ([{"question": "a"}], "columns .'question'."),
        ([{"prompt": "a", "completion": "b"}], "must be chats"),
        ([{"messages": [user("q")]}], "Sample 0 of the batch has nothing to learn"),
        ([{"text": "ab"}, {"text": "a<image>", "images": [RED]}], "Sample 1 of the batch has nothing to learn"),
        ([{"text": "ab"}, {"text": "abcdefghi"}], "Sample 1 of the batch has 9 tokens, more than max_length=8"),
        ([{"text": "<image>a"}], "Sample 0 contains <image> 1 times, but 0 images"),
        ([{"messages": [assistant("a")], "images": [RED]}], "no user turn"),
        (
            [{"messages": [user([{"type": "image"}]), assistant("a")], "images": [RED, BLUE]}],
            "has 2 images, but its chat has 1 places",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(examples, message):
    with pytest.raises(ValueError, match=message):
        collate(*examples, max_length=8 if "max_length" in message else None)
