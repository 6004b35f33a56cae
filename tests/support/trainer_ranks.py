"""One step of Trainer on one rank or several; a module of its own, because the processes have to import it by name."""

import os

import torch
from torch import nn
from transformers import Trainer, TrainingArguments


def only_row(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    (row,) = rows
    return row


def step(model: nn.Module, rows: list[dict[str, torch.Tensor]], folder: str, accumulation: int) -> None:
    """A step of plain gradient descent with every row a micro-batch."""
    args = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(model=model, args=args, train_dataset=rows, data_collator=only_row).train()


def weights_of_one_rank(
    rank: int, folder: str, rows: list[dict[str, torch.Tensor]], accumulation: int
) -> dict[str, torch.Tensor]:
    """The weights after a step of this rank's share of `rows`."""
    from mm1_hf import MM1ForConditionalGeneration

    world_size = torch.distributed.get_world_size()
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    model = MM1ForConditionalGeneration.from_pretrained(folder)
    step(model, rows, folder, accumulation)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
