"""A step of packed fine-tuning on one rank or several; a module of its own, because the processes import it by name."""

import os

import torch


def weights_after_a_step(folder: str, output: str, accumulation: int) -> dict[str, torch.Tensor]:
    """Those of the model in `folder` after a step of plain gradient descent, with every packed row a micro-batch."""
    from conversations import conversations
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig

    from mm1_hf.training.sft import MM1SFTTrainer

    arguments = SFTConfig(
        output_dir=output,
        packing=True,
        max_length=160,
        use_cpu=True,
        bf16=False,
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = MM1SFTTrainer(
        AutoModelForImageTextToText.from_pretrained(folder),
        arguments,
        train_dataset=conversations(16),
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    trainer.train()
    return {name: weight.detach() for name, weight in trainer.model.named_parameters()}


def of_one_rank(rank: int, folder: str, output: str, accumulation: int) -> dict[str, torch.Tensor]:
    """The same, of this rank's share."""
    world_size = torch.distributed.get_world_size()
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    return weights_after_a_step(folder, output, accumulation)
