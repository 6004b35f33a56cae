"""Plans a stage of an open recipe: what each public data set gives to it, how often it is read, and the GPU hours."""

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from mm1_hf.accounting.flops import causal_pairs, flops_formula
from mm1_hf.accounting.parameters import parameter_table
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.tiling import TilingConfig, sample_layouts
from mm1_hf.planning.planner import check_machine, flops_lines, memory_lines, set_tile, stage_layouts, token_budget
from mm1_hf.training.open_recipes import OpenRecipe, open_recipe
from mm1_hf.training.recipes import Recipe


# Height and width of the image that stands for every image of a source whose images are cut into tiles.
_TYPICAL_IMAGE = (768, 1024)
# Epochs above which a source is named, because text at least is known to give less when it is read again so often.
_OFTEN = 4
_WIDTH = 120


@dataclass(frozen=True)
class SourcePlan:
    """
    What a source gives to a stage.

    Args:
        name: name of the source.
        positions: positions that its records take in all rows of the stage.
        records: number of its records that are read.
        epochs: how often each of its records is read.
        tiles: number of tiles of a record.
        text: number of text tokens of a record.
        images: number of images of a record.
    """

    name: str
    positions: float
    records: float
    epochs: float
    tiles: float
    text: float
    images: float


def plan_recipe(
    name: str,
    gpus: int,
    *,
    tp: int | None = None,
    ep: int | None = None,
    gradient_checkpointing: bool = False,
    memory: float = 80.0,
    mfu: float = 0.4,
    peak_tflops: float = 989.0,
) -> str:
    """
    The plan of an open recipe, as text for a terminal: parameters, FLOPs, memory, tokens and epochs of each source, and
    time.

    Args:
        name: name of the recipe, one of [`mm1_hf.training.open_recipes.recipe_names`].
        gpus: number of devices.
        tp, ep, gradient_checkpointing, memory, mfu, peak_tflops: see [`mm1_hf.planning.planner.plan`].

    Raises:
        ValueError: there is no such recipe, or a number is out of range, see [`mm1_hf.planning.planner.plan`].
    """
    check_machine(mfu, peak_tflops, memory)
    opened = open_recipe(name)
    settings, config = opened.recipe()
    set_tile(config, settings)
    layouts = stage_layouts(config, settings.batch_size, gpus, tp, ep)
    sources = source_plans(opened, settings, config)
    rows = settings.batch_size * settings.arguments["max_steps"]
    length = settings.data.sequence_length
    flops = flops_formula(config).training(
        positions=length,
        tiles=sum(source.records * source.tiles for source in sources) / rows,
        targets=sum(source.records * source.text for source in sources) / rows,
        pairs=causal_pairs(length),
    )
    seconds = rows * flops.total / (gpus * peak_tflops * 1e12 * mfu)
    images = sum(source.records * source.images for source in sources)
    lines = [
        f"{name}: {opened.file.summary}, on {gpus} GPUs",
        f"encoder {opened.parts.vision.id}, decoder {opened.parts.text.id}",
        "",
        parameter_table(config),
        "",
        *flops_lines(flops),
        "",
        *memory_lines(config, settings, token_budget(settings, config), layouts, gradient_checkpointing, memory),
        "",
        *_source_lines(opened, settings, sources),
        "",
        f"Time at {mfu:.0%} MFU of {peak_tflops:g} TFLOP/s: {seconds / 86400:,.1f} days, {seconds / 3600 * gpus:,.0f} GPU "
        f"hours. The data workers must read {images / seconds:,.0f} images/s, {images / seconds / gpus:,.1f} for each GPU.",
        "",
        "Assumptions:",
        "- Every row is full. Numbers of records, and of the tokens and images of a record, are the recipe's estimates.",
        f"- {_image_assumption(settings)}",
        "- All text tokens are targets; in fine-tuning only the answers are, which the head's share shows too large.",
        "- FLOPs are those of an average row, with attention over the whole row. The MFU is a guess until one of your runs "
        "has logged its own.",
    ]
    return "\n".join(lines)


def source_plans(opened: OpenRecipe, settings: Recipe, config: MM1Config) -> list[SourcePlan]:
    """
    What each source gives to a stage.

    Args:
        opened: the open recipe.
        settings: the recipe that it resolves to.
        config: configuration of the model; its connector determines how many tokens a tile has.
    """
    connector: Any = config.connector_config
    total = settings.batch_size * settings.arguments["max_steps"] * settings.data.sequence_length
    tiles = {name: _tiles(source.images, settings) for name, source in opened.file.sources.items()}
    length = {name: source.tokens + tiles[name] * connector.num_tokens for name, source in opened.file.sources.items()}
    mixture = settings.data.mixture
    # Weights of rows are shares of positions; weights of documents are shares of records.
    shares = {
        name: weight * (length[name] if settings.data.unit == "documents" else 1) for name, weight in mixture.items()
    }
    whole = sum(shares.values())
    plans = []
    for name, source in opened.file.sources.items():
        positions = total * shares[name] / whole
        records = positions / length[name]
        plans.append(
            SourcePlan(name, positions, records, records / source.records, tiles[name], source.tokens, source.images)
        )
    return plans


def _tiles(images: float, settings: Recipe) -> float:
    """The number of tiles of a record with so many images on average."""
    config = _tiling(settings)
    layouts = sample_layouts([_TYPICAL_IMAGE] * max(round(images), 1), config)
    return images * sum(layout.num_tiles for layout in layouts) / len(layouts)


def _tiling(settings: Recipe) -> TilingConfig:
    data = settings.data
    grid = TilingConfig.static_grid if data.image_splitting == "static" else 1
    return TilingConfig(tile_size=data.resolution // grid, splitting=data.image_splitting)  # ty: ignore[invalid-argument-type]


def _source_lines(opened: OpenRecipe, settings: Recipe, sources: list[SourcePlan]) -> Iterator[str]:
    steps, total = settings.arguments["max_steps"], sum(source.positions for source in sources)
    yield (
        f"Sources of {steps:,} steps of {settings.batch_size} rows of {settings.data.sequence_length:,} positions; "
        f"{total / 1e9:,.1f}B positions and {sum(source.records for source in sources) / 1e6:,.1f}M records in all"
    )
    width = max(22, *(len(source.name) for source in sources))
    yield f"  {'source':<{width}}{'category':<18}{'positions':>12}{'share':>8}{'records':>12}{'epochs':>9}"
    for source in sources:
        category = opened.file.sources[source.name].category
        yield (
            f"  {source.name:<{width}}{category:<18}{source.positions / 1e9:>11.2f}B{source.positions / total:>8.1%}"
            f"{source.records / 1e6:>11.2f}M{source.epochs:>9.2f}"
        )
    if often := [source.name for source in sources if source.epochs > _OFTEN]:
        listed = f"Read more than {_OFTEN} times: {', '.join(often)}. Take more data for them, or fewer steps."
        yield from wrap(listed, _WIDTH, initial_indent="  ", subsequent_indent="  ")


def _image_assumption(settings: Recipe) -> str:
    if settings.data.image_splitting == "none":
        return "An image is one tile."
    height, width = _TYPICAL_IMAGE
    tiles = round(_tiles(1, settings))
    return (
        f"Images have {height} x {width} pixels (height x width), so that one alone, or one of two, makes {tiles} tiles "
        "with its overview. Three or more images of a record are one tile each."
    )
