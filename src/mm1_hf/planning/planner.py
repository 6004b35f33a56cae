"""What a stage of training takes: parameters, floating-point operations, memory, tokens and time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

from mm1_hf.accounting.flops import Flops, causal_pairs, flops_formula
from mm1_hf.accounting.parameters import count_parameters, parameter_table
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.tiling import TilingConfig
from mm1_hf.planning.memory import Layout, Row, check_layout, device_memory
from mm1_hf.training.recipes import Recipe, Stage, accumulation_steps, recipe


# What the mixtures call their sources without images.
_TEXT_SOURCES = ("text", "text-only")
# Ranks of one machine.
_TENSOR_PARALLEL = (8, 4, 2)


@dataclass(frozen=True)
class Budget:
    """
    What the rows of a stage hold at most, of images, and at least, of text.

    Args:
        rows: of the whole schedule.
        batch: rows of one step.
        image_share: share of the rows that have images.
        positions: of any row.
        images: of a row that has some.
        tiles: what these images are cut into.
        image_tokens: the tiles' positions.
    """

    rows: int
    batch: int
    image_share: float
    positions: int
    images: int
    tiles: int
    image_tokens: int

    @property
    def targets(self) -> int:
        """Loss tokens of a row with images. Its examples begin with one: all text is predicted."""
        return self.positions - self.image_tokens

    def table(self) -> Iterator[tuple[str, float, float]]:
        """Name, number in a row with images and number in a row without."""
        yield "positions", self.positions, self.positions
        yield "images, at most", self.images, 0
        if self.tiles > self.images:
            yield "tiles, at most", self.tiles, 0
        yield "image tokens, at most", self.image_tokens, 0
        yield "text tokens, at least", self.targets, self.positions
        # Nothing predicts the first token of a text.
        yield "loss tokens, about", self.targets, self.positions - 1

    def mean(self, with_images: float, without: float) -> float:
        """
        What a row has of something in the mean.

        Args:
            with_images: what a row with images has.
            without: what a row of text has.
        """
        return self.image_share * with_images + (1 - self.image_share) * without


def token_budget(stage: Recipe, config: MM1Config) -> Budget:
    """
    The token budget of a recipe.

    Args:
        stage: the recipe.
        config: the model's, whose connector says how many tokens a tile makes.
    """
    data, mixture = stage.data, stage.data.mixture
    connector: Any = config.connector_config
    fit = data.sequence_length // connector.num_tokens
    # A grid and the whole image. With dynamic splitting, images of one tile fill a row best.
    per_image = TilingConfig.static_grid**2 + 1 if data.image_splitting == "static" else 1
    images = fit // per_image
    if data.max_images is not None:
        images = min(images, data.max_images)
    text = sum(weight for source, weight in mixture.items() if source in _TEXT_SOURCES) / sum(mixture.values())
    return Budget(
        rows=stage.batch_size * stage.arguments["max_steps"],
        batch=stage.batch_size,
        image_share=1 - text,
        positions=data.sequence_length,
        images=images,
        tiles=images * per_image,
        image_tokens=images * per_image * connector.num_tokens,
    )


def plan(
    preset: str,
    gpus: int,
    *,
    stage: Stage = "pretrain",
    tp: int | None = None,
    ep: int | None = None,
    gradient_checkpointing: bool = False,
    memory: float = 80.0,
    mfu: float = 0.4,
    peak_tflops: float = 989.0,
) -> str:
    """
    A stage of the paper's training of a preset, planned, as text for a terminal.

    Args:
        preset: its name.
        gpus: devices.
        stage: `"pretrain"`, `"continual"` or `"sft"`.
        tp: ranks of a tensor-parallel group; unset, the most of 8, 4 and 2 that divide.
        ep: ranks that hold different experts; unset, the most that divide.
        gradient_checkpointing: whether each layer's activations are computed again in the backward pass.
        memory: of one device, in GB.
        mfu: the share of the peak that is reached.
        peak_tflops: of one device, dense, in bfloat16; the default is an H100's.

    Raises:
        ValueError: there is no such preset or stage; the devices do not divide the batch, or `tp` and `ep` not what they
            split; `mfu` is no share, or there is no memory.
    """
    if not 0 < mfu <= 1 or peak_tflops <= 0:
        raise ValueError(f"The MFU is a share, above 0 and at most 1, of a peak above 0; got {mfu} of {peak_tflops}.")
    if memory <= 0:
        raise ValueError(f"A GPU has more than {memory:g} GB of memory. Give --memory its size, such as 80.")
    settings = recipe(preset, stage)
    config = MM1Config.from_preset(preset)
    _set_tile(config, settings)
    layouts = _layouts(config, settings.batch_size, gpus, tp, ep)
    budget = token_budget(settings, config)
    flops = flops_formula(config).training(
        positions=budget.positions,
        tiles=budget.mean(budget.tiles, 0),
        targets=budget.mean(budget.targets, budget.positions - 1),
        pairs=causal_pairs(budget.positions),
    )
    seconds = budget.rows * flops.total / (gpus * peak_tflops * 1e12 * mfu)
    lines = [
        f"{preset}: {stage} on {gpus} GPUs",
        "",
        parameter_table(config),
        "",
        *_flops_lines(flops),
        "",
        *_memory_lines(config, settings, budget, layouts, gradient_checkpointing, memory),
        "",
        *_budget_lines(settings, budget),
        "",
        f"Time at {mfu:.0%} MFU of {peak_tflops:g} TFLOP/s: {seconds / 86400:,.1f} days, "
        f"{seconds / 3600 * gpus:,.0f} GPU hours, {budget.rows * budget.positions / seconds / gpus:,.0f} positions/s/GPU",
        "",
        "Assumptions:",
        *(f"- {line}" for line in _assumptions(config, settings, budget, layouts, gradient_checkpointing)),
    ]
    return "\n".join(lines)


def _set_tile(config: Any, settings: Recipe) -> None:
    """Sets the size of a tile to that of the stage, which a preset need not be stored with."""
    grid = TilingConfig.static_grid if settings.data.image_splitting == "static" else 1
    config.vision_config.image_size = settings.data.resolution // grid
    config.connector_config.grid_size = config.vision_config.image_size // config.vision_config.patch_size


def _layouts(config: Any, batch: int, gpus: int, tp: int | None, ep: int | None) -> list[Layout]:
    """
    Raises:
        ValueError: the devices do not divide the batch, or `tp` and `ep` not what they split.
    """
    text = config.text_config
    experts = getattr(text, "num_experts", 0)
    if tp is None:
        heads = gcd(text.num_attention_heads, text.num_key_value_heads, gpus)
        tp_size = next((ranks for ranks in _TENSOR_PARALLEL if heads % ranks == 0), 1)
    elif gpus % tp:
        raise ValueError(
            f"{gpus} GPUs are no whole number of tensor-parallel groups of {tp}. Take a divisor of {gpus}."
        )
    else:
        tp_size = tp
    layouts = []
    # More GPUs than a batch has rows share them in tensor-parallel groups.
    if tp is None or batch % gpus == 0:
        layouts.append(Layout(data=gpus))
        if gpus > 1:
            layouts.append(Layout(data=gpus, sharded=True))
        ep_size = ep if ep is not None else gcd(experts, gpus) if experts else 1
        if ep_size > 1:
            layouts.append(Layout(data=gpus, sharded=True, ep=ep_size))
    if tp_size > 1:
        layouts.append(Layout(data=gpus // tp_size, sharded=gpus > tp_size, tp=tp_size))
    for layout in layouts:
        check_layout(config, layout)
        accumulation_steps(batch, layout.data)
    return layouts


def _flops_lines(flops: Flops) -> Iterator[str]:
    yield f"FLOPs of a row, forward and backward: {flops.total:.3e}"
    for part in ("encoder", "connector", "decoder", "head"):
        yield f"  {part:<10} {getattr(flops, part) / flops.total:6.1%}"
    yield "  MFU = FLOPs of a row x rows/s / (GPUs x peak FLOP/s)"


def _memory_lines(
    config: MM1Config,
    settings: Recipe,
    budget: Budget,
    layouts: Iterable[Layout],
    gradient_checkpointing: bool,
    memory: float,
) -> Iterator[str]:
    yield (
        f"Memory of a GPU in GB, with {'' if gradient_checkpointing else 'no '}gradient checkpointing: "
        f"a row of {budget.positions:,} positions and {budget.tiles} tiles of {_side(config)} pixels in a pass"
    )
    names = ("weights", "gradients", "optimizer", "buckets", "gathered", "activations", "update", "peak")
    header = "".join(f"{name:>12}" for name in names)
    yield f"  {'layout':<16}{'passes':>7}{header}  in {memory:g} GB"
    row = Row(budget.positions, budget.tiles, budget.targets)
    some = False
    for layout in layouts:
        needed = device_memory(
            config,
            row,
            layout,
            optimizer=settings.arguments["optim"],
            gradient_checkpointing=gradient_checkpointing,
        )
        fits = needed.peak <= memory * 1e9
        some |= fits
        cells = "".join(f"{getattr(needed, name) / 1e9:>12,.1f}" for name in names)
        passes = accumulation_steps(settings.batch_size, layout.data)
        yield f"  {layout!s:<16}{passes:>7,}{cells}  {'fits' if fits else 'no'}"
    if not some:
        hint = "" if gradient_checkpointing else ", or --gradient-checkpointing"
        yield f"  Nothing fits: take more GPUs, a larger --tp{hint}."


def _side(config: Any) -> int:
    return config.vision_config.image_size


def _budget_lines(settings: Recipe, budget: Budget) -> Iterator[str]:
    steps = settings.arguments["max_steps"]
    yield f"Token budget of {steps:,} steps of {budget.batch} rows, {budget.image_share:.0%} of them with images"
    yield f"  {'':<24}{'image row':>12}{'text row':>12}{'batch':>14}{'schedule':>12}"
    for name, with_images, without in budget.table():
        mean = budget.mean(with_images, without)
        text_row = f"{without:,}" if budget.image_share < 1 else ""
        yield (
            f"  {name:<24}{with_images:>12,}{text_row:>12}{mean * budget.batch:>14,.0f}"
            f"{mean * budget.rows / 1e9:>11.2f}B"
        )
    if settings.stage == "pretrain":
        positions = budget.batch * budget.positions
        yield (
            f"  100B or 400B tokens? The schedule has {budget.rows * budget.positions / 1e9:.1f}B positions, image tokens "
            f"among them; 100B would be {100e9 / positions:,.0f} steps."
        )


def _assumptions(
    config: MM1Config,
    settings: Recipe,
    budget: Budget,
    layouts: list[Layout],
    gradient_checkpointing: bool,
) -> Iterator[str]:
    yield (
        "Rows are full. One with images has as many as the recipe lets in, and its examples begin with them; one without is "
        "a single text. All text is learned."
    )
    if settings.data.unit != "rows":
        yield f"The mixture's shares, of {settings.data.unit}, are taken for shares of rows."
    yield (
        "FLOPs are those of the mean row, attention over the whole of it. The MFU is a guess until a run of yours has "
        "logged its own"
        + (": it does not count what checkpointing computes again." if gradient_checkpointing else ".")
    )
    yield (
        f"Weights, gradients and the states of {settings.arguments['optim']} are in float32, the computation in bfloat16; "
        "no part is frozen; gradients stay between a step's passes."
    )
    yield (
        "Activations are those of the model's code in a dry run of one row with images, with sdpa attention and a packed "
        "row's mask; flash attention needs less. They contain the bfloat16 copies that autocast makes of float32 weights."
    )
    yield (
        "update: AdamW's foreach kernels on a GPU, or AdaFactor's largest weight. peak = weights + gradients + optimizer + "
        "buckets + the larger of gathered + activations and update."
    )
    if any(layout.data > 1 and not layout.sharded for layout in layouts):
        yield "DDP: its buckets are a copy of the gradients (gradient_as_bucket_view=False)."
    if any(layout.sharded for layout in layouts):
        whole = count_parameters(config).total.parameters
        yield (
            "FSDP2: by the model's plan, in bfloat16 mixed precision; gathered are what the plan keeps, two layers and the "
            "gradients of one. Gradients are reduced in every pass: without sync_each_batch in "
            "accelerator_config's gradient_accumulation_kwargs, Trainer holds all of them, "
            f"{2 * whole / 1e9:,.0f} GB or twice that."
        )
    if any(layout.tp > 1 for layout in layouts):
        yield "TP: by the model's plan, which splits the decoder; each rank of a group runs the whole encoder and connector."
    if any(layout.ep > 1 for layout in layouts):
        yield "EP: tokens spread evenly over the experts; the exchange's own buffers are left out."
    yield (
        "GB are 10^9 bytes. Nothing is counted for the CUDA context, workspaces, communication and fragmentation: leave a "
        "tenth of the device free."
    )
