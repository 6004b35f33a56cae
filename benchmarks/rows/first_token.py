"""
Time to the first token: tiles and a question through encoder, connector and decoder, to the logits of the last position. One
image of one tile, one image of two tiles along each side, and eight images of one tile; MM1 against transformers' models of
the same sizes, each with the tokens that it makes of an image. MM1 is measured with as few tokens as it has by default,
and with one for each patch; so each rival has one that gives an image equally many.
"""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Case, Report, empty, failure, interleaved
from benchmarks.rivals import CONTESTANTS, Contestant
from benchmarks.scales import Scale


WORDS = 64


def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Operations of attention. torch's own formula refuses fewer heads of keys than of queries in some releases."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


ATTENTION = {
    getattr(torch.ops.aten, name): attention_flops
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
}
IMAGES = {"one, low resolution": (1, 1), "one, high resolution": (1, 2), "eight": (8, 1)}


def first_token(model: Any, inputs: dict[str, Any]) -> Case:
    def run() -> None:
        with torch.inference_mode():
            model(**inputs, logits_to_keep=1, use_cache=True)

    return run


def parts(contestant: Contestant, inputs: dict[str, Any]) -> dict[str, Case]:
    """MM1's encoder, connector and decoder, each run bare on what it is given in the whole."""
    model: Any = contestant.model.model
    with torch.no_grad():
        patches = model.vision_tower(inputs["pixel_values"]).last_hidden_state[:, 1:]
        embeddings = model.get_input_embeddings()(inputs["input_ids"])

    def encode() -> None:
        with torch.inference_mode():
            model.vision_tower(inputs["pixel_values"])

    def connect() -> None:
        with torch.inference_mode():
            model.connector(patches)

    def decode() -> None:
        with torch.inference_mode():
            states = model.language_model(inputs_embeds=embeddings, use_cache=True).last_hidden_state
            contestant.model.lm_head(states[:, -1:])

    return {"MM1's encoder alone": encode, "MM1's connector alone": connect, "MM1's decoder alone": decode}


def measure(scale: Scale, report: Report) -> None:
    models: dict[str, Contestant] = {}
    for name, make in CONTESTANTS.items():
        try:
            models[name] = make(scale)
        except Exception as error:
            report.add("first token", {}, name, **failure(error))
    for images, (number, side) in IMAGES.items():
        cases: dict[str, Case] = {}
        about: dict[str, dict[str, Any]] = {}
        for name, contestant in models.items():
            try:
                inputs = contestant.prompt(number, side, WORDS)
                cases[name] = first_token(contestant.model, inputs)
                # Not under inference mode: the counter takes its results apart.
                with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter, torch.no_grad():
                    contestant.model(**inputs, logits_to_keep=1)
                about[name] = {"flops": counter.get_total_flops(), "positions": inputs["input_ids"].shape[1]}
                if name == "MM1":
                    cases |= parts(contestant, inputs)
            except Exception as error:
                report.add("first token", {"images": images}, name, **failure(error))
        for name, timed in interleaved(cases, scale.device, scale.rounds).items():
            report.add("first token", {"images": images}, name, **about.get(name, {}), **timed)
        del cases
        empty(scale.device)
