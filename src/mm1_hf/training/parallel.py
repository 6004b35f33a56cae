"""
How a model's weights are split over processes. FSDP2, tensor parallelism and expert parallelism are those of
transformers.
"""

from dataclasses import fields
from typing import Any

import transformers
from accelerate import Accelerator
from transformers.distributed import DistributedConfig

from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.foreign_decoders import num_experts
from mm1_hf.model.versions import SAVES_SPLIT_WEIGHTS


_SIZES = ("dp_replicate_size", "fsdp_size", "tp_size", "ep_size")


def distributed_config(config: MM1Config, num_processes: int, **settings: Any) -> DistributedConfig:
    """
    A configuration for `from_pretrained(..., distributed_config=...)`, checked against the model. `MM1Trainer` needs
    no further settings to train a model that was loaded with it.

    - `fsdp_size` processes (FSDP2) each hold a shard of every weight and read different rows. `dp_replicate_size` is
      the number of such groups, each of which holds the whole model.
    - `tp_size` processes (tensor parallelism) read the same rows and split the decoder's matrices. The encoder and the
      connector are not split.
    - `ep_size` processes (expert parallelism) each hold some of the experts, and tokens are sent to the process that
      holds their expert. They are the same processes as above, not additional ones.

    To leave the weights unsplit, load the model without a configuration: Trainer then wraps it in
    DistributedDataParallel.

    Args:
        config: configuration of the model.
        num_processes: number of processes that were started.
        settings: fields of [`~transformers.distributed.DistributedConfig`].

    Returns:
        The configuration. Its `dp_size` is the number of ranks that read different rows: give it to
        [`Recipe.training_arguments`] as `num_devices`.

    Raises:
        ValueError: transformers is older than 5.20; unknown fields; sizes whose product is not `num_processes`; a
            `tp_size` that does not divide the numbers of heads; an `ep_size` that does not divide the number of
            experts, or a model without experts; pipeline stages.

    Example:

    ```python
    >>> from mm1_hf import MM1Config
    >>> from mm1_hf.training.parallel import distributed_config

    >>> config = MM1Config.from_preset("mm1-3b-moe")
    >>> distributed_config(config, 16, fsdp_size=16, ep_size=8).dp_size
    16

    ```
    """
    if not SAVES_SPLIT_WEIGHTS:
        raise ValueError(
            "Training with weights that are split over processes needs transformers 5.20 or newer, because older ones "
            f"cannot resume it; {transformers.__version__} is installed. Update it, or leave out distributed."
        )
    known = {field.name for field in fields(DistributedConfig)}
    if unknown := set(settings) - known:
        raise ValueError(
            f"DistributedConfig has no field {', '.join(sorted(unknown))}; its fields are {', '.join(sorted(known))}."
        )
    if (settings.get("pp_size") or 1) > 1:
        raise ValueError(
            f"pp_size is {settings['pp_size']}, but MM1 does not support pipeline parallelism: split its weights with "
            "fsdp_size, tp_size or ep_size."
        )
    distributed = DistributedConfig(**settings)
    # DistributedConfig has set unset sizes to 1.
    replicas, fsdp, tp, ep = (getattr(distributed, name) for name in _SIZES)
    if replicas * fsdp * tp != num_processes:
        raise ValueError(
            f"dp_replicate_size {replicas} x fsdp_size {fsdp} x tp_size {tp} is {replicas * fsdp * tp} processes, but "
            f"{num_processes} were started. Set sizes whose product is {num_processes}, or start "
            f"{replicas * fsdp * tp} processes."
        )
    text = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        if (getattr(text, name, None) or 0) % tp:
            raise ValueError(
                f"tp_size={tp} does not divide the decoder's {name}={getattr(text, name)}, but every process needs "
                f"the same number of whole heads. Take a divisor of {getattr(text, name)} as tp_size."
            )
    experts = num_experts(text)
    if ep > 1 and not experts:
        raise ValueError(
            f"ep_size={ep} distributes experts over processes, but this model's decoder is dense: it has no experts. "
            "Leave out ep_size, and split the model with fsdp_size or tp_size."
        )
    if ep > 1 and experts % ep:
        raise ValueError(
            f"ep_size={ep} does not divide the decoder's {experts} experts, but every process needs the same number "
            f"of experts. Take a divisor of {experts} as ep_size."
        )
    return distributed


def data_rank(accelerator: Accelerator) -> tuple[int, int]:
    """
    The index of this process among the ranks that read different rows, and the number of these ranks. Processes that
    read the same rows, such as a tensor-parallel group, count as one rank.

    Args:
        accelerator: accelerator of the trainer.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    mesh = accelerator.torch_device_mesh
    sharing = 1
    if mesh is not None:
        for name in ("tp", "cp"):
            if name in mesh.mesh_dim_names:
                sharing *= mesh[name].size()
    return rank // sharing, ranks // sharing
