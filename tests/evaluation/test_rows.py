"""The data of a task from every place and form, and what is said where they are not or cannot be used."""

import io
import json
import os

import pytest
from datasets import Dataset, DatasetDict, Image, disable_progress_bars, load_dataset_builder
from evaluation_data import picture, write_data

from mm1_hf.evaluation import rows
from mm1_hf.evaluation.samples import read_samples
from mm1_hf.evaluation.tasks import Columns, Shots, Task, load_task


disable_progress_bars()

TASK = Task(
    "birds",
    "test",
    metric="exact_match",
    data=("me/birds", "you/birds"),
    columns=Columns(question="q", image="image", answer="a", id="id"),
    shots=Shots("train"),
    max_new_tokens=8,
)


def records(first=0, count=3):
    return [
        {"id": f"r{n}", "image": picture(n), "q": f"What is {n}?", "a": f"thing {n}"}
        for n in range(first, first + count)
    ]


def png(number):
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


def check(samples, count=3):
    assert samples.ids == [f"r{n}" for n in range(count)]
    for n, sample in enumerate(samples):
        assert sample.error is None
        assert (sample.question, sample.references) == (f"What is {n}?", f"thing {n}")
        (image,) = sample.images
        assert image.load().convert("RGB").getpixel((0, 0)) == picture(n).getpixel((0, 0))


def write_parquet(path, first=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(records(first)).to_parquet(path)


@pytest.mark.parametrize(
    "place",
    [
        "test.parquet",
        "data/test-00000-of-00001.parquet",
        "data/test-00000-of-00001-0123abcd.parquet",
        "test/part-0.parquet",
        "birds/test.parquet",
        "me/birds/data/test-00000-of-00001.parquet",
        "you/birds/test.parquet",
    ],
)
def test_a_folder_has_a_file_for_each_split(tmp_path, place):
    write_parquet(tmp_path / place)
    write_parquet(
        (tmp_path / place).parent / "train.parquet" if "part" not in place else tmp_path / "train.parquet", 10
    )
    check(read_samples(TASK, data=tmp_path))


def test_several_files_are_read_in_order(tmp_path):
    for part, first in ((1, 2), (0, 0)):
        Dataset.from_list(records(first, 2)).to_parquet(tmp_path / f"test-0000{part}-of-00002.parquet")
    check(read_samples(TASK, data=tmp_path), 4)


def test_a_file_is_the_split_that_is_evaluated(tmp_path):
    write_parquet(tmp_path / "any.parquet")
    check(read_samples(TASK, data=tmp_path / "any.parquet"))
    with pytest.raises(ValueError, match="is one file, which is taken for the split test"):
        read_samples(TASK, data=tmp_path / "any.parquet", shots=True)


@pytest.mark.parametrize("inner", [".", "birds"])
def test_what_save_to_disk_writes_is_read(tmp_path, inner):
    splits = {"test": Dataset.from_list(records()), "train": Dataset.from_list(records(10))}
    DatasetDict(splits).save_to_disk(tmp_path / inner)
    check(read_samples(TASK, data=tmp_path))
    assert read_samples(TASK, data=tmp_path, shots=True)[0].answer == "thing 10"


def test_one_split_of_save_to_disk_is_read_with_lists_of_images(tmp_path):
    listed = [{**record, "image": [record["image"]]} for record in records()]
    Dataset.from_list(listed).save_to_disk(tmp_path / "saved")
    check(read_samples(TASK, data=tmp_path / "saved"))


def test_an_arrow_file_is_read(tmp_path):
    Dataset.from_list(records()).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    os.replace(file, tmp_path / "test.arrow")
    check(read_samples(TASK, data=tmp_path / "test.arrow"))


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_lines_of_json_name_pictures_in_their_folder(tmp_path, form):
    (tmp_path / "images").mkdir()
    lines = []
    for n in range(3):
        (tmp_path / "images" / f"{n}.png").write_bytes(png(n))
        lines.append({"id": f"r{n}", "image": f"images/{n}.png", "q": f"What is {n}?", "a": f"thing {n}"})
    text = json.dumps(lines) if form == "json" else "\n".join(map(json.dumps, lines))
    (tmp_path / f"test.{form}").write_text(text)
    check(read_samples(TASK, data=tmp_path))


def test_the_card_of_a_copy_says_where_splits_and_configurations_are(tmp_path):
    write_parquet(tmp_path / "files" / "one.parquet")
    write_parquet(tmp_path / "files" / "two.parquet", first=10)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: big\n  data_files:\n  - split: test\n    path: files/one.parquet\n"
        "  - split: train\n    path: files/two.parquet\n---\n"
    )
    task = Task(**{**vars(TASK), "config": "big"})
    check(read_samples(task, data=tmp_path))


@pytest.mark.parametrize(
    "card",
    ["", "---\nlicense: mit\n---\n", "---\nconfigs: 5\n---\n", "---\nconfigs: [a, {b: c}]\n---\n", "---\n: [\n---\n"],
)
def test_a_card_that_does_not_name_the_split_is_no_hindrance(tmp_path, card):
    write_parquet(tmp_path / "test.parquet")
    (tmp_path / "README.md").write_text(card)
    check(read_samples(TASK, data=tmp_path))


def test_addresses_in_a_card_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a card opened a connection"))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: https://127.0.0.1/x.parquet\n---\n"
    )
    with pytest.raises(ValueError, match="are not in"):
        read_samples(TASK, data=tmp_path)


def test_the_card_cannot_name_files_elsewhere(tmp_path):
    write_parquet(tmp_path / "elsewhere" / "one.parquet")
    copy = tmp_path / "copy"
    copy.mkdir()
    outside = tmp_path / "elsewhere" / "one.parquet"
    (copy / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: {outside}\n---\n"
    )
    with pytest.raises(ValueError, match="outside of the data's folder"):
        read_samples(TASK, data=copy)


def test_pictures_elsewhere_are_not_opened(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(0))
    copy = tmp_path / "copy"
    copy.mkdir()
    lines = [
        {"id": "r0", "image": "../secret.png", "q": "What?", "a": "x"},
        {"id": "r1", "image": str(tmp_path / "secret.png"), "q": "What?", "a": "x"},
        {"id": "r2", "image": "secret.png", "q": "What?", "a": "x", "__folder__": str(tmp_path)},
    ]
    (copy / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    samples = read_samples(TASK, data=copy)
    assert "outside of the data's folder" in samples[0].error
    assert "outside of the data's folder" in samples[1].error
    assert samples[0].scored
    assert samples[2].images[0].source == str(copy / "secret.png")


def test_the_hubs_copies_are_tried_in_order_and_one_split_alone_is_read(tmp_path, monkeypatch):
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", first=10)
    opened = []

    def builder(name, config=None, **options):
        if name == "me/birds":
            raise FileNotFoundError("no such repository")
        opened.append(options.get("data_files"))
        return load_dataset_builder(str(tmp_path) if name == "you/birds" else name, config, **options)

    monkeypatch.setattr(rows, "load_dataset_builder", builder)
    samples = read_samples(TASK)
    assert samples.source == "you/birds"
    check(samples)
    (prepared,) = filter(None, opened)
    assert list(prepared) == ["test"]


def test_a_hub_that_cannot_be_reached_says_how_to_get_the_data():
    with pytest.raises(
        ValueError, match=r"cannot be loaded from the Hub.*hf download me/birds .*FOLDER/birds"
    ) as caught:
        read_samples(TASK)
    assert "you/birds: " in str(caught.value)


def test_a_folder_without_the_data_says_what_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"\(split test\) are not in .*hf download me/birds.*such as test.parquet"):
        read_samples(TASK, data=tmp_path)
    with pytest.raises(ValueError, match="configuration testdev_balanced_instructions"):
        read_samples(load_task("gqa"), data=tmp_path)


@pytest.mark.parametrize("name", ["vl_icl_open_mi", "flickr30k_entities"])
def test_data_that_are_not_on_the_hub_have_to_be_given(name, tmp_path):
    with pytest.raises(ValueError, match=f"The data of the task {name} are not there"):
        read_samples(load_task(name))
    with pytest.raises(ValueError, match=f"The data of the task {name} are not there"):
        read_samples(load_task(name), data=tmp_path / "none")


def test_broken_files_are_named(tmp_path):
    (tmp_path / "test.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"test.parquet cannot be read"):
        read_samples(TASK, data=tmp_path)
    write_data(tmp_path, "vl_icl_clevr")
    query = tmp_path / "vl_icl_clevr" / "clevr" / "query.json"
    query.write_text('[{"id": 1}]')
    with pytest.raises(ValueError, match="do not have their published form: KeyError: 'question'"):
        read_samples(load_task("vl_icl_clevr"), data=tmp_path)
    query.write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        read_samples(load_task("vl_icl_clevr"), data=tmp_path)


def test_pictures_of_flickr30k_stay_in_their_folder(tmp_path):
    write_data(tmp_path, "flickr30k_entities")
    (tmp_path / "flickr30k_entities" / "test.txt").write_text("../../secret\n")
    with pytest.raises(ValueError, match="outside of their folder"):
        read_samples(load_task("flickr30k_entities"), data=tmp_path)


def test_images_stay_undecoded(tmp_path):
    write_parquet(tmp_path / "test.parquet")
    table = rows.open_rows(TASK, "test", tmp_path, ("",)).tables[0]
    assert table.records.features["image"] == Image(decode=False)
