"""A saved model as a repository on the Hub: finds the files that belong to it, and checks that they fit together."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.registration import MODEL_FILES


CARD_NAME = "README.md"

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Files that are published beside weights and code if they exist. The list has no files of a training run.
_COMPANIONS = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "LICENSE",
    "NOTICE",
)
_PUBLISHED = {CARD_NAME, CONFIG_NAME, ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, *_COMPANIONS}
# A folder of further chat templates, which transformers reads, but which is not published.
_TEMPLATES = "additional_chat_templates"
# Without these entries in `auto_map`, the model could not be loaded without mm1_hf.
_AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText")


@dataclass(frozen=True)
class Repository:
    """
    A saved model or adapter, and which of its files are published.

    Args:
        folder: folder of the saved model or adapter.
        files: local paths of the files to publish, by their path in the repository.
        left_out: names of files and folders in `folder` that are not published.
        model: the model on the meta device; `None` for an adapter.
        processor: processor of the model; `None` for an adapter.
        adapter: PEFT's configuration of the adapter; `None` for a model.
    """

    folder: Path
    files: dict[str, Path]
    left_out: tuple[str, ...]
    model: MM1ForConditionalGeneration | None = None
    processor: MM1Processor | None = None
    adapter: dict[str, Any] | None = None


def read_repository(folder: str | Path) -> Repository:
    """
    Collects the files of a saved model or adapter and checks them without reading the values of the weights.
    Incomplete models, and weights that do not match their configuration, must not reach the Hub.

    Args:
        folder: folder of a model that was saved with its processor, or of an adapter that was saved by PEFT.

    Raises:
        ValueError: files are missing, do not fit together, refer to foreign code, or are links that lead out of the folder.
        OSError: a file cannot be read.
    """
    folder = Path(folder)
    _check_files(folder)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return _read_adapter(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(
            f"{folder} holds neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME}. Give the folder of a model, saved with "
            "model.save_pretrained and processor.save_pretrained, or of an adapter."
        )
    config = _read_object(folder / CONFIG_NAME)
    if config.get("model_type") != MM1Config.model_type:
        raise ValueError(
            f"{folder} holds a model of type {config.get('model_type')!r}, but only models of type 'mm1' can be "
            "published."
        )
    names = [CONFIG_NAME, *_weights(folder), *(name for name in _COMPANIONS if (folder / name).is_file())]
    _check_code(folder, [name for name in names if name.endswith(".json")], config)
    model, processor = _load_skeleton(folder)
    _check_parts(model, processor)

    found = {name: _real(folder / name) for name in names}
    # The code of the installed version, with which the model was just built, even if another version saved the folder.
    found |= {name: cast(Path, files("mm1_hf.model") / name) for name in MODEL_FILES}
    return Repository(folder, found, _left_out(folder, found), model, processor)


def _check_files(folder: Path) -> None:
    """
    Refuses links to files outside of the folder, which would be published without being seen, and what is neither a file nor
    a folder, which might never end. In a folder of the Hub's cache, the files are links to the contents beside it.
    """
    home = folder.resolve()
    inside = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for path in (*folder.iterdir(), *(folder / _TEMPLATES).glob("*")):
        target = path.resolve()
        is_published = path.name in _PUBLISHED or path.suffix == ".safetensors"
        if is_published and not any(target.is_relative_to(each) for each in inside):
            raise ValueError(
                f"{path} is a link to {target}, outside of the folder, and would be published. Replace it by a copy of the "
                "file, or remove it."
            )
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError(f"{path} is neither a file nor a folder. Remove it.")


def _real(path: Path) -> Path:
    """Where a link leads, so that nothing else is published if it is changed after it was checked."""
    return path.resolve() if path.is_symlink() else path


def _load_skeleton(folder: Path) -> tuple[MM1ForConditionalGeneration, MM1Processor]:
    """The model on the meta device and its processor. The names and shapes of the saved weights are checked."""
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise ValueError(f"The weights in {folder} are broken: {error}. Save the model again.") from error
    model, info = loaded
    for kind, what in (
        ("missing_keys", "lack the tensors"),
        ("unexpected_keys", "contain tensors that the model does not have:"),
    ):
        if info[kind]:
            raise ValueError(f"The weights in {folder} {what} {_first(sorted(info[kind]))}. Save the model again.")
    if info["mismatched_keys"]:
        shapes = [f"{name} {tuple(saved)}, not {tuple(built)}" for name, saved, built in info["mismatched_keys"]]
        raise ValueError(
            f"Weights in {folder} do not have the shapes that {CONFIG_NAME} requires: {_first(sorted(shapes))}. Save "
            "the model again."
        )
    return model, cast(MM1Processor, AutoProcessor.from_pretrained(folder))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Save the model again.") from error


def _read_object(path: Path) -> dict[str, Any]:
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {value!r:.100}, but must hold a JSON object. Save the model again.")
    return value


def _weights(folder: Path) -> list[str]:
    """Names of the files that transformers would load: one file, or else the shards and their index."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [SAFE_WEIGHTS_NAME]
    if not (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        raise ValueError(
            f"{folder} holds no safetensors weights. Other formats are not published, because they may run code when "
            "they are loaded. Load the model and save it with save_pretrained."
        )
    shards = _read_object(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{folder / SAFE_WEIGHTS_INDEX_NAME} names no weights. Save the model again.")
    for name in shards.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name, re.ASCII):
            raise ValueError(
                f"{SAFE_WEIGHTS_INDEX_NAME} names the file {name!r:.100}, but weights must be *.safetensors files in the "
                "same folder. Save the model again."
            )
    shards = sorted(set(shards.values()))
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise ValueError(
            f"{SAFE_WEIGHTS_INDEX_NAME} names files that {folder} does not hold: {_first(missing)}. Save the model "
            "again."
        )
    return [*shards, SAFE_WEIGHTS_INDEX_NAME]


def _auto_maps(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("auto_map"), dict):
            yield value["auto_map"]
        for each in value.values():
            yield from _auto_maps(each)
    elif isinstance(value, list):
        for each in value:
            yield from _auto_maps(each)


def _check_code(folder: Path, names: list[str], config: dict[str, Any]) -> None:
    modules = {name.removesuffix(".py") for name in MODEL_FILES}
    for name in names:
        for auto_map in _auto_maps(_read_json(folder / name)):
            for references in auto_map.values():
                for reference in references if isinstance(references, list) else [references]:
                    if reference is not None and str(reference).split(".")[0] not in modules:
                        raise ValueError(
                            f"{folder / name} refers to the code {reference!r}, which is not part of MM1 and is not "
                            "published with it. Remove the reference from auto_map."
                        )
    if missing := [name for name in _AUTO_CLASSES if name not in config.get("auto_map", {})]:
        raise ValueError(
            f"{folder / CONFIG_NAME} does not say which class {missing[0]} loads. Import mm1_hf, load the model and "
            "save it again."
        )


def _check_parts(model: MM1ForConditionalGeneration, processor: MM1Processor) -> None:
    config = model.config
    if not isinstance(processor, MM1Processor):
        raise ValueError(
            f"The processor in the folder is a {type(processor).__name__}, but must be an MM1Processor. Save one with "
            "the model."
        )
    if processor.chat_template is None:
        raise ValueError(
            "The processor has no chat template. Set processor.chat_template and save the processor again."
        )
    side = config.connector_config.grid_size * config.vision_config.patch_size
    size = processor.image_processor.size
    pairs = [
        (
            "num_image_tokens",
            processor.num_image_tokens,
            "connector_config.num_tokens",
            config.connector_config.num_tokens,
        ),
        ("image_token_id", processor.image_token_id, "image_token_id", config.image_token_id),
        ("image_processor.size", (size["height"], size["width"]), "encoder's tile", (side, side)),
    ]
    for name, value, other, expected in pairs:
        if value != expected:
            raise ValueError(
                f"The processor's {name} is {value}, but the model's {other} is {expected}. Save the processor that "
                "the model was trained with."
            )
    rows = cast(int, model.get_input_embeddings().num_embeddings)
    if len(processor.tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(processor.tokenizer)} tokens, but the model has only {rows} embeddings. Save the "
            "tokenizer that the model was trained with."
        )


def _read_adapter(folder: Path) -> Repository:
    config = _read_object(folder / ADAPTER_CONFIG_NAME)
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG_NAME} does not name its base model. Set base_model_name_or_path to its Hub id."
        )
    if Path(base).exists():
        raise ValueError(
            f"The adapter's base model is the local folder {base}, which others cannot load. Publish the base model, "
            f"and set base_model_name_or_path in {folder / ADAPTER_CONFIG_NAME} to its Hub id."
        )
    if not is_hub_id(base):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG_NAME} names the base model {base!r:.100}, which is not a Hub id. Set "
            "base_model_name_or_path to one, such as user/name."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no {ADAPTER_WEIGHTS}. Save the adapter with save_pretrained.")
    names = [ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS, *(name for name in _COMPANIONS if (folder / name).is_file())]
    found = {name: _real(folder / name) for name in names}
    return Repository(folder, found, _left_out(folder, found), adapter=config)


def is_hub_id(name: str) -> bool:
    """
    Whether a name can be that of a repository on the Hub.

    Args:
        name: the name, such as `"user/name"`.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII) is not None


def _left_out(folder: Path, found: dict[str, Path]) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.name not in {*found, CARD_NAME}))


def _first(names: list[str], number: int = 5) -> str:
    """The first names, and the number of those that are not listed."""
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(names[:number]) + more
