"""
Samples per second under `Trainer`, on conversations of mixed length with one image each, of all weights and with LoRA on
the decoder: MM1 in packed rows, and transformers' models as they are trained by default, one conversation in a row,
padded to the longest of the batch. A batch of either has at most as many positions as a packed row.
"""

import random
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3VLForConditionalGeneration, Trainer, TrainingArguments

from benchmarks.measuring import Case, Report, empty, failure, interleaved
from benchmarks.rivals import CONTESTANTS, Contestant, count
from benchmarks.scales import Scale


RIVALS = ("MM1", "LLaVA", "Idefics3", "InternVL", "Qwen3-VL")
# Kinds of answers (short answers, sentences, descriptions): their share, and their smallest and largest length.
KINDS = ((0.6, 12, 20), (0.3, 20, 50), (0.1, 110, 310))
LORA = LoraConfig(r=16, target_modules=r".*(language_model|text_model)\..*\.\w+_proj")


def lengths_of(samples: int) -> list[int]:
    draw = random.Random(0)
    kinds = draw.choices(KINDS, [share for share, _, _ in KINDS], k=samples)
    return [draw.randint(least, most) for _, least, most in kinds]


def rows_of(lengths: list[int], longest: int) -> list[list[int]]:
    """Indices of the samples of each packed row: the longest sample first, each into the first row with room."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        room = next((row for row in rows if sum(lengths[one] for one in row) + lengths[index] <= longest), None)
        if room is None:
            rows.append([index])
        else:
            room.append(index)
    return rows


class Conversations:
    """
    The samples as a model takes them.

    Args:
        contestant: the model.
        texts: number of text tokens of each sample.
        longest: positions of a packed row, and of a batch.
    """

    def __init__(self, contestant: Contestant, texts: list[int], longest: int):
        self.contestant, self.texts, self.longest = contestant, texts, longest
        with torch.no_grad():
            self.image = count(contestant.model.get_image_features(**contestant.images(1, 1)))

    def tokens(self, sample: int) -> list[int]:
        draw = random.Random(sample)
        words = [draw.randrange(3, self.contestant.image_token - 4) for _ in range(self.texts[sample])]
        # A word in front, as of a chat's template.
        return [words[0], *[self.contestant.image_token] * self.image, *words[1:]]

    def inputs(self, rows: list[list[list[int]]]) -> dict[str, torch.Tensor]:
        """A batch of rows, each with the tokens of its samples."""
        longest = max(sum(map(len, row)) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "segments": [], "labels": []}
        for row in rows:
            padding = [0] * (longest - sum(map(len, row)))
            ids = [token for sample in row for token in sample]
            labels = [
                -100 if place == 0 or token == self.contestant.image_token else token
                for sample in row
                for place, token in enumerate(sample)
            ]
            batch["input_ids"].append(ids + padding)
            batch["attention_mask"].append([1] * len(ids) + padding)
            batch["labels"].append(labels + [-100] * len(padding))
            batch["segments"].append([n for n, sample in enumerate(row, start=1) for _ in sample] + padding)
        return {name: torch.tensor(value) for name, value in batch.items()} | self.contestant.images(
            sum(map(len, rows)), 1
        )

    def packed(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        inputs = self.inputs([[self.tokens(sample) for sample in row] for row in rows])
        del inputs["attention_mask"]
        return inputs | {"segment_ids": inputs.pop("segments")}

    def padded(self, samples: list[int]) -> dict[str, torch.Tensor]:
        inputs = self.inputs([[self.tokens(sample)] for sample in samples])
        del inputs["segments"]
        if isinstance(self.contestant.model, Qwen3VLForConditionalGeneration):
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.contestant.image_token).int()
        return inputs

    def data(self, packed: bool) -> tuple[list[Any], Callable[[list[Any]], dict[str, torch.Tensor]], int]:
        """The data set, its collator, and the number of its records in a batch."""
        lengths = [self.image + text for text in self.texts]
        if packed:
            return rows_of(lengths, self.longest), self.packed, 1
        return list(range(len(lengths))), self.padded, max(1, self.longest // max(lengths))


def epoch(scale: Scale, model: Any, conversations: Conversations, packed: bool) -> Case:
    data, collate, number = conversations.data(packed)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                num_train_epochs=1,
                per_device_train_batch_size=number,
                learning_rate=1e-5,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=scale.device.type == "cpu",
                dataloader_pin_memory=False,
            )
            Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()

    return run


def measure(scale: Scale, report: Report) -> None:
    samples = 8 if scale.name == "tiny" else 16 if scale.name == "cpu" else 256
    texts = [length // 8 + 2 if scale.name == "tiny" else length for length in lengths_of(samples)]
    for method in ("all weights", "LoRA"):
        cases: dict[str, Case] = {}
        case = {"method": method, "samples": samples, "positions of a batch": scale.row}
        for name in RIVALS:
            try:
                contestant = CONTESTANTS[name](scale)
                if name == "MM1":
                    contestant.model.set_attn_implementation({"text_config": "segment_sdpa"})
                conversations = Conversations(contestant, texts, scale.row)
                model = get_peft_model(contestant.model, LORA) if method == "LoRA" else contestant.model
                cases[name] = epoch(scale, model, conversations, packed=name == "MM1")
            except Exception as error:
                report.add("fine-tuning", case, name, **failure(error))
        for name, timed in interleaved(cases, scale.device, min(scale.rounds, 2), warm_up=0, least=0).items():
            speed = {} if "error" in timed else {"samples_per_second": samples / timed["seconds"]}
            report.add("fine-tuning", case, name, **timed, **speed)
        del cases
        empty(scale.device)
