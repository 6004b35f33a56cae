"""A model behind an endpoint, against a small server of this machine that fails in all ways."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from peers import picture
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.models import EndpointError, EndpointModel, MM1LocalModel, endpoint
from mm1_hf.evaluation.requests import Request, Turn


class Server(ThreadingHTTPServer):
    """Answers with the last text of the prompt, reversed. `act(handler, body)` may do something else and return true."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.paths, self.keys = [], [], []
        self.models = ["toy"]
        self.act = lambda handler, body: False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Broken connections are meant."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.paths.append(self.path)
            self.server.keys.append(self.headers.get("Authorization"))
        if self.server.act(self, body):
            return
        said = text_of(body)[::-1]
        chat = {"choices": [{"message": {"content": said}}]}
        self.reply(
            200, {"choices": [{"text": said}]} if self.path.endswith("/completions") and "prompt" in body else chat
        )

    def reply(self, status, value, headers=()):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers:
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def text_of(body) -> str:
    if "prompt" in body:
        return body["prompt"]
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def chat(text: str, *images, **settings) -> Request:
    return Request((Turn("user", (*images, text)),), **{"max_new_tokens": 8, **settings})


def test_requests_are_sent_as_chats_with_images_and_answered_in_order(server):
    jpeg = BytesIO()
    Image.new("RGB", (8, 6), "red").save(jpeg, "JPEG")
    images = [picture(0), ImagePart(jpeg.getvalue())]
    model = EndpointModel(server.url, key="secret", workers=3)
    turns = (
        Turn("system", ("Be short.",)),
        Turn("user", (images[0], "one")),
        Turn("assistant", ("two",)),
        Turn("user", ("see", images[1], "three")),
    )
    requests = [Request(turns, 5, ("\n",)), *(chat(f"{number:03d}") for number in range(20))]
    answers = model.answer(requests)
    assert [answer.text for answer in answers] == ["eerht", *(f"{number:03d}"[::-1] for number in range(20))]
    assert set(server.keys) == {"Bearer secret"}
    body = next(body for body in server.bodies if len(body["messages"]) == 4)
    assert (body["model"], body["max_tokens"], body["temperature"], body["stop"]) == ("toy", 5, 0, ["\n"])
    assert body["messages"][0] == {"role": "system", "content": "Be short."}
    assert body["messages"][2] == {"role": "assistant", "content": "two"}
    parts = body["messages"][3]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text"]
    sent = [body["messages"][1]["content"][0], parts[1]]
    for part, image, kind in zip(sent, images, ("png", "jpeg"), strict=True):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(data) == image.source


def test_other_images_are_sent_upright_and_as_png(server):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, palette = BytesIO(), BytesIO()
    Image.new("RGB", (8, 6), "red").save(turned, "JPEG", exif=exif)
    Image.new("P", (5, 4)).save(palette, "GIF")
    EndpointModel(server.url).answer([chat("a", ImagePart(turned.getvalue()), ImagePart(palette.getvalue()))])
    sizes = []
    for part in server.bodies[0]["messages"][0]["content"][:2]:
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        sizes.append(Image.open(BytesIO(base64.b64decode(data))).size)
    assert sizes == [(6, 8), (5, 4)]


def test_text_alone_may_be_completed(server):
    (answer,) = EndpointModel(server.url).answer([Request(("Short ", "answer:"), 4, (":",))])
    assert (answer.text, server.paths) == ("", ["/v1/completions"])
    (answer,) = EndpointModel(server.url).answer([Request(("Short ", "answer:"), 4)])
    assert answer.text == ":rewsna trohS"


def test_answers_are_cut_at_all_stop_strings_although_four_are_sent(server):
    stop = ("1", "2", "3", "4", "x")
    (answer,) = EndpointModel(server.url).answer([chat("cbaxfed", stop=stop)])
    assert (answer.text, server.bodies[0]["stop"]) == ("def", ["1", "2", "3", "4"])


@pytest.mark.parametrize("failure", ["429", "500", "503", "broken", "short"])
def test_failures_that_pass_are_waited_for(server, failure):
    seen = set()

    def act(handler, body):
        with server.lock:
            first = text_of(body) not in seen
            seen.add(text_of(body))
        if not first:
            return False
        if failure == "broken":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif failure == "short":
            handler.send_response(200)
            handler.send_header("Content-Length", "500")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.close_connection = True
        else:
            handler.reply(int(failure), {"error": "busy"}, [("Retry-After", "0")])
        return True

    server.act = act
    answers = EndpointModel(server.url, workers=4).answer([chat(f"ab{number}") for number in range(6)])
    assert [answer.text for answer in answers] == [f"{number}ba" for number in range(6)]
    assert len(server.bodies) == 12


def test_a_timeout_is_a_failure(server):
    release = threading.Event()

    def act(handler, body):
        if len(server.bodies) == 1:
            release.wait(5)
        return False

    server.act = act
    (answer,) = EndpointModel(server.url, timeout=0.2).answer([chat("abc")])
    release.set()
    assert answer.text == "cba"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_answered_with_the_reason(server, status):
    def act(handler, body):
        if text_of(body) == "bad":
            handler.reply(status, {"error": {"message": "prompt too long: 5000 > 4096"}})
            return True
        return False

    server.act = act
    answers = EndpointModel(server.url).answer([chat("good"), chat("bad")])
    assert answers[0].text == "doog"
    assert str(status) in answers[1].error and "5000 > 4096" in answers[1].error
    assert len(server.bodies) == 2


def test_a_request_at_which_the_server_fails_each_time_is_answered_if_it_answers_others(server):
    def act(handler, body):
        if text_of(body) == "bad":
            handler.reply(500, {"error": "division by zero"})
            return True
        return False

    server.act = act
    requests = [chat("bad"), chat("good"), Request(("bad",), 4)]
    answers = EndpointModel(server.url, retries=2).answer(requests)
    assert "division by zero" in answers[0].error and answers[1].text == "doog"
    assert "division by zero" in answers[2].error

    server.act = lambda handler, body: handler.reply(500, {"error": "out of memory"}) or True
    with pytest.raises(EndpointError, match=r"asked 3 times.*out of memory"):
        EndpointModel(server.url, retries=2).answer([chat("good")])


def test_an_endpoint_that_dies_keeps_what_it_has_answered(server):
    dead = threading.Event()

    def act(handler, body):
        if len(server.bodies) > 9:
            dead.set()
        if dead.is_set():
            handler.reply(503, {"error": "shutting down"})
        return dead.is_set()

    server.act = act
    requests = [chat(f"{number:02d}") for number in range(30)]
    model = EndpointModel(server.url, workers=4, retries=1)
    journal = {}
    with pytest.raises(EndpointError, match=r"does not answer.*shutting down.*kept"):
        for index, answer in model.answers(requests):
            journal[index] = answer
    assert 6 <= len(journal) <= 9
    assert len(server.bodies) < 30
    server.act = lambda handler, body: False
    rest = [index for index in range(30) if index not in journal]
    for place, answer in model.answers([requests[index] for index in rest]):
        journal[rest[place]] = answer
    assert [journal[index].text for index in range(30)] == [f"{number:02d}"[::-1] for number in range(30)]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_every_request_would_be_refused_for_ends_the_run_at_once(server, status):
    server.act = lambda handler, body: handler.reply(status, {"error": "no such model"}) or True
    with pytest.raises(EndpointError, match=r"no such model.*model and the key"):
        EndpointModel(server.url, workers=1).answer([chat("a"), chat("b")])
    assert len(server.bodies) == 1


def test_an_answer_in_another_form_is_named(server):
    server.act = lambda handler, body: handler.reply(200, {"text": "\x1b[2J"}) or True
    with pytest.raises(EndpointError, match="OpenAI's protocol"):
        EndpointModel(server.url).answer([chat("a")])
    server.act = lambda handler, body: handler.reply(200, {"choices": [{"message": {"content": None}}]}) or True
    assert EndpointModel(server.url).answer([chat("a")])[0].text == ""


def test_nobody_there(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match=r"asked 2 times.*[Rr]efused"):
        EndpointModel(url, retries=1)


def test_a_picture_that_cannot_be_decoded_is_not_sent(server):
    answers = EndpointModel(server.url).answer([chat("a", ImagePart(b"broken")), chat("b")])
    assert "corrupt image" in answers[0].error and answers[1].text == "b"
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(("a",), continuations=("b",)), "Log-likelihoods"),
        (chat("a", picture(0), picture(1), whole=frozenset({0})), "mixed resolution"),
        (Request((picture(0), "a"), 4), "--style chat"),
        (chat("a", max_new_tokens=0), "max_new_tokens of 0"),
    ],
)
def test_what_no_endpoint_can_do_is_refused_before_anything_is_sent(server, request_, message):
    with pytest.raises(ValueError, match=message):
        EndpointModel(server.url).answer([chat("a"), request_])
    assert not server.bodies


def test_the_model_is_the_only_one_listed_or_named(server):
    assert EndpointModel(server.url).model == "toy"
    server.models = ["a", "b"]
    with pytest.raises(ValueError, match=r"lists 2 models \(a, b\)"):
        EndpointModel(server.url)
    assert EndpointModel(server.url, model="b").model == "b"
    for wrong in ("localhost:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(ValueError, match="give its address"):
            EndpointModel(wrong, model="a")


def test_the_record_names_the_endpoint_and_no_password():
    with pytest.raises(ValueError, match="Give a key instead") as caught:
        EndpointModel("http://user:secret@127.0.0.1:1/v1/", model="a")
    assert "secret" not in str(caught.value)
    record = EndpointModel("http://127.0.0.1:1/v1/", model="a", key="secret").describe()
    assert "secret" not in str(record)
    assert (record["url"], record["name"]) == ("http://127.0.0.1:1/v1", "a")


def test_a_judge_is_asked_one_chat(server):
    model = EndpointModel(server.url)
    assert model.ask([{"role": "user", "content": "abc"}], max_tokens=7, temperature=0.2) == "cba"
    assert (server.bodies[0]["max_tokens"], server.bodies[0]["temperature"]) == (7, 0.2)
    server.act = lambda handler, body: handler.reply(400, {"error": "too long"}) or True
    with pytest.raises(ValueError, match="too long"):
        model.ask([{"role": "user", "content": "abc"}], max_tokens=7)


@contextmanager
def served(folder):
    """`mm1 serve`, as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "mm1_hf.cli", "serve", str(folder), "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*arguments, "--dtype", "float32"], env=environment) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0 or process.poll() is not None:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


@pytest.mark.slow
def test_mm1_serve_answers_as_the_model_in_this_process(tmp_path):
    model, processor = tiny_mm1()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    requests = [chat(f"What is {number}?", *[picture(number)] * (number % 3)) for number in range(6)]
    expected = MM1LocalModel(model, processor).answer(requests)
    with served(tmp_path) as url:
        endpoint_model = EndpointModel(url, model=str(tmp_path), workers=3)
        assert [answer.text for answer in endpoint_model.answer(requests)] == [answer.text for answer in expected]
