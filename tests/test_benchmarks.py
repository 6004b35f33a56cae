"""The benchmarks run, at toy size; what they measure is for a quiet machine."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark


def test_image_processing(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    benchmark = load("image_processing")
    monkeypatch.setattr(benchmark, "TILE_SIDES", (28, 56))
    monkeypatch.setattr(benchmark, "MEGAPIXELS", (0.01, 0.02))
    # It sets one thread for the whole process.
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda _: None)
    photo, output = tmp_path / "photo.png", tmp_path / "results" / "image_processing.json"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(photo)
    arguments = ["image_processing.py", "--photo", str(photo), "--output", str(output), "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()

    result = json.loads(output.read_text())
    assert {"hardware", "python", "torch", "transformers", "commit", "summary"} <= set(result)
    cases = [(row["tile"], row["megapixels"], row["input"]) for row in result["rows"]]
    assert cases == [(tile, size, kind) for tile in (28, 56) for size in (0.01, 0.02) for kind in ("Pillow", "array")]
    for row in result["rows"]:
        speeds = row["images_per_second"]
        rivals = {name: speed for name, speed in speeds.items() if name not in benchmark.OURS + benchmark.FLOORS}
        assert {name.split(",")[0] for name in rivals} == {"LLaVA-NeXT", "LLaVA-OneVision", "Idefics3"}
        assert row["fastest_rival"] == max(rivals, key=rivals.get)
        for name in benchmark.OURS:
            # Images per second are rounded to a tenth, the ratios to a hundredth.
            ratio = speeds[name] / speeds[row["fastest_rival"]]
            assert row["times_the_fastest_rival"][name] == pytest.approx(ratio, rel=0.02, abs=0.02)
            ratio = speeds["floor"] / speeds[name]
            assert row["times_the_floor"][name] == pytest.approx(ratio, rel=0.02, abs=0.02)
    assert Image.open(output.with_suffix(".png")).width > 500


def test_sft_packing(tmp_path, monkeypatch):
    benchmark = load("sft_packing")
    monkeypatch.setattr(benchmark, "KINDS", ((0.5, 1, 3), (0.5, 5, 20)))
    output = tmp_path / "results" / "sft_packing.json"
    options = {
        "length": 512,
        "positions": 1024,
        "rounds": 1,
        "width": 32,
        "layers": 1,
        "samples": 24,
        "output": output,
    }
    command = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["sft_packing.py", *command])
    benchmark.main()
    result = json.loads(output.read_text())
    speeds = result["samples_per_second"]
    assert set(speeds) == {"TRL, padded", "mm1_hf, packed"} and min(speeds.values()) > 0
    assert result["times_trl"] == pytest.approx(speeds["mm1_hf, packed"] / speeds["TRL, padded"])
    assert {"hardware", "python", "torch", "trl", "commit"} <= set(result)


def test_shared_images(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS.parent)
    output = tmp_path / "results" / "shared_images.json"
    options = {
        "pictures": 6,
        "questions": 8,
        "length": 256,
        "side": 28,
        "tokens": 4,
        "width": 32,
        "layers": 1,
        "rounds": 1,
    }
    command = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["shared_images.py", "--output", str(output), *command])
    load("shared_images").main()
    result = json.loads(output.read_text())
    separate, shared = "picture once per question", "picture once"
    assert result["rows"][shared] < result["rows"][separate]
    assert result["positions_of_a_question"][shared] < result["positions_of_a_question"][separate]
    assert result["mean_loss_before_training"][shared] == pytest.approx(
        result["mean_loss_before_training"][separate], abs=1e-4
    )
    for kind, ratio in result["times_the_separate_rows"].items():
        assert ratio == pytest.approx(result[kind][shared] / result[kind][separate])
    assert {"hardware", "versions", "commit"} <= set(result)


def test_the_bars_of_the_quickstart(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS.parent)
    judge = load("quickstart").judge
    good = {"overall": {"model": 0.93, "shuffled": 0.7}, "shape": {"model": 0.96}, "colour": {"model": 0.9}}
    assert all(judge(good, 5.9, "bfloat16").values()) and all(judge(good, 11.9, "float32").values())
    assert [name for name, passed in judge(good, 6.1, "bfloat16").items() if not passed] == ["6 minutes"]
    blind = good | {"overall": {"model": 0.93, "shuffled": 0.8}, "colour": {"model": 0.84}}
    failed = [name for name, passed in judge(blind, 1, "bfloat16").items() if not passed]
    assert failed == ["colour 85%", "20% more than with shuffled images"]


def test_a_large_image_costs_the_memory_of_its_tiles(tmp_path, monkeypatch):
    output = tmp_path / "results" / "tile_memory.json"
    monkeypatch.setattr(sys, "argv", ["tile_memory.py", "--output", str(output)])
    load("tile_memory").main()
    result = json.loads(output.read_text())
    assert {"hardware", "python", "torch", "transformers", "commit"} <= set(result)
    encoder, step = result["results"]["encoder and connector"], result["results"]["whole step"]
    assert encoder["flat"] <= 1.2
    assert encoder["padded"] == pytest.approx(320 / 41, rel=0.1)
    assert step["balanced"] <= 1.2 < step["one batch"]


def test_image_repeats(tmp_path, monkeypatch, capsys):
    benchmark = load("image_repeats")
    # Fewer pages have a smaller pool, so that images repeat.
    monkeypatch.setattr(benchmark, "POOL", 200)
    output = tmp_path / "results" / "image_repeats.json"
    benchmark.main(["--output", str(output), "--images", "2000", "--folder", str(tmp_path)])
    result = json.loads(output.read_text())
    assert {"hardware", "python", "datatrove", "commit", "summary", "disk_bytes"} <= set(result)
    assert result["images"] == 2000 and result["pages"] == 200
    assert 0 < result["repeated_images"] < result["different_images"] < 2000
    dropped = result["passes"]["drop images"]["result"]
    assert dropped["image kept"] + result["images_dropped"] == 2000
    assert json.loads(capsys.readouterr().out) == result["summary"]
    with pytest.raises(SystemExit):
        benchmark.main(["--output", str(output), "--images", "5"])


def test_the_table_of_gpu_tests(tmp_path, monkeypatch, capsys):
    benchmark = load("gpu")
    example = tmp_path / "test_example.py"
    example.write_text(
        "import pytest\n\n\n"
        "@pytest.mark.gpu\ndef test_good(): ...\n\n\n"
        "@pytest.mark.gpu\ndef test_bad():\n    assert 1 == 2\n\n\n"
        "@pytest.mark.gpu\n@pytest.mark.skip(reason='no kernel')\ndef test_skipped(): ...\n\n\n"
        "def test_without_a_gpu(): ...\n"
    )
    assert any(name.endswith("test_packed_rows.py") for name in benchmark.marked_files())
    monkeypatch.setattr(benchmark, "marked_files", lambda: [str(example)])
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "gpu.json")])
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    assert benchmark.main() == 2

    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark.torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(benchmark.torch.cuda, "get_device_capability", lambda: (9, 0))
    assert benchmark.main() == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    outcomes = {case["test"]: (case["outcome"], case["reason"]) for case in result["tests"]}
    assert outcomes["test_good"] == ("passed", "") and outcomes["test_skipped"] == ("skipped", "no kernel")
    assert outcomes["test_bad"][0] == "failure" and len(outcomes) == 3
    printed = capsys.readouterr().out
    assert "A GPU, torch" in printed and "test_skipped  skipped" in printed


def test_evaluation_compares_the_same_questions_and_divides_the_right_times(tmp_path):
    benchmark = load("evaluation")
    benchmark.write_data(tmp_path / "shared", 30, 9673, True)
    benchmark.write_data(tmp_path / "single", 30, 5000, False)
    task = benchmark.load_task("easy_vqa")
    shared, single = (benchmark.read_samples(task, data=tmp_path / name) for name in ("shared", "single"))
    assert len(shared) == len(single) == 30
    pictures = [{sample.images[0].read() for sample in samples} for samples in (shared, single)]
    assert len(pictures[0]) < 10 and len(pictures[1]) == 30
    pools = [len(benchmark.read_samples(task, data=tmp_path / name, shots=True)) for name in ("shared", "single")]
    assert pools == [8, 12]
    # 10 questions in 1 s; the text of 4 shots costs 2 s, their pictures 0.2 s.
    seconds = {("mm1 eval", 0): 1.0, ("mm1 eval", 4): 3.2, ("lmms-eval", 0): 1.5, ("lmms-eval", 4): 6.4}
    seconds |= {("mm1 eval, pictures known", 0): 0.9, ("mm1 eval, pictures known", 4): 2.9}
    timings = {key: [(value, 2 * value), (value, 2 * value)] for key, value in seconds.items()}
    found = benchmark.ratios(timings, 10)
    for kind, factor in (("processor", 1), ("wall", 2)):
        assert found[f"{kind}_seconds_of_a_question"]["mm1 eval"] == {
            "0": pytest.approx(0.1 * factor),
            "4": pytest.approx(0.32 * factor),
        }
        assert found[f"times_lmms_eval_{kind}"] == {"0": pytest.approx(1.5), "4": pytest.approx(2.0)}
        assert found[f"shots_beyond_text_{kind}"] == pytest.approx(1.2)
