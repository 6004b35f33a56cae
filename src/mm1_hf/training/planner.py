"""What a pre-training takes: parameters, floating-point operations, tokens, weights' memory and time."""

from mm1_hf.configuration_mm1 import MM1Config
from mm1_hf.parameters import count_parameters, parameter_table
from mm1_hf.training.flops import causal_pairs, flops_formula
from mm1_hf.training.recipes import accumulation_steps, recipe


_GIB = 2**30
# float32 weights and gradients, and AdamW's two moments.
_BYTES = {"weights": 4, "gradients": 4, "optimizer": 8}


def plan(preset: str, gpus: int, *, mfu: float = 0.4, peak_tflops: float = 989.0) -> str:
    """
    The paper's pre-training of a preset, planned, as text for a terminal.

    Args:
        preset: its name, such as `"mm1-3b"`.
        gpus: devices, one row each in a pass.
        mfu: the share of the peak that is reached.
        peak_tflops: of one device, dense, in bfloat16; the default is an H100's.

    Raises:
        ValueError: the batch does not divide over the devices, there is no such preset, or `mfu` is no share.
    """
    if not 0 < mfu <= 1 or peak_tflops <= 0:
        raise ValueError(f"The MFU is a share, above 0 and at most 1, of a peak above 0; got {mfu} of {peak_tflops}.")
    stage = recipe(preset)
    passes = accumulation_steps(stage.batch_size, gpus)
    config = MM1Config.from_preset(preset)
    # MM1.5's presets store the size of a tile of its later stages.
    config.vision_config.image_size = stage.data.resolution
    config.connector_config.grid_size = stage.data.resolution // config.vision_config.patch_size
    rows, length = stage.batch_size * stage.arguments["max_steps"], stage.data.sequence_length
    images = stage.data.max_images
    image_tokens = images * config.connector_config.num_tokens
    text = length - image_tokens
    sizes = {"positions": length, "tiles": images, "targets": text, "pairs": causal_pairs(length)}
    row = flops_formula(config).training(**sizes)
    seconds = rows * row.total / (gpus * peak_tflops * 1e12 * mfu)
    parameters = count_parameters(config).total.parameters
    memory = {name: parameters * size / _GIB for name, size in _BYTES.items()}
    whole = sum(memory.values())
    lines = [
        f"{preset}: pre-training on {gpus} GPUs",
        "",
        parameter_table(config),
        "",
        f"FLOPs per row, forward and backward: {row.total:.3e}",
        *(
            f"  {part:<10} {getattr(row, part) / row.total:6.1%}"
            for part in ("encoder", "connector", "decoder", "head")
        ),
        "",
        f"Schedule: {stage.arguments['max_steps']:,} steps of {stage.batch_size} rows, {passes} passes a step",
        f"  positions                {rows * length / 1e9:8.1f}B",
        f"  image tokens, at most    {rows * image_tokens / 1e9:8.1f}B",
        f"  text tokens, at least    {rows * text / 1e9:8.1f}B",
        f"  loss tokens, about       {rows * text / 1e9:8.1f}B",
        f"  images, at most          {rows * images / 1e9:8.2f}B",
        "",
        "Memory per GPU in GiB, without activations      DDP     FSDP2",
        *(f"  {name:<40} {size:10.1f} {size / gpus:9.1f}" for name, size in [*memory.items(), ("sum", whole)]),
        "",
        f"Time at {mfu:.0%} MFU of {peak_tflops:g} TFLOP/s: {seconds / 86400:.1f} days, "
        f"{seconds / 3600 * gpus:,.0f} GPU hours",
        "",
        "Assumed: full rows of one example with as many images as fit the recipe; loss on all text; attention counted",
        "causally; weights, gradients and AdamW's moments in float32; FSDP2 shards all three over all GPUs.",
    ]
    return "\n".join(lines)
