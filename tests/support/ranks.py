"""What tests run on several ranks; a module of its own, because the processes have to import it by name."""

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(worker: Callable, folder: Path, *args: object, world_size: int = 2) -> list[object]:
    """What `worker(rank, *args)` returns on every rank of a gloo group."""
    mp.spawn(_main, (worker, str(folder), world_size, sys.path, args), nprocs=world_size)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]


def _main(rank: int, worker: Callable, folder: str, world_size: int, path: list[str], args: tuple) -> None:
    sys.path[:] = path
    torch.set_num_threads(1)
    # A rank that waits for one that never comes must fail, and not for half an hour.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    torch.save(worker(rank, *args), f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def gradients_of_one_rank(rank: int, folder: str, batches: list[dict]) -> dict[str, torch.Tensor]:
    """One step of DistributedDataParallel, each rank with its own batch."""
    from mm1_hf import MM1ForConditionalGeneration

    model = MM1ForConditionalGeneration.from_pretrained(folder).train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    # Two steps: the second one raises where the first left weights without a gradient.
    for _ in range(2):
        model.zero_grad()
        parallel(**batches[rank]).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def tensor_parallel(rank: int, folder: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits and greedy tokens of a model whose weights are split over the ranks, which is saved to `folder/saved`."""
    from transformers.distributed import DistributedConfig

    from mm1_hf import MM1ForConditionalGeneration

    distributed = DistributedConfig(tp_size=dist.get_world_size())
    model = MM1ForConditionalGeneration.from_pretrained(folder, distributed_config=distributed).eval()
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    model.save_pretrained(f"{folder}/saved")
    dist.barrier()
    width = model.model.language_model.layers[0].self_attn.q_proj.weight
    return {"logits": logits, "tokens": tokens, "local": torch.tensor(width.to_local().shape)}
