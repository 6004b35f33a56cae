"""The turns of conversations in every form: where their images go, what is trained on, and what is refused."""

import json

import pytest
import torch
from conversations import assistant, user
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import png
from PIL import Image
from tiny import tiny_mm1
from transformers import CLIPImageProcessor, LlavaProcessor

from mm1_hf.data.chats import read_conversation
from mm1_hf.data.collation import IGNORED, MM1Collator
from mm1_hf.data.documents import Unusable
from mm1_hf.data.examples import ChatEncoder
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.messages import read_messages


PROCESSOR = tiny_mm1()[1]
PROCESSOR.image_processor.image_splitting = "none"
SHADES = [Image.new("RGB", (56, 56), (40 * shade, 0, 0)) for shade in range(6)]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def trained(batch, row=0) -> str:
    ids, labels = batch["input_ids"][row], batch["labels"][row]
    return PROCESSOR.decode(ids[labels != IGNORED])


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<>[]"), max_size=6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_marks_are_the_places_that_parts_would_be(turns):
    """Each turn is a list of texts, with an image between every two of them."""
    marked, parts, images = [], [], []
    for texts in turns:
        content = [{"type": "text", "text": texts[0]}]
        for text in texts[1:]:
            content += [{"type": "image", "image": SHADES[len(images) % 6]}, {"type": "text", "text": text}]
            images.append(SHADES[len(images) % 6])
        marked += [user("<image>".join(texts)), assistant("yes")]
        parts += [user([part for part in content if part.get("text") != ""]), assistant("yes")]
    batch = MM1Collator(PROCESSOR)([{"messages": marked, "images": images}])
    # transformers' own way, with the images in the parts.
    expected = PROCESSOR.apply_chat_template(parts, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    if images:
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    ((example,),) = ChatEncoder(PROCESSOR, 4096).encode([LAYOUTS["chat"]({"messages": marked, "images": images}, "r")])
    assert example.input_ids.tolist() == batch["input_ids"][0].tolist()


@pytest.mark.parametrize(
    "questions",
    [
        ["<image>\nWhat is it?"],
        ["What is it?\n<image>"],
        ["First <image> then <image>.", "And <image>?"],
        ["Hello.", "And <image>?"],
    ],
)
def test_llavas_records_are_llavas_prompts(questions):
    """The record as LLaVA's own processor reads it: with its template, and its marks where the images go."""
    images = SHADES[: "".join(questions).count("<image>")]
    turns = [turn for question in questions for turn in (user(question), assistant("Yes."))]
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    )
    llava = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        PROCESSOR.tokenizer,
        patch_size=28,
        vision_feature_select_strategy="full",
        chat_template=template,
        num_additional_image_tokens=0,
    )
    expected = llava(images=images, text=llava.apply_chat_template(turns), return_tensors="pt")
    sharegpt = [{"from": {"user": "human"}.get(turn["role"], "gpt"), "value": turn["content"]} for turn in turns]
    assert PROCESSOR.num_image_tokens == 4, "as many tokens as LLaVA's 2 x 2 patches"
    for record in ({"messages": turns, "images": images}, {"conversations": sharegpt, "image": images}):
        batch = MM1Collator(PROCESSOR)([record])
        assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_images_are_placed_alike_packed_and_not():
    value = {"bytes": png(7), "path": None}
    record = {"messages": [user("See <image>?"), assistant("a")], "images": [value]}
    batch = MM1Collator(PROCESSOR)([record])
    encoder = ChatEncoder(PROCESSOR, 512)
    ((example,),) = encoder.encode([LAYOUTS["chat"](record, "r")])
    assert torch.equal(encoder.pixel_values(example), batch["pixel_values"])


@pytest.mark.parametrize(
    ("messages", "images", "reason"),
    [
        ([user("a <image> b")], 0, "mark without image: r has 0 images, but its user's texts have 1 marks"),
        ([user("a <image> b")], 2, "images cannot be placed: r has 2 images, but its user's texts have 1 marks"),
        ([user("a"), {"role": "system", "content": "<image>"}], 1, "the mark <image> in a text of the role system"),
        ([user("a <|image|> b")], 1, "the mark <|image|> in a text of the role user"),
        ([user("a <image 1> b")], 1, "the mark <image 1>"),
        ([user([{"type": "image"}, {"type": "text", "text": "<image>"}])], 1, "1 marks <image> and its parts 1 more"),
        ([user([{"type": "image", "image": SHADES[0]}, {"type": "text", "text": "<image>"}])], 0, "no part holds"),
        ([user([{"type": "image", "image": SHADES[0]}])], 1, "has 1 images, but its chat has 0 places"),
        ([user([{"type": "image", "index": 1}, {"type": "image", "index": 1}])], 2, r"indices of its image parts are"),
        ([user([{"type": "image", "image": SHADES[0], "url": "a.png"}])], 0, "holds several images, in image, url"),
        ([user([{"type": "image", "image": SHADES[0], "text": "q"}])], 0, "a part of the type 'image'"),
        ([user([{"type": "text", "text": "q", "image": SHADES[0]}])], 0, "a part of the type 'text'"),
        ([user([{"type": "image_url"}])], 0, "a part of the type image_url holds no image"),
        ([user([{"type": "video", "video": "a.mp4"}])], 0, "unread media: r: a part of the type 'video'"),
        ([user([{"type": "text", "text": "q", "audio": "a.wav"}])], 0, "unread media: .* audio"),
        ([user([{"type": "tool_use", "text": "q"}])], 0, "a part of the type 'tool_use'"),
        ([user([{"type": "text", "text": None}])], 0, "a part of the type 'text'"),
        ([user(["q"])], 0, "a part of a message is 'q'"),
        ([user([{"text": "q"}])], 0, "has no type"),
        ([user(None)], 0, "a message is"),
        ([user(5)], 0, "a message is"),
        ([{"content": "q"}], 0, "a message is"),
        ([{**user("q"), "images": ["a.png"]}], 0, "unread media: .*images"),
        ([user("q"), assistant(" \n")], 0, "empty assistant turn"),
        ([user("q"), assistant([])], 0, "empty assistant turn"),
        ([user("q"), assistant(None)], 0, "a message is"),
        ([user("q"), {**assistant(""), "tool_calls": [{"id": 1}]}], 0, "a tool call is"),
        ([user("q"), {**assistant("a"), "weight": 0.5}], 0, "the weights of its assistant turns are"),
        ([user("half \ud83d")], 0, "text is not valid Unicode"),
        ([], 0, "the list of messages is empty"),
        ("[", 0, "not JSON"),
    ],
)
def test_what_cannot_be_placed_or_read_is_refused(messages, images, reason):
    record = {"messages": messages, "images": SHADES[:images]}
    if isinstance(messages, list) and messages and messages[-1].get("role") != "assistant":
        record["messages"] = [*messages, assistant("a")]
    with pytest.raises(Unusable, match=reason.replace("|", r"\|")):
        LAYOUTS["chat"](record, "r")
    of_collator = reason.replace("r has", ".* has").replace("r:", ".*:").replace("|", r"\|")
    with pytest.raises(ValueError, match=of_collator):
        MM1Collator(PROCESSOR)([record])


def test_text_columns_have_marks_too():
    expected = MM1Collator(PROCESSOR)([{"text": "a <image> b", "images": SHADES[:1]}])
    assert PROCESSOR.num_image_tokens == int((expected["input_ids"] == PROCESSOR.image_token_id).sum())
    other = tiny_mm1()[1]
    other.tokenizer.add_special_tokens({"additional_special_tokens": ["<|pic|>"]})
    other.image_token, other.image_token_id = "<|pic|>", other.tokenizer.convert_tokens_to_ids("<|pic|>")
    other.chat_template = other.chat_template.replace("<image>", "<|pic|>")
    other.image_processor.image_splitting = "none"
    for record in ({"text": "a <image> b"}, {"messages": [user("a <image> b"), assistant("c")]}):
        batch = MM1Collator(other)([record | {"image": SHADES[0]}])
        assert int((batch["input_ids"] == other.image_token_id).sum()) == other.num_image_tokens
        with pytest.raises(ValueError, match=r"mark without image|1 times, but 0 images"):
            MM1Collator(other)([record])
    with pytest.raises(ValueError, match="unread media"):
        MM1Collator(PROCESSOR)([{"text": "a", "video": "b.mp4"}])


def test_the_parts_may_say_which_image_they_are():
    parts = [{"type": "image", "index": 1, "text": None}, {"type": "text", "index": None, "text": "or"}]
    record = {
        "messages": [user([*parts, {"type": "image", "index": 0}]), assistant("a")],
        "images": ["0.png", "1.png"],
    }
    assert [image.source for image in LAYOUTS["chat"](record, "r").images] == ["1.png", "0.png"]


def test_lists_of_messages_come_in_every_form():
    expected = read_messages([user("q"), assistant("a")], "r")
    struct = {"role": ["user", "assistant"], "content": ["q", "a"]}
    parts = [{"role": "human", "content": {"type": "text", "text": "q"}}, {"from": "GPT", "value": "a"}]
    for value in (
        json.dumps([user("q"), assistant("a")]),
        struct,
        parts,
        ({"role": "user", "content": "q"}, assistant("a")),
    ):
        assert read_messages(value, "r") == expected
    with pytest.raises(Unusable, match="different lengths"):
        read_messages({"role": ["user"], "content": []}, "r")


def test_several_conversations_in_one_record_are_refused():
    messages, turns = [user("q"), assistant("a")], [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    with pytest.raises(Unusable, match="several conversations: messages and conversations"):
        LAYOUTS["chat"]({"messages": messages, "conversations": turns}, "r")
    with pytest.raises(Unusable, match="several conversations: query and response and question and answer"):
        LAYOUTS["chat"]({"query": "q", "response": "a", "question": "q", "answer": "a"}, "r")
    beside = {"messages": messages, "question": "q", "answer": "other", "prompt": "q", "conversations": None}
    assert LAYOUTS["chat"](beside, "r").parts == ("q", "a")
    with pytest.raises(Unusable, match="both images and image hold images"):
        LAYOUTS["chat"]({"messages": messages, "images": ["a.png"], "image": "b.png"}, "r")


def test_a_pair_of_preferences_is_read_by_name_alone():
    shared = [user("q1"), assistant("a1"), user("q2")]
    record = {"chosen": [*shared, assistant("good")], "rejected": [*shared, assistant("bad")]}
    chat = LAYOUTS["preference"](record, "r")
    ((example,),) = ChatEncoder(PROCESSOR, 512).encode([chat])
    assert PROCESSOR.decode(example.input_ids[example.learned]) == "good<|im_end|>"
    for layout, message in (("chat", "choose the layout 'preference'"), ("alpaca", "no instruction and output")):
        with pytest.raises(Unusable, match=message):
            LAYOUTS[layout](record, "r")
    with pytest.raises(ValueError, match="choose the layout 'preference'"):
        MM1Collator(PROCESSOR)([record])
    with pytest.raises(Unusable, match="there is no prompt"):
        LAYOUTS["preference"]({"chosen": "a", "rejected": "b"}, "r")
    with pytest.raises(Unusable, match="was not wanted"):
        LAYOUTS["chat"]({"prompt": [user("q")], "completion": [assistant("a")], "label": False}, "r")


def test_first_turns_of_weight_0_are_not_trained_on():
    turns = [user("q"), {**assistant("draft"), "weight": 0}, user("q"), {**assistant("final"), "weight": 1}]
    assert trained(MM1Collator(PROCESSOR)([{"messages": turns}])) == "final<|im_end|>"


@pytest.mark.parametrize("choices", [{"choices": ["a", "b"]}, {"answer": ["a", "b"]}, {"answer": 3}])
def test_answers_are_not_guessed(choices):
    with pytest.raises(Unusable, match=r"choices|answer"):
        LAYOUTS["vqa"]({"question": "q", "answer": "a"} | choices, "r")


# Tools and reasoning


CALLING = [
    user("Rain?"),
    {**assistant(None), "tool_calls": [CALL]},
    {"role": "tool", "content": "dry"},
    assistant("No."),
]
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>'


def test_calls_of_tools_are_written_and_trained_on():
    batch = MM1Collator(PROCESSOR)([{"messages": CALLING, "tools": [TOOL]}])
    assert trained(batch) == f"{CALLED}No.<|im_end|>"
    text = PROCESSOR.decode(batch["input_ids"][0])
    # As the template of Qwen 2.5 writes it, but without its own system prompt.
    assert text.startswith("<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist")
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>\n\nFor each function call" in text
    assert "<|im_start|>user\n<tool_response>\ndry\n</tool_response><|im_end|>\n<|im_start|>assistant\nNo." in text
    ((example,),) = ChatEncoder(PROCESSOR, 2048).encode([LAYOUTS["chat"]({"messages": CALLING, "tools": [TOOL]}, "r")])
    assert example.input_ids.tolist() == batch["input_ids"][0].tolist()


@pytest.mark.parametrize(
    "call",
    [
        {"name": "weather", "arguments": {"city": "Köln"}},
        {"function": {"name": "weather", "arguments": '{"city": "Köln"}'}},
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "day": None}}},
    ],
)
def test_calls_come_in_every_form(call):
    with_calls = {**assistant(""), "tool_calls": [call]}
    legacy = {**assistant(None), "function_call": call.get("function", call)}
    turn = {"from": "function_call", "value": json.dumps(call)}
    for message in (with_calls, {**with_calls, "tool_calls": json.dumps([call])}, legacy, turn):
        batch = MM1Collator(PROCESSOR)([{"messages": [user("Rain?"), message]}])
        assert trained(batch) == CALLED


def test_chats_with_other_tools_share_a_batch():
    records = [
        {"messages": CALLING, "tools": json.dumps([TOOL]), "images": SHADES[:1]},
        {"messages": [user("q"), assistant("a")], "images": SHADES[1:3]},
        {"messages": CALLING, "tools": [{**TOOL, "extra": None}], "images": []},
    ]
    batch = MM1Collator(PROCESSOR)(records)
    alone = [MM1Collator(PROCESSOR)([record]) for record in records]
    for row, single in enumerate(alone):
        length = single["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, :length], single["input_ids"][0])
        assert torch.equal(batch["labels"][row, :length], single["labels"][0])
        assert not batch["attention_mask"][row, length:].any() and (batch["labels"][row, length:] == IGNORED).all()
    assert torch.equal(batch["pixel_values"], torch.cat([single["pixel_values"] for single in alone[:2]]))
    encoded = ChatEncoder(PROCESSOR, 2048).encode([LAYOUTS["chat"](record, "r") for record in records])
    for (example,), single in zip(encoded, alone, strict=True):
        assert example.input_ids.tolist() == single["input_ids"][0].tolist()


def test_reasoning_is_written_and_trained_on():
    for key in ("reasoning_content", "reasoning", "thinking"):
        batch = MM1Collator(PROCESSOR)([{"messages": [user("q"), {**assistant("a"), key: "Hm."}]}])
        assert trained(batch) == "<think>\nHm.\n</think>\n\na<|im_end|>"


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ({"messages": CALLING}, "tool_calls"),
        ({"messages": [user("q"), assistant("a")], "tools": [TOOL]}, "tools"),
        ({"messages": [user("q"), {**assistant("a"), "reasoning_content": "Hm."}]}, "reasoning_content"),
        ({"messages": [{**user("q"), "name": "Ann"}, assistant("a")]}, "name"),
        ({"messages": [user("q"), assistant("a")], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ],
)
def test_what_a_template_does_not_write_is_refused(said, lost):
    plain = tiny_mm1()[1]
    plain.chat_template = (
        "{% for message in messages %}{{ message.role }}: {% if message.role == 'assistant' %}{% generation %}"
        "{{ message.content[0].text }}{% endgeneration %}{% else %}{{ message.content[0].text }}{% endif %}{% endfor %}"
    )
    reason = f"not rendered by the chat template: .*{lost}"
    with pytest.raises(ValueError, match=reason):
        MM1Collator(plain)([said])
    with pytest.raises(Unusable, match=reason):
        (refused,) = ChatEncoder(plain, 512).encode([LAYOUTS["chat"](said, "r")])
        raise refused


def test_names_of_functions_are_not_names_of_speakers():
    named = [{**user("q"), "name": "Ann"}, assistant("a")]
    with pytest.raises(ValueError, match="not rendered by the chat template: name"):
        MM1Collator(PROCESSOR)([{"messages": named}])
    answer = {"role": "tool", "content": "dry", "name": "weather", "tool_call_id": "c1"}
    MM1Collator(PROCESSOR)([{"messages": [*CALLING[:2], answer, CALLING[3]]}])
    speaking = tiny_mm1()[1]
    speaking.chat_template = speaking.chat_template.replace("~ message.role ~", "~ (message.name or message.role) ~")
    ids = MM1Collator(speaking)([{"messages": named}])["input_ids"][0]
    assert speaking.decode(ids).startswith("<|im_start|>Ann\nq")


def test_whatever_is_wrong_with_an_example_is_a_value_error():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for example in (
        {"messages": deep},
        {"messages": [{"role": "user", "content": {1: deep}}]},
        {"images": deep, "text": "a"},
    ):
        with pytest.raises(ValueError, match="Sample 0"):
            MM1Collator(PROCESSOR)([example])


def test_the_keys_that_tables_add_say_nothing():
    empty = {"name": None, "tool_calls": None, "weight": None, "reasoning_content": "", "timestamp": 12, "id": "x"}
    chat = read_conversation({"messages": [user("q") | empty, assistant("a") | empty], "tools": None}, "r")
    assert all(message.keys() == {"role", "content"} for message in chat.messages) and chat.tools == []
