"""Text files: every value as it was written, every record that cannot be read refused alone, and files of every origin."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.data import json_files, text_files
from mm1_hf.data.documents import Unusable
from mm1_hf.data.json_files import CorruptFileError, json_records
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.raw_records import parse_json, unwrapped
from mm1_hf.data.readers import read, read_records
from mm1_hf.data.records import open_records
from mm1_hf.data.text_files import read_text_files
from mm1_hf.data.wall import result_or_reason


VALUES = [
    "Yo",
    "12",
    "007",
    "1e5",
    "true",
    "null",
    "NA",
    "",
    "[1, 2]",
    '"quoted"',
    '{"a": 1}',
    "2024-01-01",
    "\u2028",
    "é",
]
MIXED = [*VALUES, 12, 1.5, True, None, [], [1, "a", None], {}, {"a": [{"b": None}]}, 10**30, -(2**63) - 1]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def found(path: Path, form: str, **options) -> list:
    """Each record, or the reason why it is refused."""
    records = []
    for record in read_text_files([(str(path), 0)], form, **options):
        try:
            records.append(dict(unwrapped(record | {"__folder__": ""}, "r")))
            del records[-1]["__folder__"]
        except Unusable as reason:
            records.append(reason.reason)
    return records


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "lines.json", "a.json.gz", "a.jsonl.xz"])
def test_every_value_comes_back_as_it_was_written(name, streaming, tmp_path):
    """Also where the first record lacks a column, and where the types of a column differ."""
    rows = [{"n": 1}, *({"value": value, "n": str(number)} for number, value in enumerate(MIXED))]
    text = "\n".join(map(json.dumps, rows)) if "lines" in name or "jsonl" in name else json.dumps(rows, indent=1)
    compress = {"gz": gzip.compress, "xz": lzma.compress}.get(name.rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(compress(text.encode()))
    records = [unwrapped(record) for record in read_records(tmp_path / name, streaming=streaming)]
    assert [{key: value for key, value in record.items() if key != "__folder__"} for record in records] == rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_cells_of_tables_stay_texts(name, streaming, tmp_path):
    delimiter = "," if name == "a.csv" else "\t"
    rows = [["007", "null"], ["NA", "1e5"], ["", "line\nbreak"], ['a"b', "x" * 200_000], ["short"]]
    cells = [delimiter.join('"' + cell.replace('"', '""') + '"' if cell else "" for cell in row) for row in rows]
    text = "\r\n".join([f"a{delimiter}b", *cells, "", f"one{delimiter}two{delimiter}three", f"é{delimiter}z"])
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\xff" + delimiter.encode() + b"y\r\n")
    records = []
    for record in read_records(tmp_path / name, streaming=streaming):
        try:
            records.append([unwrapped(record).get(key) for key in "ab"])
        except Unusable as reason:
            records.append(reason.reason)
    expected = [[cell or None for cell in row] for row in rows[:-1]] + [["short", None]]
    assert records == [*expected, "corrupt record", ["é", "z"], "corrupt record"]


def test_a_table_that_names_a_column_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match=r"a\.csv cannot be read: .* names a column twice"):
        read(tmp_path / "a.csv", "text")


LINES = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}\r{"text": "c"}\n\xff\n[1]\n{"text": "d'


def test_lines_of_every_system_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    layout = "not a record of this layout"
    expected = [{"text": "a"}, {"text": "b"}, {"text": "c"}, "corrupt record", layout, "corrupt record"]
    assert found(tmp_path / "a.jsonl", "jsonl") == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_wide_characters_are_refused_by_name(name, encoding, tmp_path):
    (tmp_path / name).write_text('[{"text": "a"}]', encoding=encoding)
    with pytest.raises(ValueError, match=f"cannot be read: .*is {encoding.upper()}; convert it to UTF-8"):
        read(tmp_path / name, "text")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_is_cut_off_ends_no_run(compress, tmp_path):
    lines = b"".join(b'{"text": "%d"}\n' % (number * 7919 % 10_007) for number in range(5000))
    (tmp_path / "a.jsonl").write_bytes(compress(lines)[:-50])
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "b"}')
    records = [
        record
        for file in ("a.jsonl", "b.jsonl")
        for record in found(tmp_path / file, "jsonl")
    ]  # fmt: skip
    assert records[-2:] == ["corrupt file", {"text": "b"}]
    assert records[:-2] == [{"text": str(number * 7919 % 10_007)} for number in range(len(records) - 2)]


def test_a_compression_without_its_package_is_named(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(ValueError, match=r"needs the package zstandard|cannot be read"):
        read(tmp_path / "a.jsonl.zst", "text")


def test_long_records_are_refused_and_the_next_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 50)
    monkeypatch.setattr(text_files, "_BLOCK", 7)
    (tmp_path / "a").write_bytes(b'{"text": "a"}\n{"text": "' + b"b" * 100 + b'"}\n{"text": "c"}\n')
    assert found(tmp_path / "a", "jsonl") == [{"text": "a"}, "corrupt record", {"text": "c"}]
    assert found(tmp_path / "a", "txt") == ["corrupt record"]
    texts = [
        record if isinstance(record, str) else record["text"]
        for record in found(tmp_path / "a", "txt", sample_by="line")
    ]
    assert texts == ['{"text": "a"}', "corrupt record", '{"text": "c"}']


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(JSON.filter(lambda value: not isinstance(value, str))), st.sampled_from([None, 1]), st.integers(1, 40))
def test_lists_are_cut_into_their_entries_wherever_the_blocks_end(values, indent, block):
    text = json.dumps(values, indent=indent, ensure_ascii=indent is None)
    try:
        data = b" \n" + text.encode() + b" "
    except UnicodeEncodeError:
        return
    previous, json_files._BLOCK = json_files._BLOCK, block
    try:
        entries = [json.loads(entry) for entry in json_records(io.BytesIO(data))]
        assert entries == values
        if values:
            assert [
                json.loads(entry) for entry in json_records(io.BytesIO(b'{"x": [1, {}], "y": ' + data + b"}"), "y")
            ] == values
            with pytest.raises(CorruptFileError):
                list(json_records(io.BytesIO(data.rstrip()[:-1])))
    finally:
        json_files._BLOCK = previous


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 5000, "[" * 65 + "]" * 65, '{"a": 1, "a": 2}', '{"a": [{"b": 1, "b": 1}]}', "1" * 5000],
)
def test_json_that_is_read_in_more_than_one_way_is_refused(text):
    with pytest.raises(ValueError, match=r"nested deeper than 64|appears twice|Exceeds the limit|Expecting"):
        parse_json(text)


def test_nesting_is_counted_outside_of_texts():
    value = ["[" * 1000 + '\\"[' * 1000]
    for _ in range(60):
        value = [value]
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("key", ["__folder__", "__line__", "__files__", "__error__", "__key__"])
@pytest.mark.parametrize("value", [5, "/", None, [], {"a": 1}])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_reader_s_keys_in_a_record_are_not_believed(key, value, streaming, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", key: value}))
    (record,) = read(tmp_path / "a.jsonl", "text", streaming=streaming)
    assert LAYOUTS["text"](record).parts == ("a",) and record["__folder__"] == str(tmp_path)
    assert unwrapped(record).get("__folder__") == str(tmp_path)
    if isinstance(value, str | int):
        pq.write_table(pa.table({"text": ["b"], key: [value]}), tmp_path / "b.parquet")
        (record,) = read(tmp_path / "b.parquet", "text", streaming=streaming)
        assert LAYOUTS["text"](record).parts == ("b",) and record["__folder__"] == str(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_python_cannot_hold_is_refused_alone(streaming, tmp_path):
    texts = [f"text {number}".encode() for number in range(40)]
    texts[0] = texts[20] = b"bad \xff"
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 40, pa.array(texts, pa.binary()).buffers())})
    times = [0] * 39 + [2**62]
    table = table.append_column("time", pa.array(times, pa.int64()).cast(pa.timestamp("us")))
    pq.write_table(table, tmp_path / "a.parquet")
    records = open_records(
        read(tmp_path / "a.parquet", "text", streaming=streaming), "web", seed=0, reader=0, readers=1
    )
    refused, kept = [], []
    for _ in range(40):
        record, name = records.read()
        found = record if isinstance(record, Unusable) else result_or_reason(LAYOUTS["text"], record, name)
        if isinstance(found, Unusable):
            refused.append(found)
        else:
            kept += found.parts
    assert sorted(kept) == sorted(f"text {number}" for number in range(39) if number not in (0, 20))
    assert len(refused) == 3 and all(
        "UnicodeDecodeError" in str(why) or "OverflowError" in str(why) for why in refused
    )
