"""Broken bodies of HTTP requests to `mm1 serve`: a request that can be answered, or a `ValueError` with the reason."""

import asyncio
import base64
import io
import json
import random

import pytest
from fuzzing import PARTS, Tally, mutate, mutate_json, number_of_cases
from PIL import Image

from mm1_hf.hub.client_requests import check_chat, check_completion, check_response
from mm1_hf.hub.server_guard import Guard
from mm1_hf.model.processing_mm1 import CHAT_TEMPLATE


KIND = "bodies"
_FILE = io.BytesIO()
Image.new("RGB", (9, 7), "teal").save(_FILE, "PNG")
IMAGE = "data:image/png;base64," + base64.b64encode(_FILE.getvalue()).decode()
TURNS = [
    {"role": "system", "content": "Be kind."},
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "What?"}],
    },
    {"role": "assistant", "content": "A bus."},
    {"role": "user", "content": "Why?"},
]
SAMPLING = {
    "model": "mm1",
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 8,
    "stop": ["x"],
    "seed": 1,
    "stream": False,
}
RESPONSE_PARTS = [{"type": "input_text", "text": "Hi"}, {"type": "input_image", "image_url": IMAGE}]
WHOLE = {
    check_chat: {**SAMPLING, "messages": TURNS},
    check_completion: {**SAMPLING, "prompt": "Once"},
    check_response: {
        "model": "mm1",
        "instructions": "Be kind.",
        "max_output_tokens": 8,
        "input": [{"role": "user", "content": RESPONSE_PARTS}],
    },
}

ODD = (b"[" * 100_000, b"{}", b"[]", b"null", b"5", b"", b'{"model": 5}')
EXTRA = (
    (),
    (b"origin", b"https://evil.example"),
    (b"content-encoding", b"gzip"),
    (b"host", b"[::1"),
    (b"sec-fetch-site", b"cross-site"),
)


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_requests(part, tally: Tally):
    for case in range(part, number_of_cases(KIND, tests=2), PARTS):
        draw = random.Random(case)
        check = draw.choice([*WHOLE])
        body = json.loads(json.dumps(WHOLE[check]))
        for _ in range(draw.randint(1, 3)):
            body = mutate_json(body, draw)
        if isinstance(body, dict):
            tally.run(f"case {case}, {check.__name__}", lambda own=body, use=check: use(own, CHAT_TEMPLATE))


@pytest.mark.parametrize("check", WHOLE)
def test_whole_requests(check):
    assert check(json.loads(json.dumps(WHOLE[check])), CHAT_TEMPLATE).body["model"] == "mm1"


async def application(scope, receive, send) -> None:
    """Parses the body, as the server's application does, and answers 200, or 422."""
    message = await receive()
    try:
        json.loads(message.get("body", b""))
        status = 200
    except (ValueError, RecursionError):
        status = 422
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def answer(draw: random.Random, guard: Guard) -> int:
    """The status of the answer to a broken request."""
    body = json.dumps(WHOLE[check_chat]).encode()
    body = mutate(body, draw) if draw.random() < 0.7 else draw.choice(ODD)
    cuts = sorted(draw.randrange(len(body) + 1) for _ in range(draw.randint(0, 3)))
    chunks = [body[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False
    if draw.random() < 0.1:
        messages.insert(draw.randrange(len(messages)), {"type": "http.disconnect"})
    headers = [(b"host", b"localhost:8000"), (b"content-type", b"application/json")]
    if draw.random() < 0.4:
        place = draw.randrange(2)
        headers[place] = (headers[place][0], mutate(headers[place][1], draw))
    headers += [header for header in [draw.choice(EXTRA)] if header]
    path = draw.choice(("/v1/chat/completions", "/load_model", "/reset", "/health", "/%00"))
    scope = {
        "type": "http",
        "method": draw.choice(("POST", "POST", "GET", "OPTIONS")),
        "path": path,
        "headers": headers,
    }
    sent: list[dict] = []

    async def receive() -> dict:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    async def one() -> None:
        await guard(scope, receive, send)

    asyncio.run(one())
    return next((message["status"] for message in sent if message["type"] == "http.response.start"), 0)


def check_model(name: object) -> str:
    if name != "mm1":
        raise ValueError("There is no such model.")
    return "mm1"


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_bodies(part, tally: Tally):
    for case in range(part, number_of_cases(KIND, tests=2), PARTS):
        draw = random.Random(case)
        guard = Guard(application, local=True, pages=False, check_model=check_model)
        status = tally.run(f"case {case}", lambda own=draw, use=guard: answer(own, use), ())
        # 0 is a client that went away.
        assert status in (0, 200, 400, 403, 413, 415, 422), f"case {case}"
        tally.outcomes["read"] -= 1
        tally.outcomes[f"status {status}" if status else "left"] += 1
