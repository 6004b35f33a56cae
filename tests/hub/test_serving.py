"""`mm1 serve` answers OpenAI's own client, rightly, and loses nothing when many ask at once."""

import base64
import contextlib
import http.client
import inspect
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from openai import BadRequestError, OpenAI
from PIL import Image
from tiny import tiny_mm1

from mm1_command.parser import build_parser
from mm1_hf.data.collation import MM1Collator


COLOURS = ("red", "green", "blue")


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def question(*colours: str) -> list[dict]:
    """As OpenAI's API has it."""
    content: list[dict] = []
    for colour in colours:
        file = io.BytesIO()
        picture(colour).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return [{"role": "user", "content": [*content, {"type": "text", "text": "Colour?" if colours else "Hi!"}]}]


# What the served model has learned by heart.
LESSONS = (
    [((), "ahoy")]
    + [((colour,), colour) for colour in COLOURS]
    + [(pair, " ".join(pair)) for pair in (("red", "blue"), ("blue", "red"), ("green", "red"))]
)


def taught():
    model, processor = tiny_mm1()
    rows = []
    for colours, answer in LESSONS:
        parts = [{"type": "image"}] * len(colours) + [{"type": "text", "text": "Colour?" if colours else "Hi!"}]
        messages = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        rows.append({"messages": messages, "images": [picture(colour) for colour in colours]})
    batch = MM1Collator(processor)(rows)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05
    return model.eval(), processor


def is_up(port: int) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://localhost:{port}/health").status == 200
    return False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """OpenAI's client of a running server, and the model's name."""
    folder = tmp_path_factory.mktemp("serve") / "model"
    for part in taught():
        part.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder.parent / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mm1_command", "serve", str(folder), "--port", str(port), "--device", "cpu"],
            stdout=output,
            stderr=subprocess.STDOUT,
            # As for a user who has loaded nothing from the Hub: its cache does not exist.
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_CACHE": str(folder.parent / "cache")},
        )
    client = OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0, timeout=300)
    try:
        while not is_up(port):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield client, str(folder)
    finally:
        process.terminate()
        process.wait(60)


def ask(served, *colours: str, **options):
    client, name = served
    return client.chat.completions.create(
        model=name, messages=question(*colours), max_tokens=16, temperature=0, **options
    )


@pytest.mark.parametrize(("colours", "answer"), LESSONS)
def test_it_answers_rightly(colours, answer, served):
    given = ask(served, *colours)
    assert given.choices[0].message.content == answer
    assert given.choices[0].finish_reason == "stop"
    # Image tokens count as the prompt's.
    assert given.usage.prompt_tokens > 4 * len(colours)


@pytest.mark.parametrize(("colours", "answer"), LESSONS[:2] + LESSONS[-1:])
def test_it_streams(colours, answer, served):
    pieces = [chunk.choices[0].delta.content for chunk in ask(served, *colours, stream=True) if chunk.choices]
    assert "".join(filter(None, pieces)) == answer
    assert sum(map(bool, pieces)) > 1


def test_fifty_at_once_all_get_their_own_answer(served):
    asked = [LESSONS[number % len(LESSONS)] for number in range(50)]
    with ThreadPoolExecutor(len(asked)) as pool:
        given = list(pool.map(lambda lesson: ask(served, *lesson[0]).choices[0].message.content, asked))
    assert given == [answer for _, answer in asked]


def test_it_lists_the_model_by_a_name_that_it_answers_to(served):
    client, path = served
    (listed,) = client.models.list()
    # Clients are not told where on the disk it lies.
    assert listed.id == os.path.basename(path)
    for name in (listed.id, path):
        assert ask((client, name), "red").choices[0].message.content == "red"
    with pytest.raises(BadRequestError):
        ask((client, "another"), "red")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{base64.b64encode(b'no image').decode()}",
        "nowhere.png",
        __file__,
        f"file://{__file__}",
        "http://127.0.0.1/picture.png",
    ],
)
def test_a_broken_picture_is_refused_with_the_reason(url, stream, served):
    client, name = served
    messages = question("red")
    messages[0]["content"][0]["image_url"]["url"] = url
    with pytest.raises(BadRequestError, match="Image 0 of the request cannot be read: ") as refused:
        client.chat.completions.create(model=name, messages=messages, stream=stream)
    assert refused.value.type == "invalid_request_error"
    assert ask(served, "red").choices[0].message.content == "red"


def send(served, path: str, body: Any, method: str = "POST", **headers: str) -> tuple[int, str]:
    """The status and the reason of an answer; a body of bytes is sent as it is."""
    client, _ = served
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, sent)
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, json.loads(read)["error"]["message"] if answer.status >= 400 else ""


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": None}, "`messages` must be a list"),
        ({"messages": ["Hi!"]}, "messages[0] must be a message"),
        ({"messages": [{"role": "wizard", "content": "Hi!"}]}, "messages[0].role is 'wizard'"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "has the type 'video_url'"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "not valid Unicode"),
        ({"messages": [{"role": "user", "content": "word " * 900}]}, "tokens at most"),
        ({"temperature": "hot"}, "`temperature` is 'hot'"),
        ({"stop": [5]}, "`stop` must be"),
        ({"logit_bias": {"99999": 1}}, "the model has"),
        ({"chat_template_kwargs": {"images": [__file__]}}, "no variable 'images'"),
        ({"generation_config": '{"num_return_sequences": 9}'}, "clients must not set"),
        ({"surprise": 1}, "Unexpected fields"),
        ({"model": "another"}, "alone, not 'another'"),
    ],
)
def test_what_is_the_clients_fault_is_told_to_the_client(changes, reason, stream, served):
    request = {"model": served[1], "messages": question(), "max_tokens": 4, "stream": stream}
    status, message = send(served, CHAT, request | changes)
    assert status == 400 and reason in message


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"[1]", b'{"a": "\xff"}', b"1" * 10_000])
def test_a_body_that_is_no_request_is_refused(body, served):
    assert send(served, CHAT, body)[0] == 400


def test_other_endpoints_check_their_requests_too(served):
    file = [{"type": "input_image", "image_url": __file__}]
    assert "Files of the server are not read" in send(served, "/v1/responses", {"input": file})[1]
    assert send(served, "/v1/completions", {"prompt": "<image>", "stream": True})[0] == 400
    assert send(served, "/load_model", {"model": "another"})[0] == 400
    assert send(served, "/load_model", {"model": os.path.basename(served[1])})[0] == 200
    assert send(served, "/nowhere", {})[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Encoding": "gzip"}, 415),
        ({"Origin": "http://example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Host": "example.com"}, 403),
        ({"Host": "localhost.example.com"}, 403),
        ({"Host": "[::"}, 403),
    ],
)
def test_web_pages_cannot_change_anything(headers, status, served):
    assert send(served, "/reset", {}, **headers)[0] == status
    assert send(served, CHAT, {"messages": question()}, **headers)[0] == status


def test_a_page_cannot_read_through_a_name_of_its_own(served):
    assert send(served, "/v1/models", b"", method="GET", Host="example.com")[0] == 403
    assert send(served, "/v1/models", b"", method="GET")[0] == 200


def test_slow_clients_do_not_keep_others_waiting(served):
    """Neither one that sends its request slowly, nor one that does not read its answer."""
    client, _ = served
    waiting = []
    for _ in range(40):
        waiting.append(socket.create_connection((client.base_url.host, client.base_url.port)))
        waiting[-1].send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
    assert ask(served, "red").choices[0].message.content == "red"
    for connection in waiting:
        connection.close()
    assert is_up(client.base_url.port)


def test_stop_ends_an_answer(served):
    given = ask(served, "red", "blue", stop=["d"])
    assert given.choices[0].message.content.startswith("red") and "blue" not in given.choices[0].message.content


@pytest.mark.parametrize("verb", ["serve", "chat"])
def test_the_help_names_options_that_there_are(verb):
    from transformers.cli.chat import Chat
    from transformers.cli.serve import Serve

    taken = inspect.signature({"serve": Serve, "chat": Chat}[verb].__init__).parameters
    (verbs,) = (action for action in build_parser()._actions if action.dest == "verb")
    named = re.findall(r"^ +--([a-z-]+)", verbs.choices[verb].epilog, re.MULTILINE)
    assert {name.replace("-", "_") for name in named} <= set(taken)
    assert bool(named) == (verb == "serve")


@pytest.mark.slow
def test_mm1_chat_talks_to_it(served):
    client, name = served
    command = [
        sys.executable,
        "-m",
        "mm1_command",
        "chat",
        name,
        str(client.base_url),
        "do_sample=False",
        "max_new_tokens=8",
    ]
    # It asks the server through huggingface_hub, which offline asks nobody.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    result = subprocess.run(command, input="Hi!\n!exit\n", capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "ahoy" in result.stdout
