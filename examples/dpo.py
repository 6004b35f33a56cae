"""
Trains an MM1 with direct preference optimization (TRL's DPOTrainer) on questions about one or two images: it learns to
prefer a short, right answer to a long, wrong one.

    python examples/dpo.py --model lora-mm1/merged --output dpo-mm1

Only LoRA adapters of the decoder are trained; the model without them is the reference model. At the end the adapters
are merged into the model, and the whole model is saved.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from drawn_questions import questions
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from mm1_hf.training.lora import lora_config
from mm1_hf.training.machine import this_machine


def preferences(number: int, seed: int) -> Dataset:
    return Dataset.from_list(
        [
            {
                "images": question.images,
                "prompt": [{"role": "user", "content": question.text}],
                "chosen": [{"role": "assistant", "content": question.answer}],
                "rejected": [{"role": "assistant", "content": f"It may be {question.wrong}, but I cannot be sure."}],
            }
            for question in questions(number, seed)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model and its processor")
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=40, help="training steps, of 4 pairs each (default: 40)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="learning rate (default: 1e-4)")
    options = parser.parse_args()

    processor = AutoProcessor.from_pretrained(options.model)
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(options.output),
            max_steps=options.steps,
            per_device_train_batch_size=4,
            learning_rate=options.learning_rate,
            # A maximum length could cut a prompt between the placeholders of an image.
            max_length=None,
            **this_machine().arguments,
            logging_steps=min(10, options.steps),
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=preferences(4 * options.steps, seed=0),
        eval_dataset=preferences(16, seed=1),
        processing_class=processor,
        peft_config=lora_config(model, "decoder"),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(
        f"held-out pairs: loss {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after; the right answer "
        f"gets the higher reward in {after['eval_rewards/accuracies']:.0%} of them"
    )
    trainer.model.merge_and_unload().save_pretrained(options.output)
    processor.save_pretrained(options.output)
    (options.output / "results.json").write_text(json.dumps({"before": before, "after": after}, indent=1) + "\n")


if __name__ == "__main__":
    main()
