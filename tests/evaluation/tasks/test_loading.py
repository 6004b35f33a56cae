"""Tasks by name, by path and from other packages, and what is refused in a task's file."""

import pytest
from datasets import Dataset
from evaluation_data import picture

from mm1_hf.evaluation import tasks
from mm1_hf.evaluation.prompts import build_requests
from mm1_hf.evaluation.samples import read_samples
from mm1_hf.evaluation.tasks import load_task, task_names
from mm1_hf.evaluation.templates import Template


# What docs/evaluation.md promises: a task in 15 lines.
OWN = """\
data: [me/birds]
split: test
shots: {split: train}
columns: {id: id, image: photo, question: asked, answer: species}
completion:
  query: "{image} Q: {question} A:"
  separator: " | "
chat: chat_short
metric: exact_match
options: {normalizer: case}
stop: ["|"]
max_new_tokens: 8
citation: me
licence: CC0-1.0
note: only for this test
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "birds.yaml"
    path.write_text(OWN)
    return path


@pytest.fixture
def fresh_names():
    tasks._files.cache_clear()
    yield
    tasks._files.cache_clear()


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new))
    return path


def test_a_task_of_a_user_is_15_lines_and_works_by_its_path(own, tmp_path):
    assert len(OWN.splitlines()) == 15
    for split, first in (("train", 10), ("test", 0)):
        rows = [
            {"id": n, "photo": picture(n), "asked": "Which bird?", "species": f"Bird {n}"}
            for n in range(first, first + 2)
        ]
        Dataset.from_list(rows).to_parquet(tmp_path / f"{split}.parquet")
    task = load_task(own)
    assert task.name == "birds"
    samples = read_samples(task, data=tmp_path)
    pool = read_samples(task, data=tmp_path, shots=True)
    (request,) = build_requests(task, samples[0], [pool[0]])
    image, text, query, rest = request.prompt
    assert (text, rest) == (" Q: Which bird? A: Bird 10 | ", " Q: Which bird? A:")
    assert image.load().getpixel((0, 0)) == picture(10).getpixel((0, 0))
    assert query.load().getpixel((0, 0)) == picture(0).getpixel((0, 0))


def test_another_split_is_named_after_an_at_sign(own):
    task = load_task("vqav2@testdev")
    assert (task.name, task.split) == ("vqav2@testdev", "testdev")
    assert load_task(own).split == "test"


def test_a_folder_may_have_an_at_sign_in_its_name(tmp_path):
    (tmp_path / "a@b").mkdir()
    path = tmp_path / "a@b" / "own.yaml"
    path.write_text(OWN)
    assert load_task(path).name == "own"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"There is no task 'vqa2'. Did you mean vqav2"):
        load_task("vqa2")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_task(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("metric:", "metrik:", r"unknown entries: metrik \(did you mean metric\?\)"),
        ("max_new_tokens: 8", "max_new_tokens: many", "max_new_tokens is 'many', but a number is expected"),
        ("image: photo", "picture: photo", "columns has unknown entries: picture"),
        ("metric: exact_match", "metric: exactly", "There is no metric 'exactly'"),
        ("chat: chat_short", "chat: chat_shirt", "There is no template 'chat_shirt'"),
        ("{question} A:", "{question.x} A:", "only names in braces"),
        ("  query: ", "  answer: ' {answer}'\n  qery: ", "completion has unknown entries: qery"),
        ("max_new_tokens: 8", "kind: likelihood\nmax_new_tokens: 8", "which generates nothing"),
        ("max_new_tokens: 8", "", "Give the length of an answer"),
        ("data: [me/birds]", "", "needs data"),
        ("metric: exact_match", "metric: exact_match\njudge: mm_vet", "either a metric or a judge"),
        ("split: test", "split: test\nprepare: mmmmu", "There is no prepare 'mmmmu'"),
        ("split: test", "split: test\nsource: web", "There is no source 'web'"),
        ("shots: {split: train}", "hidden: [test]", "The split test is hidden"),
    ],
)
def test_a_wrong_entry_is_refused_by_its_name(own, old, new, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_task(change(own, old, new))
    assert "birds.yaml" in str(caught.value)


def test_a_list_is_not_a_task(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="must hold entries with names"):
        load_task(path)


def test_templates_can_be_written_out_or_named(own):
    task = load_task(own)
    assert task.completion == Template("{image} Q: {question} A:", separator=" | ")
    assert task.chat == "chat_short"


@pytest.mark.usefixtures("fresh_names")
def test_a_package_brings_tasks_by_an_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "bird_tasks"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('not imported for its files')")
    (package / "birds.yaml").write_text(OWN)
    (package / "gqa.yaml").write_text(OWN)
    info = tmp_path / "bird_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bird-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mm1_hf.tasks]\nbirds = bird_tasks\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "birds" in task_names()
    assert load_task("birds").citation == "me"
    with pytest.raises(ValueError, match="Several installed packages have a task 'gqa'"):
        load_task("gqa")


@pytest.mark.usefixtures("fresh_names")
def test_an_entry_point_that_is_no_package_is_named(tmp_path, monkeypatch):
    info = tmp_path / "bird_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bird-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mm1_hf.tasks]\nbirds = no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"birds of the group mm1_hf.tasks is 'no_such_package', which is not a package"
    ):
        load_task("vqav2")
