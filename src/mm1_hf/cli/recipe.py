"""`mm1 recipe`: settings of runs over public data, by the papers' categories and weights."""

from pathlib import Path
from textwrap import wrap

import yaml

from mm1_hf.reporting.printable import printable
from mm1_hf.training.open_recipes import OpenRecipe, open_recipe, recipe_names
from mm1_hf.training.recipe_check import check_sources


_WIDTH = 116


def run(name: str | None, output: str | None, check: bool, data: str | None) -> None:
    """
    Lists the recipes, prints the settings file of one or writes it, or checks its sources.

    Raises:
        ValueError: there is no such recipe, the file exists already, or a source has no usable record.
    """
    if name is None:
        if given := [
            option for option, value in (("--output", output), ("--check", check), ("--data", data)) if value
        ]:
            raise ValueError(f"{', '.join(given)} needs the name of a recipe; `mm1 recipe` lists them.")
        for each in recipe_names():
            print(f"{each:<20} {open_recipe(each).file.summary}")
        return
    recipe = open_recipe(name)
    if check:
        if output is not None:
            raise ValueError("--check reads the sources and writes no settings file: leave out --output.")
        _check(recipe, data)
    elif output is None:
        print(settings_text(recipe, data), end="")
    else:
        if Path(output).exists():
            raise ValueError(f"{output} exists already. Give the name of a new file.")
        Path(output).write_text(settings_text(recipe, data), encoding="utf-8")
        print(f"settings: {output}")
        print(f"plan:     mm1 plan --recipe {name} --gpus 64")
        print(f"run:      mm1 {recipe.command} --config {output}")


def _check(recipe: OpenRecipe, data: str | None) -> None:
    checked = []
    for source in check_sources(recipe.settings(data)):
        checked.append(source)
        verdict = "read" if source.fine else "NOT READ"
        print(f"{source.name:<22} {verdict:<9} {printable(source.became)}", flush=True)
    if bad := [source.name for source in checked if not source.fine]:
        raise ValueError(f"{len(bad)} of the {len(checked)} sources cannot be read: {', '.join(bad)}.")
    print(f"all {len(checked)} sources can be read")


def settings_text(recipe: OpenRecipe, data: str | None) -> str:
    """The recipe as the text of a settings file, with what is to be known of it and of its sources as comments."""
    entries = recipe.entries(data)
    sources = entries.pop("sources")
    parts, file = recipe.parts, recipe.file
    lines = [
        *_comment(f"{recipe.name}: {file.summary}"),
        *_comment(f"Run it:  mm1 {recipe.command} --config FILE"),
    ]
    if recipe.model.startswith("models/"):
        side = parts.vision.config["image_size"]
        lines += [
            f"# Before:  mm1 assemble {parts.vision.id} {parts.text.id} {recipe.model} --tile {side}",
            *_comment(
                f"Licences of the parts: {parts.vision.licence} (encoder), {parts.text.licence} (decoder). Others:"
            ),
            *(line for other in parts.others for line in _comment(f"- {other}")),
        ]
    else:
        lines += _comment(f"Before:  the stage that saves {recipe.model}")
    for each in file.uncertain:
        lines += ["#", *_comment(f"Not certain, {each.what}:"), *_comment(f"- used here: {each.used}")]
        lines += _comment(f"- also reported: {each.others}") if each.others else []
    lines += ["", _yaml(entries).rstrip(), "sources:"]
    category = None
    for name, source in file.sources.items():
        if source.category != category:
            category = source.category
            lines.append(f"  # {category}")
        about = [f"Size: {source.size}. Licence: {source.licence}.", *([source.note] if source.note else [])]
        head, *body = _yaml({name: sources[name]}).rstrip().splitlines()
        lines.append(f"  {head}")
        lines += [f"    {line}" for text in about for line in _comment(text)]
        lines += [f"  {line}" for line in body]
    return "\n".join(lines) + "\n"


def _yaml(entries: dict) -> str:
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=_WIDTH)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, _WIDTH)]
