"""
Measures samples per second of fine-tuning: MM1's packed rows compared with TRL's padded default, in one run with the
same model.

    python benchmarks/sft_packing.py --output benchmarks/results/sft_packing.json

The conversations are random: the answers have from one to a few hundred words, as in LLaVA's mixtures, and a
conversation has no, one or two images. Both trainers train all weights of the same model with the same optimizer on
the same samples. TRL's `SFTTrainer` runs with its default settings and its own collator: one conversation per row,
padded to the longest one of the batch. MM1's trainer packs rows of `--length` positions. A batch of either has at most
`--positions` positions, so that both need the same memory.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
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
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from mm1_hf import MM1ConnectorConfig, assemble
from mm1_hf.training.sft import MM1SFTTrainer


WORDS = ("a", "small", "brown", "dog", "runs", "along", "the", "beach", "with", "sticks", "on", "sunny", "days")
# Kinds of answers (short answers, sentences, long descriptions): their share, fewest words, and upper limit of words.
KINDS = ((0.6, 1, 4), (0.3, 10, 40), (0.1, 100, 300))
SAMPLES = 384


def conversations(number: int, side: int) -> datasets.Dataset:
    """Makes `number` random conversations, with square images of `side` pixels."""
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(8)]
    rows = []
    for _ in range(number):
        kind = KINDS[draw.choice(len(KINDS), p=[share for share, _, _ in KINDS])]
        answer = " ".join(draw.choice(WORDS, int(draw.integers(*kind[1:]))))
        images = [pictures[draw.integers(len(pictures))] for _ in range(draw.choice(3, p=[0.1, 0.8, 0.1]))]
        question = {"role": "user", "content": " ".join(draw.choice(WORDS, 10))}
        rows.append({"messages": [question, {"role": "assistant", "content": answer}], "images": images})
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features({"messages": datasets.List(message), "images": datasets.List(datasets.Image())})
    return datasets.Dataset.from_list(rows, features=features)


def build(tokenizer: PreTrainedTokenizerBase, side: int, tokens: int, width: int, layers: int) -> tuple[Any, Any]:
    """Makes an MM1 with new weights, and its processor."""
    torch.manual_seed(0)
    # The model gets a copy, because special tokens are added to it.
    tokenizer = copy.deepcopy(tokenizer)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    vision = CLIPVisionModel(CLIPVisionConfig(image_size=side, patch_size=14, intermediate_size=4 * width, **sizes))
    decoder = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), intermediate_size=3 * width, max_position_embeddings=4096, **sizes)
    )
    connector = MM1ConnectorConfig(num_tokens=tokens, hidden_size=width)
    model, processor = assemble(vision, decoder, connector, tokenizer=tokenizer, verbose=False)
    processor.image_processor.image_splitting = "none"
    return model, processor


class Clock(TrainerCallback):
    """Records when each step ends. The first step is not timed, because it warms up."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def samples_per_second(kind: type, data: datasets.Dataset, model: Any, processor: Any, **fields: Any) -> float:
    """Measures one pass over the data, including data loading."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            **fields,
        )
        trainer = kind(model, arguments, train_dataset=data, processing_class=processor, callbacks=[clock])
        trainer.train()
    # The number of samples that were trained on after the first step is estimated from the share of rows.
    rows = len(trainer.train_dataset)
    first = min(arguments.per_device_train_batch_size, rows)
    return len(data) * (1 - first / rows) / (clock.ends[-1] - clock.ends[0])


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--length", type=int, default=2048, help="positions of a packed row (default: 2048)")
    parser.add_argument("--positions", type=int, default=4096, help="most positions per forward pass (default: 4096)")
    parser.add_argument("--rounds", type=int, default=3, help="passes over the data per trainer (default: 3)")
    parser.add_argument("--width", type=int, default=384, help="hidden size of encoder and decoder (default: 384)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the encoder, and of the decoder (default: 2)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"number of conversations (default: {SAMPLES})")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    model_settings = {"side": 112, "tokens": 16, "width": options.width, "layers": options.layers}
    data = conversations(options.samples, model_settings["side"])
    # A small vocabulary, because on a CPU TRL applies the head to every position, which would take most of the time.
    tokenizer = GPT2Tokenizer(eos_token="<eos>").train_new_from_iterator(
        [" ".join(("user", "assistant", *WORDS))], 320
    )
    _, processor = build(tokenizer, **model_settings)
    lengths = [
        len(processor.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"][0])
        + model_settings["tokens"] * len(row["images"])
        for row in data
    ]
    ways = {
        "TRL, padded": (
            SFTTrainer,
            {"max_length": None, "per_device_train_batch_size": max(options.positions // max(lengths), 1)},
        ),
        "mm1_hf, packed": (
            MM1SFTTrainer,
            {
                "packing": True,
                "max_length": options.length,
                "per_device_train_batch_size": max(options.positions // options.length, 1),
            },
        ),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (kind, fields) in ways.items():
            model, processor = build(tokenizer, **model_settings)
            speeds[name].append(samples_per_second(kind, data, model, processor, **fields))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "what": "samples per second of training, data loading included; median of the rounds",
        "samples": options.samples,
        "tokens_of_a_sample": {
            "mean": statistics.mean(lengths),
            "median": statistics.median(lengths),
            "longest": max(lengths),
        },
        "length": options.length,
        "positions_at_most": options.positions,
        "model": model_settings,
        "samples_per_second": medians,
        "rounds": speeds,
        "times_trl": medians["mm1_hf, packed"] / medians["TRL, padded"],
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("mm1_hf", "trl", "transformers", "torch")},
        "commit": commit,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("samples_per_second", "times_trl")}))


if __name__ == "__main__":
    main()
