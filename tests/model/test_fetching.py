import gzip
import http.server
import ipaddress
import socket
import ssl
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.model import fetching
from mm1_hf.model.fetching import fetch_url, is_public


class Pages(http.server.BaseHTTPRequestHandler):
    """What servers do, each under a path of its own."""

    protocol_version = "HTTP/1.1"
    asked: list = []
    stop = threading.Event()

    def log_message(self, *_):
        pass

    def answer(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.asked.append((self.path, dict(self.headers)))
        page = self.path.partition("?")[0].strip("/").partition("/")[0]
        getattr(self, f"page_{page}", self.page_none)()

    def page_none(self):
        self.answer(status=404)

    def page_plain(self):
        self.answer(b"content")

    def page_gzip(self):
        self.answer(gzip.compress(b"content"), Content_Encoding="gzip")

    def page_cutgzip(self):
        self.answer(gzip.compress(b"content")[:-4], Content_Encoding="gzip")

    def page_brotli(self):
        self.answer(b"content", Content_Encoding="br")

    def page_chunked(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"4\r\ncont\r\n3\r\nent\r\n0\r\n\r\n")

    def page_short(self):
        self.answer(b"content", Content_Length="9")
        self.close_connection = True

    def page_large(self):
        self.answer(bytes(2001))

    def page_bomb(self):
        self.answer(gzip.compress(bytes(10**6)), Content_Encoding="gzip")

    def page_endless(self):
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        try:
            while True:
                self.wfile.write(bytes(1000))
        except OSError:
            pass

    def page_silent(self):
        self.stop.wait(20)

    def page_dripping(self):
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.stop.wait(0.05):
                self.wfile.write(b"Name: value\r\n")
        except OSError:
            pass

    def page_hops(self):
        left = int(self.path.rpartition("/")[2])
        self.answer(status=302, Location=f"/hops/{left - 1}" if left > 1 else "/plain")

    def page_elsewhere(self):
        self.answer(status=302, Location=f"http://localhost:{self.server.server_port}/plain")

    def page_file(self):
        self.answer(status=302, Location="file:///etc/hostname")

    def page_nowhere(self):
        self.answer(status=302)

    def do_CONNECT(self):
        self.asked.append((f"CONNECT {self.path}", dict(self.headers)))
        self.answer(status=403)


@pytest.fixture
def server(monkeypatch):
    """The address of a server of `Pages`, which may be downloaded from although it is this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching, "ALLOWED_HOSTS", {"127.0.0.1"})
    monkeypatch.setattr(Pages, "asked", [])
    Pages.stop.clear()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    Pages.stop.set()
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("page", ["plain", "gzip", "chunked", "hops/1", "hops/5", "plain?a=b c&é=1"])
def test_content_is_downloaded(server, page):
    assert fetch_url(f"{server}/{page}") == b"content"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("none", "404"),
        ("short", "the content ends too early"),
        ("cutgzip", "the content ends too early"),
        ("brotli", "compressed as 'br'"),
        ("large", "larger than 2,000 bytes"),
        ("bomb", "larger than 2,000 bytes"),
        ("endless", "larger than 2,000 bytes"),
        ("hops/6", "more than 5 redirects"),
        ("elsewhere", "localhost has the address .*, which is not public"),
        ("file", "the scheme is 'file'; only http and https"),
        ("nowhere", "answered 302"),
        ("silent", "timed out"),
        ("dripping", "timed out|longer than"),
    ],
)
def test_what_fails_says_why(server, monkeypatch, page, said):
    monkeypatch.setattr(fetching, "MAX_BYTES", 2000)
    monkeypatch.setattr(fetching, "READ_SECONDS", 0.3)
    monkeypatch.setattr(fetching, "TOTAL_SECONDS", 1)
    with pytest.raises(FileNotFoundError, match=f"/{page}: .*({said})"):
        fetch_url(f"{server}/{page}")


def test_a_failure_without_words_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(fetching, "_followed", fail)
    with pytest.raises(FileNotFoundError, match="http://a/b: MemoryError"):
        fetch_url("http://a/b")


def test_nothing_is_told_but_the_address(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_url(server.replace("http://", "http://user:secret@") + "/plain")
    ((_, headers),) = Pages.asked
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}
    assert "secret" not in str(headers)


def test_offline_is_offline(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
        fetch_url(f"{server}/plain")
    assert not Pages.asked


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0",
        "１２７.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "10.0.0.1",
        "[fd00::1]",
    ],
)
def test_hosts_that_are_not_public_are_not_asked(server, monkeypatch, host):
    monkeypatch.setattr(fetching, "ALLOWED_HOSTS", set())
    with pytest.raises(FileNotFoundError, match=r"not public.*MM1_ALLOWED_HOSTS"):
        fetch_url(f"http://{host}:{server.rpartition(':')[2]}/plain")
    assert not Pages.asked


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/b",
        "http:///b",
        "http://a b/",
        "http://a:port/",
        "http://a\0/",
        "http://[::1/",
        "//a/b",
        "http://a%0d%0ab/",
    ],
)
def test_what_is_no_address_is_refused(monkeypatch, url):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError):
        fetch_url(url)


def test_the_connection_goes_to_the_address_that_was_checked(server, monkeypatch):
    """A name server that changes its answer is asked only once. One private address among several is refused."""
    port = int(server.rpartition(":")[2])
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    looked_up = []

    def look_up(host, port, **_):
        looked_up.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers[len(looked_up) - 1]
        ]

    connected = []

    def connect(address, timeout):
        connected.append(address)
        raise OSError("not in a test")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(FileNotFoundError, match="not in a test"):
        fetch_url(f"http://rebinding.example:{port}/plain")
    assert (looked_up, connected) == (["rebinding.example"], [("93.184.216.34", port)])
    answers[1] = ["93.184.216.34", "127.0.0.1"]
    with pytest.raises(FileNotFoundError, match=r"rebinding.example has the address 127.0.0.1, which is not public"):
        fetch_url(f"http://rebinding.example:{port}/plain")
    assert len(connected) == 1


def test_a_silent_name_server_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching, "CONNECT_SECONDS", 0.1)
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(20))
    with pytest.raises(FileNotFoundError, match="no name server answered"):
        fetch_url("http://silent.example/")
    done.set()


def test_a_certificate_is_asked_for():
    context = fetching._tls()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_a_proxy_is_asked_and_told_its_own_password_only(server, monkeypatch):
    monkeypatch.setattr(fetching, "ALLOWED_HOSTS", set())
    proxy = server.replace("http://", "http://me:word@")
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")

    def look_up(host, *_, **__):
        raise socket.gaierror("not known here")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", look_up)
        # The proxy is an address, which needs no name server.
        patched.setattr(socket, "create_connection", connection_to(server))
        with pytest.raises(FileNotFoundError, match="404"):
            fetch_url("http://images.example/plain?x=1")
        with pytest.raises(FileNotFoundError, match="the proxy answered 403"):
            fetch_url("https://images.example/plain")
    assert [asked for asked, _ in Pages.asked] == ["http://images.example/plain?x=1", "CONNECT images.example:443"]
    assert all(headers["Proxy-Authorization"] == "Basic bWU6d29yZA==" for _, headers in Pages.asked)
    # An address that is known here to be private is not asked of the proxy either.
    with pytest.raises(FileNotFoundError, match="not public"):
        fetch_url("http://10.0.0.1/plain")
    assert len(Pages.asked) == 2


def connection_to(server):
    host, port = server.removeprefix("http://").split(":")

    def connect(address, timeout):
        assert address == (host, int(port))
        found = socket.socket()
        found.settimeout(timeout)
        found.connect(address)
        return found

    return connect


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("2002:5db8:d822::1", True),
        ("0.0.0.0", False),
        ("127.8.9.10", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("224.0.1.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::1", False),
        ("2001:db8::1", False),
        ("2001:0:7f00:1::", False),
        ("fc00::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff0e::1", False),
    ],
)
def test_public_addresses_are_told_from_others(address, public):
    assert is_public(address) is public


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_alike_in_every_form(address):
    public = is_public(str(address))
    assert not (
        public and (address.is_private or address.is_loopback or address.is_link_local or address.is_multicast)
    )
    for form in (
        f"::ffff:{address}",
        str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) + int(address))),
    ):
        assert is_public(form) is public
