import argparse
import json
from importlib.util import find_spec
from typing import get_args

import pytest
import torch
from PIL import Image
from tiny import byte_tokenizer, tiny_decoder, tiny_mm1, tiny_vision
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessor

from mm1_command.parser import CONNECTORS
from mm1_hf.cli import build_parser, main
from mm1_hf.model.configuration_mm1 import ConnectorType


# The command's whole surface: a new verb or option is a decision, taken by changing this.
SURFACE = {
    "quickstart": {"--output", "--steps", "--questions", "--seed"},
    "ask": {"--model", "--image", "question"},
    "assemble": {"vision", "text", "output", "--connector", "--tokens", "--tile"},
    "inspect": {
        "data",
        "--model",
        "--config",
        "--command",
        "--layout",
        "--image-folder",
        "--split",
        "--row",
        "--labels",
        "--html",
    },
    "recipe": {"name", "--output", "--check", "--data"},
    "plan": {
        "preset",
        "--recipe",
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
    "eval": {
        "--model",
        "--endpoint",
        "--tasks",
        "--list",
        "--shots",
        "--trials",
        "--seed",
        "--data",
        "--limit",
        "--batch-size",
        "--style",
        "--demonstrations",
        "--split-last",
        "--output",
        "--judge",
        "--judge-model",
        # `compare`, with two folders.
        "action",
    },
    # `name` is that of a way.
    "data": {"name"},
    "push": {"folder", "repo_id", "--card", "--quantize", "--eval", "--private"},
    # Their other options are those of the server and of transformers' chat.
    "serve": {"--engine"},
    "chat": set(),
}
# What several ways of `mm1 data` take.
DOWNLOADS, WORDS = {"--download", "--agent"}, {"--language-model", "--languages", "--bad-words"}
IMAGE_EXTRAS = {"--drop-blurred", "--drop-qr-codes"}
# What every way of `mm1 data` takes, and what each takes beside it.
RUN = {
    "inputs",
    "output",
    "--format",
    "--tasks",
    "--workers",
    "--executor",
    "--partition",
    "--time",
    "--way",
}
WAYS = {
    "documents": {*DOWNLOADS, *WORDS, *IMAGE_EXTRAS},
    "text": {*WORDS, "--quality-model", "--quality-label", "--min-quality"},
    "captions": {"--image-column", "--text-column", *DOWNLOADS, *WORDS, *IMAGE_EXTRAS},
    "synthetic": {
        "--captioner",
        "--captioner-endpoint",
        "--fuser",
        "--fuser-endpoint",
        "--batch-size",
        "--requests",
    },
    "pages": {"--texts", "--figures", "--fonts", "--longest-side", "--seed"},
}


def names_of(parser: argparse.ArgumentParser) -> set[str]:
    names = {name for action in parser._actions for name in action.option_strings or [action.dest]}
    return names - {"-h", "--help"}


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (actions,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(actions.choices)


def verbs() -> dict[str, argparse.ArgumentParser]:
    return below(build_parser())


def test_verbs_and_options_are_pinned():
    assert names_of(build_parser()) == {"verb", "--version"}
    assert {verb: names_of(parser) for verb, parser in verbs().items()} == SURFACE
    assert {way: names_of(parser) - RUN for way, parser in below(verbs()["data"]).items()} == WAYS
    assert all(names_of(parser) >= RUN for parser in below(verbs()["data"]).values())
    assert get_args(ConnectorType) == CONNECTORS


@pytest.mark.parametrize("verb", SURFACE)
def test_every_verb_has_a_module(verb):
    assert find_spec(f"mm1_hf.cli.{verb}")


def test_ask_answers_with_a_saved_model(tmp_path, capsys):
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    arguments = ["ask", "--model", str(tmp_path / "model"), "--image", str(tmp_path / "red.png"), "What is it?"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"model": "nowhere/at/all"}, "mm1 ask: There is no folder nowhere/at/all. Give an existing folder, or a Hub"),
        ({"image": "nowhere.png"}, "mm1 ask: There is no file nowhere.png. Give the file or the URL of an image."),
        ({"image": "broken.png"}, "mm1 ask: broken.png cannot be read as an image: cannot identify it as an image"),
        ({"image": "cut.png"}, "mm1 ask: cut.png cannot be read as an image: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(broken, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in tiny_mm1():
        part.save_pretrained("model")
    Image.effect_noise((64, 64), 50).save("red.png")
    content = (tmp_path / "red.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    files = {"model": "model", "image": "red.png"} | broken
    assert main(["ask", "--model", files["model"], "--image", files["image"], "What is it?"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and len(error.splitlines()) == 1


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """An encoder and a decoder in folders, beside which the command is run."""
    monkeypatch.chdir(tmp_path)
    tiny_vision("aimv2").save_pretrained("vision")
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained("vision")
    tiny_decoder().save_pretrained("text")
    byte_tokenizer().save_pretrained("text")


def test_assemble_saves_a_model_and_says_what_is_new(parts, capsys):
    arguments = ["--connector", "average", "--tokens", "4", "--tile", "84"]
    for folder in ("first", "second"):
        assert main(["assemble", "vision", "text", folder, *arguments]) == 0
    printed = capsys.readouterr().out
    first, second = (AutoModelForImageTextToText.from_pretrained(folder) for folder in ("first", "second"))
    new = sum(weight.numel() for weight in first.model.connector.parameters())
    assert "image encoder" in printed and f"new:   the connector, {new:,} parameters" in printed
    assert "mm1 pretrain" in printed and "model: first" in printed
    # The same command makes the same model.
    for name, weight in second.state_dict().items():
        assert torch.equal(weight, first.state_dict()[name]), name
    connector = first.config.connector_config
    assert (connector.connector_type, connector.num_tokens) == ("average", 4)
    processor = AutoProcessor.from_pretrained("first")
    assert processor.num_image_tokens == 4
    assert processor.image_processor.size["height"] == first.config.vision_config.image_size == 84
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vision", "text", "text"], "text exists already"),
        (["vision", "nowhere/at/all", "new"], "There is no folder nowhere/at/all"),
        (["vision", "vision", "new"], "holds a 'aimv2_vision_model' model, which is not a decoder"),
        (["vision", "mm1", "new"], "holds a 'mm1' model, which is not a decoder"),
        (["vision", "text", "new", "--tokens", "7"], "must be a square number"),
        (["vision", "text", "new", "--tokens", "4", "--tile", "50"], "not a multiple of the encoder's patch size"),
    ],
)
def test_assemble_refuses_in_one_line_and_leaves_nothing(arguments, message, parts, tmp_path, capsys):
    tiny_mm1()[0].save_pretrained("mm1")
    before = set(tmp_path.iterdir())
    capsys.readouterr()
    assert main(["assemble", *arguments]) == 2
    # Before it stand the progress bars of loading, which only the command in a process of its own holds back.
    error = capsys.readouterr().err.split("\r")[-1].splitlines()[-1]
    assert error.startswith("mm1 assemble: ") and message in error
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("arguments", [["quickstart", "--steps", "0"], ["fly"], [], ["ask"]])
def test_wrong_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "--modle", "X"], "mm1 ask: error: unknown option --modle; did you mean --model?"),
        (["ask", "--modle=X"], "unknown option --modle; did you mean --model?"),
        (["ask", "-model", "X"], "unknown option -model; did you mean --model?"),
        (["plan", "mm1-3b", "--qqq"], "unknown option --qqq; `mm1 plan --help` lists the options"),
        # What is not an option, is a beginning of one, or comes after the end of all options.
        (["ask", "-5", "- what?"], "arguments are required: --model, --image"),
        (["ask", "--mod", "X"], "arguments are required: --image, question"),
        (["ask", "--", "--modle"], "arguments are required: --model, --image"),
        (["ask", "--model", "X", "--image", "Y", "What?", "more"], "unrecognized arguments: more"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


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


def test_inspect_finds_pictures_in_a_folder_of_their_own(tmp_path, capsys):
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "red.png")
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "Red."}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": chat, "images": ["red.png"]}), encoding="utf-8")
    arguments = ["inspect", str(tmp_path / "train.jsonl"), "--model", str(tmp_path / "model")]
    assert main(arguments) == 2
    assert main([*arguments, "--image-folder", str(tmp_path / "pictures")]) == 0
    assert "1 image as 1 tile" in capsys.readouterr().out
    assert main(["inspect", "--config", "run.yaml", "--image-folder", "pictures"]) == 2
    assert "leave out --image-folder" in capsys.readouterr().err
