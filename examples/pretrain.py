"""
Pre-trains a small MM1 on captions, interleaved documents and text, and measures how much it uses the images.

    python examples/prepare_pretraining_data.py pretraining-data
    python examples/pretrain.py --data pretraining-data --output pretrained-mm1

The parts are those of the quickstart, and the recipe is the paper's for a model of this size. The default of `--steps` takes
a CPU half an hour: it demonstrates the steps of a pre-training, and is not a result about vision-language models. Started
again after a stop, it resumes from its last checkpoint. `mm1 pretrain` does the same from a settings file.
"""

import argparse
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

import mm1_hf
from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.mixture import Mixture, Source
from mm1_hf.data.readers import read
from mm1_hf.evaluation.held_out import held_out_loss
from mm1_hf.evaluation.image_gain import image_gain
from mm1_hf.model.vision import encode
from mm1_hf.quickstart.embedded_parts import load_decoder, load_vision_encoder
from mm1_hf.training.checkpoints import last_complete_checkpoint
from mm1_hf.training.machine import this_machine
from mm1_hf.training.parts import freeze
from mm1_hf.training.recipes import recipe
from mm1_hf.training.trainer import MM1Trainer


# Folder, layout and the paper's weight of each source.
SOURCES = {
    "interleaved": ("interleaved", "documents", 0.45),
    "caption": ("captions", "caption", 0.45),
    "text": ("text", "text", 0.10),
}
SEQUENCE_LENGTH = 512


def sources(data: Path, split: str) -> list[Source]:
    return [
        Source(name, read(data / folder, layout, split=split), layout, weight)
        for name, (folder, layout, weight) in SOURCES.items()
    ]


@torch.no_grad()
def centre_patches(model, processor, pictures: list[bytes]) -> None:
    """
    Initialises the connector's position embedding to minus the mean patch feature. What all images share is much larger than
    the differences between them, and a training this short would not learn to look past it.
    """
    pixels = processor(images=[[picture] for picture in pictures], return_tensors="pt")["pixel_values"]
    patches = encode(
        model.model.vision_tower,
        pixels,
        final_norm=model.config.vision_feature_norm,
    )[1]
    model.model.connector.position_embedding.sub_(patches.mean((0, 1)))


def held_out_losses(model, encoder: ExampleEncoder, data: Path, rows: int) -> dict[str, float]:
    """Loss per token on the test split of each source."""
    return {
        source.name: held_out_loss(model, islice(Mixture([source], encoder, lanes=1, window=64), rows))
        for source in sources(data, "test")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare_pretraining_data.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoints and the model")
    parser.add_argument(
        "--steps", type=int, default=120, help="training steps, of 4 rows of 512 positions each (default: 120)"
    )
    parser.add_argument(
        "--captions", type=int, default=320, help="number of held-out captions to measure on (default: 320)"
    )
    options = parser.parse_args()
    torch.manual_seed(0)

    decoder, tokenizer = load_decoder()
    model, processor = mm1_hf.assemble(
        load_vision_encoder(),
        decoder,
        mm1_hf.MM1ConnectorConfig(num_tokens=16, hidden_size=512),
        tokenizer=tokenizer,
        image_size=112,
        vision_feature_layer=-2,
        dtype=torch.float32,
    )
    freeze(model, ["encoder"])
    training = sources(options.data, "train")
    centre_patches(model, processor, [image["bytes"] for image in training[1].dataset[:256]["image"]])

    encoder = ExampleEncoder(processor, SEQUENCE_LENGTH)
    mixture = Mixture(training, encoder, window=64)
    before = held_out_losses(model.to(this_machine().device), encoder, options.data, rows=6)

    stage = replace(recipe(model, "pretrain"), batch_size=4)
    arguments = stage.training_arguments(
        str(options.output),
        num_devices=1,
        max_steps=options.steps,
        warmup_steps=min(20, options.steps // 4),
        logging_steps=min(10, options.steps),
        save_steps=100,
        save_total_limit=1,
        report_to="none",
    )
    trainer = MM1Trainer(
        model=model,
        args=arguments,
        train_dataset=mixture,
        processing_class=processor,
        # The connector is new, the decoder is pretrained.
        learning_rates={"connector": 1e-3},
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(options.output))
    trainer.save_model()

    after = held_out_losses(model, encoder, options.data, rows=6)
    held_out = sources(options.data, "test")[1].dataset
    pairs = [(record["image"]["bytes"], record["text"]) for record in islice(held_out, options.captions)]
    seen = image_gain(model, processor, pairs)
    for name in SOURCES:
        print(f"{name:<12} held-out loss {before[name]:.3f} before, {after[name]:.3f} after")
    print(seen)
    results = {"before": before, "after": after, "image_gain": vars(seen) | {"gain": seen.gain}}
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
