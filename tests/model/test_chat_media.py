"""The processor refuses chats that hold something without a place in the prompt."""

from pathlib import Path

import numpy as np
import pytest
from conversations import user
from PIL import Image
from tiny import tiny_mm1


RED = Image.new("RGB", (56, 56), "red")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
WITHOUT_TOOLS = "{% for message in messages %}{{ message.role }}{% endfor %}"


@pytest.fixture
def processor():
    return tiny_mm1()[1]


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{**user("q"), "images": [RED]}], "Message 0 of the chat has images beside its content"),
        ([user("q"), {**user("q"), "audio": {"id": "a"}}], "Message 1 of the chat has audio beside"),
        ([user([{"type": "text", "text": "q", "image": RED}])], "of the type 'text' with type, text, image"),
        ([user([{"type": "text", "text": "q", "video": "a.mp4"}])], "of the type 'text' with type, text, video"),
        ([user([{"type": "image", "image": RED, "url": "a.png"}])], "of the type 'image' with type, image, url"),
        ([user([{"type": "image", "image": RED, "text": "q"}])], "of the type 'image' with type, image, text"),
        ([user([{"type": "image_url", "image_url": "a.png", "text": "q"}])], "of the type 'image_url'"),
        ([user(["q"])], "has the part 'q'"),
        ([user([{"text": "q"}])], "a dictionary with a 'type'"),
    ],
)
def test_what_would_be_lost_is_refused(chat, message, processor):
    for conversation in (chat, [chat], [[user("q")], chat]):
        for tokenize in (False, True):
            with pytest.raises(ValueError, match=message):
                processor.apply_chat_template(conversation, tokenize=tokenize)


def test_empty_entries_hold_nothing(processor):
    parts = [{"type": "text", "text": "q", "image": None, "url": ""}, {"type": "image", "image": RED, "text": None}]
    rendered = processor.apply_chat_template([{**user(parts), "images": [], "audio": None}])
    assert rendered == processor.apply_chat_template([user([{"type": "text", "text": "q"}, {"type": "image"}])])


def test_tools_that_the_template_does_not_write_are_refused(processor):
    call = {"role": "assistant", "content": "", "tool_calls": [TOOL]}
    for arguments in ({"tools": [TOOL]}, {}):
        chat = [user("q")] if arguments else [user("q"), call]
        with pytest.raises(ValueError, match=r"tool(s|_calls), but the chat template does not write them"):
            processor.apply_chat_template(chat, WITHOUT_TOOLS, **arguments)
        assert "weather" in processor.apply_chat_template(chat, **arguments)


@pytest.mark.parametrize("media", [{"videos": [np.zeros((2, 3, 56, 56), np.uint8)]}, {"audio": [np.zeros(9)]}])
def test_other_media_are_refused(media, processor):
    with pytest.raises(ValueError, match=f"was given {next(iter(media))}"):
        processor(text="q", **media)


def test_empty_lists_of_other_media_are_none(processor):
    """lmms-eval passes them to models of all kinds."""
    assert dict(processor(text="q", videos=[], audio=[])) == dict(processor(text="q"))


CALLS = [TOOL | {"function": {"name": "weather", "arguments": {"city": "Köln", "days": [1, 2]}}}]
CONVERSATIONS = {
    "no tools": [user("q"), {"role": "assistant", "content": "a"}, user("q2"), {"role": "assistant", "content": "b"}],
    "system": [{"role": "system", "content": "Be kind."}, user("q"), {"role": "assistant", "content": "a"}],
    "one call": [user("q"), {"role": "assistant", "content": "", "tool_calls": CALLS}],
    "a text and two calls": [user("q"), {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS * 2}],
    "answers": [
        user("q"),
        {"role": "assistant", "content": "", "tool_calls": CALLS * 2},
        {"role": "tool", "content": "dry"},
        {"role": "tool", "content": "wet"},
        {"role": "assistant", "content": "Both."},
        user("q2"),
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "content": "dry"},
    ],
}


@pytest.mark.parametrize("tools", [None, [TOOL], [TOOL, TOOL]])
@pytest.mark.parametrize("chat", CONVERSATIONS)
def test_tools_are_written_as_qwens_template_writes_them(chat, tools, processor):
    trl = pytest.importorskip("trl")
    qwen = Path(trl.__file__).parent / "chat_templates" / "qwen3_instruct_2507.jinja"
    if not qwen.exists():
        pytest.skip("this release of TRL has no template of Qwen")
    for prompt in (False, True):
        own = processor.apply_chat_template(CONVERSATIONS[chat], tools=tools, add_generation_prompt=prompt)
        theirs = processor.apply_chat_template(
            CONVERSATIONS[chat], qwen.read_text(encoding="utf-8"), tools=tools, add_generation_prompt=prompt
        )
        assert own == theirs
