"""
How the time to the first token of an MM1 grows: with the number of images, the side of a tile, the length of the text and
the number of rows. The page fits an exponent to each curve.
"""

from typing import Any

import torch

from benchmarks.measuring import Case, Report, empty, interleaved
from benchmarks.rivals import pixels
from benchmarks.rows.first_token import WORDS, first_token
from benchmarks.scales import Scale, build, mm1_config
from mm1_hf import MM1ForConditionalGeneration


STEPS = (1, 2, 4, 8)


def prompt(scale: Scale, grid: int, images: int = 1, words: int = WORDS, rows: int = 1) -> dict[str, torch.Tensor]:
    """Inputs of `rows` rows, each with `images` images of `grid` patches along a side, and text."""
    token, side = scale.text["vocab_size"] - 1, grid * scale.patch
    text = torch.randint(3, token, (rows, words), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.full((rows, images * scale.image_tokens), token), text], dim=1).to(scale.device)
    tiles = pixels(scale, rows * images, 3, side, side)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": tiles}


def measure(scale: Scale, report: Report) -> None:
    config = mm1_config(scale, scale.grid, scale.image_tokens)
    model = build(MM1ForConditionalGeneration, config, scale).eval()
    # An eighth of the longest text, and half of the usual grid, because each curve has four points.
    curves: dict[str, dict[int, dict[str, Any]]] = {
        "images": {step: {"images": step} for step in STEPS},
        "side of a tile": {scale.grid * step // 4: {"grid": scale.grid * step // 4} for step in (2, 4, 6, 8)},
        "words": {16 * WORDS * step // 8: {"words": 16 * WORDS * step // 8} for step in STEPS},
        "rows": {step: {"rows": step} for step in STEPS},
    }
    for curve, points in curves.items():
        cases: dict[str, Case] = {}
        for value, changed in points.items():
            cases[str(value)] = first_token(model, prompt(scale, **{"grid": scale.grid} | changed))
        for value, timed in interleaved(cases, scale.device, scale.rounds, warm_up=1).items():
            report.add("growth", {"curve": curve, "value": int(value)}, "MM1", **timed)
    del model
    empty(scale.device)
