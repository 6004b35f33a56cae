"""
Downloads images from the web. The addresses come from data sets, web pages and chats, which are not trusted: only public
addresses are connected to, and the time and the size of a download are limited.
"""

import functools
import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants


# Host names and addresses that may be downloaded from although they are not public, for an image server in one's own
# network. They are compared with the host as it is written in the URL. Data workers that are started afresh read them from
# the environment.
ALLOWED_HOSTS = set(filter(None, os.environ.get("MM1_ALLOWED_HOSTS", "").lower().split(",")))
# Largest content of a URL, in bytes, after decompression.
MAX_BYTES = 100 * 2**20
# Time for one connection, time without any data, and time for the whole download with its redirects, in seconds.
CONNECT_SECONDS = 10
READ_SECONDS = 10
TOTAL_SECONDS = 30
MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BLOCK = 2**16
# Addresses of IPv6 that stand for an address of IPv4 in networks without IPv4.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# `%` too: what is quoted already stays as it is.
_SAFE_IN_TARGET = "%/:=&?~+!$,;'@()*[]"


def fetch_url(url: str) -> bytes:
    """
    Downloads a URL and returns its content.

    Only `http` and `https` are read, and only from public addresses: the host is looked up once, all its addresses are
    checked, and the connection goes to one of those that were checked. Each redirect is checked in the same way. Hosts in
    `ALLOWED_HOSTS` are not checked. No credentials are sent. If a proxy is set in the environment (`HTTPS_PROXY`,
    `HTTP_PROXY`, `NO_PROXY`), the proxy connects, and looks the host up itself; then an address that this machine finds is
    checked here, and the rest is left to the proxy.

    Args:
        url: an `http` or `https` URL.

    Raises:
        FileNotFoundError: the download failed: the address is not public, the server does not answer with the content
            (`TOTAL_SECONDS`), the content is larger than `MAX_BYTES`, or the Hub library is set to work offline.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set, so nothing is downloaded")
        return _followed(url, time.monotonic() + TOTAL_SECONDS)
    except Exception as error:
        # The standard library raises exceptions of many types for what a server or a URL may hold.
        raise FileNotFoundError(f"{url:.200}: {str(error) or type(error).__name__}") from error


def _followed(url: str, deadline: float) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        with open_url(url, deadline) as response:
            target = redirect_of(url, response)
            if target is not None:
                url = target
            elif 200 <= response.status < 300:
                return read_content(response)
            else:
                raise ConnectionError(f"the server answered {response.status} {response.reason:.100}")
    raise ConnectionError(f"more than {MAX_REDIRECTS} redirects")


class PrivateAddressError(ConnectionError):
    """A host is not downloaded from, because it has an address that is not public."""


class TooLargeError(ConnectionError):
    """The content of a URL is larger than allowed."""


class _Stream(io.RawIOBase):
    """
    A socket for `http.client`, which waits for data at most until the deadline. A server that sends a byte now and then
    would get around a timeout of each read.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(min(READ_SECONDS, _left(self._deadline)))
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _left(deadline: float) -> float:
    """Seconds until the deadline."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"the download took longer than {TOTAL_SECONDS} seconds")
    return left


def open_url(url: str, deadline: float, user_agent: str = "mm1_hf") -> http.client.HTTPResponse:
    """
    Sends a request for one URL, with the checks of [`fetch_url`], and reads the head of the answer. Redirects are not
    followed.

    Args:
        url: an `http` or `https` URL.
        deadline: time of `time.monotonic()` after which nothing of the answer is read.
        user_agent: the name under which the request is sent.

    Returns:
        The answer, which must be closed.

    Raises:
        PrivateAddressError: the host has an address that is not public.
        OSError: the server cannot be reached, or does not answer in time. Broken answers raise other exceptions too.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ConnectionError(f"the scheme is {parts.scheme!r:.50}; only http and https are downloaded")
    host = (parts.hostname or "").rstrip(".")
    # Of other characters, some would end the line that names the host.
    if not re.fullmatch(r"[\w.:-]+", host):
        raise ConnectionError(f"the host is {host!r:.100}")
    host = host if ":" in host else host.encode("idna").decode()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = None if proxy_bypass(host) else _proxy(parts.scheme)
    addresses = _addresses(host, port, deadline, behind_proxy=proxy is not None)
    target = quote(parts.path or "/", _SAFE_IN_TARGET) + (
        f"?{quote(parts.query, _SAFE_IN_TARGET)}" if parts.query else ""
    )
    authority = f"[{host}]" if ":" in host else host
    authority += "" if parts.port is None else f":{parts.port}"
    if proxy is None:
        connected, headers = _connected(addresses, port, deadline), ""
    else:
        if proxy.scheme not in ("http", "") or proxy.hostname is None:
            raise ConnectionError(f"the proxy is {proxy.scheme}://...; only proxies of http:// are used")
        connected, headers = _connected([proxy.hostname], proxy.port or 80, deadline), _authorization(proxy)
    try:
        if proxy is not None and parts.scheme == "https":
            _open_tunnel(connected, f"{authority.removesuffix(f':{port}')}:{port}", headers, deadline)
            headers = ""
        elif proxy is not None:
            target = f"http://{authority}{target}"
        if parts.scheme == "https":
            connected.settimeout(min(CONNECT_SECONDS, _left(deadline)))
            connected = _tls().wrap_socket(connected, server_hostname=host)
        request = (
            f"GET {target} HTTP/1.1\r\nHost: {authority}\r\n{headers}User-Agent: {user_agent}\r\n"
            "Accept: image/*, */*;q=0.5\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
        )
        return _sent(connected, request, deadline)
    except BaseException:
        connected.close()
        raise


def _sent(connected: socket.socket, request: str, deadline: float, method: str = "GET") -> http.client.HTTPResponse:
    connected.settimeout(_left(deadline))
    connected.sendall(request.encode("ascii"))
    response = http.client.HTTPResponse(_Stream(connected, deadline), method=method)  # ty: ignore[invalid-argument-type] -- all that it asks of a socket
    response.begin()
    return response


def redirect_of(url: str, response: http.client.HTTPResponse) -> str | None:
    """
    The URL that an answer redirects to, or `None` if it is not a redirect.

    Args:
        url: the URL that was asked for.
        response: the answer.
    """
    target = response.getheader("Location")
    if response.status not in _REDIRECTS or target is None:
        return None
    # The standard library decodes headers as Latin-1, whatever they hold.
    return urljoin(url, quote(target.encode("latin-1"), f"{_SAFE_IN_TARGET}#"))


def read_content(response: http.client.HTTPResponse, max_bytes: int | None = None) -> bytes:
    """
    The body of an answer, decompressed.

    Args:
        response: the answer.
        max_bytes: largest size of the content, in bytes, after decompression. Unset, it is `MAX_BYTES`.

    Raises:
        TooLargeError: the content is larger. No more than this number of bytes is kept in memory.
        OSError: the server stops sending, or the content is cut off or compressed in another way than gzip or deflate.
    """
    max_bytes = MAX_BYTES if max_bytes is None else max_bytes
    if response.length is not None and response.length > max_bytes:
        raise TooLargeError(f"the content is larger than {max_bytes:,} bytes")
    encoding = response.getheader("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise ConnectionError(f"the content is compressed as {encoding!r:.50}, although that was not asked for")
    # 32 more than the window lets zlib find out whether the data is of gzip or of zlib.
    decompressor = None if encoding in ("identity", "") else zlib.decompressobj(32 + zlib.MAX_WBITS)
    blocks: list[bytes] = []
    size = 0
    for block in _blocks(response):
        if decompressor is not None:
            block = decompressor.decompress(block, max_bytes - size + 1)
        size += len(block)
        if size > max_bytes:
            raise TooLargeError(f"the content is larger than {max_bytes:,} bytes")
        blocks.append(block)
    if decompressor is not None and not decompressor.eof:
        raise ConnectionError("the content ends too early")
    return b"".join(blocks)


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block
    # `http.client` does not tell that a server closed the connection before the announced length was sent.
    if response.length:
        raise ConnectionError("the content ends too early")


def _connected(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """A connection to the first of the addresses that answers."""
    failure: OSError = OSError("the host has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), min(CONNECT_SECONDS, _left(deadline)))
        except OSError as error:
            failure = error
    raise failure


def _addresses(host: str, port: int, deadline: float, behind_proxy: bool) -> list[str]:
    """
    The addresses of a host, all of them checked.

    Raises:
        PrivateAddressError: one of them is not public.
    """
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    # A name server that is silent on purpose must not hold the download up: the library takes no timeout.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(min(CONNECT_SECONDS, _left(deadline)))
    if not found:
        raise TimeoutError(f"no name server answered within {CONNECT_SECONDS} seconds")
    if isinstance(found[0], Exception):
        if behind_proxy:
            return []
        raise found[0]
    addresses = [str(answer[4][0]) for answer in found[0]]
    if host.lower() not in ALLOWED_HOSTS:
        for address in addresses:
            if not is_public(address):
                raise PrivateAddressError(
                    f"{host} has the address {address}, which is not public. If the server is your own, name the host in "
                    "mm1_hf.model.fetching.ALLOWED_HOSTS or in the environment variable MM1_ALLOWED_HOSTS"
                )
    return addresses


def is_public(address: str) -> bool:
    """
    Whether an address belongs to the public internet: it is neither of this machine (loopback), nor of its network
    (private, link-local), nor reserved, multicast or unspecified. Addresses of IPv6 that stand for one of IPv4 are judged
    by that.

    Args:
        address: an address of IPv4 or IPv6, as a number.

    Raises:
        ValueError: `address` is not an address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        embedded = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            embedded = ipaddress.IPv4Address(int(found) % 2**32)
        if embedded is None and found.is_site_local:
            return False
        found = found if embedded is None else embedded
    return found.is_global and not (found.is_multicast or found.is_reserved)


def _proxy(scheme: str) -> SplitResult | None:
    """The proxy that the environment names for a scheme."""
    proxies = getproxies()
    url = proxies.get(scheme) or proxies.get("all")
    if not url:
        return None
    return urlsplit(url if "://" in url else f"http://{url}")


def _authorization(proxy: SplitResult) -> str:
    """The header that tells a proxy who asks, where the environment says so."""
    if proxy.username is None:
        return ""
    told = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return f"Proxy-Authorization: Basic {b64encode(told.encode()).decode()}\r\n"


def _open_tunnel(connected: socket.socket, authority: str, headers: str, deadline: float) -> None:
    """Asks a proxy for a connection to a host."""
    request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{headers}\r\n"
    # The answer closes its socket, but the connection goes on.
    with _sent(connected.dup(), request, deadline, "CONNECT") as response:
        if response.status != 200:
            raise ConnectionError(f"the proxy answered {response.status} {response.reason:.100}")


@functools.cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Not every Python knows where its machine keeps certificates. huggingface_hub brings this package along.
    if find_spec("certifi") is not None:
        context.load_verify_locations(import_module("certifi").where())
    return context


__all__ = [
    "PrivateAddressError",
    "TooLargeError",
    "fetch_url",
    "is_public",
    "open_url",
    "read_content",
    "redirect_of",
]
