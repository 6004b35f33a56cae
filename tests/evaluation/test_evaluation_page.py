"""docs/evaluation.md: its commands are read, its examples run, and its table is that of the tasks."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from machines import pretend_cpu
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.cli import build_parser, main
from mm1_hf.evaluation.report import _published
from mm1_hf.evaluation.tasks import task_names
from mm1_hf.evaluation.tasks_page import rewritten


PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^mm1 .+$", PAGE, flags=re.MULTILINE)]
(TASK,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretend_cpu(monkeypatch, torch.float32)
    for name in ("quickstart-mm1", "my-mm1"):
        for part in tiny_mm1():
            part.save_pretrained(name)
    return tmp_path


def test_the_table_is_that_of_the_tasks():
    assert rewritten(PAGE) == PAGE, "run `make docs`"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_one(command):
    build_parser().parse_args(command)


def test_the_first_example_runs_as_written(folder, capsys):
    assert main(COMMANDS[0]) == 0
    (heading,) = re.findall(r"^task +shots .+$", PAGE, flags=re.MULTILINE)
    printed = capsys.readouterr().out
    assert heading in printed and "report: runs/easy/report.html" in printed
    results = json.loads((folder / "runs/easy/results.json").read_text(encoding="utf-8"))
    assert [(score["shots"], score["trials"], score["samples"]) for score in results["scores"]] == [
        (0, 1, 100),
        (4, 2, 100),
    ]
    for name in re.findall(r"^\| `([\w.]+)/?` \|", PAGE.partition("## Stopping")[0], flags=re.MULTILINE):
        assert name == "submissions" or (folder / "runs/easy" / name).exists()


def test_a_task_of_ones_own_has_15_lines_and_runs_as_written(folder):
    assert len(TASK.strip().splitlines()) <= 15
    (folder / "hinges.yaml").write_text(TASK, encoding="utf-8")
    (folder / "hinges").mkdir()
    for split in ("train", "test"):
        records = []
        for index in range(5):
            Image.new("RGB", (56, 56), (50 * index, 0, 0)).save(f"hinges/{split}{index}.png")
            record = {
                "id": f"{split}{index}",
                "photo": f"{split}{index}.png",
                "question": "Which side?",
                "side": "left",
            }
            records.append(json.dumps(record))
        (folder / "hinges" / f"{split}.jsonl").write_text("\n".join(records), encoding="utf-8")
    (command,) = (command for command in COMMANDS if "hinges.yaml" in command)
    assert main(command) == 0
    assert (folder / "runs/hinges/samples.parquet").exists()


def test_published_figures_are_of_tasks_that_there_are():
    tables = json.loads(
        (Path(__file__).parents[2] / "src/mm1_hf/evaluation/published.json").read_text(encoding="utf-8")
    )
    for table in tables["tables"]:
        assert set(table["tasks"]) <= set(task_names())
        assert all(len(row) == len(table["tasks"]) for row in table["rows"].values())
    nothing = {"scores": [], "tasks": {}}
    assert not _published(nothing)
