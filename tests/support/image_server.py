"""A server of images on this machine, each path of which does one thing that servers do."""

import http.server
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image


def picture(seed: int, side: int = 128) -> bytes:
    """A PNG file of noise."""
    file = io.BytesIO()
    levels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


class Images(http.server.BaseHTTPRequestHandler):
    """
    `/robots.txt` is `robots`, `/image/7.png` is an image of this seed, and other paths are named after what they do.

    `asked` holds the paths and headers of all requests, and `most_at_once` the highest number of requests to `/slow` that
    waited at the same time.
    """

    protocol_version = "HTTP/1.1"
    robots: bytes | int = 404
    asked: list[tuple[str, dict[str, str]]] = []
    at_once = most_at_once = 0
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        with self.lock:
            self.asked.append((self.path, dict(self.headers)))
        try:
            name, _, rest = self.path.strip("/").partition("/")
            self.reply(name.partition(".")[0], rest)
        except OSError:
            # The client has seen enough.
            pass

    def reply(self, name: str, rest: str) -> None:
        image = picture(int("".join(filter(str.isdigit, rest)) or 0))
        here = f"http://127.0.0.1:{self.server.server_port}"
        if name == "robots":
            robots = self.robots
            self.answer(robots) if isinstance(robots, bytes) else self.answer(status=robots)
        elif name == "image":
            self.answer(image, Content_Type="image/png")
        elif name == "slow":
            with self.lock:
                type(self).at_once += 1
                type(self).most_at_once = max(self.most_at_once, self.at_once)
            time.sleep(0.05)
            # Before the answer, after which the client may ask again.
            with self.lock:
                type(self).at_once -= 1
            self.answer(image)
        elif name == "noai":
            self.answer(image, X_Robots_Tag="noai, noimageai")
        elif name == "reserved":
            self.answer(image, tdm_reservation="1")
        elif name == "page":
            self.answer(b"<html>", Content_Type="text/html; charset=utf-8")
        elif name == "liar":
            self.answer(b"<html>not an image</html>", Content_Type="image/png")
        elif name == "large":
            self.answer(bytes(10**6), Content_Type="image/png")
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            while True:
                self.wfile.write(bytes(1000))
        elif name == "short":
            self.answer(image, Content_Length=str(len(image) + 9))
            self.close_connection = True
        elif name == "hop":
            self.answer(status=302, Location=f"/{rest}")
        elif name == "loop":
            self.answer(status=302, Location="/loop")
        elif name == "loopback":
            self.answer(status=302, Location=here.replace("127.0.0.1", "localhost") + "/image/1.png")
        elif name == "metadata":
            self.answer(status=302, Location="http://169.254.169.254/latest/meta-data")
        elif name == "file":
            self.answer(status=302, Location="file:///etc/hostname")
        else:
            self.answer(status=404)


@contextmanager
def image_server(robots: bytes | int = 404) -> Iterator[tuple[str, type[Images]]]:
    """
    Runs a server, and yields its address with the class that holds what it saw. The host is not public: whoever
    downloads from it must allow `127.0.0.1`.
    """
    handler = type("Seen", (Images,), {"robots": robots, "asked": [], "lock": threading.Lock()})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", handler
    finally:
        running.shutdown()
        running.server_close()
