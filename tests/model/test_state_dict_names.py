"""
The names and shapes of every preset's weights, pinned: a checkpoint saved today has to load tomorrow. After a change that is
meant, write them anew: python tests/model/test_state_dict_names.py
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mm1_hf import MM1Config, MM1ForConditionalGeneration, preset_names


GOLDEN = Path(__file__).parent / "state_dict_names.json"
PRESETS = preset_names()


def names_of(preset: str) -> list[str]:
    """Like `model.vision_tower.layers.#.mlp.fc1.weight 4096x1024, # = 0..23`, a line for all layers alike."""
    with torch.device("meta"):
        state = MM1ForConditionalGeneration(MM1Config.from_preset(preset)).state_dict()
    numbers: dict[str, list[str]] = {}
    for name, weight in state.items():
        pattern = f"{re.sub(r'[.][0-9]+(?=[.])', '.#', name)} {'x'.join(map(str, weight.shape))}"
        numbers.setdefault(pattern, []).append(".".join(re.findall(r"(?<=[.])[0-9]+(?=[.])", name)))
    return [f"{pattern}, # = {_ranges(found)}" if "#" in pattern else pattern for pattern, found in numbers.items()]


def _ranges(found: list[str]) -> str:
    if not all(number.isdigit() for number in found):
        return " ".join(found)
    layers = list(map(int, found))
    steps = {after - before for before, after in pairwise(layers)}
    if len(layers) > 2 and len(steps) == 1:
        (step,) = steps
        return f"{layers[0]}..{layers[-1]}" + (f" step {step}" if step > 1 else "")
    return " ".join(found)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_s_weights_keep_their_names_and_shapes(preset):
    assert names_of(preset) == json.loads(GOLDEN.read_text(encoding="utf-8"))[preset]


def test_no_preset_is_left_out():
    assert sorted(json.loads(GOLDEN.read_text(encoding="utf-8"))) == PRESETS


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({preset: names_of(preset) for preset in PRESETS}, indent=1) + "\n", encoding="utf-8")
