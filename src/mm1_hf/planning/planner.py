"""Plans a training stage: its parameters, floating-point operations, memory, tokens and time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from mm1_hf.accounting.flops import Flops, causal_pairs, flops_formula
from mm1_hf.accounting.parameters import count_parameters, parameter_table
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.tiling import TilingConfig
from mm1_hf.planning.memory import Layout, Row, check_layout, device_memory
from mm1_hf.training.recipes import Recipe, Stage, accumulation_steps, recipe


# Names that the mixtures use for sources without images.
_TEXT_SOURCES = ("text", "text-only")
# Sizes of a tensor-parallel group on one machine, the preferred one first.
_TENSOR_PARALLEL = (8, 4, 2)


@dataclass(frozen=True)
class Budget:
    """
    The contents of a stage's rows if each row with images holds as many images, and so as little text, as the recipe
    allows.

    Args:
        rows: number of rows of the whole schedule.
        batch: number of rows of one step.
        image_share: share of the rows that have images.
        positions: number of positions of every row.
        images: number of images of a row with images.
        tiles: number of tiles that these images are split into.
        image_tokens: number of positions that these tiles take.
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
        """
        Number of targets of a row with images. Its examples begin with an image, so every text token is predicted from
        a token before it.
        """
        return self.positions - self.image_tokens

    def table(self) -> Iterator[tuple[str, float, float]]:
        """
        The lines of the budget table: a name, the number in a row with images and the number in a row without images.
        """
        yield "positions", self.positions, self.positions
        yield "images, at most", self.images, 0
        if self.tiles > self.images:
            yield "tiles, at most", self.tiles, 0
        yield "image tokens, at most", self.image_tokens, 0
        yield "text tokens, at least", self.targets, self.positions
        # The first token of a text is not a target: no token before it could predict it.
        yield "loss tokens, about", self.targets, self.positions - 1

    def mean(self, with_images: float, without: float) -> float:
        """
        The mean of a quantity over all rows.

        Args:
            with_images: the quantity in a row with images.
            without: the quantity in a row without images.
        """
        return self.image_share * with_images + (1 - self.image_share) * without


def token_budget(stage: Recipe, config: MM1Config) -> Budget:
    """
    The token budget of a recipe.

    Args:
        stage: recipe of the stage.
        config: configuration of the model; its connector determines how many tokens a tile has.
    """
    data, mixture = stage.data, stage.data.mixture
    connector: Any = config.connector_config
    fit = data.sequence_length // connector.num_tokens
    # Static splitting makes the tiles of a grid and one overview of the whole image. With dynamic splitting, the
    # number of images is largest if each image has one tile.
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
    The plan of one training stage of a preset by the papers' recipe, as text for a terminal.

    Args:
        preset: name of the preset.
        gpus: number of devices.
        stage: `"pretrain"`, `"continual"` or `"sft"`.
        tp: number of ranks of a tensor-parallel group; unset, the largest of 8, 4 and 2 that divides the heads and the
            devices.
        ep: number of ranks that the experts are distributed over; unset, the largest number that divides the experts
            and the devices.
        gradient_checkpointing: whether the activations of each layer are computed again in the backward pass.
        memory: memory of one device in GB.
        mfu: share of the peak that training is expected to reach, above 0 and at most 1.
        peak_tflops: peak of one device in TFLOP/s, for dense matrices in bfloat16; the default is an H100's.

    Raises:
        ValueError: the preset or the stage does not exist; the devices do not divide the batch; `tp` does not divide
            the heads or the devices; `ep` does not divide the experts or the devices; `mfu`, `peak_tflops` or `memory`
            is out of range.
    """
    check_machine(mfu, peak_tflops, memory)
    settings = recipe(preset, stage)
    config = MM1Config.from_preset(preset)
    set_tile(config, settings)
    layouts = stage_layouts(config, settings.batch_size, gpus, tp, ep)
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
        *flops_lines(flops),
        "",
        *memory_lines(config, settings, budget, layouts, gradient_checkpointing, memory),
        "",
        *_budget_lines(settings, budget),
        "",
        f"Time at {mfu:.0%} MFU of {peak_tflops:g} TFLOP/s: {seconds / 86400:,.1f} days, "
        f"{seconds / 3600 * gpus:,.0f} GPU hours, {budget.rows * budget.positions / seconds / gpus:,.0f} "
        "positions/s/GPU",
        "",
        "Assumptions:",
        *(f"- {line}" for line in _assumptions(config, settings, budget, layouts, gradient_checkpointing)),
    ]
    return "\n".join(lines)


def check_machine(mfu: float, peak_tflops: float, memory: float) -> None:
    """
    Checks what a plan is told about the devices.

    Args:
        mfu: share of the peak that training is expected to reach, above 0 and at most 1.
        peak_tflops: peak of one device in TFLOP/s.
        memory: memory of one device in GB.

    Raises:
        ValueError: a number is out of range.
    """
    if not 0 < mfu <= 1 or peak_tflops <= 0:
        raise ValueError(
            "The MFU must be a share above 0 and at most 1, such as 0.4, and the peak must be above 0 TFLOP/s; got "
            f"an MFU of {mfu} and a peak of {peak_tflops}."
        )
    if memory <= 0:
        raise ValueError(
            f"The memory of a GPU must be above 0 GB; got {memory:g}. Give --memory its size in GB, such as 80."
        )


def set_tile(config: Any, settings: Recipe) -> None:
    """
    Sets the tile size of a configuration to that of a stage, because a preset may be stored with the tile size of another
    stage.

    Args:
        config: configuration of the model, which is changed.
        settings: recipe of the stage.
    """
    grid = TilingConfig.static_grid if settings.data.image_splitting == "static" else 1
    config.vision_config.image_size = settings.data.resolution // grid
    config.connector_config.grid_size = config.vision_config.image_size // config.vision_config.patch_size


def stage_layouts(config: Any, batch: int, gpus: int, tp: int | None, ep: int | None) -> list[Layout]:
    """
    The layouts that a plan compares.

    Args:
        config: configuration of the model.
        batch: number of rows of one optimizer step.
        gpus: number of devices.
        tp, ep: see [`plan`].

    Raises:
        ValueError: the devices do not divide the batch, or `tp` or `ep` does not divide the model or the devices.
    """
    text = config.text_config
    experts = getattr(text, "num_experts", 0)
    if tp is None:
        heads = gcd(text.num_attention_heads, text.num_key_value_heads, gpus)
        tp_size = next((ranks for ranks in _TENSOR_PARALLEL if heads % ranks == 0), 1)
    elif gpus % tp:
        raise ValueError(
            f"{gpus} GPUs cannot be divided into tensor-parallel groups of {tp}. Choose a divisor of {gpus} as --tp."
        )
    else:
        tp_size = tp
    layouts = []
    # With tensor-parallel groups there may be more GPUs than rows in a batch, because the GPUs of a group share their
    # rows. Then only layouts with these groups are planned.
    only_groups = tp_size > 1 and tp is not None and batch % gpus != 0
    if not only_groups:
        layouts.append(Layout(data=gpus))
        if gpus > 1:
            layouts.append(Layout(data=gpus, sharded=True))
        ep_size = ep if ep is not None else gcd(experts, gpus) if experts else 1
        if ep_size > 1:
            layouts.append(Layout(data=gpus, sharded=True, ep=ep_size))
    if tp_size > 1:
        groups = Layout(data=gpus // tp_size, sharded=gpus > tp_size, tp=tp_size)
        layouts.append(groups)
        if only_groups and ep is not None and ep > 1:
            layouts.append(replace(groups, ep=ep))
    for layout in layouts:
        check_layout(config, layout)
        accumulation_steps(batch, layout.data)
    return layouts


def flops_lines(flops: Flops) -> Iterator[str]:
    """
    The FLOPs of a row by part, as lines of a plan.

    Args:
        flops: the FLOPs.
    """
    yield f"FLOPs of a row, forward and backward: {flops.total:.3e}"
    for part in ("encoder", "connector", "decoder", "head"):
        yield f"  {part:<10} {getattr(flops, part) / flops.total:6.1%}"
    yield "  MFU = FLOPs of a row x rows/s / (GPUs x peak FLOP/s)"


def memory_lines(
    config: MM1Config,
    settings: Recipe,
    budget: Budget,
    layouts: Sequence[Layout],
    gradient_checkpointing: bool,
    memory: float,
) -> Iterator[str]:
    """
    The memory that each layout needs, as lines of a plan.

    Args:
        config: configuration of the model.
        settings: recipe of the stage.
        budget: token budget of the stage.
        layouts: the layouts.
        gradient_checkpointing: whether the activations of each layer are computed again in the backward pass.
        memory: memory of one device in GB.
    """
    yield (
        f"Memory of one GPU in GB, {'with' if gradient_checkpointing else 'without'} gradient checkpointing, for "
        f"passes of one row of {budget.positions:,} positions and {budget.tiles} tiles of {_side(config)} pixels"
    )
    names = ("weights", "gradients", "optimizer", "buckets", "gathered", "activations", "update", "peak")
    header = "".join(f"{name:>12}" for name in names)
    width = max(16, *(len(str(layout)) for layout in layouts))
    yield f"  {'layout':<{width}}{'passes':>7}{header}  in {memory:g} GB"
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
        yield f"  {layout!s:<{width}}{passes:>7,}{cells}  {'fits' if fits else 'no'}"
    if not some:
        hint = " or a larger --tp" if gradient_checkpointing else ", a larger --tp or --gradient-checkpointing"
        yield f"  No layout fits: use more GPUs{hint}."


def _side(config: Any) -> int:
    return config.vision_config.image_size


def _budget_lines(settings: Recipe, budget: Budget) -> Iterator[str]:
    steps = settings.arguments["max_steps"]
    yield f"Token budget of {steps:,} steps of {budget.batch} rows; {budget.image_share:.0%} of the rows have images"
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
            f"  The schedule has {budget.rows * budget.positions / 1e9:.1f}B positions, image tokens included. A "
            f"schedule of 100B positions would have {100e9 / positions:,.0f} steps."
        )


def _assumptions(
    config: MM1Config,
    settings: Recipe,
    budget: Budget,
    layouts: list[Layout],
    gradient_checkpointing: bool,
) -> Iterator[str]:
    yield (
        "Every row is full. A row with images has as many images as the recipe allows, and its examples begin with "
        "an image. A row without images is a single text. All text tokens are targets, except the first token of "
        "such a text."
    )
    if settings.data.unit != "rows":
        yield f"The weights of the mixture count {settings.data.unit}; the plan uses them as shares of rows."
    yield (
        "FLOPs are those of an average row, with attention over the whole row. The MFU is a guess until one of your "
        "runs has logged its own."
        + (" It does not count the operations that checkpointing repeats." if gradient_checkpointing else "")
    )
    yield (
        f"Weights, gradients and the states of {settings.arguments['optim']} are in float32, the computation is in "
        "bfloat16. No part is frozen. Gradients stay allocated between the passes of a step."
    )
    yield (
        "Activations are recorded in a dry run of the model's code on one row with images, with sdpa attention and "
        "the mask of a packed row; flash attention needs less memory. They include the bfloat16 copies that "
        "autocast makes of float32 weights."
    )
    yield (
        "The column update is the temporary memory of the optimizer's step: AdamW with its foreach kernels on a "
        "GPU, or AdaFactor at the largest weight. peak = weights + gradients + optimizer + buckets + max(gathered + "
        "activations, update)."
    )
    if any(layout.data > 1 and not layout.sharded for layout in layouts):
        yield "DDP: the column buckets is DDP's copy of the gradients (gradient_as_bucket_view=False)."
    if any(layout.sharded for layout in layouts):
        whole = count_parameters(config).total.parameters
        yield (
            "FSDP2: sharded by the model's plan, in bfloat16 mixed precision. The column gathered counts the "
            "weights that the plan keeps unsharded, the weights of two layers and the gradients of one layer. "
            "Gradients are reduced in every pass. This needs sync_each_batch in the gradient_accumulation_kwargs of "
            f"accelerator_config; without it Trainer holds all gradients unsharded, {2 * whole / 1e9:,.0f} GB or "
            "twice that."
        )
    if any(layout.tp > 1 for layout in layouts):
        yield "TP: the model's plan splits the decoder; every rank of a group runs the whole encoder and connector."
    if any(layout.ep > 1 for layout in layouts):
        yield "EP: tokens are spread evenly over the experts; the buffers for exchanging tokens are not counted."
    yield (
        "1 GB is 10^9 bytes. The CUDA context, workspaces, communication and fragmentation are not counted: leave a "
        "tenth of the device's memory free."
    )
