import argparse
import json

import pytest
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.cli import build_parser, main


# The command's whole surface: a new verb or option is a decision, taken by changing this.
SURFACE = {
    "quickstart": {"--output", "--steps", "--questions", "--seed"},
    "ask": {"--model", "--image", "question"},
    "inspect": {"data", "--model", "--config", "--command", "--layout", "--split", "--row", "--labels", "--html"},
    "plan": {
        "preset",
        "--gpus",
        "--stage",
        "--tp",
        "--ep",
        "--gradient-checkpointing",
        "--memory",
        "--mfu",
        "--peak-tflops",
    },
    "pretrain": {"--config"},
    "sft": {"--config"},
    "convert": {"kind", "source", "output", "--dtype", "--max-shard-size", "--allow-pickle"},
    "push": {"folder", "repo_id", "--card", "--quantize", "--private"},
    # transformers' own.
    "serve": set(),
    "chat": set(),
}


def test_verbs_and_options_are_pinned():
    (verbs,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    surface = {
        verb: {name for action in parser._actions for name in action.option_strings or [action.dest]}
        - {"-h", "--help"}
        for verb, parser in verbs.choices.items()
    }
    assert surface == SURFACE


def test_ask_answers_with_a_saved_model(tmp_path, capsys):
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    arguments = ["ask", "--model", str(tmp_path / "model"), "--image", str(tmp_path / "red.png"), "What is it?"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("missing", ["model", "image"])
def test_what_is_not_there_is_said_in_one_line(missing, tmp_path, capsys):
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    files = {"model": tmp_path / "model", "image": tmp_path / "red.png"} | {missing: tmp_path / "nowhere"}
    status = main(["ask", "--model", str(files["model"]), "--image", str(files["image"]), "What is it?"])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.splitlines()[-1].startswith("mm1 ask: ") or "nowhere" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [["quickstart", "--steps", "0"], ["fly"], [], ["ask"]])
def test_wrong_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert capsys.readouterr().err


def test_inspect_prints_a_row_and_writes_its_page(tmp_path, capsys):
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "Red."}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": chat, "images": ["red.png"]}), encoding="utf-8")
    page = tmp_path / "row.html"
    arguments = ["inspect", str(tmp_path / "train.jsonl"), "--model", str(tmp_path / "model"), "--html", str(page)]
    assert main([*arguments, "--labels", "trl"]) == 0
    printed = capsys.readouterr().out
    assert "⟦Red.<|im_end|>⟧" in printed and "image placeholders are targets" in printed
    assert "data:image/png" in page.read_text(encoding="utf-8")
    for wrong, message in (
        (["inspect", "--model", "x"], "give DATA and --model, or"),
        ([*arguments, "--command", "sft"], "give --config too"),
        ([*arguments, "--config", "run.yaml"], "--config says which data is read: leave out DATA, --model"),
        ([*arguments, "--row", "1"], "has no row 1; it has 1"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
