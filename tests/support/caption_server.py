"""An OpenAI-style server on this machine whose answers a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: a status, a body and headers. `hang_up` closes the connection without an answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False


def said(text: Any, finish: str = "stop") -> Reply:
    """An answer of a model."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Reply(
        body=json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()
    )


def prompt_of(request: dict[str, Any]) -> str:
    """The text of a request."""
    content = request["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Requests that come in at once must not be refused.
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of the server."""


@contextmanager
def caption_server(answer: Callable[[dict[str, Any]], Reply], models: tuple[str, ...] = ("writer",)) -> Iterator[str]:
    """The address of a server that answers requests by a function, which several threads call at once."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.send(Reply(body=json.dumps({"data": [{"id": name} for name in models]}).encode()))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request["key"] = self.headers.get("Authorization")
            self.send(answer(request))

        def send(self, reply: Reply) -> None:
            if reply.hang_up:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
