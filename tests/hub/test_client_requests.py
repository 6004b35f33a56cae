"""Whatever a client sends is a request that was found right, or a `ValueError` with the reason."""

import base64
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mm1_hf.hub import client_requests
from mm1_hf.hub.client_requests import (
    Checked,
    check_chat,
    check_completion,
    check_decision,
    check_response,
    model_check,
)
from mm1_hf.model.processing_mm1 import CHAT_TEMPLATE


def png(width: int = 4, height: int = 3) -> str:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def chat(content, **more):
    return {"messages": [{"role": "user", "content": content}], **more}


def images(*urls: str):
    return chat([{"type": "image_url", "image_url": {"url": url}} for url in urls])


def test_images_of_all_forms_become_data():
    content = [
        {"type": "image_url", "image_url": {"url": png(), "detail": "low"}},
        {"type": "input_image", "image_url": png().partition(",")[2]},
        {"type": "text", "text": "What?"},
    ]
    checked = check_chat(chat(content), CHAT_TEMPLATE)
    *pictures, text = checked.body["messages"][0]["content"]
    assert checked.pixels == 24 and text == {"type": "text", "text": "What?"}
    assert len({part["image_url"]["url"] for part in pictures}) == 1 and pictures[0]["type"] == "image_url"


def test_the_images_of_a_request_are_limited_together(monkeypatch):
    with pytest.raises(ValueError, match="more than 64,000,000 pixels together"):
        check_chat(images(png(5000, 5000), png(5000, 5000), png(5000, 5000)), None)
    with pytest.raises(ValueError, match="more than 32 images"):
        check_chat(images(*[png()] * 33), None)
    monkeypatch.setattr(client_requests, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(ValueError, match="more than 50 bytes together"):
        check_chat(images(png()), None)


@pytest.mark.parametrize(
    "name", [__file__, f"file://{__file__}", "../secret.png", "ftp://example.com/a.png", "//host/a"]
)
def test_no_file_is_read(name):
    for request, check in (
        (images(name), check_chat),
        ({"input": [{"type": "input_image", "image_url": name}]}, check_response),
    ):
        with pytest.raises(ValueError, match="Image 0 of the request cannot be read: "):
            check(request, None)
    with pytest.raises(ValueError, match="`assets` are not read"):
        check_decision({"state": "x", "assets": {"a": {"path": name}}}, None)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1", "0.0.0.0"]
)
def test_no_private_address_is_asked(host, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"Image 0 of the request cannot be read: .*is not public"):
        check_chat(images(f"http://{host}:9/a.png"), None)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"temperature": True}, "`temperature` is True"),
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"max_tokens": 1.5}, "whole number"),
        ({"seed": 10**30}, "`seed` is 1000"),
        ({"frequency_penalty": -1}, "`frequency_penalty` is -1"),
        ({"stream": "yes"}, "true or false"),
        ({"stop": ["a"] * 5}, "`stop` must be 1 to 4"),
        ({"logit_bias": {"x": 1}}, "'x' is not a token id"),
        ({"logit_bias": {"5": float("inf")}}, "that of token 5 is inf"),
        ({"generation_config": "{"}, "not valid JSON"),
        ({"generation_config": '{"num_beams": 1000}'}, "`generation_config.num_beams` is 1000"),
        ({"generation_config": '{"cache_implementation": "static"}'}, "clients must not set: 'cache_implementation'"),
        ({"generation_config": '{"eos_token_id": [-1]}'}, "must be a token id"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "no variable 'chat_template'"),
        ({"chat_template_kwargs": {"images": "/a.png"}}, "no variable 'images'"),
        ({"chat_template_kwargs": {"enable_thinking": [1]}}, "must be a text, a number"),
        ({"tools": [5]}, "`tools` must be a list"),
        ({"metadata": {"a": "\ud83d"}}, "not valid Unicode"),
        ({"metadata": {"a": float("nan")}}, "which JSON does not have"),
        ({"metadata": json.loads("[" * 100 + "]" * 100)}, "nested more than 64"),
        ({"metadata": [0] * 30_000}, "more than 20,000"),
        ({"metadata": "a" * 2_000_000}, "more than 1,000,000 characters"),
    ],
)
def test_settings_are_checked(settings, reason):
    with pytest.raises(ValueError, match=reason):
        check_chat(chat("Hi!", **settings), CHAT_TEMPLATE + "{{ enable_thinking }} {{ tools }}")


def test_what_transformers_would_not_take_is_rewritten():
    """Its biases must be floats, and its sampling divides by the temperature."""
    body = check_chat(chat("Hi!", logit_bias={"5": -100}, temperature=1e-300, stop="x"), None).body
    assert body["logit_bias"] == {"5": -100.0} and isinstance(body["logit_bias"]["5"], float)
    assert body["temperature"] == 0 and body["stop"] == ["x"]
    config = check_chat(chat("Hi!", generation_config='{"temperature": 0, "do_sample": true}'), None).body[
        "generation_config"
    ]
    assert json.loads(config) == {"temperature": 1.0, "do_sample": False}


def test_newer_names_of_roles_are_read():
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
    assert check_chat({"messages": messages}, "no such role").body["messages"][0]["role"] == "system"
    assert check_chat({"messages": messages}, "developer").body["messages"][0]["role"] == "developer"


def test_tools_are_refused_where_the_template_leaves_them_out():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert check_chat({"messages": [call], "tools": tools}, "tools tool_calls")
    with pytest.raises(ValueError, match="does not write calls"):
        check_chat({"messages": [call]}, "plain")
    with pytest.raises(ValueError, match="does not write tools"):
        check_chat(chat("Hi!", tools=tools), "plain")
    call["tool_calls"][0]["function"]["arguments"] = "[1]"
    with pytest.raises(ValueError, match="must be an object"):
        check_chat({"messages": [call]}, "tool_calls")


def test_only_the_served_model_is_named():
    check = model_check(["model", "/folder/model"], "/folder/model")
    assert check(None) == check("model") == "/folder/model"
    for name in ("other", 5, ["model"]):
        with pytest.raises(ValueError, match="serves 'model' alone"):
            check(name)


@pytest.mark.parametrize("name", [None, 5, "", "/etc", "../x", "a/b/c", "~/x", "a b", "user/\x1b[2J", "tests"])
def test_a_client_names_no_folder_of_the_server(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    check = model_check([], None)
    assert check("user/name@main") == "user/name@main"
    with pytest.raises(ValueError, match="`model` is"):
        check(name)


NAMES = """
messages input prompt instructions role content type text image_url url tool_calls function name arguments user system
assistant input_text input_image reasoning function_call call_id output temperature max_tokens stop seed logit_bias tools
generation_config chat_template_kwargs stream suffix assets [] {} 1
"""
WORDS = st.sampled_from([*NAMES.split(), "\ud83d"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=25,
)


@given(st.dictionaries(WORDS, ANYTHING, max_size=8), st.sampled_from([None, CHAT_TEMPLATE, "tools tool_calls"]))
def test_any_request_is_checked(body, template):
    for check in (check_chat, check_completion, check_response, check_decision):
        try:
            checked = check(body, template)
        except ValueError as error:
            assert str(error)
        else:
            assert isinstance(checked, Checked)
            json.dumps(checked.body, allow_nan=False).encode()
