"""
Images per second on one core: MM1's image processor beside those of LLaVA-NeXT, LLaVA-OneVision and Idefics3, with the same
number and size of tiles, and beside the floor of one resize to the grid and one to the overview.

    python benchmarks/image_processing.py --photo FILE --output benchmarks/results/image_processing.json
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from mm1_hf import MM1ImageProcessor


# Idefics3's tile, and MM1.5's.
TILE_SIDES = (364, 672)
# A grid of 2 x 2 and the overview.
TILES = 5
MEGAPIXELS = (0.3, 1.0, 3.0, 12.0)
ROUNDS = 21
OURS = ("mm1_hf", "mm1_hf, uint8 tiles")


def rivals(tile: int) -> dict[str, Any]:
    side, bicubic = {"height": tile, "width": tile}, Image.Resampling.BICUBIC
    grid = {"image_grid_pinpoints": [[2 * tile, 2 * tile]], "resample": bicubic}
    return {
        "LLaVA-NeXT": LlavaNextImageProcessorPil(size={"shortest_edge": tile}, crop_size=side, **grid),
        "LLaVA-OneVision": LlavaOnevisionImageProcessorPil(size=side, **grid),
        "Idefics3": Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * tile}, max_image_size={"longest_edge": tile}, resample=bicubic
        ),
    }


def floor(image: Image.Image | np.ndarray, sizes: list[tuple[int, int]]) -> None:
    """The two resizes that any such processor needs, by the kernel that ours uses, and nothing around them."""
    pixels = torch.from_numpy(np.array(image) if isinstance(image, Image.Image) else image).permute(2, 0, 1)[None]
    for size in sizes:
        F.interpolate(pixels, size=size, mode="bicubic", antialias=True)


def time_all(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of the one core, which other programs do not add to. The calls take turns in an order that changes,
    because each finds the caches and the free memory that the one before it left."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for _ in range(ROUNDS):
        shuffle(order)
        for name in order:
            start = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(photo: Image.Image) -> list[dict]:
    rows = []
    for tile in TILE_SIDES:
        processors = {name: MM1ImageProcessor(size=tile, min_tiles=4, max_tiles=4) for name in OURS}
        ours, uint8 = processors.values()
        uint8.do_rescale = uint8.do_normalize = False
        processors |= rivals(tile)
        for megapixels in tqdm(MEGAPIXELS, desc=f"Tiles of {tile}"):
            scale = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
            image = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
            layout = ours.get_layouts([[(image.height, image.width)]])[0][0]
            sizes = [(layout.resized_height, layout.resized_width), (tile, tile)]
            for kind, given in (("Pillow", image), ("array", np.array(image))):
                calls = {name: partial(each, given, return_tensors="pt") for name, each in processors.items()}
                for name, call in calls.items():
                    shape = tuple(call()["pixel_values"].shape)
                    if np.prod(shape[:-3]) != TILES or shape[-2:] != (tile, tile):
                        raise SystemExit(f"{name} gave {shape}, which is not {TILES} tiles of {tile}: no comparison.")
                calls["floor"] = partial(floor, given, sizes)
                seconds = time_all(calls)
                fastest = min(set(processors) - set(OURS), key=seconds.__getitem__)
                rows.append(
                    {
                        "tile": tile,
                        "megapixels": megapixels,
                        "input": kind,
                        "images_per_second": {name: round(1 / value, 1) for name, value in seconds.items()},
                        "fastest_rival": fastest,
                        "times_the_fastest_rival": {name: round(seconds[fastest] / seconds[name], 2) for name in OURS},
                        "times_the_floor": {name: round(seconds[name] / seconds["floor"], 2) for name in OURS},
                    }
                )
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Images per second over megapixels, of Pillow images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(TILE_SIDES), figsize=(9, 3.4), sharey=True, layout="constrained")
    for panel, tile in zip(panels, TILE_SIDES, strict=True):
        selected = [row for row in rows if row["tile"] == tile and row["input"] == "Pillow"]
        for name in selected[0]["images_per_second"]:
            style = {"color": "grey", "linestyle": "--"} if name == "floor" else {"marker": "o", "markersize": 3}
            panel.plot(MEGAPIXELS, [row["images_per_second"][name] for row in selected], label=name, **style)
        panel.set(xscale="log", yscale="log", xlabel="megapixels", title=f"{TILES} tiles of {tile} pixels")
        panel.set_xticks(MEGAPIXELS, [f"{value:g}" for value in MEGAPIXELS], minor=False)
        panel.minorticks_off()
    panels[0].set_ylabel("images per second, one core")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True, help="a photograph, resized to each number of megapixels")
    parser.add_argument("--output", type=Path, required=True, help="where the JSON goes, and a chart beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(Image.open(arguments.photo).convert("RGB"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "what": (
            f"{TILES} tiles per photograph (2 x 2 and the overview), one photograph per call, bicubic, one thread; median "
            f"CPU time of {ROUNDS} rounds in which all take turns in random order"
        ),
        "backends": "the rivals' Pillow and NumPy backends of transformers; torchvision is not installed",
        "floor": "torch's uint8 resize to the grid and to the overview; of a Pillow image, its conversion to an array too",
        "photo": arguments.photo.name,
        "hardware": _processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("mm1_hf", "transformers", "torch", "pillow", "numpy")},
        "commit": commit,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(rows, arguments.output.with_suffix(".png"))
    for row in rows:
        print(row["tile"], row["megapixels"], row["input"], row["images_per_second"], sep="  ")
        print("    times", row["fastest_rival"], row["times_the_fastest_rival"], "floor", row["times_the_floor"])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
