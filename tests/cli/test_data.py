import json
import sys
from pathlib import Path

import pytest
from web_pages import page, picture, write_site

from mm1_hf.cli import main
from mm1_hf.corpus.ways import documents as way


def test_documents_are_built_and_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_site(tmp_path / "site")
    arguments = ["data", "documents", "site", "out", "--tasks", "2", "--format", "webdataset"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "pages: read pages\n          12 kept\n" in printed
    assert "           1 dropped: near-duplicate\n" in printed
    assert printed.endswith("data: out/data\npage: out/report.html\n")
    assert list(Path("out/data").glob("*.tar"))
    assert json.loads(Path("out/run.json").read_text())["inputs"] == [str(tmp_path / "site")]
    # Once more, nothing is left to do; with other options, it is another run.
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed
    assert main([*arguments[:-1], "parquet"]) == 2
    assert "format was 'webdataset' and is 'parquet' now" in capsys.readouterr().err


def test_a_way_of_ones_own_replaces_the_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.png").write_bytes(picture(1))
    (tmp_path / "site" / "a.html").write_text("<p>Too short for the rules of quality.</p><img src=a.png>")
    (tmp_path / "site" / "b.html").write_text(page(1, "a.png"))
    source = Path(way.__file__).read_text()
    assert source.count("*repetition_and_quality_steps(),") == 1
    (tmp_path / "my_short_documents.py").write_text(source.replace("*repetition_and_quality_steps(),", ""))
    assert main(["data", "documents", "site", "out"]) == 0
    assert json.loads(Path("out/counts.json").read_text())[-1]["kept"] == 1
    assert main(["data", "documents", "site", "all", "--way", "my_short_documents.py"]) == 0
    assert json.loads(Path("all/counts.json").read_text())[-1]["kept"] == 2
    # A run is not resumed with other steps.
    with open("my_short_documents.py", "a") as file:
        file.write("# changed\n")
    capsys.readouterr()
    assert main(["data", "documents", "site", "all", "--way", "my_short_documents.py"]) == 2
    assert "way was 'my_short_documents.py of MD5 " in capsys.readouterr().err


def test_missing_packages_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mm1_hf.cli.data._PACKAGES", ("datatrove", "no_such_package"))
    assert main(["data", "documents", str(tmp_path), str(tmp_path / "out")]) == 2
    expected = "mm1 data: Building data sets needs more packages (no_such_package): pip install 'mm1_hf[data]'.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "There is no file or folder "),
        (["empty", "out"], "holds no file that can be read. Give files of these kinds: .html, .htm"),
        (["site", "site"], "is not empty and holds no run"),
        (["site", "out", "--executor", "slurm"], "Slurm needs the name of a partition and a time limit"),
        (["site", "out", "--partition", "cpu", "--time", "1:00:00"], "the executor is local: leave them out"),
        (["site", "out", "--partition", "cpu"], "the executor is local: leave them out"),
        (["site", "out", "--way", "nowhere.py"], "There is no Python file nowhere.py"),
        (["site", "out", "--way", "json.py"], "Rename json.py: Python has another module named json."),
        (
            ["site", "out", "--way", "no_way_at_all.py"],
            "no_way_at_all.py has no Settings and no stages. Copy a file of",
        ),
        (["site", "out", "--bad-words", "nowhere.txt"], "The list of bad words 'nowhere.txt' cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "empty").mkdir()
    write_site(tmp_path / "site", pages=2)
    (tmp_path / "json.py").write_text("")
    (tmp_path / "no_way_at_all.py").write_text("x = 1\n")
    assert main(["data", "documents", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mm1 data: ") and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
