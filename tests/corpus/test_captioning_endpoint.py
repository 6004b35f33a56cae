"""Answers of endpoints: in order, kept when the endpoint or the run dies, and counted when they are garbage."""

import json
import threading
from collections import Counter
from functools import partial

import pytest
from caption_server import Reply, caption_server, prompt_of, said
from captioning import pair
from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.captioning import endpoint
from mm1_hf.corpus.captioning.answers import CHUNK, read_answers
from mm1_hf.corpus.captioning.endpoint import EndpointAnswers, check_address, only_model
from mm1_hf.corpus.captioning.writers import CaptionWriter, question


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(endpoint, "RETRIES", 2)


def pairs(number: int) -> list[EngineDocument]:
    return [pair(index) for index in range(number)]


def asked(url: str, folder, *, sees: bool = False, requests: int = 4) -> EndpointAnswers:
    writer = CaptionWriter("Say: {alt_text}", sees, "writer", url, max_tokens=7)
    return EndpointAnswers(writer, partial(question, prompt=writer.prompt, sees=sees), folder, requests)


def echo(request: dict) -> Reply:
    return said(prompt_of(request).removeprefix("Say: "))


def number_in(request: dict) -> int:
    return int(prompt_of(request).rpartition(" ")[2])


def texts(folder) -> list[str]:
    return [answer.text for answer in read_answers(folder, 0)]


def test_answers_are_in_the_order_of_the_documents_whatever_order_they_arrive_in(tmp_path):
    number = 2 * CHUNK + 3
    first = threading.Event()

    def answer(request):
        # The first answer waits for the third.
        if number_in(request) == 0:
            first.wait(30)
        if number_in(request) == 2:
            first.set()
        return echo(request)

    with caption_server(answer) as url:
        asked(url, tmp_path / "answers").run(iter(pairs(number)))
    answers = list(read_answers(tmp_path / "answers", 0))
    assert [each.text for each in answers] == [f"alt text {index}" for index in range(number)]
    assert [each.id for each in answers] == [f"pair-{index}" for index in range(number)]
    assert [each.number for each in answers] == list(range(number))


def test_a_request_says_what_openais_protocol_wants(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    seen = []

    def answer(request):
        seen.append(request)
        return said("A red square.", "length")

    with caption_server(answer) as url:
        asked(url, tmp_path / "answers", sees=True).run(iter(pairs(1)))
    (request,) = seen
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("writer", 7, 0)
    image, text = request["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert text == {"type": "text", "text": "Say: alt text 0"}
    assert request["key"] == "Bearer secret"
    (found,) = read_answers(tmp_path / "answers", 0)
    assert (found.text, found.cut_off) == ("A red square.", True)
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".txt"))
    assert "secret" not in kept


GARBAGE = {
    "empty": said(""),
    "no text": said(None),
    "a megabyte": said("x" * 2**20),
    "control characters": said("\x00\x1b[2J \ud800 \u202e"),
    "not text": said({"a": [1]}),
    "not JSON": Reply(body=b"<html>busy</html>"),
    "half of a JSON": Reply(body=b'{"choices": [{"mess'),
    "deeply nested": Reply(body=b"[" * 100_000),
    "no choice": Reply(body=b'{"choices": []}'),
    "a list": Reply(body=b"[1, 2]"),
    "not UTF-8": Reply(body=b'{"choices": "\xff\xfe"}'),
    "too large": Reply(body=b" " * (endpoint.MOST_BYTES + 1)),
    "an error of the server": Reply(500, b"boom"),
    "overloaded": Reply(503, b"", {"Retry-After": "0"}),
    "too many requests": Reply(429, b"later"),
    "refused": Reply(400, b"too long"),
    "hung up": Reply(hang_up=True),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_the_answer_to_its_own_request_alone(kind, tmp_path):
    def answer(request):
        prompt = prompt_of(request)
        return GARBAGE[kind] if prompt == "Say: alt text 1" else said(prompt)

    step = None
    with caption_server(answer) as url:
        step = asked(url, tmp_path / "answers")
        step.run(iter(pairs(3)))
    first, broken, last = read_answers(tmp_path / "answers", 0)
    assert (first.text, last.text) == ("Say: alt text 0", "Say: alt text 2")
    errors = {
        "too large": endpoint.TOO_LARGE,
        "refused": endpoint.REFUSED,
        **dict.fromkeys(("empty", "no text", "a megabyte", "control characters")),
    }
    assert broken.error == errors.get(kind, endpoint.FAILS)
    if kind == "a megabyte":
        assert len(broken.text) == 2**20
    if kind == "control characters":
        assert broken.text == "\x00\x1b[2J ? \u202e"


def test_a_failure_that_passes_is_repeated_and_counted(tmp_path):
    seen = Counter()

    def answer(request):
        seen[number_in(request)] += 1
        return Reply(500, b"boom") if seen[number_in(request)] == 1 else echo(request)

    with caption_server(answer) as url:
        step = asked(url, tmp_path / "answers")
        step.run(iter(pairs(5)))
    assert texts(tmp_path / "answers") == [f"alt text {index}" for index in range(5)]
    assert step.stats["requests repeated"].total == 5


def test_an_endpoint_that_hangs_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "TIMEOUT", 3.0)
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    release = threading.Event()

    def answer(request):
        if prompt_of(request) == "Say: alt text 1":
            release.wait(60)
        return said("yes")

    with caption_server(answer) as url:
        asked(url, tmp_path / "answers").run(iter(pairs(3)))
        release.set()
    assert [each.error for each in read_answers(tmp_path / "answers", 0)] == [None, endpoint.FAILS, None]


def test_an_endpoint_that_dies_stops_the_task_and_what_it_answered_is_kept(tmp_path):
    number, dies_after = 2 * CHUNK + 9, CHUNK + 20
    seen: list[int] = []
    lock = threading.Lock()

    def answer(request, dies: bool):
        with lock:
            if dies and len(seen) >= dies_after:
                return Reply(502, b"gone")
            seen.append(number_in(request))
        return echo(request)

    with (
        caption_server(partial(answer, dies=True)) as url,
        pytest.raises(ConnectionError, match=r"does not answer .asked 3 times.: 502.*repeat the command"),
    ):
        asked(url, tmp_path / "answers").run(iter(pairs(number)))
    assert len(seen) == dies_after
    with caption_server(partial(answer, dies=False)) as url:
        # The same server at another address is the same writer.
        asked(url, tmp_path / "answers").run(iter(pairs(number)))
    assert sorted(seen) == list(range(number)), "nothing was asked twice"
    with caption_server(echo) as url:
        asked(url, tmp_path / "whole").run(iter(pairs(number)))
    assert list(read_answers(tmp_path / "answers", 0)) == list(read_answers(tmp_path / "whole", 0))


def test_an_endpoint_that_refuses_the_model_stops_the_task_at_once(tmp_path):
    with (
        caption_server(lambda request: Reply(404, b"no such model")) as url,
        pytest.raises(ConnectionError, match=r"refuses requests: 404 .*no such model.*Check the address"),
    ):
        asked(url, tmp_path / "answers").run(iter(pairs(3)))


def test_nobody_at_the_address(tmp_path):
    with caption_server(echo) as url:
        pass
    with pytest.raises(ConnectionError, match="does not answer"):
        asked(url, tmp_path / "answers").run(iter(pairs(3)))
    with pytest.raises(ConnectionError, match="Start the endpoint, or name its model"):
        only_model(url)


def test_checkpoints_that_a_kill_left_half_written_are_mended(tmp_path):
    answers, checkpoints = tmp_path / "answers", tmp_path / "answers-checkpoints"
    seen: list[int] = []

    def answer(request, dies: bool):
        if dies and len(seen) > 20:
            return Reply(502)
        seen.append(number_in(request))
        return echo(request)

    with caption_server(partial(answer, dies=True)) as url, pytest.raises(ConnectionError):
        asked(url, answers, requests=1).run(iter(pairs(40)))
    chunk = checkpoints / "00000" / "chunk_00000.jsonl"
    chunk.write_bytes(chunk.read_bytes()[:-20])
    (checkpoints / "last_chunk").mkdir(exist_ok=True)
    (checkpoints / "last_chunk" / "00000.txt").write_text("")
    with caption_server(partial(answer, dies=False)) as url:
        asked(url, answers, requests=1).run(iter(pairs(40)))
    assert texts(answers) == [f"alt text {index}" for index in range(40)]


def test_two_documents_of_one_name_have_an_answer_each(tmp_path):
    documents = pairs(6)
    for document in documents:
        document.id = "the same"
    failing = True

    def answer(request):
        return Reply(502) if failing and number_in(request) > 2 else echo(request)

    with caption_server(answer) as url, pytest.raises(ConnectionError):
        asked(url, tmp_path / "answers", requests=1).run(iter(documents))
    failing = False
    with caption_server(answer) as url:
        asked(url, tmp_path / "answers", requests=1).run(iter(documents))
    assert texts(tmp_path / "answers") == [f"alt text {index}" for index in range(6)]


def test_an_image_that_cannot_be_read_is_not_sent(tmp_path):
    documents = pairs(3)
    documents[1].media[0].media_bytes = b"\x89PNG garbage"
    seen = []

    def answer(request):
        seen.append(request)
        return said("A square.")

    with caption_server(answer) as url:
        asked(url, tmp_path / "answers", sees=True).run(iter(documents))
    assert [each.error for each in read_answers(tmp_path / "answers", 0)] == [None, "corrupt image", None]
    assert len(seen) == 2


def test_a_disk_that_is_full_stops_the_task(tmp_path, monkeypatch):
    async def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with caption_server(echo) as url:
        step = asked(url, tmp_path / "answers")
        monkeypatch.setattr(step.checkpoint_manager, "write_document", full)
        with pytest.raises(Exception, match="No space left on device"):
            step.run(iter(pairs(3)))


def test_answers_of_another_model_are_not_mixed_in(tmp_path):
    with caption_server(echo) as url:
        asked(url, tmp_path / "answers").run(iter(pairs(3)))
        other = CaptionWriter("Tell: {alt_text}", False, "writer", url, max_tokens=7)
        with pytest.raises(ValueError, match=r"asked for in another way: prompt: 'Say: .*Start the run with what"):
            EndpointAnswers(other, partial(question, prompt=other.prompt, sees=False), tmp_path / "answers").run(
                iter(())
            )


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a.example", "http://", "http://me:secret@a.example/v1"])
def test_what_is_no_address_is_refused_without_telling_a_password(url):
    with pytest.raises(ValueError, match="endpoint") as error:
        check_address(url)
    assert "secret" not in str(error.value)


def test_the_only_model_of_an_endpoint_need_not_be_named():
    with caption_server(echo) as url:
        assert only_model(f"{url}/") == "writer"
    with caption_server(echo, ("a", "b")) as url, pytest.raises(ValueError, match=r"lists 2 models \(a, b\). Name"):
        only_model(url)


def test_answers_are_json_lines_with_everything_in_them(tmp_path):
    with caption_server(echo) as url:
        asked(url, tmp_path / "answers").run(iter(pairs(1)))
    line = json.loads((tmp_path / "answers" / "00000_chunk_0.jsonl").read_text())
    assert line == {"number": 0, "id": "pair-0", "text": "alt text 0", "cut_off": False, "error": None, "detail": ""}
