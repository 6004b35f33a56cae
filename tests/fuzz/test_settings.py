"""Broken settings of runs, as YAML and JSON: settings, or a `ValueError` that names the file."""

import json
import random

import pytest
import yaml
from fuzzing import PARTS, Tally, mutate, mutate_json, number_of_cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm1_hf.training.settings import PretrainingSettings, SFTSettings, load_settings


KIND = "settings"
WHOLE = {
    PretrainingSettings: {
        "model": "a/model",
        "output_dir": "out",
        "sources": {
            "captions": {"path": "a.jsonl", "layout": "caption", "weight": 0.5},
            "texts": {"path": "b", "layout": "text", "weight": 1, "streaming": True},
        },
        "sequence_length": 512,
        "batch_size": 2,
        "frozen": ["encoder"],
        "arguments": {"max_steps": 3, "learning_rate": 1e-4, "save_steps": 2},
    },
    SFTSettings: {
        "model": "a/model",
        "output_dir": "out",
        "sources": {"chats": {"path": "a.jsonl", "layout": "chat", "weight": 1.0}},
        "sequence_length": 512,
        "lora": "decoder",
        "arguments": {"max_steps": 1, "bf16": True},
    },
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def broken(draw: random.Random, whole: dict) -> bytes:
    value = json.loads(json.dumps(whole))
    for _ in range(draw.randint(1, 3)):
        value = mutate_json(value, draw)
    text = json.dumps(value)
    # PyYAML writes neither what is nested deeply nor what is no valid Unicode.
    if draw.random() < 0.5 and "\\ud83d" not in text and len(text) - len(text.replace("[", "").replace("{", "")) < 50:
        text = yaml.safe_dump(value)
    return mutate(text.encode(), draw) if draw.random() < 0.3 else text.encode()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", WHOLE)
def test_broken_settings(kind, part, tmp_path, tally: Tally):
    for case in range(part, number_of_cases(KIND, tests=3), PARTS):
        draw = random.Random(case)
        path = tmp_path / draw.choice(("run.yaml", "run.yml", "run.json"))
        path.write_bytes(broken(draw, WHOLE[kind]))
        tally.run(f"case {case}, {kind.__name__}", lambda own=path: load_settings(kind, own), names=path.name)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_settings(kind, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(WHOLE[kind]))
    assert load_settings(kind, tmp_path / "run.json").model == "a/model"


def test_any_document(tmp_path_factory, tally: Tally):
    path = tmp_path_factory.mktemp("settings") / "run.yaml"

    @settings(max_examples=number_of_cases(KIND, tests=3), deadline=None, suppress_health_check=list(HealthCheck))
    @given(VALUES)
    def check(value):
        path.write_bytes(yaml.safe_dump(value, allow_unicode=True, encoding="utf-8"))
        tally.run(repr(value), lambda: load_settings(SFTSettings, path), names=path.name)

    check()
