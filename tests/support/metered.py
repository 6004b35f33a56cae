"""MM1Trainer on ready batches, on one rank or several; a module of its own, because processes have to import it by name."""

import os

import numpy as np
import torch
from tiny import tiny_vision
from trainer_ranks import only_row
from transformers import TrainerCallback, TrainingArguments

from mm1_hf import MM1Config, MM1ForConditionalGeneration, MM1TextConfig
from mm1_hf.training.balancing import ExampleSizes
from mm1_hf.training.trainer import MM1Trainer


IMAGE, TOKENS = 63, 4
SOURCES = ["caption", "text", "unused"]
DENSE: dict = {}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_layer_period": 2, "expert_capacity_factor": 0.75}

# Of each batch: rows as (length, tiles, source). With two ranks, first the second one has no image, then the first.
ROWS = [
    [(20, 2, 0), (13, 1, 0)],
    [(16, 0, 1), (9, 0, -1)],
    [(24, 1, 0)],
    [(7, 0, 1)],
    [(12, 0, 1), (12, 0, 1)],
    [(18, 3, 0), (6, 0, -1)],
    [(11, 0, 1)],
    [(21, 2, 0), (15, 1, 0)],
]


def build(**fields) -> MM1ForConditionalGeneration:
    fields = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **fields,
    }
    config = MM1Config(
        vision_config=tiny_vision().config,
        text_config=MM1TextConfig(**fields),
        connector_config={"num_tokens": TOKENS, "hidden_size": 16, "depth": 1},
        image_token_id=IMAGE,
    )
    torch.manual_seed(0)
    model = MM1ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    return model


def batches() -> list[dict[str, torch.Tensor]]:
    """Rows of two packed examples each, padded on the right to the longest of their batch."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for rows in ROWS:
        width, tiles = max(length for length, _, _ in rows), sum(number for _, number, _ in rows)
        ids = torch.randint(3, IMAGE, (len(rows), width), generator=generator)
        segments = torch.zeros_like(ids)
        for row, (length, number, _) in enumerate(rows):
            segments[row, :length] = 1
            segments[row, length - 3 : length] = 2
            ids[row, : number * TOKENS] = IMAGE
        labels = ids.masked_fill((ids == IMAGE) | (segments == 0), -100)
        labels[:, 0] = -100
        labels[:, 1:].masked_fill_(segments[:, 1:] != segments[:, :-1], -100)
        batch = {"input_ids": ids, "segment_ids": segments, "labels": labels}
        if tiles:
            batch["pixel_values"] = torch.rand(tiles, 3, 56, 56, generator=generator)
        made.append({**batch, "sources": torch.tensor([source for _, _, source in rows])})
    return made


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self):
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.found:
            self.found = {
                name: whole(weight.grad) for name, weight in model.named_parameters() if weight.grad is not None
            }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def train(
    model: MM1ForConditionalGeneration,
    folder: str,
    accumulation: int,
    callbacks=(),
    peak_tflops=None,
    balanced: bool = False,
    **settings,
) -> dict:
    """
    Two steps over all batches, each batch a micro-batch, as logs of each step and gradients of the first; `balanced`, by
    the sampler that deals a step's batches out by their cost.
    """
    gradients = Gradients()
    arguments = {
        "output_dir": folder,
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **settings,
    }
    dataset = batches()
    tiles = np.array([len(batch.get("pixel_values", ())) for batch in dataset])
    text = np.array([batch["input_ids"].numel() for batch in dataset]) - tiles * TOKENS
    trainer = MM1Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=dataset,
        data_collator=only_row,
        source_names=SOURCES,
        callbacks=[gradients, *callbacks],
        peak_tflops=peak_tflops,
        example_sizes=ExampleSizes(tiles, text, TOKENS) if balanced else None,
    )
    trainer.train()
    return {
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "gradients": gradients.found,
        "weights": {name: whole(weight) for name, weight in trainer.model.named_parameters()},
    }


def train_one_rank(rank: int, folder: str, runs: dict[str, tuple[str, dict | None]]) -> dict[str, dict]:
    """What this rank gets of runs, each a saved model and how its weights are split; None for DistributedDataParallel."""
    from transformers.distributed import DistributedConfig

    world_size = torch.distributed.get_world_size()
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    results = {}
    for name, (model_folder, split) in runs.items():
        options = {} if split is None else {"distributed_config": DistributedConfig(**split)}
        model = MM1ForConditionalGeneration.from_pretrained(model_folder, **options)
        balanced = name.endswith("balanced")
        results[name] = train(model, folder, 2, ddp_find_unused_parameters=False, balanced=balanced)
    return results
