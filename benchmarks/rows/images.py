"""
Image processing as it stands in front of a model: photographs from JPEG files, many at once, tensors, and by the workers of
a loader; MM1's image processor against those of LLaVA-NeXT and Idefics3 without torchvision. `image_processing.py` compares
with more of them, at many sizes. Each makes five tiles of the same side from one photograph.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from benchmarks.measuring import Case, Report, interleaved
from benchmarks.scales import Scale
from mm1_hf import MM1ImageProcessor


MANY = 16
WORKERS = (0, 1, 2)


def processors(side: int) -> dict[str, Callable[[list[Any]], Any]]:
    """What turns a list of images into tiles, by name."""
    ours = MM1ImageProcessor(size={"height": side, "width": side}, min_tiles=4, max_tiles=4)
    grids = [[2 * side, 2 * side]]
    llava = LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=grids
    )
    idefics = Idefics3ImageProcessorPil(size={"longest_edge": 2 * side}, max_image_size={"longest_edge": side})
    return {
        "MM1": lambda images: ours(images, return_tensors="pt"),
        "LLaVA-NeXT": lambda images: llava(images, return_tensors="pt"),
        "Idefics3": lambda images: idefics([[image] for image in images], return_tensors="pt"),
    }


def jpeg(height: int, width: int) -> bytes:
    """A smooth picture with some noise, which compresses about as a photograph does."""
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    levels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = (levels + draw.integers(-8, 9, levels.shape)).clip(0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def decode(file: bytes) -> Image.Image:
    return Image.open(BytesIO(file)).convert("RGB")


class Files(Dataset):
    """Tiles of so many JPEG files, as a loader's workers make them."""

    def __init__(self, file: bytes, process: Callable[[list[Any]], Any], number: int):
        self.file, self.process, self.number = file, process, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.process([decode(self.file)])["pixel_values"]


def read_all(loader: DataLoader) -> Case:
    def run() -> None:
        for _ in loader:
            pass

    return run


def measure(scale: Scale, report: Report) -> None:
    side = scale.grid * scale.patch
    height, width = (96, 128) if scale.name == "tiny" else (1536, 2048)
    file, found = jpeg(height, width), processors(side)
    picture = decode(file)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    kinds: dict[str, Callable[[Callable], Case]] = {
        "JPEG file": lambda process: lambda: process([decode(file)]),
        "decoded": lambda process: lambda: process([picture]),
        "tensor": lambda process: lambda: process([tensor]),
        f"{MANY} JPEG files": lambda process: lambda: process([decode(file) for _ in range(MANY)]),
    }
    for kind, of in kinds.items():
        cases = {name: of(process) for name, process in found.items()}
        if kind == "JPEG file":
            cases["decoding alone"] = lambda: decode(file)
        for name, timed in interleaved(cases, scale.device, scale.rounds).items():
            report.add("image processing", {"input": kind, "pixels": [height, width]}, name, **timed)
    for workers in WORKERS:
        cases = {
            name: read_all(DataLoader(Files(file, process, MANY), batch_size=None, num_workers=workers))
            for name, process in found.items()
        }
        for name, timed in interleaved(cases, scale.device, min(scale.rounds, 3), warm_up=1).items():
            report.add("image loading", {"files": MANY, "workers": workers}, name, **timed)
