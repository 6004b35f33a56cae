import importlib.util
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from mm1_hf.data.documents import ImagePart
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.readers import read


PATH = Path(__file__).parents[2] / "examples" / "prepare_pretraining_data.py"
SPEC = importlib.util.spec_from_file_location(PATH.stem, PATH)
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def manuals(tmp_path):
    """Both manuals as Debian lays them out: of each, thirty pages with a picture and thirty without."""
    root = tmp_path / "manuals"
    for package, path in SCRIPT.MANUALS.items():
        folder = root / path
        (folder / "images").mkdir(parents=True)
        for index in range(30):
            Image.new("RGB", (150, 100), (index, 9, len(package))).save(folder / "images" / f"{index}.png")
            page = f"<nav>Next</nav><p>{package} {index}</p><img src='images/{index}.png'><img src='https://a.example/me'>"
            (folder / f"page-{index}.html").write_text(f"{page}<p>That was it.</p>")
            (folder / f"words-{index}.html").write_text(f"<p>Only words, {package} {index}.</p>")
    return root


def documents(folder: Path, source: str, layout: str) -> dict[str, list]:
    return {
        split: [LAYOUTS[layout](record) for record in read(folder / source, layout, split=split)]
        for split in ("train", "test")
    }


def test_three_sources_are_written_and_read_back(manuals, tmp_path, monkeypatch):
    # A third held out, so that few are enough for both splits.
    monkeypatch.setattr(SCRIPT, "TEST_SHARE", 0.3)
    output = tmp_path / "data"
    SCRIPT.main([str(output), "--manuals", str(manuals), "--limit", "60"])

    captions = documents(output, "captions", "caption")
    assert sum(map(len, captions.values())) == 60
    for document in captions["train"] + captions["test"]:
        image, name = document.parts
        assert image.size() == (224, 224)
        assert name and "_" not in name and ":" not in name
        # Something is drawn, on nothing.
        assert image.load().getchannel("A").getextrema() == (0, 255)
    train, test = ({document.parts[1] for document in captions[split]} for split in ("train", "test"))
    assert train.isdisjoint(test)

    interleaved = documents(output, "interleaved", "documents")
    assert sum(map(len, interleaved.values())) == 60
    for document in interleaved["train"] + interleaved["test"]:
        before, image, after = document.parts
        package, index = before.split()
        assert image.load().getpixel((0, 0)) == (int(index), 9, len(package))
        assert (after, document.name) == ("That was it.", f"{package}/page-{index}.html")

    texts = documents(output, "text", "text")
    words = [document.parts[0] for split in texts.values() for document in split]
    assert sorted(words) == sorted(f"Only words, {package} {i}." for package in SCRIPT.MANUALS for i in range(30))
    assert not any(isinstance(part, ImagePart) for split in texts.values() for doc in split for part in doc.parts)
    assert all(min(map(len, source.values())) > 0 for source in (captions, interleaved, texts))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["woman cook medium-dark skin tone", "man cook", "cook", "person cook light skin tone"], "cook"),
        (["people holding hands medium skin tone light skin tone", "men holding hands"], "holding hands"),
        (["flag of Germany"], "flag of Germany"),
        (["mango"], "mango"),
    ],
)
def test_variants_of_a_drawing_are_in_one_split(names, shown):
    assert {SCRIPT.what_is_shown(name) for name in names} == {shown}


def test_what_is_held_out_does_not_change():
    held_out = [str(number) for number in range(5000) if SCRIPT.is_test(str(number))]
    assert held_out[:4] == ["14", "16", "37", "51"]
    assert len(held_out) == pytest.approx(500, abs=60)


def test_what_is_missing_is_said(manuals, tmp_path, monkeypatch):
    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            SCRIPT.main([*map(str, arguments)])
        return caught.value.code

    assert error(tmp_path).endswith("exists; give a new folder, or remove this one.")
    assert "unpack gimp-help-en into" in error(tmp_path / "data", "--manuals", tmp_path)
    monkeypatch.setattr(SCRIPT.shutil, "which", lambda _: None)
    expected = "This machine has no apt. On a Debian machine run: apt-get download gimp-help-en"
    assert expected in error(tmp_path / "data")
    monkeypatch.setattr(SCRIPT, "MODULES", (*SCRIPT.MODULES, "no_such_module"))
    expected = f"error: Packages are missing (no_such_module); install them with: {SCRIPT.INSTALL}"
    assert error(tmp_path / "data", "--manuals", manuals) == expected
    assert not (tmp_path / "data").exists()


def test_a_failed_download_is_said(tmp_path, monkeypatch):
    def run(command, **_):
        raise subprocess.CalledProcessError(100, command, stderr="E: Unable to locate package gimp-help-en")

    monkeypatch.setattr(SCRIPT.shutil, "which", lambda name: name)
    monkeypatch.setattr(SCRIPT.subprocess, "run", run)
    with pytest.raises(SystemExit, match="gimp-help-en cannot be downloaded: E: Unable to locate package"):
        SCRIPT.main([str(tmp_path / "data")])
