"""
Images per second on one core: MM1's image processor beside those of LLaVA-NeXT, LLaVA-OneVision and Idefics3, with the same
number and size of tiles, and beside the floor of one resize to the grid and one to the overview.

    python benchmarks/image_processing.py --photo FILE --output benchmarks/results/image_processing.json
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from mm1_hf import MM1ImageProcessor


TILE = 364
TILES = 5
MEGAPIXELS = (0.3, 1.0, 3.0, 12.0)
ROUNDS = 9


def rivals() -> dict[str, object]:
    side = {"height": TILE, "width": TILE}
    splits = {"size": {"shortest_edge": TILE}, "image_grid_pinpoints": [[2 * TILE, 2 * TILE]]}
    return {
        "LLaVA-NeXT (PIL)": LlavaNextImageProcessorPil(**splits, crop_size=side),
        "LLaVA-OneVision (PIL)": LlavaOnevisionImageProcessorPil(**{**splits, "size": side}),
        "Idefics3 (PIL)": Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}, do_image_splitting=True
        ),
    }


def floor(image: Image.Image) -> None:
    """The two resizes that any such processor needs, by the same kernel and with nothing around them."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    scale = TILE / max(image.size)
    for factor in (2 * scale, scale):
        size = (round(image.height * factor), round(image.width * factor))
        F.interpolate(pixels, size=size, mode="bicubic", antialias=True)


def tiles_of(processor: object, image: Image.Image) -> int:
    shape = processor(image, return_tensors="pt")["pixel_values"].shape
    return int(np.prod(shape[:-3]))


def measure(photo: Image.Image) -> list[dict]:
    ours = MM1ImageProcessor(size={"height": TILE, "width": TILE}, min_tiles=4, max_tiles=4)
    contestants = {"mm1_hf": ours, **rivals()}
    rows = []
    with tqdm(total=len(MEGAPIXELS) * ROUNDS, desc="Image processing", unit="round") as bar:
        for megapixels in MEGAPIXELS:
            scale = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
            image = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
            counts = {name: tiles_of(processor, image) for name, processor in contestants.items()}
            assert set(counts.values()) == {TILES}, counts
            calls = {name: partial(each, image, return_tensors="pt") for name, each in contestants.items()}
            calls["floor"] = partial(floor, image)
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    start = time.perf_counter()
                    call()
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            fastest = min((name for name in contestants if name != "mm1_hf"), key=medians.get)
            rows.append(
                {
                    "megapixels": megapixels,
                    "images_per_second": {name: round(1 / value, 1) for name, value in medians.items()},
                    "fastest_rival": fastest,
                    "times_the_fastest_rival": round(medians[fastest] / medians["mm1_hf"], 2),
                    "times_the_floor_s_duration": round(medians["mm1_hf"] / medians["floor"], 2),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", required=True, help="a photograph, resized to each number of megapixels")
    parser.add_argument("--output", required=True, help="where the JSON goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(Image.open(arguments.photo).convert("RGB"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "what": f"{TILES} tiles of {TILE} pixels per photograph, one thread, median of {ROUNDS} interleaved rounds",
        "hardware": _processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("mm1_hf", "transformers", "torch", "pillow", "numpy")},
        "commit": commit,
        "rows": rows,
    }
    Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"{'megapixels':>10}"
        + "".join(f"{name:>23}" for name in rows[0]["images_per_second"])
        + f"{'x rival':>9}{'x floor':>9}"
    )
    for row in rows:
        speeds = "".join(f"{value:>23}" for value in row["images_per_second"].values())
        print(
            f"{row['megapixels']:>10}{speeds}{row['times_the_fastest_rival']:>9}{row['times_the_floor_s_duration']:>9}"
        )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
