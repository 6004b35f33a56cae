"""
Measures how many questions about pictures are trained on per second: rows that hold a picture once for all its questions,
compared with the packed rows that hold it once per question, in one run with the same model.

    python -m benchmarks.shared_images --output benchmarks/results/shared_images.json

The data is made like The Cauldron's: a record is a photograph-sized JPEG and ten independent questions with short answers,
listed as the turns of one conversation. `MM1SFTTrainer` trains all weights of the same model on them in two ways: with
`separate_exchanges=True`, and on the same questions as records of their own. Both see the same examples, so that their
losses are equal; the benchmark compares them before it measures.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
)
from trl import SFTConfig

from benchmarks.measuring import commit, hardware, versions
from mm1_hf import MM1ConnectorConfig, assemble
from mm1_hf.training.sft import MM1SFTTrainer


WORDS = (
    "what",
    "is",
    "the",
    "colour",
    "of",
    "left",
    "red",
    "car",
    "how",
    "many",
    "people",
    "stand",
    "behind",
    "house",
)
# Fewest words, and upper limit of words.
QUESTION, ANSWER = (6, 14), (1, 4)


def records(pictures: int, questions: int) -> list[dict[str, Any]]:
    """Makes pictures with their questions, each as a conversation."""
    draw = np.random.default_rng(0)

    def say(lengths: tuple[int, int]) -> str:
        return " ".join(draw.choice(WORDS, int(draw.integers(*lengths))))

    made = []
    for _ in range(pictures):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        turns = []
        for _ in range(questions):
            turns += [{"role": "user", "content": say(QUESTION)}, {"role": "assistant", "content": say(ANSWER)}]
        made.append({"messages": turns, "images": [{"bytes": file.getvalue(), "path": None}]})
    return made


def one_by_one(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same questions, each as a record with the picture."""
    return [
        {"messages": record["messages"][start : start + 2], "images": record["images"]}
        for record in made
        for start in range(0, len(record["messages"]), 2)
    ]


def dataset(made: list[dict[str, Any]]) -> datasets.Dataset:
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features({"messages": datasets.List(message), "images": datasets.List(datasets.Image())})
    return datasets.Dataset.from_list(made, features=features)


def build(side: int, tokens: int, width: int, layers: int) -> tuple[Any, Any]:
    """Makes an MM1 with new weights, and its processor."""
    torch.manual_seed(0)
    tokenizer = GPT2Tokenizer(eos_token="<eos>").train_new_from_iterator([" ".join(WORDS)] * 2, vocab_size=400)
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    vision = CLIPVisionModel(CLIPVisionConfig(image_size=side, patch_size=14, intermediate_size=4 * width, **sizes))
    decoder = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), intermediate_size=3 * width, max_position_embeddings=8192, **sizes)
    )
    connector = MM1ConnectorConfig(num_tokens=tokens, hidden_size=width)
    model, processor = assemble(vision, decoder, connector, tokenizer=tokenizer, verbose=False)
    processor.image_processor.image_splitting = "none"
    return model, processor


class Clock(TrainerCallback):
    """Records when each step ends, in seconds and in seconds of the processor, of all its threads."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))


def trainer_of(model: Any, processor: Any, data: datasets.Dataset, length: int, folder: str, **options: Any) -> Any:
    arguments = SFTConfig(
        folder,
        packing=True,
        max_length=length,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        learning_rate=1e-4,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    return MM1SFTTrainer(model, arguments, train_dataset=data, processing_class=processor, **options)


def questions_in(rows: list[Any]) -> int:
    return sum(max(len(example.branches), 1) for row in rows for _, example in row)


def measure(trainer: Any) -> dict[str, float]:
    """One pass over the data, data loading included. The first step is not timed, because it warms up."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    (begin, begin_processor), (end, end_processor) = clock.ends[0], clock.ends[-1]
    questions = questions_in(trainer.train_dataset.rows[1:])
    return {
        "questions_per_second": questions / (end - begin),
        "questions_per_processor_second": questions / (end_processor - begin_processor),
    }


@torch.no_grad()
def mean_loss(trainer: Any) -> float:
    """The mean loss of the targets of the whole data set."""
    loss, targets = 0.0, 0
    model = trainer.model.eval()
    for index in range(len(trainer.train_dataset)):
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[index]]))
        number = int((batch["labels"] != -100).sum())
        loss += number * float(model(**batch).loss)
        targets += number
    return loss / targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--pictures", type=int, default=32, help="number of pictures (default: 32)")
    parser.add_argument("--questions", type=int, default=10, help="questions of a picture (default: 10)")
    parser.add_argument("--length", type=int, default=2048, help="positions of a packed row (default: 2048)")
    parser.add_argument("--side", type=int, default=224, help="side of a tile in pixels (default: 224)")
    parser.add_argument("--tokens", type=int, default=144, help="tokens of a picture (default: 144)")
    parser.add_argument("--width", type=int, default=256, help="hidden size of encoder and decoder (default: 256)")
    parser.add_argument("--layers", type=int, default=4, help="layers of encoder and decoder (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="passes over the data in each way (default: 3)")
    options = parser.parse_args()

    load_before = list(os.getloadavg())
    sizes = {"side": options.side, "tokens": options.tokens, "width": options.width, "layers": options.layers}
    made = records(options.pictures, options.questions)
    ways: dict[str, tuple[datasets.Dataset, dict[str, Any]]] = {
        "picture once per question": (dataset(one_by_one(made)), {}),
        "picture once": (dataset(made), {"separate_exchanges": True}),
    }
    speeds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    losses, rows, positions = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for name, (data, extra) in ways.items():
                model, processor = build(**sizes)
                trainer = trainer_of(model, processor, data, options.length, folder, **extra)
                if not number:
                    losses[name] = mean_loss(trainer)
                    rows[name] = len(trainer.train_dataset)
                    positions[name] = sum(
                        len(example.input_ids) for row in trainer.train_dataset.rows for _, example in row
                    )
                speeds[name].append(measure(trainer))
                print(json.dumps({"round": number, "way": name, **speeds[name][-1]}), flush=True)
    separate, shared = ways
    if abs(losses[separate] - losses[shared]) > 1e-4:
        raise ValueError(f"The two ways do not train on the same examples: their mean losses are {losses}.")
    kinds = ("questions_per_second", "questions_per_processor_second")
    medians = {
        kind: {name: statistics.median(each[kind] for each in values) for name, values in speeds.items()}
        for kind in kinds
    }
    result = {
        "what": "questions per second of training, data loading included; median of the rounds",
        "pictures": options.pictures,
        "questions_of_a_picture": options.questions,
        "length": options.length,
        "model": sizes,
        "rows": rows,
        "positions_of_a_question": {
            name: number / (options.pictures * options.questions) for name, number in positions.items()
        },
        "mean_loss_before_training": losses,
        **medians,
        "times_the_separate_rows": {kind: medians[kind][shared] / medians[kind][separate] for kind in kinds},
        "rounds": speeds,
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
        "load_before": load_before,
        "versions": versions(),
        "commit": commit(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in (*kinds, "times_the_separate_rows")}))


if __name__ == "__main__":
    main()
