"""A model behind an endpoint that speaks OpenAI's protocol, such as `mm1 serve` or vLLM."""

import base64
import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.evaluation.models.stopping import cut
from mm1_hf.evaluation.requests import Answer, Part, Request, Turn
from mm1_hf.reporting.printable import printable


# Seconds before the first repetition of a failed request; each further one waits twice as long.
FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
# OpenAI's protocol allows no more; all of them are looked for in the answer again.
_STOPS = 4
_REFUSALS = frozenset({400, 413, 422})
_TEMPORARY = frozenset({408, 409, 425, 429})
_PNG = b"\x89PNG"


class EndpointError(ConnectionError):
    """The endpoint does not answer, or refuses every request. What it answered before is not lost."""


class _RequestRefused(Exception):  # noqa: N818 (the request is at fault, not the endpoint)
    """The endpoint refuses one request, and would answer others."""


class EndpointModel:
    """
    A model behind an endpoint. Several requests are under way at once.

    An endpoint that is busy or fails is asked again, each time after a longer wait. If one request fails with an internal
    error of the server each time, although the server answers another one, this is the request's answer.

    Args:
        url: address of the endpoint, such as `"http://localhost:8000/v1"`.
        model: name of the model; unset, the only one that the endpoint lists.
        key: key that is sent with each request.
        workers: number of requests under way.
        timeout: seconds without any data after which a request has failed.
        retries: number of times that a failed request is repeated.

    Raises:
        ValueError: `url` is not an address of `http` or `https`, or holds a password; or no model is named and the
            endpoint does not list exactly one.
        EndpointError: no model is named, and the endpoint does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        workers: int = 8,
        timeout: float = 300.0,
        retries: int = 6,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The endpoint is {url!r}; give its address, such as http://localhost:8000/v1.")
        if parts.username or parts.password:
            raise ValueError(
                f"The address of the endpoint at {parts.hostname} holds a name or password. Give a key instead."
            )
        self._url = url.rstrip("/")
        self._key = key
        self._workers = workers
        self._timeout = timeout
        self._retries = retries
        self.model = self._only_model() if model is None else model

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """
        Answers requests, in their order.

        Args:
            requests: the requests.

        Raises:
            ValueError: as [`EndpointModel.answers`].
            EndpointError: the endpoint does not answer.
        """
        answers = dict(self.answers(requests))
        return [answers[index] for index in range(len(requests))]

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """
        Answers requests, and returns the answers as soon as they are there.

        Args:
            requests: the requests. An image is read when its request is sent.

        Returns:
            Pairs of the index of a request and its answer, in any order.

        Raises:
            ValueError: an endpoint cannot do what a request asks for.
            EndpointError: the endpoint does not answer any more. All answers that arrived have been returned before.
        """
        for request in requests:
            _require_possible(request)
        closing = threading.Event()
        failure: EndpointError | None = None
        waiting = iter(enumerate(requests))
        running: dict[Future[Answer], int] = {}
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                while True:
                    # No more than are worked on, so that the images of the others are not read yet.
                    while failure is None and len(running) < self._workers and (following := next(waiting, None)):
                        index, request = following
                        running[pool.submit(self._answer, request, closing)] = index
                    if not running:
                        break
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        index = running.pop(future)
                        error = future.exception()
                        if isinstance(error, EndpointError):
                            failure = failure or error
                            closing.set()
                        else:
                            yield index, future.result()
            finally:
                closing.set()
        if failure is not None:
            raise failure

    def ask(self, messages: Sequence[dict[str, Any]], max_tokens: int, temperature: float = 0.0) -> str:
        """
        Asks one chat, for example of a judge.

        Args:
            messages: messages in OpenAI's form.
            max_tokens: maximum length of the answer in tokens.
            temperature: temperature of sampling; 0 is greedy.

        Raises:
            ValueError: the endpoint refuses the chat.
            EndpointError: the endpoint does not answer.
        """
        body = {"messages": list(messages), "max_tokens": max_tokens, "temperature": temperature}
        try:
            return self._complete("chat/completions", body, threading.Event())
        except _RequestRefused as error:
            raise ValueError(str(error)) from error

    def describe(self) -> dict[str, object]:
        """What a record of the evaluation says about the model: its endpoint and name."""
        return {"kind": "endpoint", "url": self._url, "name": self.model, "decoding": {"temperature": 0}}

    def _only_model(self) -> str:
        try:
            listed = self._send("models", None, threading.Event())
        except _RequestRefused as error:
            raise EndpointError(str(error)) from error
        entries = listed.get("data") if isinstance(listed, dict) else None
        names = [str(entry.get("id")) for entry in entries or [] if isinstance(entry, dict)]
        if len(names) != 1:
            raise ValueError(
                f"{self._url} lists {len(names)} models ({printable(', '.join(names[:10]))}). Name the one to evaluate."
            )
        return names[0]

    def _answer(self, request: Request, closing: threading.Event) -> Answer:
        try:
            body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": 0}
            if request.stop:
                body["stop"] = list(request.stop[:_STOPS])
            if request.prompt and isinstance(request.prompt[0], Turn):
                turns: Any = request.prompt
                body["messages"] = [{"role": turn.role, "content": _content(turn.parts)} for turn in turns]
                return Answer(text=cut(self._complete("chat/completions", body, closing), request.stop))
            body["prompt"] = "".join(map(str, request.prompt))
            return Answer(text=cut(self._complete("completions", body, closing), request.stop))
        except (Unusable, _RequestRefused) as error:
            return Answer(error=str(error))

    def _complete(self, path: str, body: dict[str, Any], closing: threading.Event) -> str:
        reply = self._send(path, {"model": self.model, **body}, closing)
        try:
            choice = reply["choices"][0]
            text = choice["text"] if path == "completions" else choice["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointError(
                f"{self._url}/{path} does not answer as OpenAI's protocol says: {printable(json.dumps(reply)[:200])}"
            ) from error
        return text or ""

    def _send(self, path: str, body: dict[str, Any] | None, closing: threading.Event) -> Any:
        """Posts a body, or gets where there is none, and repeats it while the endpoint fails for the time being."""
        attempts = self._retries + 1
        for attempt in range(attempts):
            reason, status, pause = "", None, min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
            try:
                return self._send_once(path, body)
            except urllib.error.HTTPError as error:
                status, reason = error.code, _reason_of(error)
                if status in _REFUSALS:
                    raise _RequestRefused(f"the endpoint refuses the request: {reason}") from error
                if status < 500 and status not in _TEMPORARY:
                    raise EndpointError(
                        f"{self._url}/{path} refuses requests: {reason}. Check the address, the name of the model and "
                        "the key."
                    ) from error
                pause = max(pause, _retry_after(error))
            # Broken connections, timeouts, and answers that end too early.
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if closing.is_set() or (attempt + 1 < attempts and closing.wait(pause)):
                break
        if status == 500 and body is not None and self._is_alive(path):
            raise _RequestRefused(f"the endpoint fails at this request each time: {reason}")
        raise EndpointError(
            f"{self._url} does not answer (asked {attempt + 1} times): {printable(reason)}. Start it again, and repeat the "
            "command: what has been answered is kept."
        )

    def _send_once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            return json.load(response)

    def _is_alive(self, path: str) -> bool:
        """Whether the endpoint answers a short request."""
        short = {"prompt": "Hello"} if path == "completions" else {"messages": [{"role": "user", "content": "Hello"}]}
        try:
            self._send_once(path, {"model": self.model, "max_tokens": 1, **short})
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return True


def _require_possible(request: Request) -> None:
    if request.continuations:
        raise ValueError(
            "Log-likelihoods are wanted, which OpenAI's protocol does not give for a prompt. Evaluate tasks of this kind "
            "with the model itself (--model)."
        )
    if request.whole is not None:
        raise ValueError(
            "Some images are to be split and others not, which OpenAI's protocol cannot say. Evaluate an endpoint without "
            "mixed resolution (--split-last)."
        )
    if request.max_new_tokens < 1:
        raise ValueError("A request has no continuations and max_new_tokens of 0. Set one of them.")
    if request.images and not isinstance(request.prompt[0], Turn):
        raise ValueError(
            "OpenAI's protocol has images in chats alone, and this prompt is one that is continued as in pre-training. Ask "
            "the endpoint in chats (--style chat)."
        )


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": _data_url(part)}}
        for part in parts
    ]


def _data_url(part: ImagePart) -> str:
    """The picture as base64. It is decoded first, so that a broken one is found here, as it is with a local model."""
    image = part.load()
    # An image that was turned upright has no format any more: not every server turns it.
    if image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L"):
        data = part.read()
    else:
        file = BytesIO()
        (image if image.mode in ("RGB", "RGBA", "L", "LA") else image.convert("RGBA")).save(file, "PNG")
        data = file.getvalue()
    kind = "png" if data.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _reason_of(error: urllib.error.HTTPError) -> str:
    try:
        said = error.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        said = ""
    return printable(f"{error.code} {error.reason}" + (f": {said}" if said else ""))


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the endpoint asks to wait, at most the longest wait; 0 if it does not say it in seconds."""
    asked = (error.headers.get("Retry-After") or "").strip()
    return min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0
