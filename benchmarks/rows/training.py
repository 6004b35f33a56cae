"""
A training step of an MM1 on packed rows with images, as in the paper: forward, backward and AdamW. The three batches that
take turns have segments of different lengths and numbers, so that a compiled graph for one of them does not serve the others
by chance.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measuring import Case, Report, empty, failure, interleaved, peak_memory, profiled
from benchmarks.scales import Scale, build, mm1_config
from mm1_hf import MM1ForConditionalGeneration
from mm1_hf.accounting.flops import causal_pairs, flops_formula
from mm1_hf.model.segment_attention import SEGMENT_SDPA


@dataclass(frozen=True)
class PackedBatch:
    """
    Args:
        inputs: what the model takes.
        lengths: number of tokens of each segment.
        tiles, targets: number of tiles, and of tokens with a target.
    """

    inputs: dict[str, torch.Tensor]
    lengths: list[int]
    tiles: int
    targets: int


def segments_of_a_row(row: int, image: int, draw: random.Random) -> list[list[int]]:
    """
    The segments of a row, each as a list of text lengths before each image and after the last one: captions of one image,
    one document of several images, and text for the rest. A little more than half of the positions are images.
    """
    # The paper's rows have at most 16 images.
    images = min(row * 9 // 16 // image, 16)
    captions = images // 2 + draw.randint(-(images // 8), images // 8)
    texts = [[1, draw.randint(row // 128, row // 64)] for _ in range(captions)]
    texts.append([draw.randint(row // 128, row // 64) for _ in range(images - captions + 1)])
    rest = row - images * image - sum(map(sum, texts))
    return [*texts, [rest]]


def packed_batch(scale: Scale, image_token: int, seed: int) -> PackedBatch:
    """A batch of `scale.rows` full rows."""
    draw, image = random.Random(seed), scale.image_tokens
    ids, segments, lengths = [], [], []
    for _ in range(scale.rows):
        for number, texts in enumerate(segments_of_a_row(scale.row, image, draw), start=1):
            tokens: list[int] = []
            for index, length in enumerate(texts):
                tokens += [image_token] * image if index else []
                tokens += [draw.randrange(3, image_token) for _ in range(length)]
            ids += tokens
            segments += [number] * len(tokens)
            lengths.append(len(tokens))
    input_ids, segment_ids = (torch.tensor(each).view(scale.rows, scale.row) for each in (ids, segments))
    labels = input_ids.masked_fill(input_ids == image_token, -100)
    labels[:, 0] = -100
    labels[:, 1:][segment_ids[:, 1:] != segment_ids[:, :-1]] = -100
    tiles, side = ids.count(image_token) // image, scale.training_grid * scale.patch
    inputs = {
        "input_ids": input_ids,
        "segment_ids": segment_ids,
        "labels": labels,
        "pixel_values": torch.randn(tiles, 3, side, side, generator=torch.Generator().manual_seed(seed)),
    }
    targets = int((labels != -100).sum())
    inputs = {name: value.to(scale.device) for name, value in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(scale.dtype)
    return PackedBatch(inputs, lengths, tiles, targets)


def regions(model: Any) -> list[torch.nn.Module]:
    """The parts that are compiled, each kind once: the layers of encoder and decoder, and the connector."""
    tower = model.model.vision_tower
    layers = next(module for module in tower.modules() if isinstance(module, torch.nn.ModuleList))
    return [*layers, *model.model.language_model.layers, model.model.connector]


class Trainee:
    """
    A model in training, with its batches.

    Args:
        scale: the sizes.
        text: further fields of the decoder's configuration.
    """

    def __init__(self, scale: Scale, **text: Any):
        config = mm1_config(scale, scale.training_grid, scale.image_tokens, **text)
        torch.manual_seed(0)
        self.model = build(MM1ForConditionalGeneration, config, scale).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.batches = [packed_batch(scale, config.image_token_id, seed) for seed in range(3)]
        self.parts = regions(self.model)
        for part in self.parts:
            part.compile(backend=scale.backend)
        self.compiled = [part._compiled_call_impl for part in self.parts]
        self.scale = scale
        formula = flops_formula(self.model)
        self.flops = sum(
            formula.training(
                positions=scale.rows * scale.row,
                tiles=batch.tiles,
                targets=batch.targets,
                pairs=causal_pairs(*batch.lengths),
            ).total
            for batch in self.batches
        ) / len(self.batches)

    def switch(self, compile_parts: bool) -> None:
        """Turns the compiled parts on or off."""
        for part, implementation in zip(self.parts, self.compiled, strict=True):
            part._compiled_call_impl = implementation if compile_parts else None

    def steps(self, attention: str, compile_parts: bool) -> Callable[[], None]:
        """One step on each batch."""

        def run() -> None:
            self.model.set_attn_implementation({"text_config": attention})
            self.switch(compile_parts)
            for batch in self.batches:
                self.model(**batch.inputs).loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()

        return run


def parts(trainee: Trainee) -> dict[str, Case]:
    """Forward and backward of the encoder and of the connector alone, on the tiles of one batch, eager and compiled."""
    model: Any = trainee.model.model
    tiles = trainee.batches[0].inputs["pixel_values"]
    with torch.no_grad():
        patches = model.get_image_features(tiles).last_hidden_state[:, 1:].contiguous()
    patches.requires_grad_()

    def encode() -> None:
        model.vision_tower(tiles).last_hidden_state.square().mean().backward()

    def connect() -> None:
        model.connector(patches).square().mean().backward()

    def under(case: Case, compile_parts: bool) -> Case:
        def run() -> None:
            trainee.switch(compile_parts)
            case()

        return run

    both = {"encoder alone": encode, "connector alone": connect}
    return {
        f"{name}{', compiled' if on else ''}": under(case, on) for name, case in both.items() for on in (False, True)
    }


def variants(scale: Scale) -> dict[str, dict[str, Any]]:
    """The ways to train, by name. Flex attention has a backward pass on GPUs alone."""
    names = ["sdpa", SEGMENT_SDPA] + (["flex_attention"] if scale.device.type == "cuda" else [])
    eager = {name: {"attention": name, "compile_parts": False} for name in names}
    return eager | {f"{name}, compiled": {"attention": name, "compile_parts": True} for name in names}


DENSE: dict[str, Any] = {}
# Every compiled part of whatever kind counts against one limit, because all are called through one function of torch.
torch._dynamo.config.recompile_limit = 64


def prepare(scale: Scale) -> None:
    prepare_model(scale.shallow(), DENSE)


def measure(scale: Scale, report: Report) -> None:
    measure_model(scale, report, "training, dense", DENSE)


def prepare_model(scale: Scale, text: dict[str, Any]) -> None:
    trainee = Trainee(scale, **text)
    for settings in variants(scale).values():
        if settings["compile_parts"]:
            trainee.steps(**settings)()
    del trainee
    empty(scale.device)


def measure_model(scale: Scale, report: Report, row: str, text: dict[str, Any]) -> None:
    trainee = Trainee(scale, **text)
    positions = scale.rows * scale.row
    case = {
        "positions": positions,
        "tiles": [batch.tiles for batch in trainee.batches],
        "segments": [len(batch.lengths) for batch in trainee.batches],
        "parameters": sum(parameter.numel() for parameter in trainee.model.parameters()),
        "dtype": str(scale.dtype).removeprefix("torch."),
    }
    steps: dict[str, Case] = {name: trainee.steps(**settings) for name, settings in variants(scale).items()}
    number = len(trainee.batches)
    for name, timed in interleaved(steps, scale.device, min(scale.rounds, 3), warm_up=1, least=0).items():
        if "error" in timed:
            report.add(row, case, name, **timed)
            continue
        seconds = timed["seconds"] / number
        memory = peak_memory(steps[name], scale.device) if scale.device.type == "cuda" else None
        report.add(
            row,
            case,
            name,
            flops=trainee.flops,
            tokens_per_second=positions / seconds,
            memory=memory,
            **timed | {"seconds": seconds, "rounds": [value / number for value in timed["rounds"]]},
        )
    tiles = {"tiles": trainee.batches[0].tiles}
    for name, timed in interleaved(parts(trainee), scale.device, scale.rounds).items():
        report.add(f"{row}, parts", tiles, name, **timed)
    best = f"{SEGMENT_SDPA}, compiled"
    try:
        operations = profiled(steps[best], scale.device)
        report.add(
            f"{row}, profile",
            {"steps": number},
            best,
            seconds=sum(each["seconds"] for each in operations),
            operations=operations,
        )
    except Exception as error:
        report.add(f"{row}, profile", {"steps": number}, best, **failure(error))
    del trainee
    empty(scale.device)
