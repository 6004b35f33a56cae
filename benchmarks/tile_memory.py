"""
Measures the peak memory of training with one image of ten tiles and 31 images of one tile, relative to 41 images of
one tile.

    python benchmarks/tile_memory.py --output benchmarks/results/tile_memory.json

The memory of one tile is measured as the slope between 32 and 64 images of one tile. Encoder and connector are
measured with two layouts: `flat` is MM1's; in `padded` every image has as many places for tiles as the largest image,
as in models that take tiles as `(images, tiles, channels, height, width)`. The whole step is measured in two ways:
`one batch` pads all rows to the length of the row with the large image; `balanced` is the largest of the batches that
the sampler makes of the same rows.
"""

import argparse
import gc
import json
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from mm1_hf import MM1Config, MM1ForConditionalGeneration, MM1ImageProcessor
from mm1_hf.training.balancing import BalancedBatchSampler, ExampleSizes, batch_cost


IMAGES, TEXT = 32, 16
# Average number of rows and largest number of tiles per batch. The large image has ten tiles.
ROWS, MAX_TILES = 8, 12


def peak(step: Callable[..., object], *arguments: object) -> int:
    """Measures how many more bytes than before are allocated on the CPU at the peak of `step(*arguments)`."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(*arguments)
    alive = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def tiles_of_images(side: int) -> tuple[torch.Tensor, list[int]]:
    """Tiles `(41, 3, side, side)` of 31 square images and one nine times as wide, and the number of tiles of each."""
    processor = MM1ImageProcessor(size={"height": side, "width": side}, min_tiles=1, max_tiles=9)
    shapes = [(side, side)] * (IMAGES - 1) + [(side, 9 * side)]
    images = [np.full((*shape, 3), 128, dtype=np.uint8) for shape in shapes]
    batch = processor(images, return_num_patches=True, return_tensors="pt")
    return batch["pixel_values"], batch["num_patches"].tolist()


def rows_of(config: MM1Config, tiles: list[int]) -> dict[str, torch.Tensor]:
    """Makes rows with these numbers of tiles, each followed by text, and pads them to the longest row."""
    per_tile = config.connector_config.num_tokens
    lengths = [number * per_tile + TEXT for number in tiles]
    input_ids = torch.zeros(len(tiles), max(lengths), dtype=torch.long)
    labels, attention_mask = torch.full_like(input_ids, -100), torch.zeros_like(input_ids)
    for row, (number, length) in enumerate(zip(tiles, lengths, strict=True)):
        input_ids[row, : number * per_tile] = config.image_token_id
        input_ids[row, number * per_tile : length] = labels[row, number * per_tile : length] = 7
        attention_mask[row, :length] = 1
    side = config.vision_config.image_size
    pixel_values = torch.zeros(sum(tiles), 3, side, side)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask, "pixel_values": pixel_values}


def measure(preset: str) -> dict[str, dict[str, float]]:
    """Measures the peak memory of every layout, divided by the memory of its tiles."""
    torch.manual_seed(0)
    model = MM1ForConditionalGeneration(MM1Config.from_preset(preset)).train()
    config, side = model.config, model.config.vision_config.image_size

    def encode(tiles: torch.Tensor) -> None:
        model.get_image_features(tiles).pooler_output.sum().backward()

    def train(tiles: list[int]) -> None:
        model(**rows_of(config, tiles)).loss.backward()

    flat, numbers = tiles_of_images(side)
    padded = flat.new_zeros(IMAGES * max(numbers), *flat.shape[1:])
    # The first pass allocates the gradients, so that the measured passes do not.
    train([1])
    counts = (IMAGES, 2 * IMAGES)
    encoding = {count: peak(encode, flat.new_zeros(count, *flat.shape[1:])) for count in counts}
    training = {count: peak(train, [1] * count) for count in counts}
    sizes = ExampleSizes(np.array(numbers), np.full(IMAGES, TEXT), config.connector_config.num_tokens)
    batches = BalancedBatchSampler(
        sizes, batch_cost(model), batch_size=ROWS, max_tiles=MAX_TILES, accumulation=IMAGES // ROWS
    )

    def over_the_tiles(bytes_: int, singles: dict[int, int]) -> float:
        share = (singles[2 * IMAGES] - singles[IMAGES]) / IMAGES
        return bytes_ / (share * sum(numbers))

    return {
        "encoder and connector": {
            "flat": over_the_tiles(peak(encode, flat), encoding),
            "padded": over_the_tiles(peak(encode, padded), encoding),
        },
        "whole step": {
            "one batch": over_the_tiles(peak(train, numbers), training),
            "balanced": over_the_tiles(
                max(peak(train, [numbers[row] for row in batch]) for batch in batches), training
            ),
        },
    }


def _hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--preset", default="mm1-tiny", help="preset of the model; the ratios hardly depend on it")
    arguments = parser.parse_args()
    ratios = measure(arguments.preset)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "what": f"peak memory of a pass over {IMAGES - 1} images of one tile and one of ten, relative to 41 tiles",
        "preset": arguments.preset,
        "max_tiles": MAX_TILES,
        "python": platform.python_version(),
        **{package: version(package) for package in ("mm1_hf", "torch", "transformers")},
        "hardware": _hardware(),
        "commit": commit,
        "results": {part: {name: round(value, 3) for name, value in each.items()} for part, each in ratios.items()},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for part, each in result["results"].items():
        print(part, each)


if __name__ == "__main__":
    main()
