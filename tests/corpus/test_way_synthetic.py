"""`mm1 data synthetic` end to end: pairs become pairs with two captions, whatever the models answer."""

import json
import threading

import pyarrow.parquet as pq
import pytest
from caption_server import Reply, caption_server, prompt_of, said
from captioning import captioner, fuser, write_pairs

from mm1_hf.cli import main
from mm1_hf.corpus.captioning import endpoint
from mm1_hf.corpus.stages import run_stages
from mm1_hf.corpus.ways.synthetic import DESCRIBE, FUSE, Settings, stages
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.readers import read
from mm1_hf.data.two_captions import TwoCaptions


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(endpoint, "RETRIES", 2)


def run(pairs, output, describe, fuse, tasks: int = 2, **settings) -> None:
    with caption_server(describe, ("eye",)) as eye, caption_server(fuse, ("pen",)) as pen:
        chosen = Settings((str(pairs),), str(output), captioner_endpoint=eye, fuser_endpoint=pen, **settings)
        run_stages(stages(chosen), output, tasks=tasks)


def data(output) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "data").iterdir())}


def reasons(output) -> dict[str, int]:
    found: dict[str, int] = {}
    for stats in (output / "steps").glob("*/stats.json"):
        for step in json.loads(stats.read_text()):
            for label, number in step["stats"].items():
                if label.startswith("dropped: "):
                    total = number["total"] if isinstance(number, dict) else number
                    found[label.removeprefix("dropped: ")] = found.get(label.removeprefix("dropped: "), 0) + total
    return found


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_pairs_become_pairs_with_two_captions(format, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", 5)
    run(pairs, tmp_path / "out", captioner, fuser, format=format)
    dataset = read(tmp_path / "out" / "data", "two_captions")
    documents = [LAYOUTS["two_captions"](record) for record in dataset]
    assert len(documents) == 5
    for document in documents:
        assert isinstance(document, TwoCaptions)
        image, alt = document.parts
        again, synthetic = document.synthetic.parts
        assert alt.startswith("Photo ") and alt.endswith("of a small village in France")
        assert synthetic.startswith(f"{alt}, a wide view of a small village with ")
        # The colour of an image is the number of its pair.
        assert image.load().getpixel((0, 0)) == again.load().getpixel((0, 0)) == (int(alt.split()[1]), 0, 0)
    # The same data set without its synthetic captions.
    assert [LAYOUTS["caption"](record).parts[1] for record in dataset] == [document.parts[1] for document in documents]


def test_every_record_says_who_wrote_its_captions(tmp_path):
    run(write_pairs(tmp_path / "pairs", 2), tmp_path / "out", captioner, fuser)
    table = pq.read_table(sorted((tmp_path / "out" / "data").iterdir())[0]).to_pylist()
    assert table[0]["description"].startswith("A wide view")
    provenance = json.loads(table[0]["provenance"])
    assert provenance["caption"] == "the alt text of the input"
    assert (provenance["description"]["model"], provenance["synthetic_caption"]["model"]) == ("eye", "pen")
    assert (provenance["description"]["prompt"], provenance["synthetic_caption"]["prompt"]) == (DESCRIBE, FUSE)
    assert provenance["description"]["max_tokens"] == 128 and provenance["description"]["temperature"] == 0


def test_what_is_wrong_with_an_answer_is_counted_and_the_pair_left_out(tmp_path):
    wrong = {
        0: said("I'm sorry, but I cannot see the image."),
        1: said(""),
        2: said("spam " * 200_000),
        3: said("\x00\x07\x1b[31m"),
        4: Reply(500, b"boom"),
        5: said("A village in the hills near the", "length"),
    }

    def fuse(request):
        _, _, rest = prompt_of(request).partition("Photo ")
        return wrong.get(int(rest.split()[0]) if rest else -1) or fuser(request)

    # A picture of 20 pixels of one colour tells its number.
    run(write_pairs(tmp_path / "pairs", 8), tmp_path / "out", captioner, fuse)
    assert len(read(tmp_path / "out" / "data", "two_captions")) == 2
    assert reasons(tmp_path / "out") == {
        "a refusal": 1,
        "empty": 1,
        "too long": 1,
        "control characters": 1,
        endpoint.FAILS: 1,
        "cut off before its first sentence ended": 1,
    }
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "I&#x27;m sorry, but I cannot see the image." in page and "\x1b" not in page


def test_tasks_do_not_change_the_pairs(tmp_path):
    pairs = write_pairs(tmp_path / "pairs", 9, files=4)
    found = []
    for tasks in (1, 4):
        run(pairs, tmp_path / f"out{tasks}", captioner, fuser, tasks=tasks)
        dataset = read(tmp_path / f"out{tasks}" / "data", "two_captions")
        found.append(sorted(json.dumps([row["caption"], row["synthetic_caption"]]) for row in dataset))
    assert len(found[0]) == 9 and found[0] == found[1]


def test_a_run_whose_endpoint_died_goes_on_with_equal_bytes(tmp_path):
    pairs = write_pairs(tmp_path / "pairs", 30)
    run(pairs, tmp_path / "whole", captioner, fuser)
    asked: list[str] = []
    lock = threading.Lock()

    def counting(answer, lives: int):
        def counted(request):
            with lock:
                if len(asked) >= lives:
                    return Reply(503)
                asked.append(prompt_of(request))
            return answer(request)

        return counted

    for lives in (7, 22, 41, 55):
        with pytest.raises(ConnectionError, match="what has been answered is kept"):
            run(pairs, tmp_path / "out", counting(captioner, lives), counting(fuser, lives), requests=2)
    run(pairs, tmp_path / "out", counting(captioner, 1000), counting(fuser, 1000))
    # Only what was under way when the endpoint died may have been answered in vain.
    assert 60 <= len(asked) <= 60 + 4 * 2
    assert data(tmp_path / "out") == data(tmp_path / "whole")


def test_the_command_resumes_with_a_server_at_another_address(tmp_path, capsys):
    pairs, output = write_pairs(tmp_path / "pairs", 3, files=1), tmp_path / "out"

    def command(describe) -> int:
        with caption_server(describe, ("eye",)) as eye, caption_server(fuser, ("pen",)) as pen:
            models = ["--captioner-endpoint", eye, "--fuser-endpoint", pen, "--requests", "1"]
            return main(["data", "synthetic", str(pairs), str(output), *models])

    assert command(lambda request: Reply(502)) == 2
    assert "does not answer (asked 3 times): 502" in capsys.readouterr().err
    assert command(captioner) == 0
    assert "captions: fused captions\n           3 kept" in capsys.readouterr().out
    assert len(read(output / "data", "two_captions")) == 3


def test_wrong_settings_are_found_before_anything_runs(tmp_path):
    pairs = str(write_pairs(tmp_path / "pairs", 1))
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="No captioner is given"):
        stages(Settings((pairs,), out, fuser="x"))
    with pytest.raises(ValueError, match="No fuser is given"):
        stages(Settings((pairs,), out, captioner="x"))
    with pytest.raises(ValueError, match="batch_size is 7; give a number that divides 64"):
        stages(Settings((pairs,), out, captioner="x", fuser="x", batch_size=7))
    with pytest.raises(ValueError, match="The endpoint is 'localhost'"):
        stages(Settings((pairs,), out, captioner="x", captioner_endpoint="localhost", fuser="x"))
    with pytest.raises(ConnectionError, match="Start the endpoint, or name its model"):
        stages(Settings((pairs,), out, captioner_endpoint="http://127.0.0.1:9/v1", fuser="x"))
