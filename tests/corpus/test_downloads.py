import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from image_server import image_server, picture

from mm1_hf.corpus.downloads import Downloader, DownloadRules, HostSlots
from mm1_hf.data.documents import Unusable
from mm1_hf.model import fetching


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def allowed(monkeypatch):
    """Lets the tests' own server be downloaded from by its number, and by that alone."""
    monkeypatch.setattr(fetching, "ALLOWED_HOSTS", {"127.0.0.1"})


@pytest.fixture
def downloader(tmp_path):
    return Downloader(DownloadRules(pause=0, max_bytes=100_000), tmp_path)


def reason(downloader, url: str) -> str:
    with pytest.raises(Unusable) as caught:
        downloader.download(url)
    return caught.value.reason


def test_images_are_downloaded(downloader, allowed):
    with image_server() as (server, seen):
        assert downloader.download(f"{server}/image/1.png") == picture(1)
        assert downloader.download(f"{server}/hop/image/2.png") == picture(2)
    # robots.txt is asked for once.
    assert [path for path, _ in seen.asked] == ["/robots.txt", "/image/1.png", "/hop/image/2.png", "/image/2.png"]
    assert {headers["User-Agent"] for _, headers in seen.asked} == {"mm1_hf"}


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ("none", "HTTP status 404"),
        ("noai/1", "opted out"),
        ("reserved/1", "opted out"),
        ("hop/noai/1", "opted out"),
        ("page", "not an image"),
        ("large", "too large"),
        ("endless", "too large"),
        ("short/1", "no connection"),
        ("loop", "too many redirects"),
        ("loopback", "address not public"),
        ("metadata", "address not public"),
        ("file", "no connection"),
    ],
)
def test_refusals_have_reasons(downloader, allowed, page, why):
    with image_server() as (server, _):
        assert reason(downloader, f"{server}/{page}") == why


def test_a_server_of_this_machine_is_not_asked_at_all(downloader):
    with image_server() as (server, seen):
        assert reason(downloader, f"{server}/image/1.png") == "address not public"
        assert reason(downloader, f"{server.replace('127.0.0.1', 'localhost')}/image/1.png") == "address not public"
    assert not seen.asked


def test_a_server_that_is_not_there(downloader, allowed):
    with image_server() as (server, _):
        pass
    assert reason(downloader, f"{server}/image/1.png") == "no connection"
    assert reason(downloader, "http://nowhere.invalid/image/1.png") == "unknown host"


def test_a_slow_server(downloader, allowed, monkeypatch):
    monkeypatch.setattr("mm1_hf.corpus.downloads.TOTAL_SECONDS", 0.001)
    with image_server() as (server, _):
        assert reason(downloader, f"{server}/slow/1.png") == "too slow"


def test_nothing_is_downloaded_offline(downloader, allowed, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with image_server() as (server, seen):
        assert reason(downloader, f"{server}/image/1.png") == "offline"
    assert not seen.asked


@pytest.mark.parametrize(
    ("robots", "allows"),
    [
        (404, True),
        (403, True),
        (500, False),
        (429, False),
        (b"User-agent: *\nDisallow: /*.png$", False),
        (b"User-agent: *\nDisallow: /other", True),
        (b"User-agent: mm1_hf\nDisallow: /\nUser-agent: *\nAllow: /", False),
        (b"\xff\xfe\x00 User-agent", True),
        (b"#" * 10**7, False),
    ],
)
def test_robots_are_obeyed(downloader, allowed, robots, allows):
    with image_server(robots) as (server, seen):
        if allows:
            assert downloader.download(f"{server}/image/1.png") == picture(1)
        else:
            assert reason(downloader, f"{server}/image/1.png") == "forbidden by robots.txt"
            assert [path for path, _ in seen.asked] == ["/robots.txt"]


def test_a_redirect_obeys_the_rules_of_where_it_leads(downloader, allowed):
    with image_server(b"User-agent: *\nDisallow: /image") as (server, _):
        assert reason(downloader, f"{server}/hop/image/1.png") == "forbidden by robots.txt"


@pytest.mark.parametrize("per_host", [1, 3])
def test_requests_to_one_host_at_a_time(tmp_path, allowed, per_host):
    rules = DownloadRules(pause=0, per_host=per_host)
    with image_server() as (server, seen), ThreadPoolExecutor(8) as pool:
        # Two programs that count in the same folder.
        both = [Downloader(rules, tmp_path), Downloader(rules, tmp_path)]
        list(pool.map(lambda index: both[index % 2].download(f"{server}/slow/{index}.png"), range(16)))
    assert seen.most_at_once <= per_host


def _hold(folder: str, sending) -> None:
    with HostSlots(folder, 1, 0).slot("http://a.example"):
        sending.send("held")
        time.sleep(600)


def test_a_place_of_a_killed_process_is_free_again(tmp_path):
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_hold, args=(str(tmp_path), sending), daemon=True)
    process.start()
    # Otherwise a process that dies would be waited for without an end.
    sending.close()
    assert receiving.recv() == "held"
    with HostSlots(tmp_path, 1, 0).slot("http://b.example"):
        pass
    process.kill()
    process.join()
    with HostSlots(tmp_path, 1, 0).slot("http://A.example."):
        pass


def test_a_place_rests_after_a_request(tmp_path):
    slots = HostSlots(tmp_path, 1, pause=0.2)
    begun = []
    for _ in range(3):
        with slots.slot("http://a.example"):
            begun.append(time.time())
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(begun))


@pytest.mark.parametrize(
    "rules", [{"agent": "a\r\nb: c"}, {"agent": "/1.0"}, {"agent": ""}, {"per_host": 0}, {"pause": -1}]
)
def test_impossible_rules(rules):
    with pytest.raises(ValueError, match=f"{next(iter(rules))} (is )?"):
        DownloadRules(**rules)
