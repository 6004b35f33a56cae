import functools
import http.server
import json
import logging
import pickle
import random
import threading
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mm1_hf.data.documents import Document, Drops, ImagePart, Unusable
from mm1_hf.model.image_inputs import fetch_images


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


NOISE = Image.effect_noise((60, 40), 90)
BROKEN_PIXELS = file_of(NOISE)[:300]


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_exif_behind_the_pixels(data: bytes) -> bytes:
    """A PNG whose eXIf chunk comes last, as its format allows."""
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    return data[:start] + data[end:-12] + data[start:end] + data[-12:]


FILES = {
    "jpeg": file_of(NOISE, "JPEG"),
    "turned jpeg": file_of(NOISE, "JPEG", exif=turned(6)),
    "flipped jpeg": file_of(NOISE, "JPEG", exif=turned(3)),
    "png": file_of(NOISE),
    "turned png": file_of(NOISE, exif=turned(8)),
    "late turned png": with_exif_behind_the_pixels(file_of(NOISE, exif=turned(8))),
    "webp": file_of(NOISE, "WEBP"),
    "turned webp": file_of(NOISE, "WEBP", exif=turned(5)),
    "gif": file_of(NOISE, "GIF"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["bytes", "path", "picture"])
def test_the_size_is_that_of_the_picture_upright(name, form, tmp_path):
    data = FILES[name]
    path = tmp_path / "picture"
    path.write_bytes(data)
    part = ImagePart({"bytes": data, "path": str(path), "picture": Image.open(BytesIO(data))}[form])
    expected = (60, 40) if "turned" in name else (40, 60)
    assert part.size() == expected
    assert part.load().size == expected[::-1]
    assert form == "picture" or part.read() == data
    # The processor reads a part as it reads the file.
    assert fetch_images(part.load()).tobytes() == fetch_images(data).tobytes()


def test_the_size_is_read_without_the_pixels(monkeypatch):
    plain = [data for name, data in FILES.items() if name not in ("turned png", "late turned png")]

    def load(_):
        raise AssertionError("The pixels are decoded.")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert {ImagePart(data).size() for data in plain} == {(40, 60), (60, 40)}
    assert ImagePart(BROKEN_PIXELS).size() == (40, 60)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "corrupt image"),
        (b"no picture at all", "corrupt image"),
        ("/no/such/picture.png", "missing file"),
        ("data:image/png;base64,AAAA", "corrupt image"),
    ],
)
def test_what_is_no_picture_is_unusable_by_a_reason(source, reason):
    methods = [ImagePart(source).size, ImagePart(source).load]
    for method in methods + ([ImagePart(source).read] if reason == "missing file" else []):
        with pytest.raises(Unusable) as caught:
            method()
        assert caught.value.reason == reason
        assert len(str(caught.value)) < 500


def test_broken_pixels_are_found_when_they_are_decoded():
    with pytest.raises(Unusable, match=r"^corrupt image: a bytes object: .*truncated"):
        ImagePart(BROKEN_PIXELS).load()


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(Unusable, match=f"^missing file: {tmp_path}"):
        ImagePart(str(tmp_path)).size()


def test_a_bomb_is_not_opened(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Unusable, match=r"^corrupt image: .*2400 pixels.* exceeds limit of 2000"):
        ImagePart(FILES["png"]).size()


def test_a_url_is_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mm1_hf.model.fetching.ALLOWED_HOSTS", {"127.0.0.1"})
    asked = []

    class Counting(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    (tmp_path / "picture.png").write_bytes(FILES["png"])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Counting, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        part = ImagePart(f"http://127.0.0.1:{server.server_port}/picture.png")
        assert (part.size(), part.load().size, asked) == ((40, 60), (60, 40), ["/picture.png"])
        with pytest.raises(Unusable, match=r"^missing file: .*none\.png.*404"):
            ImagePart(part.source.replace("picture", "none")).size()
    finally:
        server.shutdown()


def test_documents_travel_to_other_processes():
    document = Document("caption", (ImagePart(FILES["png"]), "a picture"), "here")
    again = pickle.loads(pickle.dumps(document))
    assert again == document
    assert [part.size() for part in again.images] == [(40, 60)]
    unusable = pickle.loads(pickle.dumps(Unusable("no text", "line 3")))
    assert (unusable.reason, str(unusable)) == ("no text", "no text: line 3")


def read(drops: Drops, outcomes: list[str | None], source: str = "web") -> int:
    """Records until the run is stopped."""
    for number, reason in enumerate(outcomes):
        try:
            drops.seen(source, Unusable(reason, f"record {number}") if reason else None)
        except ValueError:
            return number
    return len(outcomes)


def test_what_is_left_out_is_counted_by_source_and_reason(caplog):
    drops = Drops()
    with caplog.at_level(logging.WARNING):
        read(drops, ["corrupt image", None, "no text", "corrupt image"])
        read(drops, [None, None], "books")
    assert drops.report() == {
        "web": {"seen": 4, "dropped": {"corrupt image": 2, "no text": 1}, "share": 0.75},
        "books": {"seen": 2, "dropped": {}, "share": 0.0},
    }
    assert len(caplog.records) == 2, "one example for each reason"


@pytest.mark.parametrize(
    ("outcomes", "stopped"),
    [
        # Four standard deviations of 5 % of a hundred are 8.7: thirteen may be bad luck, fourteen are not, which is judged
        # at the hundredth record.
        ([*["corrupt image"] * 14, *[None] * 200], 99),
        ([*["corrupt image"] * 13, *[None] * 200], 213),
        # Of two hundred they are 12.3: the twenty-third.
        ([*[None] * 178, *["no text"] * 50], 200),
        # Of ten thousand 87: a share of 6 % is too much there.
        ([*[None] * 47, *["no text"] * 3] * 200, None),
        ([*[None] * 48, *["no text"] * 2] * 200, 10_000),
    ],
)
def test_too_many_stop_the_run(outcomes, stopped):
    found = read(Drops(), outcomes)
    assert found == stopped if stopped is not None else 5000 < found < 10_000


def test_what_stops_the_run_says_what_was_wrong():
    drops = Drops(min_seen=4)
    with pytest.raises(
        ValueError, match=r"Of the 4 records of web .* 3 were dropped \(corrupt image 2, no text 1\)"
    ) as e:
        for number, reason in enumerate(["corrupt image", "no text", "corrupt image", None]):
            drops.seen("web", Unusable(reason, f"record {number}") if reason else None)
    assert "One of the dropped records: corrupt image: record 0" in str(e.value) and not isinstance(e.value, Unusable)


def test_images_that_lie_elsewhere_are_a_hint():
    """Only where files are missing."""
    for reason, hinted in (("missing file", True), ("no text", False)):
        drops = Drops()
        with pytest.raises(ValueError, match="Correct the data") as e:
            for number in range(100):
                drops.seen("web", Unusable(reason, f"record {number}"))
        assert ("image_folder" in str(e.value)) is hinted


def test_examples_are_judged_by_those_that_were_decoded():
    """Two hundred records were read, most of whose images nobody has looked at yet."""
    drops = Drops()
    assert read(drops, [None] * 200) == 200
    broken = Unusable("corrupt image", "half a file")
    for _ in range(99):
        drops.decoded("web", broken)
    with pytest.raises(ValueError, match="200 records of web read so far, 0 were dropped, and of the 100 examples"):
        drops.decoded("web", broken)
    assert drops.report()["web"]["share"] == 1


def test_both_shares_of_a_source_add_up():
    """4 % cannot be read and 8 % of the others cannot be decoded: each alone is within chance, together they are not."""
    for refused, broken, stops in ((4, 0, False), (0, 8, False), (4, 8, True)):
        drops = Drops()
        assert read(drops, ["no text" if index * refused % 100 < refused else None for index in range(400)]) == 400
        try:
            for index in range(400):
                drops.decoded("web", Unusable("corrupt image") if index * broken % 100 < broken else None)
        except ValueError:
            assert stops
        else:
            assert not stops
            share = refused / 100 + (1 - refused / 100) * broken / 100
            assert drops.report()["web"]["share"] == pytest.approx(share)


def test_many_readers_do_not_stop_over_bad_luck():
    """A thousand readers of a source, 3 % of whose records are broken."""
    draw = random.Random(0)
    for _ in range(1000):
        outcomes = ["corrupt image" if draw.random() < 0.03 else None for _ in range(200)]
        assert read(Drops(), outcomes) == 200


def test_the_limit_is_a_share():
    assert read(Drops(max_share=1), ["no text"] * 300) == 300
    assert read(Drops(max_share=0, min_seen=1), [None, None, "no text"]) == 2
    with pytest.raises(ValueError, match=r"max_share is 5; give the share"):
        Drops(max_share=5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, "no text", "corrupt image"]))), st.data())
def test_workers_counts_add_up_and_survive_json(records, data):
    """Records read by two workers, one of which is stopped and resumed, count as if one had read them all."""
    alone, first, second = (Drops(max_share=1) for _ in range(3))
    for source, reason in records:
        worker = data.draw(st.sampled_from([1, 2]))
        for drops in (alone, first if worker == 1 else second):
            read(drops, [reason], source)
            drops.decoded(source, Unusable("corrupt image") if reason == "corrupt image" else None)
        if data.draw(st.booleans()):
            state = json.loads(json.dumps(first.state_dict()))
            first = Drops(max_share=1)
            first.load_state_dict(state)
    first.merge(second)
    assert first.report() == alone.report()


def test_merged_counts_are_judged():
    workers = [Drops(), Drops()]
    for drops in workers:
        assert read(drops, [*[None] * 60, *["no text"] * 12]) == 72
    with pytest.raises(ValueError, match="Of the 144 records of web read so far, 24 were dropped"):
        workers[0].merge(workers[1])
