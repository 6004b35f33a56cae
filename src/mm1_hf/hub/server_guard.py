"""
Stands before the web application of `mm1 serve`: it refuses requests that web pages make behind their reader's back, bounds
what a client may send and how long it may take, and answers each request in a thread of its own, so that none delays the
others.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit


MAX_BODY = 32 * 2**20
MAX_BODY_OF_LOAD = 2**16
# Commas, colons and brackets. Parsing a body of nothing else would take long.
MAX_SEPARATORS = 1_000_000
# Of all requests that are being read or answered, together.
MAX_HELD = 512 * 2**20
MAX_REQUESTS = 256
BODY_SECONDS = 60
SEND_SECONDS = 60

_LOAD = "/load_model"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Refused(Exception):  # noqa: N818 (it says what happens to a request, not that the program failed)
    """
    A request that is not answered.

    Args:
        status: HTTP status of the answer.
        reason: what is wrong with the request.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status
        self.reason = reason


def error_content(reason: str, status: int) -> dict[str, Any]:
    """
    The body of an answer in OpenAI's form of errors.

    Args:
        reason: what is wrong.
        status: HTTP status of the answer.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    # Text that is no valid Unicode could not be sent.
    message = reason.encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def is_loopback(host: str) -> bool:
    """
    Whether a name or an address is that of the machine itself.

    Args:
        host: the name or the address, without a port.
    """
    return host.strip("[]").lower() in _LOOPBACK


class Guard:
    """
    ASGI middleware around the application of the server.

    Args:
        app: the application.
        local: whether the server listens on this machine's own address alone; then requests for another host are
            refused, which a web page can send by having its name resolve to this machine.
        pages: whether web pages from anywhere may use the server.
        check_model: checks the model that a client wants to be loaded and returns its name; it raises `ValueError`.
    """

    def __init__(self, app: Any, local: bool, pages: bool, check_model: Callable[[Any], str]):
        self.app = app
        self.local = local
        self.pages = pages
        self.check_model = check_model
        self.threads = _Threads()
        self.held = 0
        self.requests = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            # The application has no websockets, and its start and end do not come from a client.
            await self.app(scope, receive, send)
            return
        size = 0
        try:
            self._check(scope)
            if scope["method"] != "POST":
                await self.app(scope, receive, send)
                return
            if self.requests >= MAX_REQUESTS:
                raise Refused(503, "The server is busy. Ask again later.")
            self.requests += 1
            try:
                body = await self._received(receive, MAX_BODY_OF_LOAD if scope["path"] == _LOAD else MAX_BODY)
                size = len(body)
                self.held += size
                await self._answer(scope, body, receive, send)
            finally:
                self.requests -= 1
                self.held -= size
        except Refused as refused:
            await _respond(send, refused.status, error_content(refused.reason, refused.status))
        except _Gone:
            pass

    def _check(self, scope: dict[str, Any]) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.local and not is_loopback(_name(f"//{host}")):
            raise Refused(403, f"This server answers to localhost alone, not to {host[:100]!r}; --host changes that.")
        if scope["method"] != "POST":
            return
        if not self.pages and _from_another_page(headers, host):
            raise Refused(403, "Requests of web pages are refused. Start the server with --enable-cors to allow them.")
        # Web pages can send other types to any server without asking it first.
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "The content type must be application/json.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "Send the body without a content encoding.")

    async def _received(self, receive: Receive, limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    more = message.get("more_body", False)
                    if size > limit:
                        raise Refused(413, f"The body of the request has more than {limit:,} bytes.")
                    if self.held + size > MAX_HELD:
                        raise Refused(503, "The server is busy. Ask again later.")
        except TimeoutError:
            raise Refused(408, f"The body of the request did not arrive within {BODY_SECONDS} seconds.") from None
        body = b"".join(chunks)
        if sum(map(body.count, b",:[{")) > MAX_SEPARATORS:
            raise Refused(400, "The request has too many values or too long texts.")
        return body

    async def _answer(self, scope: dict[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        if scope["path"] == _LOAD:
            # It does its work in a thread already, and the requests for one model share the news of its progress.
            await self.app(scope, _given(self._named(body), receive), send)
            return

        def outside(call: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, loop))

        async def receive_outside() -> dict[str, Any]:
            return await outside(_awaited(receive()))

        async def send_outside(message: dict[str, Any]) -> None:
            # A client that does not read what it asked for does not keep its place.
            await outside(asyncio.wait_for(send(message), SEND_SECONDS))

        await self.threads.run(self.app(scope, _given(body, receive_outside), send_outside))

    def _named(self, body: bytes) -> bytes:
        try:
            wanted = json.loads(body)
            if not isinstance(wanted, dict) or wanted.get("model") is None:
                raise ValueError("The request must be an object with the name of a `model`.")
            return json.dumps({"model": self.check_model(wanted["model"])}).encode()
        except (ValueError, RecursionError) as error:
            raise Refused(400, str(error)) from error


def _from_another_page(headers: Mapping[str, str], host: str) -> bool:
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    return origin is not None and origin.lower().partition("://")[2] != host.lower()


def _name(url: str) -> str:
    """The host of a URL, without its port; empty if it cannot be read."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class _Gone(Exception):  # noqa: N818 (as Refused)
    """The client has left before its request was read."""


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _given(body: bytes, receive: Receive) -> Receive:
    """As `receive`, but with a body that was read already."""
    waiting = [body]

    async def again() -> dict[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


async def _respond(send: Send, status: int, content: Any) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Threads:
    """
    Threads with an event loop each, of which every coroutine gets one for itself. Their loops stay open, because the thread
    that generates tells a loop its results even if nobody waits for them any more.
    """

    def __init__(self) -> None:
        self.idle: list[asyncio.AbstractEventLoop] = []

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        loop = self.idle.pop() if self.idle else self._started()
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))
        finally:
            self.idle.append(loop)

    def _started(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        return loop
