"""
Downloads images politely: few requests at a time to one host, in all processes of a run together, `robots.txt` and
opt-out headers respected, in bounded time and size, and from public addresses only.

Every refusal is an [`Unusable`] whose reason is one of a few texts, so that refusals can be counted.
"""

import fcntl
import hashlib
import os
import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants

from mm1_hf.corpus.robots import MAX_ROBOTS_BYTES, RobotRules, opted_out, robot_rules
from mm1_hf.data.documents import Unusable
from mm1_hf.model.fetching import (
    MAX_REDIRECTS,
    TOTAL_SECONDS,
    PrivateAddressError,
    TooLargeError,
    open_url,
    read_content,
    redirect_of,
)


# Hosts share this number of files that say who is connected to them, so that any number of hosts takes few files.
_SLOT_GROUPS = 4096
_SECONDS_BETWEEN_TRIES = 0.02
# Origins whose robots.txt is remembered.
_KNOWN_ORIGINS = 10_000
_FORBIDDEN = RobotRules((("/", False),))


@dataclass(frozen=True)
class DownloadRules:
    """
    How images are downloaded.

    Args:
        agent: the name that servers are told, and that is looked for in their `robots.txt`. A version and an address for
            complaints may follow, as in `"my-crawler/1.0 (+https://a.example/crawler)"`.
        per_host: most requests to one host at a time, of all processes of this machine that use the same folder.
        pause: seconds between the end of a request and the next one to the same host in its place.
        max_bytes: largest size of an image file, in bytes.

    Raises:
        ValueError: `agent` does not begin with a name, or holds characters that a header cannot hold, or a number is too
            small.
    """

    agent: str = "mm1_hf"
    per_host: int = 2
    pause: float = 0.25
    max_bytes: int = 20 * 2**20

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+[ -~]*", self.agent, re.ASCII):
            raise ValueError(
                f"agent is {self.agent!r}; give a name of letters, digits, - and _, which a version and an address in "
                "printable ASCII may follow, as in 'my-crawler/1.0 (+https://a.example/crawler)'."
            )
        if self.per_host < 1 or self.pause < 0 or self.max_bytes < 1:
            raise ValueError(
                f"per_host is {self.per_host}, pause {self.pause} and max_bytes {self.max_bytes}; at least one request and "
                "one byte must be allowed, and a pause cannot be negative."
            )

    @property
    def name(self) -> str:
        """The agent's name without version and address."""
        return re.split(r"[^\w-]", self.agent)[0]


class Downloader:
    """
    Downloads images by the rules. May be used by several threads.

    Args:
        rules: the rules.
        folder: a folder for the locks that count the requests to each host. Processes that give the same folder count
            together. The locks of a process end with it, also when it is killed.
    """

    def __init__(self, rules: DownloadRules, folder: str | os.PathLike[str]) -> None:
        self._rules = rules
        self._hosts = HostSlots(folder, rules.per_host, rules.pause)
        self._robots: OrderedDict[str, RobotRules] = OrderedDict()
        self._lock = threading.Lock()

    def download(self, url: str) -> bytes:
        """
        The content of a URL.

        Args:
            url: an `http` or `https` URL.

        Raises:
            Unusable: it is not downloaded. The reason is `"offline"`, `"address not public"`, `"forbidden by robots.txt"`,
                `"opted out"`, `"HTTP status N"`, `"not an image"` (by its declared type), `"too large"`, `"too slow"`,
                `"too many redirects"`, `"unknown host"`, `"no secure connection"` or `"no connection"`.
        """
        if constants.HF_HUB_OFFLINE:
            raise Unusable("offline", f"{url:.200}: HF_HUB_OFFLINE is set, so nothing is downloaded")
        with _reasons(url):
            return self._followed(url)

    def _followed(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            rules = self._robot_rules(url)
            if not rules.allow(url):
                raise Unusable("forbidden by robots.txt", f"{url:.200}")
            with self._hosts.slot(url), open_url(url, _deadline(), self._rules.agent) as answer:
                if said := opted_out(answer.getheaders(), self._rules.name):
                    raise Unusable("opted out", f"{url:.200}: {said}")
                target = redirect_of(url, answer)
                if target is None:
                    if not 200 <= answer.status < 300:
                        raise Unusable(f"HTTP status {answer.status}", f"{url:.200}")
                    declared = answer.getheader("Content-Type", "").partition(";")[0].strip().lower()
                    if re.match("text/|audio/|video/", declared):
                        raise Unusable("not an image", f"{url:.200}: its type is {declared:.50}")
                    return read_content(answer, self._rules.max_bytes)
            url = target
        raise Unusable("too many redirects", f"{url:.200}: more than {MAX_REDIRECTS}")

    def _robot_rules(self, url: str) -> RobotRules:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            if known := self._robots.get(origin):
                self._robots.move_to_end(origin)
                return known
        # Two threads may ask at the same time. Waiting for the other would hold up all hosts.
        found = self._read_robots(f"{origin}/robots.txt")
        with self._lock:
            self._robots[origin] = found
            if len(self._robots) > _KNOWN_ORIGINS:
                self._robots.popitem(last=False)
        return found

    def _read_robots(self, url: str) -> RobotRules:
        """As RFC 9309 says, a file that does not exist allows everything, and a server that fails forbids everything."""
        for _ in range(MAX_REDIRECTS + 1):
            with self._hosts.slot(url), open_url(url, _deadline(), self._rules.agent) as answer:
                target = redirect_of(url, answer)
                if target is None:
                    if answer.status >= 500 or answer.status == 429:
                        return _FORBIDDEN
                    if not 200 <= answer.status < 300:
                        return RobotRules()
                    try:
                        content = read_content(answer, 4 * MAX_ROBOTS_BYTES)
                    except TooLargeError:
                        return _FORBIDDEN
                    return robot_rules(content.decode("utf-8", "replace"), self._rules.name)
            url = target
        return RobotRules()


class HostSlots:
    """
    Lets at most some requests to each host be under way at the same time, in all threads and processes that use the same
    folder. A place of a process that ends, however it ends, is free again.

    Args:
        folder: folder of the locks; it is created.
        per_host: number of requests to one host.
        pause: seconds for which a place rests after a request.
    """

    def __init__(self, folder: str | os.PathLike[str], per_host: int, pause: float) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._per_host = per_host
        self._pause = pause

    @contextmanager
    def slot(self, url: str) -> Generator[None, None, None]:
        """
        Waits for a free place of a URL's host, and keeps it inside. Requests have a time limit, so it becomes free.

        Args:
            url: the URL.
        """
        host = (urlsplit(url).hostname or "").lower().rstrip(".")
        group = int.from_bytes(hashlib.md5(host.encode()).digest()[:8], "big") % _SLOT_GROUPS
        files = [
            os.open(self._folder / f"{group:04d}-{index}", os.O_RDWR | os.O_CREAT, 0o600)
            for index in range(self._per_host)
        ]
        try:
            held = self._wait(files)
            try:
                yield
            finally:
                os.pwrite(held, repr(time.time()).ljust(32).encode(), 0)
                fcntl.flock(held, fcntl.LOCK_UN)
        finally:
            for file in files:
                os.close(file)

    def _wait(self, files: list[int]) -> int:
        while True:
            for file in files:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                used = os.pread(file, 32, 0).strip()
                # A clock that was set back must not make anybody wait.
                if not 0 <= time.time() - float(used or 0) < self._pause:
                    return file
                fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(_SECONDS_BETWEEN_TRIES)


def _deadline() -> float:
    return time.monotonic() + TOTAL_SECONDS


@contextmanager
def _reasons(url: str) -> Generator[None, None, None]:
    """Turns whatever goes wrong with a download into [`Unusable`], with a reason that many downloads share."""
    try:
        yield
    except Unusable:
        raise
    except Exception as error:
        kinds = {
            PrivateAddressError: "address not public",
            TooLargeError: "too large",
            TimeoutError: "too slow",
            socket.gaierror: "unknown host",
            ssl.SSLError: "no secure connection",
        }
        reason = next((reason for kind, reason in kinds.items() if isinstance(error, kind)), "no connection")
        raise Unusable(reason, f"{url:.200}: {str(error) or type(error).__name__}") from error


__all__ = ["DownloadRules", "Downloader", "HostSlots"]
