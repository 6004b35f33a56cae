import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    LargeList,
    List,
    Value,
    load_dataset_builder,
)
from datasets.distributed import split_dataset_by_node
from PIL import Image as Pillow

from mm1_hf.data.documents import Document, Drops, ImagePart, Unusable
from mm1_hf.data.layouts import LAYOUTS, to_record
from mm1_hf.data.readers import read, undecoded


def picture(number: int) -> Pillow.Image:
    return Pillow.new("RGB", (30 + number, 20), (9 * number, 0, 0))


def png(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


def contents(document: Document) -> list:
    """Texts, and images by their width less 30."""
    return [part.size()[1] - 30 if isinstance(part, ImagePart) else part for part in document.parts]


def documents(path, layout: str, **options) -> list[list]:
    return [contents(LAYOUTS[layout](record, str(path))) for record in read(path, layout, **options)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder


def write_lines(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def write_pictures(folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        (folder / f"{index}.png").write_bytes(png(index))


def caption_parquet(folder: Path) -> Path:
    features = Features({"image": Image(), "text": Value("string")})
    rows = [{"image": {"bytes": png(i), "path": None}, "text": f"picture {i}"} for i in range(3)]
    Dataset.from_list(rows, features=features).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def caption_bytes(folder: Path) -> Path:
    rows = [{"png": png(i), "caption": f"picture {i}"} for i in range(3)]
    Dataset.from_list(rows).to_parquet(folder / "bytes.parquet")
    return folder / "bytes.parquet"


def caption_lines(folder: Path) -> Path:
    write_pictures(folder / "images", 3)
    return write_lines(
        folder / "pairs.jsonl", [{"image": f"images/{i}.png", "caption": f"picture {i}"} for i in range(3)]
    )


def caption_csv(folder: Path) -> Path:
    write_pictures(folder, 3)
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(f"{i}.png,picture {i}\n" for i in range(3)))
    return folder / "pairs.csv"


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def caption_tar(folder: Path, extension: str = "txt") -> Path:
    files = {}
    for index in range(3):
        caption = f"picture {index}"
        text = json.dumps({"caption": caption, "width": 30}) if extension == "json" else caption + "\n"
        files |= {f"{index:05d}.png": png(index), f"{index:05d}.{extension}": text.encode()}
    return write_tar(folder / "pairs-000.tar", files)


def caption_tar_json(folder: Path) -> Path:
    return caption_tar(folder, "json")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "write", [caption_parquet, caption_bytes, caption_lines, caption_csv, caption_tar, caption_tar_json]
)
def test_pairs_are_read_from_every_format(write, streaming, tmp_path):
    path = write(tmp_path)
    found = read(path, "caption", streaming=streaming)
    assert isinstance(found, IterableDataset if streaming else Dataset)
    assert documents(path, "caption", streaming=streaming) == [[i, f"picture {i}"] for i in range(3)]


@pytest.mark.parametrize("streaming", [False, True])
def test_interleaved_documents_keep_their_order(streaming, tmp_path):
    features = Features({"images": List(Image()), "texts": List(Value("string"))})
    rows = [
        {"images": [None, {"bytes": png(4), "path": None}, None], "texts": ["one", None, "two"]},
        {"images": [{"bytes": png(7), "path": None}, None], "texts": [None, "three"]},
    ]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "obelics.parquet")
    assert documents(tmp_path / "obelics.parquet", "obelics", streaming=streaming) == [["one", 4, "two"], [7, "three"]]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_own_layout_goes_through_parquet_and_back(streaming, tmp_path):
    written = [
        Document("interleaved", ("see <image>", ImagePart(png(1)), "and", ImagePart(png(2))), "a"),
        Document("caption", (ImagePart(png(3)), "three"), "b"),
        Document("text", ("words", " and words"), "c"),
    ]
    image = Features({"text": Value("string"), "image": Image()})
    features = Features({"kind": Value("string"), "name": Value("string"), "parts": List(image)})
    Dataset.from_list([to_record(document) for document in written], features=features).to_parquet(
        tmp_path / "d.parquet"
    )
    records = read(tmp_path / "d.parquet", "documents", streaming=streaming)
    assert [LAYOUTS["documents"](record) for record in records] == written


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_llava_of_mixed_types_is_read(name, streaming, tmp_path):
    """As in LLaVA's own mixture: ids are numbers or strings, images one, several or none."""
    write_pictures(tmp_path / "coco", 3)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    rows = [
        {"id": "a", "image": "coco/0.png", "conversations": turns},
        {
            "id": 2,
            "image": ["coco/1.png", "coco/2.png"],
            "conversations": [{**turns[0], "value": "<image> or <image>"}],
        },
        {
            "id": 3,
            "conversations": [{"from": "human", "value": "Write it."}, {"from": "gpt", "value": "<image>"}],
        },
    ]
    write = json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(write)
    expected = [[0, "This."], [1, " or ", 2], ["Write it.\n<image>"]]
    assert documents(tmp_path / name, "llava", streaming=streaming) == expected


def test_mmc4_with_downloaded_and_with_missing_files(tmp_path):
    write_pictures(tmp_path, 1)
    info = [
        {"image_name": "0.png", "raw_url": "http://a/0.png", "matched_text_index": 1},
        {"image_name": "1.png", "raw_url": "http://a/1.png", "matched_text_index": 1},
    ]
    path = write_lines(tmp_path / "docs.jsonl", [{"text_list": ["A.", "B.", "C."], "image_info": info}])
    (record,) = read(path, "mmc4")
    parts = LAYOUTS["mmc4"](record).parts
    assert parts == ("A.", ImagePart(str(tmp_path / "0.png")), ImagePart("http://a/1.png"), "B. C.")


def test_plain_text_is_a_document_for_each_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three <image>\n")
    assert documents(tmp_path, "text") == [["one\n\ntwo\n"], ["three <image>\n"]]
    assert documents(tmp_path / "a.txt", "text", sample_by="paragraph") == [["one"], ["two\n"]]


def test_a_folder_s_files_belong_to_the_splits_that_they_name(tmp_path):
    for name in ("train-0", "train-1", "test", "notes"):
        write_lines(tmp_path / f"{name}.jsonl", [{"text": name}])
    # Pictures and notes beside data are no data.
    write_pictures(tmp_path / "images-of-train", 3)
    (tmp_path / "README.txt").write_text("read me")
    assert documents(tmp_path, "text") == [["train-0"], ["train-1"]]
    assert documents(tmp_path, "text", split="test") == [["test"]]
    assert documents(str(tmp_path / "train-*.jsonl"), "text", streaming=True) == [["train-0"], ["train-1"]]
    assert documents(tmp_path, "text", split="train[1:]") == [["train-1"]]
    with pytest.raises(ValueError, match="there is no split 'validation'; the splits of the files are test, train"):
        read(tmp_path, "text", split="validation")
    with pytest.raises(ValueError, match=r"matches files of several formats: jsonl, txt\. Give a pattern"):
        read(str(tmp_path / "[!i]*"), "text")


def test_paths_are_relative_to_the_files_folder(tmp_path, monkeypatch):
    path = caption_lines(tmp_path / "data" / "train")
    monkeypatch.chdir(tmp_path)
    for given in ("data", "data/train", "data/train/pairs.jsonl", path, "data/**/*.jsonl"):
        assert documents(given, "caption") == [[i, f"picture {i}"] for i in range(3)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("format", ["parquet", "tar", "jsonl"])
def test_a_corrupt_image_is_counted_and_its_neighbours_are_read(format, streaming, tmp_path):
    (tmp_path / "data").mkdir()
    if format == "parquet":
        rows = [{"image": {"bytes": png(i)[: 20 if i == 1 else None], "path": None}, "text": "a"} for i in range(3)]
        features = Features({"image": Image(), "text": Value("string")})
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "p.parquet")
    elif format == "tar":
        pairs = [{f"{i}.png": png(i)[: 20 if i == 1 else None], f"{i}.txt": b"a"} for i in range(3)]
        write_tar(tmp_path / "data" / "p.tar", pairs[0] | pairs[1] | pairs[2])
    else:
        caption_lines(tmp_path / "data")
        (tmp_path / "data" / "images" / "1.png").write_bytes(png(1)[:20])
    drops, widths = Drops(), []
    for record in read(tmp_path / "data", "caption", streaming=streaming):
        try:
            widths.append(LAYOUTS["caption"](record, "web").images[0].size()[1])
        except Unusable as error:
            drops.seen("web", error)
        else:
            drops.seen("web")
    assert widths == [30, 32]
    assert drops.report() == {"web": {"seen": 3, "dropped": {"corrupt image": 1}, "share": pytest.approx(1 / 3)}}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_broken_line_is_counted_and_its_neighbours_are_read(compress, streaming, tmp_path):
    # Compressed files have to be UTF-8.
    broken = [b'{"text": "b', b'{"text": "\xff"}' if compress is bytes else b"}", b"[1]", b'{"text": 5}']
    lines = [b'{"text": "a"}', *broken, '{"text": "Ä\u2028", "n": 1}'.encode()]
    path = tmp_path / ("lines.jsonl.gz" if compress is gzip.compress else "lines.jsonl")
    path.write_bytes(compress(b"\n".join(lines)))
    drops, texts = Drops(), []
    for record in read(path, "text", streaming=streaming):
        try:
            texts += LAYOUTS["text"](record, "web").parts
        except Unusable as error:
            drops.seen("web", error)
        else:
            drops.seen("web")
    assert texts == ["a", "Ä\u2028"]
    assert drops.report()["web"]["dropped"] == {"corrupt record": 2, "not a record of this layout": 2}


@pytest.mark.parametrize("streaming", [False, True])
def test_archives_of_different_and_of_broken_samples_are_read(streaming, tmp_path):
    first = {
        "a/0.png": png(0),
        "a/0.txt": b"zero",
        # Not one kind of image or of text everywhere, and files that are neither.
        "a/1.PNG": png(1),
        "a/1.json": b'{"text": "one"}',
        "a/1.cls": b"five",
        "a/.hidden.txt": b"no",
        "b/1.png": png(2),
        "b/1.txt": b"two",
        "3.png": png(3),
        "3.json": b"{",
        "4.png": png(4),
        "4.txt": b"\xff",
        "5.png": png(5),
    }
    write_tar(tmp_path / "0.tar", first)
    files = {"6.png": png(6), "6.txt": b"six", "7.png": png(7), "7.txt": b"seven"}
    whole = write_tar(tmp_path / "1.tar", files).read_bytes()
    assert len(png(6)) < 512, "a block each: 6.png's header, 6.png, 6.txt's header, 6.txt, and so on"
    # Cut within a file, and within a header.
    (tmp_path / "1.tar").write_bytes(whole[: 5 * 512 + 10])
    (tmp_path / "10.tar").write_bytes(whole[: 4 * 512 + 10])
    (tmp_path / "11.tar").write_bytes(write_tar(tmp_path / "11.tar", {"9.txt": b""}).read_bytes()[:512])
    write_tar(tmp_path / "2.tar", {"8.png": png(8), "8.txt": b"eight"})
    (tmp_path / "3.tar").write_bytes(b"")
    drops, found = Drops(), []
    for record in read(tmp_path, "caption", streaming=streaming):
        try:
            found.append(contents(LAYOUTS["caption"](record, "web")))
        except Unusable as error:
            drops.seen("web", error)
        else:
            drops.seen("web")
    assert found[:3] == [[0, "zero"], [1, "one"], [2, "two"]]
    assert found[-1] == [8, "eight"]
    assert drops.report()["web"]["dropped"] == {
        "corrupt record": 2,
        "not a record of this layout": 2,
        "corrupt archive": 4,
    }


def test_a_part_of_an_archive_is_read_and_a_changed_one_read_again(tmp_path):
    path = caption_tar(tmp_path)
    assert documents(path, "caption", split="train[1:]") == [[1, "picture 1"], [2, "picture 2"]]
    assert documents(path, "caption", split="train[:34%]") == [[0, "picture 0"]]
    write_tar(path, {"a.png": png(5), "a.txt": b"five"})
    assert documents(path, "caption") == [[5, "five"]]


def test_a_stream_divides_over_ranks_by_its_files(tmp_path):
    for index in range(4):
        write_lines(tmp_path / f"{index}.jsonl", [{"text": f"{index}{row}"} for row in range(3)])
    stream = read(tmp_path, "text", streaming=True)
    assert stream.num_shards == 4
    shares = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    texts = [[LAYOUTS["text"](record).parts[0] for record in share] for share in shares]
    assert sorted(texts[0] + texts[1]) == [f"{index}{row}" for index in range(4) for row in range(3)]
    assert [len(share) for share in texts] == [6, 6]


@pytest.mark.parametrize("write", [caption_lines, caption_parquet, caption_tar, caption_csv])
def test_a_stream_s_place_can_be_saved(write, tmp_path):
    """As resuming needs it, also where the data were read in another way in between."""
    path = write(tmp_path)
    stream = read(path, "caption", streaming=True)
    reading = iter(stream)
    next(reading)
    state = json.loads(json.dumps(stream.state_dict()))
    read(path, "caption")
    again = read(path, "caption", streaming=True)
    again.load_state_dict(state)
    assert [contents(LAYOUTS["caption"](record)) for record in again] == [[1, "picture 1"], [2, "picture 2"]]


def test_a_list_of_images_is_not_written_twice(tmp_path, cache):
    features = Features({"images": List(Image()), "texts": List(Value("string"))})
    noise = io.BytesIO()
    Pillow.effect_noise((500, 500), 90).save(noise, "PNG")
    rows = [{"images": [{"bytes": noise.getvalue(), "path": None}, None], "texts": [None, "a"]}] * 5
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "o.parquet")
    for _ in range(2):
        assert read(tmp_path / "o.parquet", "obelics").features["images"] == List(Image(decode=False))
    cached = sum(file.stat().st_size for file in cache.rglob("*.arrow"))
    assert 5 * len(noise.getvalue()) < cached < 6 * len(noise.getvalue())


@pytest.mark.parametrize("list_of", [lambda image: List(image, length=2), LargeList, List])
def test_images_in_lists_of_any_kind_stay_undecoded(list_of):
    features = Features({"images": list_of(Image()), "deep": {"inner": list_of(list_of(Image()))}})
    undecoded_image = Image(decode=False)
    assert undecoded(features) == Features(
        {"images": list_of(undecoded_image), "deep": {"inner": list_of(list_of(undecoded_image))}}
    )


def llava_with_pictures_elsewhere(folder: Path) -> tuple[Path, Path]:
    """LLaVA's own layout: the JSON in one folder, the pictures in another."""
    write_pictures(folder / "pictures" / "coco", 3)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    (folder / "json").mkdir()
    path = folder / "json" / "llava.json"
    path.write_text(json.dumps([{"image": f"coco/{i}.png", "conversations": turns} for i in range(3)]))
    return path, folder / "pictures"


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_may_lie_in_a_folder_of_their_own(streaming, tmp_path, monkeypatch):
    path, pictures = llava_with_pictures_elsewhere(tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder in (pictures, "pictures"):
        found = documents(path, "llava", streaming=streaming, image_folder=folder)
        assert found == [[i, "This."] for i in range(3)]
    (tmp_path / "archive").mkdir()
    archive = caption_tar(tmp_path / "archive")
    records = read(archive, "caption", streaming=streaming, image_folder=pictures)
    assert {record["__folder__"] for record in records} == {str(pictures)}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_hub_may_have_its_pictures_here(streaming, tmp_path, monkeypatch):
    """Parquet in place of a download."""
    path, pictures = caption_parquet(tmp_path), tmp_path
    monkeypatch.setattr("mm1_hf.data.readers._local_files", lambda _: None)
    monkeypatch.setattr(
        "mm1_hf.data.readers.load_dataset_builder",
        lambda _: load_dataset_builder("parquet", data_files={"train": [str(path)]}),
    )
    records = read("user/captions", "caption", streaming=streaming, image_folder=pictures)
    assert {record["__folder__"] for record in records} == {str(pictures)}


def test_a_folder_of_pictures_that_does_not_exist_is_refused(tmp_path):
    path, _ = llava_with_pictures_elsewhere(tmp_path)
    with pytest.raises(ValueError, match=r"image_folder is '/no/such/folder', but there is no folder /no/such"):
        read(path, "llava", image_folder="/no/such/folder")


def test_the_folder_of_many_records_costs_no_memory(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"image": f"{i}.png", "caption": str(i)} for i in range(2500)])
    dataset = read(path, "caption")
    assert {record["__folder__"] for record in dataset} == {str(tmp_path)}
    captions = [LAYOUTS["caption"](record).parts[1] for record in dataset.to_iterable_dataset(num_shards=2)]
    assert captions == [str(i) for i in range(2500)]
    halves = [dataset.shuffle(seed=0).shard(2, index) for index in range(2)]
    assert sorted(LAYOUTS["caption"](record).parts[1] for half in halves for record in half) == sorted(captions)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "layout", "message"),
    [
        (
            "a.jsonl",
            '{"text": "a"}',
            "captions",
            "There is no layout 'captions'; choose one of documents, caption, two_captions, llava",
        ),
        ("a.jsonl", "", "text", "has no records in the split 'train'|corresponds to no data"),
        ("a.parquet", None, "text", "has no records in the split 'train'|corresponds to no data"),
        ("a.json", '[{"text": "a"}, {"text":', "text", "a.json cannot be read: ValueError"),
        ("a.parquet", "no parquet", "text", "a.parquet cannot be read: .*[Pp]arquet"),
        ("a.tar", "no tar at all", "caption", r"a.tar cannot be read: /.*a\.tar: "),
        ("a.tar", "", "caption", r"a.tar cannot be read: /.*a\.tar: "),
        (
            "a.jsonl",
            '{"words": "a"}',
            "text",
            r"is not of the layout 'text': .* the record has the columns \['words'\]",
        ),
        ("a.png", "", "caption", r"a.png cannot be read. Give files of these formats: parquet"),
    ],
)
def test_bad_data_are_refused_by_what_is_wrong(name, content, layout, message, streaming, tmp_path):
    if content is None:
        Dataset.from_dict({"text": []}).to_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read(tmp_path / name, layout, streaming=streaming))


@pytest.mark.parametrize("path", ["/no/such/place", "none.jsonl", "none/*.tar", "no/such/folder/at/all"])
def test_missing_files_are_named(path):
    with pytest.raises(ValueError, match="There is no data file at"):
        read(path, "text")


def test_an_id_is_looked_for_on_the_hub(monkeypatch):
    asked = []

    def load_dataset_builder(path, **options):
        asked.append((path, options))
        raise ConnectionError("no Hub here")

    monkeypatch.setattr("mm1_hf.data.readers.load_dataset_builder", load_dataset_builder)
    with pytest.raises(ValueError, match="HuggingFaceM4/OBELICS cannot be read: ConnectionError: no Hub here"):
        read("HuggingFaceM4/OBELICS", "obelics", name="opt_out_docs_removed_2023_07_12")
    assert asked == [("HuggingFaceM4/OBELICS", {"name": "opt_out_docs_removed_2023_07_12"})]
