"""
Adapts a fine-tuned MM1 with LoRA to a new task: describing an image in one sentence.

    python examples/lora.py --model sft-mm1 --output lora-mm1

The adapter and the processor are saved in the output folder. `AutoModelForImageTextToText.from_pretrained` loads the
adapter from there, together with its base model. The model with the adapter merged into it is saved in the subfolder
`merged`, for programs that need a whole model.
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
from mm1_hf.training.lora import lora_config
from mm1_hf.training.machine import this_machine
from mm1_hf.training.sft import MM1SFTTrainer


SEQUENCE_LENGTH = 512
FEATURES = datasets.Features(
    {
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "images": datasets.List(datasets.Image()),
    }
)


def description(picture: Picture) -> dict:
    """A chat in which a picture is described in one sentence, made from easy-VQA's answers about it."""
    answers = {question.kind: question.answer for question in picture.questions}
    messages = [
        {"role": "user", "content": "Describe the picture."},
        {"role": "assistant", "content": f"There is a {answers['colour']} {answers['shape']}."},
    ]
    return {"messages": messages, "images": [str(picture.path)]}


def descriptions(pictures: list[Picture]) -> datasets.Dataset:
    described = [picture for picture in pictures if {"shape", "colour"} <= {each.kind for each in picture.questions}]
    return datasets.Dataset.from_list([description(picture) for picture in described], features=FEATURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that sft.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter and the merged model")
    parser.add_argument("--preset", default="decoder+connector", help="parts to adapt (default: decoder+connector)")
    parser.add_argument(
        "--steps", type=int, default=60, help="training steps, of 4 rows of 512 positions each (default: 60)"
    )
    options = parser.parse_args()
    torch.manual_seed(0)

    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32).to(this_machine().device)
    processor = AutoProcessor.from_pretrained(options.model)
    held_out = descriptions(load_split("test")[:64])
    collator = MM1Collator(processor)
    batches = [collator(list(held_out.select(range(start, start + 8)))) for start in range(0, len(held_out) - 7, 8)]
    before = held_out_loss(model, batches)

    trainer = MM1SFTTrainer(
        model,
        SFTConfig(
            output_dir=str(options.output),
            packing=True,
            max_length=SEQUENCE_LENGTH,
            per_device_train_batch_size=4,
            max_steps=options.steps,
            learning_rate=5e-4,
            lr_scheduler_type="cosine",
            **this_machine().arguments,
            gradient_checkpointing=False,
            logging_steps=min(10, options.steps),
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=descriptions(load_split("train")),
        processing_class=processor,
        peft_config=lora_config(model, options.preset),
    )
    trainer.train()
    trainer.save_model()
    after = held_out_loss(trainer.model, batches)
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(options.output / "merged")
    processor.save_pretrained(options.output / "merged")

    print(f"held-out loss {before:.3f} before, {after:.3f} after")
    (options.output / "results.json").write_text(
        json.dumps({"before": before, "after": after}) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
