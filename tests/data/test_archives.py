"""Archives that are broken, hostile, or made by other tools: every sample is read or refused by name, in bounded memory."""

import gzip
import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from mm1_hf.data import archives
from mm1_hf.data.archives import read_archives
from mm1_hf.data.documents import Unusable
from mm1_hf.data.raw_records import unwrapped


def written(path: Path, *members: tarfile.TarInfo | tuple, mode: str = "w", **options) -> Path:
    """An archive of members: `(name, content)`, or a header of any kind without content."""
    with tarfile.open(path, mode, **options) as tar:
        for member in members:
            if isinstance(member, tuple):
                name, content = member
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.addfile(member)
    return path


def header(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def samples(*paths: Path) -> list[tuple[str, object]]:
    """Each sample's key, with its files or the reason why it is refused."""
    found = []
    for record in read_archives([(str(path), 0) for path in paths]):
        try:
            files = unwrapped(record, "r")
        except Unusable as reason:
            found.append((record["__key__"], reason.reason))
        else:
            found.append((record["__key__"], {name: files[name] for name in files if name != "__key__"}))
    return found


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_and_compression_is_read(mode, form, tmp_path):
    long = "d/" * 40 + "n" * 90
    path = written(tmp_path / "a.tar", ("a.txt", b"a"), (f"{long}.txt", b"b" * 1024), mode=mode, format=form)
    assert samples(path) == [("a", {"txt": "a"}), (long, {"txt": "b" * 1024})]


def test_a_name_that_is_no_utf8_costs_nothing(tmp_path):
    path = written(
        tmp_path / "a.tar", ("a.txt", b"a"), ("b\udcff.txt", b"b"), ("c.txt", b"c"), format=tarfile.GNU_FORMAT
    )
    assert samples(path) == [("a", {"txt": "a"}), ("b\\udcff", {"txt": "b"}), ("c", {"txt": "c"})]


@pytest.mark.parametrize("names", [("a.txt", "a.txt"), ("a.txt", "a.TXT")])
def test_two_files_of_one_extension_are_refused(names, tmp_path):
    path = written(tmp_path / "a.tar", *((name, b"x") for name in names), ("b.txt", b"b"))
    assert samples(path) == [("a", "two files of one extension"), ("b", {"txt": "b"})]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_what_is_no_file_is_refused_and_folders_are_passed_over(kind, tmp_path):
    path = written(
        tmp_path / "a.tar",
        header("d.tar", tarfile.DIRTYPE),
        ("a.txt", b"a"),
        header("a.png", kind, "/etc/passwd"),
        ("b.txt", b"b"),
    )
    assert samples(path) == [("a", "not a regular file"), ("b", {"txt": "b"})]


def test_names_that_leave_the_folder_are_only_keys(tmp_path):
    path = written(tmp_path / "a.tar", ("../../b.txt", b"b"), ("/etc/c.txt", b"c"))
    assert samples(path) == [("../../b", {"txt": "b"}), ("/etc/c", {"txt": "c"})]
    assert os.listdir(tmp_path) == ["a.tar"]


def test_keys_of_the_reader_in_an_archive_are_not_believed(tmp_path):
    path = written(
        tmp_path / "a.tar", ("a.__folder__", b"/"), ("a.__error__", b"no"), ("a.__line__", b"{}"), ("a.txt", b"a")
    )
    assert samples(path) == [("a", {"txt": "a"})]


def test_a_large_sample_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_SAMPLE_BYTES", 100)
    path = written(
        tmp_path / "a.tar.gz",
        ("a.txt", b"a"),
        ("b.png", bytes(101)),
        ("c.txt", b"c" * 60),
        ("c.png", bytes(60)),
        mode="w:gz",
    )
    assert samples(path) == [("a", {"txt": "a"}), ("b", "member too large"), ("c", "member too large")]


class Zeros(io.RawIOBase):
    """A member's header and then two gigabytes of zeros, of which no more than a megabyte may be asked for at once."""

    def __init__(self, header: bytes):
        self.left, self.zeros = header, 2 << 30

    def read(self, size=-1):
        assert 0 <= size <= 1 << 20
        found, self.left = self.left[:size], self.left[size:]
        missing = min(size - len(found), self.zeros)
        self.zeros -= missing
        return found + bytes(missing)


@pytest.mark.parametrize("claims", ["content", "pax header", "long name"])
def test_the_memory_of_an_archive_is_bounded_whatever_its_headers_claim(claims, monkeypatch):
    info = tarfile.TarInfo("a.png")
    info.size = 2 << 30
    info.type = {"content": tarfile.REGTYPE, "pax header": tarfile.XHDTYPE, "long name": tarfile.GNUTYPE_LONGNAME}[
        claims
    ]
    monkeypatch.setattr(archives, "open_expanded", lambda _: Zeros(info.tobuf(tarfile.GNU_FORMAT)))
    reason = {"content": "member too large"}.get(claims, "corrupt archive")
    assert samples(Path("a.tar"))[0][1] == reason


def test_an_archive_that_ends_early_or_late_says_so(tmp_path):
    whole = written(tmp_path / "a.tar", ("a.txt", b"a"), ("b.txt", b"b")).read_bytes()
    (tmp_path / "header.tar").write_bytes(whole[:1024] + b"\x07" * 512 + whole[1536:])
    (tmp_path / "two.tar").write_bytes(whole + whole)
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(whole)[:-60])
    (tmp_path / "no.end.tar").write_bytes(whole[:2048])
    for name in ("header.tar", "two.tar", "cut.tar.gz", "no.end.tar"):
        found = samples(tmp_path / name, tmp_path / "a.tar")
        assert found[-3][1] == "corrupt archive" and found[-2:] == [("a", {"txt": "a"}), ("b", {"txt": "b"})]


def test_a_disk_that_fails_is_no_archive_s_fault(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_archives([(str(tmp_path / "gone.tar"), 0)]))


def test_sizes_below_zero_and_headers_that_point_back_end_an_archive(tmp_path):
    info = tarfile.TarInfo("b.txt")
    info.pax_headers = {"size": "-1024"}
    path = written(tmp_path / "b.tar", ("a.txt", b"a"), info, format=tarfile.PAX_FORMAT)
    assert samples(path) == [("a", "corrupt archive")]


@pytest.mark.parametrize("part", range(4))
def test_any_bytes_are_samples_or_refused(part, tmp_path):
    members = [("a.txt", b"a"), ("a.json", b'{"b": 1}'), ("d" * 120 + ".txt", b"c" * 700), ("é.txt", b"d")]
    for case in range(part, 240, 4):
        draw = random.Random(case)
        form = draw.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        data = bytearray(
            written(tmp_path / "a.tar", *members[: 4 if form != tarfile.USTAR_FORMAT else 2], format=form).read_bytes()
        )
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(0, len(data))] = draw.choice((0, 0x30, 0x37, 0x78, 0x80, 0xFF, draw.randrange(256)))
        for block in range(0, len(data), 512):
            # With right checksums, so that the fields are believed.
            if draw.random() < 0.7 and data[block + 257 : block + 262] == b"ustar":
                data[block + 148 : block + 156] = b" " * 8
                data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
        (tmp_path / "a.tar").write_bytes(data)
        for key, _ in samples(tmp_path / "a.tar"):
            key.encode()
