"""
Writes the page that lists all presets and says how certain each value is.

`python -m mm1_hf.accounting.presets_page` prints `docs/presets.md`.
"""

import json
from collections.abc import Iterator
from functools import reduce
from importlib.resources import files
from typing import Any

from mm1_hf.accounting.parameters import ParameterCount, count_parameters
from mm1_hf.model.configuration_mm1 import MM1Config, preset_names


_MARKS = {"paper": "", "inferred": "ⁱ", "unverified": "ᵘ", "ours": ""}
_SURENESS = ("ours", "paper", "inferred", "unverified")

_INTRO = """\
# Presets

Written by `make docs` from `src/mm1_hf/model/presets/*.json`; change those files, not this page.

Apple released neither weights nor code, and the papers give the sizes of the decoders but not their shapes.
`MM1Config.from_preset(name)` returns a configuration for each published size. It describes a model to train; Apple
has published no weights that could be loaded into it.

A mark after a value says how certain it is:

- no mark: the paper states it;
- ⁱ inferred: from public code of the same authors or of the papers they build on, from arithmetic, or from a
  sibling model;
- ᵘ unverified: from secondary notes on the papers.

Each JSON file gives the sources of all its values in `sources`. A key in `sources` applies to everything below it;
if several keys match a value, the longest one applies. A sum carries the mark of its least certain term.

The following holds for all presets. The papers' parameter counts fit 12 · layers · width², from which width, layers
and heads are inferred. Block, MLP width (8/3 of the width, rounded up to a multiple of 256), norm and rotary base
are those that AXLearn, Apple's public training code, had at that time. The vocabulary is unknown; the presets have
32,128 rows, the image token at 32,000, and separate weights for embeddings and head. The output of the encoder's
last layer, before the norm that follows it, goes to the connector; the papers do not say which layer they used. The
C-Abstractor comes from Honeybee, and has the depth and width that it has there.

The hidden width of an expert in the MoE models is not published; the presets use that of the dense layer. The
encoder of MM1.5 is assumed to be MM1's ViT-H/14. Its image size is the tile size of dynamic splitting, and every
tile becomes 144 tokens; that the position embeddings are stored at this size is inferred.
"""

_COUNTS = """\
## Parameters

Counted on the models that are built from the presets. As in the papers, the decoder's N excludes embeddings and
head; it includes all experts. *Active* parameters are those that one token uses: all except the experts that it is
not sent to.
"""

_SHAPES = """\
## Shapes

Width × layers / heads. The decoders have as many key-value heads as query heads (ⁱ).
"""

_TESTS = """\
## For tests

These small models have no published size; their numbers are chosen by this package.
"""

_COMPARISON = """\
## Comparison with the papers' figures

*Backbone* is the decoder's N with every MLP dense. The paper does not say which parameters the 64B of the 3B-MoE
include, so the table compares it with the decoder's N and with the whole model.
"""


def read_preset(name: str) -> dict[str, Any]:
    """
    Reads the file of a preset. It holds `config` (arguments of [`MM1Config`]), `sources` (for dotted keys of `config`,
    `"paper"`, `"inferred"`, `"unverified"` or, in the presets for tests, `"ours"`), `stated` (the paper's parameter
    counts, each with `value` and `source`) and `notes`.

    Args:
        name: one of [`~mm1_hf.preset_names`].

    Raises:
        ValueError: there is no such preset.
    """
    if name not in preset_names():
        raise ValueError(f"There is no preset {name!r}. The presets are: {', '.join(preset_names())}.")
    return json.loads(files("mm1_hf.model").joinpath("presets", f"{name}.json").read_text(encoding="utf-8"))


def source_of(preset: dict[str, Any], key: str) -> str:
    """
    Returns the source of a value of a preset's `config`.

    Args:
        preset: a preset as [`read_preset`] returns it.
        key: dotted key of the value, for example `"text_config.hidden_size"`.

    Raises:
        ValueError: the preset's `sources` contain neither the key nor a key above it.
    """
    names = key.split(".")
    for length in range(len(names), 0, -1):
        if ".".join(names[:length]) in preset["sources"]:
            return preset["sources"][".".join(names[:length])]
    raise ValueError(f"{key!r} has no source. Add it, or a key above it, to the preset's `sources`.")


def presets_page() -> str:
    """The text of `docs/presets.md`: sizes and shapes of all presets, and a comparison with the papers' figures."""
    presets = {name: read_preset(name) for name in sorted(preset_names(), key=_size_order)}
    counts = {name: count_parameters(MM1Config.from_preset(name)) for name in presets}
    published = {name: preset for name, preset in presets.items() if "tiny" not in name}
    count_header = ["preset", "encoder", "connector", "decoder N", "embeddings + head", "total", "active"]
    shape_header = ["preset", "image encoder", "tile, px", "patch, px", "tokens per tile", "decoder", "MLP", "experts"]
    comparison_header = ["preset", "figure", "stated", "here", "difference"]
    comparisons = [row for name, preset in published.items() for row in _comparison_rows(name, preset, counts[name])]
    sections = [
        _INTRO,
        _COUNTS,
        _markdown(count_header, [_count_row(name, preset, counts[name]) for name, preset in published.items()]),
        _SHAPES,
        _markdown([*shape_header, "sparse"], [_shape_row(name, preset) for name, preset in published.items()]),
        _COMPARISON,
        _markdown(comparison_header, comparisons),
        "## Notes\n",
        "".join(f"- `{name}`: {preset['notes']}\n" for name, preset in published.items()),
        _TESTS,
        _markdown(
            count_header,
            [_count_row(name, preset, counts[name]) for name, preset in presets.items() if name not in published],
        ),
    ]
    return "\n".join(sections)


def _size_order(name: str) -> tuple[int, bool, float, str]:
    """Sort key: MM1's proxies, ablations and final models, then MM1.5; dense before sparse, small before large."""
    order = ("mm1-proxy", "mm1-ablation", "mm1-", "mm1.5-")
    group = next(index for index, start in enumerate(order) if name.startswith(start))
    size = next((part for part in name.split("-")[1:] if part[0].isdigit()), "0b")
    billions = float(size[:-1]) / (1000 if size.endswith("m") else 1)
    return group, name.endswith("moe"), billions, name


def _short(number: float) -> str:
    """Three digits and a unit: 9.44M, 1.23B."""
    scaled, letter = _scaled(number)
    return f"{scaled:.{3 - len(str(int(scaled)))}f}{letter}"


def _scaled(number: float) -> tuple[float, str]:
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return number / unit, letter
    return number, ""


def _mark(preset: dict[str, Any], *keys: str) -> str:
    """The mark of the least certain of some values. Values that a preset leaves to the defaults have no mark."""
    sources = [source_of(preset, key) for key in keys if _lookup(preset["config"], key) is not None]
    return _MARKS[max(sources, key=_SURENESS.index)] if sources else ""


def _lookup(config: dict[str, Any], key: str) -> Any:
    return reduce(lambda inner, name: inner.get(name) if isinstance(inner, dict) else None, key.split("."), config)


def _count_row(name: str, preset: dict[str, Any], count: ParameterCount) -> list[str]:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers")
    vision = [f"vision_config.{key}" for key in (*sizes, "image_size")]
    text = [f"text_config.{key}" for key in (*sizes, "num_key_value_heads")]
    text += [f"text_config.{key}" for key in ("num_experts", "moe_layer_period", "moe_intermediate_size")]
    vocabulary = ["text_config.vocab_size", "text_config.hidden_size", "text_config.tie_word_embeddings"]
    connector = [f"connector_config.{key}" for key in ("connector_type", "num_tokens", "depth", "hidden_size")]
    connector += ["vision_config.hidden_size", "vision_config.image_size", "text_config.hidden_size"]
    active = [*vision, *connector, *text, *vocabulary, "text_config.num_experts_per_tok"]
    cells = [
        (count.encoder.parameters, vision),
        (count.connector.parameters, connector),
        (count.decoder.parameters, text),
        (count.embeddings.parameters + count.head.parameters, vocabulary),
        (count.total.parameters, active[:-1]),
        (count.total.active, active),
    ]
    return [f"`{name}`", *(_short(number) + _mark(preset, *keys) for number, keys in cells)]


def _shape_row(name: str, preset: dict[str, Any]) -> list[str]:
    def cell(*keys: str) -> str:
        value = _lookup(preset["config"], keys[0])
        return "" if value is None else f"{value:,}{_mark(preset, *keys)}"

    def shape(part: str) -> str:
        keys = [f"{part}.{key}" for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
        width, layers, heads = (_lookup(preset["config"], key) for key in keys)
        return f"{width:,} × {layers} / {heads}{_mark(preset, *keys)}"

    period = cell("text_config.moe_layer_period")
    return [
        f"`{name}`",
        shape("vision_config"),
        cell("vision_config.image_size"),
        cell("vision_config.patch_size"),
        cell("connector_config.num_tokens"),
        shape("text_config"),
        cell("text_config.intermediate_size"),
        cell("text_config.num_experts"),
        f"every {period} layers" if period else "",
    ]


def _comparison_rows(name: str, preset: dict[str, Any], count: ParameterCount) -> Iterator[list[str]]:
    stated = preset.get("stated", {})
    figures = []
    if "backbone_parameters" in stated:
        dense = MM1Config.from_preset(name)
        dense.text_config.num_experts = 0
        figures.append(("backbone", "backbone_parameters", count_parameters(dense).decoder.parameters))
    if "total_parameters" in stated:
        figures.append(("total, as the decoder's N", "total_parameters", count.decoder.parameters))
        figures.append(("total, as the whole model", "total_parameters", count.total.parameters))
    for label, key, number in figures:
        value = stated[key]["value"]
        scaled, letter = _scaled(value)
        stated_cell = f"{scaled:g}{letter}{_MARKS[stated[key]['source']]}"
        yield [f"`{name}`", label, stated_cell, f"{_short(number)}ⁱ", f"{number / value - 1:+.1%}"]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows]) + "\n"


if __name__ == "__main__":
    print(presets_page(), end="")
