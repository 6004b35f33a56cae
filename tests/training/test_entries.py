"""Settings files: every document is settings or a ValueError that names the entry."""

import json
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.cli import main
from mm1_hf.training.entries import convert, read_entries
from mm1_hf.training.settings import PretrainingSettings, SFTSettings, load_settings


WHOLE = """\
model: x
output_dir: y
batch_size: 2
sources: {a: {path: a.jsonl, layout: chat, weight: 1e0}}
max_dropped_share: 5e-2
peak_tflops: 1E3
learning_rates: {connector: 1e-3}
arguments: {learning_rate: 1e-4, weight_decay: "1e-2", max_steps: "2_000", save_steps: 5, use_cpu: "true", bf16: no,
  lr_scheduler_kwargs: {min_lr_rate: 1e-1}, report_to: none}
"""


def load(tmp_path: Path, text: str, kind=SFTSettings, name: str = "run.yaml"):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return load_settings(kind, tmp_path / name)


def test_numbers_are_numbers_everywhere(tmp_path):
    found = load(tmp_path, WHOLE)
    assert (found.peak_tflops, found.max_dropped_share, found.learning_rates) == (1000, 0.05, {"connector": 0.001})
    assert found.sources["a"].weight == 1 and found.batch_size == 2
    assert found.arguments == {
        "learning_rate": 1e-4,
        "weight_decay": 1e-2,
        "max_steps": 2000,
        "save_steps": 5,
        "use_cpu": True,
        "bf16": False,
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "report_to": "none",
    }


@pytest.mark.parametrize(
    "text", ["1e-4", "1E-4", "+1e4", "1.e5", ".5", "-.5e-3", "0", "-12", "1e0", "3.25", "10000000000000000000000"]
)
def test_numbers_are_those_of_json(text, tmp_path):
    (tmp_path / "file.yaml").write_text(f"a: {text}", encoding="utf-8")
    value = read_entries(tmp_path / "file.yaml")["a"]
    assert not isinstance(value, str) and value == float(text)


@pytest.mark.parametrize("text", ["1:30", "2020-01-02", "e5", "1e", "1e-", "0x", "08", "1.2.3", "--1", "_1", "12h"])
def test_what_is_no_number_is_text(text, tmp_path):
    (tmp_path / "file.yaml").write_text(f"a: {text}", encoding="utf-8")
    assert read_entries(tmp_path / "file.yaml")["a"] == text


def test_json_is_read_as_json(tmp_path):
    """With tabs, escaped slashes and pairs of surrogates, which YAML refuses or reads otherwise."""
    text = '\ufeff{\n\t"model": "a\\/b",\n\t"output_dir": "\\ud83d\\ude00",\r\n\t'
    text += '"sources": {"a": {"path": "p", "layout": "text"}}}'
    found = load(tmp_path, text, PretrainingSettings, "run.json")
    assert (found.model, found.output_dir) == ("a/b", "😀")


SOURCES = "sources: {a: {path: p, layout: text}}\n"
START = f"model: x\noutput_dir: y\n{SOURCES}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds None"),
        ("3", "holds 3"),
        ("model: x\n" + SOURCES, "lacks the entries output_dir"),
        (START + "modle: z", r"unknown entries: modle \(did you mean model\?\)"),
        (START + "model: z", "the entry 'model' is there twice in the mapping that begins in line 1"),
        (START + "1: z", "unknown entries: 1"),
        (START + "batch_size: two", "batch_size is 'two', but a number is expected"),
        (START + "batch_size: 2.5", "batch_size is 2.5, but a whole number is expected"),
        (START + "batch_size: true", "batch_size is True, but a number is expected"),
        (START + "batch_size: 0", "batch_size is 0, but must be positive"),
        (START + "batch_size: .inf", "batch_size is inf, but a finite number is expected"),
        (START + "max_images: -1", "max_images is -1"),
        (START + "lanes: []", r"lanes is \[\], but a number"),
        (START + "max_dropped_share: 1.5", "max_dropped_share is 1.5"),
        (
            START + "unit: row",
            r"unit is 'row', but one of rows, documents, tokens is expected \(did you mean rows\?\)",
        ),
        (START + "stage: later", "stage is 'later', but one of pretrain"),
        (START + "frozen: encoder", "frozen is 'encoder', but a list is expected"),
        (START + "frozen: [1]", r"frozen\[0\] is 1, but text is expected"),
        (START + "frozen: [tail]", "There is no part tail"),
        (START + "learning_rates: {tail: 1}", "There is no part tail"),
        (START + "learning_rates: {connector: fast}", "learning_rates.connector is 'fast'"),
        (START + "learning_rates: [1]", r"learning_rates is \[1\], but a mapping"),
        (START + "arguments: {learning_rat: 1}", r"unknown entries: learning_rat \(did you mean learning_rate\?\)"),
        (START + "arguments: {learning_rate: fast}", "arguments.learning_rate is 'fast', but a number is expected"),
        (START + "arguments: {bf16: 3}", "arguments.bf16 is 3, but true or false is expected"),
        (START + "arguments: {logging_first_step: maybe}", "arguments.logging_first_step is 'maybe'"),
        (START + "arguments: {max_steps: 0}", "arguments.max_steps is 0"),
        (START + "arguments: {output_dir: z}", "arguments.output_dir cannot be set"),
        (START + "arguments: {per_device_train_batch_size: 2}", "it follows from rows_per_device"),
        (START + "arguments: {num_train_epochs: 2}", "a mixture has no end"),
        (START + "arguments: {ignore_data_skip: false}", "arguments.ignore_data_skip is False, but a run needs True"),
        (START + "arguments: 1", "arguments is 1, but a mapping"),
        ("model: x\noutput_dir: no\n" + SOURCES, "output_dir is False, but text is expected; put it in quotes"),
        ("model: x\noutput_dir: y\nsources: [1]", r"sources is \[1\], but a mapping"),
        ("model: x\noutput_dir: y\nsources: {a: {path: p, layout: txt}}", "sources.a: There is no layout 'txt'"),
        ("model: x\noutput_dir: y\nsources: {a: {path: 1, layout: text}}", "sources.a.path is 1, but text"),
        ("model: x\noutput_dir: y\nsources: {1: {path: p, layout: text}}", "a name in sources is 1, but text"),
        (
            "model: x\noutput_dir: y\nsources: {a: {path: p, layout: text, weight: nan}}",
            "weight is 'nan', but a number",
        ),
        ("model: &a [*a]", "contains itself"),
        (
            "a: &a [1, 2]\n"
            + "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefg", "bcdefgh", strict=True)),
            "more than 100000 values",
        ),
        ("a: &a {b: 1}\nc: {<<: [" + ", ".join(["*a"] * 50_000) + "]}", "values"),
        ("[" * 5000, "nested too deeply"),
        ("model: " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("model: " + "9" * 6000, "neither YAML nor JSON"),
        ("batch_size: 1" + "0" * 4000, "batch_size is a very large int|batch_size is 1000"),
        ("? [a]\n: b", "neither YAML nor JSON"),
        ("--- 1\n--- 2", "neither YAML nor JSON"),
        ("!!python/object/apply:os.system [true]", "neither YAML nor JSON"),
        ("\x00", "neither YAML nor JSON"),
    ],
)
def test_wrong_entries_are_named(text, message, tmp_path, capsys):
    with pytest.raises(ValueError, match=message) as refused:
        load(tmp_path, text, PretrainingSettings)
    assert str(refused.value).startswith(str(tmp_path / "run.yaml"))
    assert main(["pretrain", "--config", str(tmp_path / "run.yaml")]) == 2


def test_json_may_not_hold_half_a_character_or_be_cut(tmp_path):
    for text, message in (
        ('{"model": "\\ud83d"}', "not valid Unicode"),
        ('{"model": "x"', "neither YAML nor JSON"),
        ('{"model": "x", "model": "y"}', "'model' is there twice"),
        ("[" * 100_000, "nested too deeply"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path, text, PretrainingSettings, "run.json")
    (tmp_path / "run.yaml").write_bytes("model: x".encode("utf-16"))
    with pytest.raises(ValueError, match="neither YAML nor JSON"):
        load_settings(PretrainingSettings, tmp_path / "run.yaml")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1e-4", "true", "a"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
FIELDS = st.sampled_from(
    [*PretrainingSettings.__dataclass_fields__, "path", "layout", "weight", "learning_rate", "max_steps", "optim"]
)


def mutated(value, draw: random.Random, other):
    """A document with one of its values replaced or one of its names changed."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        name = draw.choice(list(value))
        if draw.random() < 0.15:
            return {(other if isinstance(other, str) else name): value[name]}
        return value | {name: mutated(value[name], draw, other)}
    return other


@settings(max_examples=100, deadline=None)
@given(other=VALUES, field=FIELDS, seed=st.integers(0, 2**32), as_json=st.booleans())
def test_any_document_is_settings_or_a_value_error(other, field, seed, as_json, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    draw = random.Random(seed)
    document = mutated(yaml.safe_load(WHOLE), draw, other)
    if isinstance(document, dict) and draw.random() < 0.5:
        document = {**document, field: other}
    file = folder / ("fuzzed.json" if as_json else "fuzzed.yaml")
    text = json.dumps(document) if as_json else yaml.safe_dump(document, allow_unicode=draw.random() < 0.5)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for kind in (PretrainingSettings, SFTSettings):
        try:
            found = load_settings(kind, file)
        except ValueError as error:
            assert str(error).startswith(str(file))
        else:
            assert isinstance(found.model, str) and isinstance(found.batch_size, int | None)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), noise=st.binary(min_size=1, max_size=6))
def test_mutated_bytes_are_settings_or_a_value_error(seed, noise, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    draw, data = random.Random(seed), bytearray(WHOLE.encode())
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data))
        data[place : place + draw.randint(0, 6)] = noise
    file.write_bytes(data)
    try:
        load_settings(PretrainingSettings, file)
    except ValueError as error:
        assert str(error).startswith(str(file))


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_numbers_survive_being_text(number):
    assert convert(str(number), float, "a") == number
    assert convert(number, float | None, "a") == number


def test_text_stays_text_where_text_is_allowed():
    assert convert("1e-4", float | str, "a") == "1e-4"
    assert convert("no", str | bool, "a") == "no"
    assert convert(["a"], str | list[str] | None, "a") == ["a"]
    assert convert(None, str | None, "a") is None
