"""
Trains an MM1 with Kahneman-Tversky optimization (TRL's KTOTrainer) on questions about one or two images: it learns
which answers are good and which are bad. Each answer is judged by itself, not compared with another.

    python examples/kto.py --model lora-mm1/merged --output kto-mm1

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
from trl import KTOConfig, KTOTrainer

from mm1_hf.training.lora import lora_config
from mm1_hf.training.machine import this_machine


def judgements(number: int, seed: int) -> Dataset:
    return Dataset.from_list(
        [
            {
                "images": question.images,
                "prompt": [{"role": "user", "content": question.text}],
                "completion": [{"role": "assistant", "content": answer}],
                "label": is_good,
            }
            for question in questions(number // 2, seed)
            for answer, is_good in (
                (question.answer, True),
                (f"It may be {question.wrong}, but I cannot be sure.", False),
            )
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model and its processor")
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=40, help="training steps, of 8 answers each (default: 40)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="learning rate (default: 1e-4)")
    options = parser.parse_args()

    processor = AutoProcessor.from_pretrained(options.model)
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32)
    trainer = KTOTrainer(
        model=model,
        args=KTOConfig(
            output_dir=str(options.output),
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=options.learning_rate,
            # A maximum length could cut a prompt between the placeholders of an image.
            max_length=None,
            **this_machine().arguments,
            logging_steps=min(10, options.steps),
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=judgements(8 * options.steps, seed=0),
        eval_dataset=judgements(32, seed=1),
        processing_class=processor,
        peft_config=lora_config(model, "decoder"),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(
        f"held-out answers: loss {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after; the mean reward of "
        f"good answers is {after['eval_rewards/margins']:.2f} higher than that of bad ones"
    )
    trainer.model.merge_and_unload().save_pretrained(options.output)
    processor.save_pretrained(options.output)
    (options.output / "results.json").write_text(json.dumps({"before": before, "after": after}, indent=1) + "\n")


if __name__ == "__main__":
    main()
