"""
Fine-tunes a pre-trained MM1 on conversations about images, in packed rows, with TRL.

    python examples/sft.py --model continual-mm1 --output sft-mm1

The conversations are easy-VQA's questions about drawn shapes, several per image, in TRL's columns `messages` and
`images`; you can use your own data set instead. The recipe is MM1's; only the assistant's messages are targets.
`mm1 sft` does the same from a settings file, with a weighted mixture of data sets.
"""

import argparse
import json
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig

import mm1_hf  # noqa: F401 - registers MM1 with the Auto classes
from mm1_hf.data.collation import MM1Collator
from mm1_hf.evaluation.held_out import held_out_loss
from mm1_hf.quickstart.easy_vqa import Picture, load_split
from mm1_hf.training.checkpoints import last_complete_checkpoint
from mm1_hf.training.machine import this_machine
from mm1_hf.training.parts import freeze
from mm1_hf.training.recipes import recipe
from mm1_hf.training.sft import MM1SFTTrainer


SEQUENCE_LENGTH = 512
TURNS = 4
FEATURES = datasets.Features(
    {
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "images": datasets.List(datasets.Image()),
    }
)


def conversation(picture: Picture) -> dict:
    """A conversation of the first questions about a picture and their answers."""
    messages = []
    for question in picture.questions[:TURNS]:
        messages.append({"role": "user", "content": question.text})
        messages.append({"role": "assistant", "content": question.answer})
    return {"messages": messages, "images": [str(picture.path)]}


def conversations(pictures: list[Picture]) -> datasets.Dataset:
    return datasets.Dataset.from_list([conversation(picture) for picture in pictures], features=FEATURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that continual.py or pretrain.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoints and the model")
    parser.add_argument(
        "--steps", type=int, default=100, help="training steps, of 4 rows of 512 positions each (default: 100)"
    )
    options = parser.parse_args()
    torch.manual_seed(0)

    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32).to(this_machine().device)
    processor = AutoProcessor.from_pretrained(options.model)
    # The pictures are smaller than a tile.
    processor.image_processor.image_splitting = "none"
    freeze(model, ["encoder"])
    held_out = conversations(load_split("test")[:64])
    collator = MM1Collator(processor)
    batches = [collator(list(held_out.select(range(start, start + 8)))) for start in range(0, len(held_out), 8)]
    before = held_out_loss(model, batches)

    changes = {
        "output_dir": str(options.output),
        "packing": True,
        "max_length": SEQUENCE_LENGTH,
        "per_device_train_batch_size": 4,
        "max_steps": options.steps,
        # The recipe's 1e-5 is meant for 10,000 steps of 256 rows; fewer steps need a higher rate.
        "learning_rate": 2e-4,
        **this_machine().arguments,
        "gradient_checkpointing": False,
        "logging_steps": min(10, options.steps),
        "save_steps": 100,
        "save_total_limit": 1,
        "report_to": "none",
    }
    trainer = MM1SFTTrainer(
        model,
        SFTConfig(**recipe(model, "sft").arguments | changes),
        train_dataset=conversations(load_split("train")),
        processing_class=processor,
        # The connector is newer than the other parts, so it gets a higher rate.
        learning_rates={"connector": 1e-3},
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(options.output))
    trainer.save_model()

    after = held_out_loss(model, batches)
    print(f"held-out loss {before:.3f} before, {after:.3f} after")
    (options.output / "results.json").write_text(
        json.dumps({"before": before, "after": after}) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
