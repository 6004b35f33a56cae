"""
Tokens per second of `generate()` with a static cache, which on a GPU compiles its step: an MM1 that has read an image,
compared with its decoder alone, and with a Llama of the same sizes. The time of a token is the difference between a long
and a short answer, without the prompt and what a call costs once.
"""

from typing import Any

import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.measuring import Case, Report, empty, interleaved
from benchmarks.scales import Scale, build, mm1_config
from mm1_hf import MM1ForConditionalGeneration, MM1TextForCausalLM


def text_tokens(scale: Scale) -> int:
    """Tokens of the prompt after the image."""
    return 7 * scale.image_tokens // 9


def prompts(scale: Scale, batch: int) -> dict[str, torch.Tensor]:
    """One tile and some text in each row."""
    image, text = scale.image_tokens, text_tokens(scale)
    token, side = scale.text["vocab_size"] - 1, scale.grid * scale.patch
    words = torch.randint(3, token, (batch, text), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.full((batch, image), token), words], dim=1).to(scale.device)
    tiles = torch.zeros(batch, 3, side, side, device=scale.device, dtype=scale.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": tiles}


def contestants(scale: Scale, batch: int) -> dict[str, tuple[PreTrainedModel, dict[str, torch.Tensor]]]:
    """The models with what they read, by name. They have the same weights' sizes in the decoder."""
    inputs = prompts(scale, batch)
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    config = mm1_config(scale, scale.grid, scale.image_tokens)
    models: dict[str, Any] = {
        "MM1": (build(MM1ForConditionalGeneration, config, scale), inputs),
        "mm1_text alone": (build(MM1TextForCausalLM, config.text_config, scale), text),
    }
    if batch == scale.batches[0]:
        models["Llama"] = (build(LlamaForCausalLM, LlamaConfig(**scale.text), scale), text)
    return models


def answer(scale: Scale, model: PreTrainedModel, inputs: dict[str, torch.Tensor], tokens: int) -> Case:
    """Generates `tokens` tokens, greedily."""
    settings: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if scale.name == "tiny":
        # As on a GPU, so that what is run there is tried everywhere.
        settings["compile_config"] = CompileConfig(backend=scale.backend, mode=None)
        settings["compile_config"]._compile_all_devices = True

    def run() -> None:
        model.eval().generate(
            **inputs, max_new_tokens=tokens, min_new_tokens=tokens, cache_implementation="static", **settings
        )

    return run


def lengths(scale: Scale) -> tuple[int, int]:
    return scale.new_tokens, scale.new_tokens // 4


def prepare(scale: Scale, batch: str) -> dict[str, Any]:
    models = contestants(scale, int(batch))
    for model, inputs in models.values():
        answer(scale, model, inputs, lengths(scale)[0])()
    empty(scale.device)
    return models


def bytes_of_a_token(scale: Scale, decoder: PreTrainedModel, batch: int) -> int:
    """Bytes that a step reads: the weights of its layers and head, and the whole static cache."""
    parts = [*decoder.model.layers, decoder.lm_head]
    weights = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    text = scale.text
    positions = scale.image_tokens + text_tokens(scale) + scale.new_tokens
    per_position = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]
    return weights + batch * positions * per_position * scale.dtype.itemsize


def measure(scale: Scale, report: Report, batch: str, models: dict[str, Any]) -> None:
    rows = int(batch)
    long, short = lengths(scale)
    cases = {f"{name}: {tokens}": answer(scale, *models[name], tokens) for name in models for tokens in (long, short)}
    # The preparation wrote the longest answer, so that all static caches are of its length.
    timed = interleaved(cases, scale.device, scale.rounds, warm_up=1, least=0)
    size = bytes_of_a_token(scale, models["mm1_text alone"][0], rows)
    for name in models:
        both = [timed[f"{name}: {tokens}"] for tokens in (long, short)]
        case = {"batch": rows, "prompt": scale.image_tokens + text_tokens(scale), "new tokens": long}
        if failed := next((each for each in both if "error" in each), None):
            report.add("decoding", case, name, **failed)
            continue
        seconds = (both[0]["seconds"] - both[1]["seconds"]) / (long - short)
        report.add(
            "decoding",
            case,
            name,
            seconds=seconds,
            rounds=[
                (one - other) / (long - short) for one, other in zip(both[0]["rounds"], both[1]["rounds"], strict=True)
            ],
            bytes=size,
            tokens_per_second=rows / seconds,
            seconds_of_an_answer=both[0]["seconds"],
        )
