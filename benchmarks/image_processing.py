"""
Measures images per second on one core: MM1's image processor compared with those of LLaVA-NeXT, LLaVA-OneVision and
Idefics3, which make the same number of tiles of the same size, and with the floor, which is one resize to the grid and
one to the overview. README.md says how to read the results.

    python benchmarks/image_processing.py --photo FILE --output benchmarks/results/image_processing.json
"""

import argparse
import json
import os
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
import transformers
from PIL import Image
from tqdm import tqdm
from transformers.utils import is_torchvision_available

from mm1_hf import MM1ImageProcessor


# Tile sizes of Idefics3 and of MM1.5.
TILE_SIDES = (364, 672)
# A grid of 2 x 2 tiles and the overview.
TILES = 5
MEGAPIXELS = (0.3, 1.0, 3.0, 12.0)
OURS = ("mm1_hf", "mm1_hf, uint8 tiles")
FLOORS = ("floor", "floor, channels last")


def rivals(tile: int) -> dict[str, Any]:
    """All installed backends of the rivals' image processors, by name."""
    side, bicubic = {"height": tile, "width": tile}, Image.Resampling.BICUBIC
    grid = {"image_grid_pinpoints": [[2 * tile, 2 * tile]], "resample": bicubic}
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "LLaVA-NeXT": ("LlavaNextImageProcessor", {"size": {"shortest_edge": tile}, "crop_size": side, **grid}),
        "LLaVA-OneVision": ("LlavaOnevisionImageProcessor", {"size": side, **grid}),
        "Idefics3": (
            "Idefics3ImageProcessor",
            {"size": {"longest_edge": 2 * tile}, "max_image_size": {"longest_edge": tile}, "resample": bicubic},
        ),
    }
    backends = {"Pillow": "Pil"} | ({"torchvision": ""} if is_torchvision_available() else {})
    return {
        f"{name}, {backend}": getattr(transformers, class_name + suffix)(**given)
        for name, (class_name, given) in settings.items()
        for backend, suffix in backends.items()
    }


def floor(image: Image.Image | np.ndarray, sizes: list[tuple[int, int]], channels_last: bool) -> None:
    """Does only the two resizes that every such processor needs, with the same kernel as MM1's processor."""
    pixels = torch.from_numpy(np.array(image) if isinstance(image, Image.Image) else image)
    # The strides of the input decide whether the kernel's output has the channels first or last in memory.
    batch = pixels[None].permute(0, 3, 1, 2) if channels_last else pixels.permute(2, 0, 1)[None]
    for size in sizes:
        F.interpolate(batch, size=size, mode="bicubic", antialias=True)


def time_all(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """
    Measures the median processor time of each call in seconds. Time of other programs is not included. In each round
    the calls run in a new random order, because each call is affected by the caches and the free memory that the
    previous call left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            start = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(photo: Image.Image, rounds: int) -> list[dict]:
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
                        raise SystemExit(
                            f"{name} made tiles of shape {shape}; the comparison needs {TILES} tiles of {tile} pixels."
                        )
                for name in FLOORS:
                    calls[name] = partial(floor, given, sizes, channels_last=name != "floor")
                seconds = time_all(calls, rounds)
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
                        "times_the_channels_last_floor": {
                            name: round(seconds[name] / seconds["floor, channels last"], 2) for name in OURS
                        },
                    }
                )
    return rows


def summary(rows: list[dict]) -> dict[str, dict[str, float]]:
    """The worst values of all rows."""
    return {
        name: {
            "least_times_the_fastest_rival": min(row["times_the_fastest_rival"][name] for row in rows),
            "most_times_the_floor": max(row["times_the_floor"][name] for row in rows),
            "most_times_the_channels_last_floor": max(row["times_the_channels_last_floor"][name] for row in rows),
        }
        for name in OURS
    }


def draw(rows: list[dict], path: Path) -> None:
    """Draws a chart of images per second over megapixels, for Pillow images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(TILE_SIDES), figsize=(11, 3.6), sharey=True, layout="constrained")
    for panel, tile in zip(panels, TILE_SIDES, strict=True):
        selected = [row for row in rows if row["tile"] == tile and row["input"] == "Pillow"]
        for name in selected[0]["images_per_second"]:
            style: dict[str, Any] = {"marker": "o", "markersize": 3}
            if name in FLOORS:
                style = {"color": "black", "linestyle": "--" if name == "floor" else ":"}
            panel.plot(MEGAPIXELS, [row["images_per_second"][name] for row in selected], label=name, **style)
        panel.set(xscale="log", yscale="log", xlabel="megapixels", title=f"{TILES} tiles of {tile} pixels")
        panel.set_xticks(MEGAPIXELS, [f"{value:g}" for value in MEGAPIXELS], minor=False)
        panel.minorticks_off()
    panels[0].set_ylabel("images per second, one core")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True, help="photograph, which is resized to several sizes")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write; a chart is written beside it")
    parser.add_argument("--rounds", type=int, default=21, help="number of calls of each processor (default: 21)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows = measure(Image.open(arguments.photo).convert("RGB"), arguments.rounds)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    packages = ["mm1_hf", "transformers", "torch", "pillow", "numpy"]
    if is_torchvision_available():
        packages.append("torchvision")
    result = {
        "what": (
            f"{TILES} tiles per photograph (2 x 2 and the overview), one photograph per call, bicubic, one thread; "
            f"median CPU time of {arguments.rounds} rounds, each of which calls every processor once, in random order"
        ),
        "floor": (
            "torch's uint8 resize to the grid and to the overview, with the channels first, as models expect them; "
            "for a Pillow image, this includes the conversion with np.array"
        ),
        "floor, channels last": "the same resizes, but the channels stay last",
        "photo": arguments.photo.name,
        "hardware": f"{_processor()}, {os.cpu_count()} logical cores",
        "load_before": round(load, 2),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "commit": commit,
        "summary": summary(rows),
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(rows, arguments.output.with_suffix(".png"))
    for row in rows:
        print(row["tile"], row["megapixels"], row["input"], row["images_per_second"], sep="  ")
        print("    times", row["fastest_rival"], row["times_the_fastest_rival"], "floor", row["times_the_floor"])
    print(json.dumps(result["summary"], indent=2))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
