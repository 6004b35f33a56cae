"""
Trains an MM1 with group relative policy optimization (TRL's GRPOTrainer): it is rewarded for right answers to
questions about one or two images. The reward of each answer is compared with those of the other answers to the same
prompt.

    python examples/grpo.py --model lora-mm1/merged --output grpo-mm1

Only LoRA adapters of the decoder are trained; the model without them is the reference model. At the end the adapters
are merged into the model, and the whole model is saved.
"""

import argparse
import json
from difflib import SequenceMatcher
from pathlib import Path

import torch
from datasets import Dataset
from drawn_questions import questions
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from mm1_hf.training.lora import lora_config
from mm1_hf.training.machine import this_machine


def prompts(number: int, seed: int) -> Dataset:
    return Dataset.from_list(
        [
            {
                "images": question.images,
                "prompt": [{"role": "user", "content": question.text}],
                "answer": question.answer,
            }
            for question in questions(number, seed)
        ]
    )


def likeness(completions: list[list[dict[str, str]]], answer: list[str], **kwargs: object) -> list[float]:
    """Rewards of the completions: 1 for the right answer, and less the more a completion differs from it."""
    given = [completion[0]["content"].strip() for completion in completions]
    return [SequenceMatcher(None, text, expected).ratio() for text, expected in zip(given, answer, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model and its processor")
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained model")
    parser.add_argument(
        "--steps", type=int, default=40, help="training steps, of 4 prompts with 4 answers each (default: 40)"
    )
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="learning rate (default: 5e-5)")
    options = parser.parse_args()

    processor = AutoProcessor.from_pretrained(options.model)
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=likeness,
        args=GRPOConfig(
            output_dir=str(options.output),
            max_steps=options.steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            num_generations=4,
            max_completion_length=16,
            learning_rate=options.learning_rate,
            # Weight of the penalty for moving away from the reference model.
            beta=0.01,
            **this_machine().arguments,
            logging_steps=min(10, options.steps),
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=prompts(4 * options.steps, seed=0),
        eval_dataset=prompts(16, seed=1),
        processing_class=processor,
        peft_config=lora_config(model, "decoder"),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"held-out prompts: reward {before['eval_reward']:.3f} before, {after['eval_reward']:.3f} after")
    trainer.model.merge_and_unload().save_pretrained(options.output)
    processor.save_pretrained(options.output)
    (options.output / "results.json").write_text(json.dumps({"before": before, "after": after}, indent=1) + "\n")


if __name__ == "__main__":
    main()
