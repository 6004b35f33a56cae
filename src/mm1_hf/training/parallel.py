"""How a model's weights are split over processes: FSDP2, tensor and expert parallelism, all of them transformers' own."""

from dataclasses import fields
from typing import Any

from accelerate import Accelerator
from transformers.distributed import DistributedConfig

from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import num_experts


_SIZES = ("dp_replicate_size", "fsdp_size", "tp_size", "ep_size")


def distributed_config(config: MM1Config, num_processes: int, **settings: Any) -> DistributedConfig:
    """
    What `from_pretrained(..., distributed_config=...)` takes, checked against the model. `MM1Trainer` trains a model that
    was loaded so as it is.

    `fsdp_size` processes each hold a part of every weight and have rows of their own (FSDP2); with `dp_replicate_size`,
    so many groups of them do. `tp_size` processes share their rows and split the decoder's matrices. `ep_size` processes
    each hold whole experts, and tokens travel to them; they are taken from those of FSDP2 and tensor parallelism, not
    added to them. The encoder and the connector are not split by tensor parallelism. Without any of it, leave the
    configuration out: Trainer then wraps the model in DistributedDataParallel.

    Args:
        config: the model's.
        num_processes: that were started.
        settings: fields of [`~transformers.distributed.DistributedConfig`].

    Returns:
        The configuration; its `dp_size` processes have rows of their own: the `num_devices` of
        [`Recipe.training_arguments`].

    Raises:
        ValueError: unknown fields, sizes that do not make up `num_processes`, heads or experts that do not divide, experts
            that the model does not have, pipeline stages.

    Example:

    ```python
    >>> from mm1_hf import MM1Config
    >>> from mm1_hf.training.parallel import distributed_config

    >>> config = MM1Config.from_preset("mm1-3b-moe")
    >>> distributed_config(config, 16, fsdp_size=16, ep_size=8).dp_size
    16

    ```
    """
    known = {field.name for field in fields(DistributedConfig)}
    if unknown := set(settings) - known:
        raise ValueError(
            f"There is no way {', '.join(sorted(unknown))} to split weights; there are {', '.join(sorted(known))}."
        )
    if (settings.get("pp_size") or 1) > 1:
        raise ValueError(
            f"pp_size is {settings['pp_size']}, but MM1 does not run as a pipeline: split its weights with fsdp_size, "
            "tp_size or ep_size."
        )
    distributed = DistributedConfig(**settings)
    # Resolved: unset ones are 1.
    replicas, fsdp, tp, ep = (getattr(distributed, name) for name in _SIZES)
    if replicas * fsdp * tp != num_processes:
        raise ValueError(
            f"dp_replicate_size {replicas} x fsdp_size {fsdp} x tp_size {tp} is {replicas * fsdp * tp} processes, but "
            f"{num_processes} were started. Set sizes whose product that is, or start as many."
        )
    text = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        if (getattr(text, name, None) or 0) % tp:
            raise ValueError(
                f"tp_size={tp} does not divide the decoder's {name}={getattr(text, name)}: every process needs whole heads."
            )
    experts = num_experts(text)
    if ep > 1 and (not experts or experts % ep):
        raise ValueError(
            f"ep_size={ep} does not divide the decoder's {experts} experts: every process needs as many. A dense decoder is "
            "split with fsdp_size and tp_size."
        )
    return distributed


def data_rank(accelerator: Accelerator) -> tuple[int, int]:
    """
    This process's rank, and their number, among those with rows of their own.

    Args:
        accelerator: Trainer's.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    mesh = accelerator.torch_device_mesh
    sharing = 1
    if mesh is not None:
        for name in ("tp", "cp"):
            if name in mesh.mesh_dim_names:
                sharing *= mesh[name].size()
    return rank // sharing, ranks // sharing
