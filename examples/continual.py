"""
Continues the pre-training of an MM1 on text-rich images, cut into tiles, as MM1.5 does before fine-tuning.

    python examples/continual.py --model pretrained-mm1 --output continual-mm1

The recipe is the paper's: AdaFactor, and a static grid of 2 x 2 tiles plus an overview of the whole image. The grid
has a side of 1344 pixels in the paper, and twice the encoder's image size here. The images are pages of drawn words.
`mm1 pretrain` with `stage: continual` does the same from a settings file, with your own OCR data.
"""

import argparse
import io
import json
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModelForImageTextToText, AutoProcessor

import mm1_hf  # noqa: F401 - registers MM1 with the Auto classes
from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.mixture import Mixture, Source
from mm1_hf.evaluation.held_out import held_out_loss
from mm1_hf.training.checkpoints import last_complete_checkpoint
from mm1_hf.training.machine import this_machine
from mm1_hf.training.parts import freeze
from mm1_hf.training.recipes import recipe
from mm1_hf.training.runs import split_images
from mm1_hf.training.trainer import MM1Trainer


SEQUENCE_LENGTH = 512
PAGES = 2000
WORDS = (
    "sun",
    "rain",
    "tree",
    "house",
    "river",
    "bread",
    "stone",
    "light",
    "seven",
    "green",
    "north",
    "paper",
    "horse",
    "glass",
    "winter",
    "music",
)


def page(draw: random.Random) -> dict:
    """A record with four words: drawn as an image, one word per line, and as text."""
    words = draw.choices(WORDS, k=4)
    picture = Image.new("RGB", (224, 224), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(40)
    for line, word in enumerate(words):
        pen.text((12, 10 + 52 * line), word, "black", font)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"image": {"bytes": file.getvalue(), "path": None}, "text": "\n".join(words)}


def pages(number: int, seed: int) -> Source:
    draw = random.Random(seed)
    return Source("renderedtext", datasets.Dataset.from_list([page(draw) for _ in range(number)]), "caption", 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that pretrain.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoints and the model")
    parser.add_argument(
        "--steps", type=int, default=60, help="training steps, of 4 rows of 512 positions each (default: 60)"
    )
    options = parser.parse_args()
    torch.manual_seed(0)

    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32).to(this_machine().device)
    processor = AutoProcessor.from_pretrained(options.model)
    stage = recipe(model, "continual")
    side = 2 * model.config.vision_config.image_size
    stage = replace(stage, batch_size=4, data=replace(stage.data, resolution=side))
    split_images(processor, stage.data)
    freeze(model, ["encoder"])

    encoder = ExampleEncoder(processor, SEQUENCE_LENGTH)
    held_out = list(islice(Mixture([pages(64, seed=1)], encoder, lanes=1, window=64), 4))
    before = held_out_loss(model, held_out)
    arguments = stage.training_arguments(
        str(options.output),
        num_devices=1,
        max_steps=options.steps,
        # The recipe's 1e-5 is meant for 30,000 steps; fewer steps need a higher rate.
        learning_rate=2e-4,
        logging_steps=min(10, options.steps),
        save_steps=100,
        save_total_limit=1,
        report_to="none",
    )
    trainer = MM1Trainer(
        model=model,
        args=arguments,
        train_dataset=Mixture([pages(PAGES, seed=0)], encoder, window=64),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(options.output))
    trainer.save_model()

    after = held_out_loss(model, held_out)
    print(f"held-out loss {before:.3f} before, {after:.3f} after")
    (options.output / "results.json").write_text(
        json.dumps({"before": before, "after": after}) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
