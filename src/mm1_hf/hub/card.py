"""The card of a published model, from `MODEL_CARD.md`: what the model itself tells, and what only its author knows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.quantization_config import QuantizationMethod

from mm1_hf.accounting.parameters import count_parameters
from mm1_hf.hub.licenses import combine_licenses
from mm1_hf.hub.repository import Repository
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.training.pretraining import build_recipe, load_settings
from mm1_hf.training.streams import last_complete_checkpoint


Entry = TypeVar("Entry")


@dataclass(frozen=True)
class PartDetails:
    """
    Args:
        source: where its weights are from: a Hub id where there is one.
        license: by the Hub's identifier, such as `"apple-amlr"`; unset, not stated.
    """

    source: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class DataDetails:
    """
    Args:
        name: a data set's Hub id, or what it is called.
        license: by the Hub's identifier, or its data's terms; unset, not stated.
        revision: which version was read.
        share: of what was trained on, 0 to 1.
        binding: whether its licence binds the model too.
    """

    name: str
    license: str | None = None
    revision: str | None = None
    share: float | None = None
    binding: bool = False


@dataclass(frozen=True)
class StageDetails:
    """
    Args:
        name: such as `"pretrain"`.
        data: what was trained on.
        steps: optimizer steps that were made.
        batch: rows of a step.
        learning_rate: its peak.
        trained: which parts, and how.
    """

    name: str
    data: str
    steps: int
    batch: int
    learning_rate: float
    trained: str


@dataclass(frozen=True)
class ResultDetails:
    """
    One number that was measured on these weights.

    Args:
        task: its name.
        dataset: its Hub id, or what it is called.
        split: of the data set.
        examples: how many were answered.
        metric: such as `"accuracy"`.
        value: what was measured.
        shots: examples shown before each question.
        shuffled: the same with the images shuffled.
        majority: of the most frequent answer.
    """

    task: str
    dataset: str
    split: str
    examples: int
    metric: str
    value: float
    shots: int = 0
    shuffled: float | None = None
    majority: float | None = None


@dataclass(frozen=True)
class CardDetails:
    """
    What the model's files do not tell. Unset, the card says that it is not stated, or leaves it out.

    Args:
        summary: one or two sentences.
        encoder, decoder: where the parts are from, and their licences.
        connector_license: of what was trained here; unset, not stated.
        data: what it was trained on.
        stages: how it was trained.
        evaluation: what was measured.
        evaluation_notes: how: prompts, decoding, seeds, the command that repeats it.
        languages: codes such as `"en"`.
        hardware: devices and hours.
        intended_use: for whom and what.
        known_biases: those that were measured.
        limits: more of them than every such model has.
    """

    summary: str | None = None
    encoder: PartDetails = PartDetails()
    decoder: PartDetails = PartDetails()
    connector_license: str | None = None
    data: tuple[DataDetails, ...] = ()
    stages: tuple[StageDetails, ...] = ()
    evaluation: tuple[ResultDetails, ...] = ()
    evaluation_notes: str | None = None
    languages: tuple[str, ...] = ()
    hardware: str | None = None
    intended_use: str | None = None
    known_biases: str | None = None
    limits: tuple[str, ...] = ()


# Where one entry, or a list of entries, is itself one of these.
_NESTED = {"encoder": PartDetails, "decoder": PartDetails}
_LISTED = {"data": DataDetails, "stages": StageDetails, "evaluation": ResultDetails, "languages": str, "limits": str}


def load_details(path: str | Path) -> CardDetails:
    """
    Reads a YAML or JSON file.

    Args:
        path: of entries as [`CardDetails`] has fields. `evaluation` may name a file with the list of results, and a stage
            may be `{"settings": FILE}`, what `mm1 pretrain` was run with. Files are looked for beside this one.

    Raises:
        ValueError: it is neither, or has unknown, missing or wrong entries.
        OSError: it cannot be read.
    """
    values = _read(path)
    if isinstance(values, dict) and isinstance(values.get("evaluation"), str):
        values["evaluation"] = _read(Path(path).parent / values["evaluation"])
    if isinstance(values, dict):
        for name, kind in _NESTED.items():
            if name in values:
                values[name] = _entry(kind, values[name], f"{path}, {name}")
        for name, kind in _LISTED.items():
            if name in values:
                if not isinstance(values[name], list):
                    raise ValueError(f"{path}: {name} is a list; got {values[name]!r:.100}.")
                values[name] = tuple(
                    _listed(kind, each, f"{path}, {name} {number}", Path(path).parent)
                    for number, each in enumerate(values[name], 1)
                )
    return _entry(CardDetails, values, str(path))


def _listed(kind: type, values: Any, where: str, folder: Path) -> Any:
    if kind is StageDetails and isinstance(values, Mapping) and set(values) == {"settings"}:
        return pretraining_stage(folder / values["settings"])
    return values if kind is str else _entry(kind, values, where)


def _read(path: str | Path) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error


def _entry(kind: type[Entry], values: Any, where: str) -> Entry:
    names = [each.name for each in fields(kind)]  # ty: ignore[invalid-argument-type] -- one of the dataclasses above
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} holds {values!r:.100}, not entries; they are {', '.join(names)}.")
    if unknown := [str(name) for name in values if name not in names]:
        raise ValueError(f"{where} has unknown entries: {', '.join(unknown)}. They are {', '.join(names)}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def pretraining_stage(settings_file: str | Path) -> StageDetails:
    """
    A stage of `mm1 pretrain` as it was run: its data and parts by the settings, steps and learning rate by what its last
    checkpoint has logged.

    Args:
        settings_file: that the run was started with.

    Raises:
        ValueError: the settings do not fit, or no checkpoint tells what was run.
        OSError: a file cannot be read.
    """
    settings = load_settings(settings_file)
    checkpoint = last_complete_checkpoint(settings.output_dir)
    if checkpoint is None:
        raise ValueError(f"{settings.output_dir} has no checkpoint, so {settings_file} does not tell what was run.")
    state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    if not rates:
        raise ValueError(f"{checkpoint} has logged no learning rate, so it does not tell what was run.")
    recipe = build_recipe(settings, MM1Config.from_pretrained(checkpoint))
    weights = recipe.data.mixture
    shares = [f"{name} {weight / sum(weights.values()):.0%}" for name, weight in weights.items()]
    trained = [part for part in ("encoder", "connector", "decoder") if part not in settings.frozen]
    return StageDetails(
        name=settings.stage,
        data=f"{', '.join(shares)} of {recipe.data.unit}, rows of {recipe.data.sequence_length} positions",
        steps=state["global_step"],
        batch=recipe.batch_size,
        learning_rate=max(rates),
        trained=", ".join(trained),
    )


def model_card(repository: Repository, repo_id: str, details: CardDetails) -> ModelCard:
    """
    Fills `MODEL_CARD.md`. Nothing stands in it that neither the files nor `details` tell.

    Args:
        repository: the model's or adapter's files.
        repo_id: where it is published.
        details: what only the author knows.

    Returns:
        The card, with the metadata that the Hub reads: library, task, base models, data sets, licence and results.
    """
    parts = [details.encoder, details.decoder]
    licenses = [part.license for part in parts] + [details.connector_license]
    if repository.adapter is not None:
        # The base model is not in the repository; its licence still binds what was made from it.
        licenses = [license for license in licenses if license is not None] or [None]
    license = combine_licenses(licenses + [each.license for each in details.data if each.binding])
    name = repo_id.split("/")[-1]
    adapter = repository.adapter
    quantized = None if repository.model is None else _quantization(repository.model)
    if adapter is not None:
        base_models, relation = [adapter["base_model_name_or_path"]], "adapter"
    else:
        base_models = [part.source for part in parts if part.source is not None and _is_hub_id(part.source)]
        relation = None
    datasets = [each.name for each in details.data if _is_hub_id(each.name)]
    card_data = ModelCardData(
        library_name="transformers" if adapter is None else "peft",
        pipeline_tag="image-text-to-text",
        tags=["mm1", "multimodal"] + ([] if quantized is None else ["quantized"]),
        base_model=base_models or None,
        base_model_relation=relation if base_models else None,
        datasets=datasets or None,
        language=list(details.languages) or None,
        license=license.identifier,
        license_name=license.name,
        license_link=None if license.name is None else "README.md#parts-and-their-licences",
        model_name=name if details.evaluation else None,
        eval_results=[_eval_result(each) for each in details.evaluation] or None,
    )
    return ModelCard.from_template(
        card_data,
        template_str=_template(),
        name=name,
        repo_id=repo_id,
        details=details,
        license=license,
        model=None if repository.model is None else _facts(repository),
        quantized=quantized,
        adapter=adapter,
        versions=", ".join(f"{each} {version(each)}" for each in ("mm1_hf", "transformers", "torch")),
    )


def _template() -> str:
    packaged = files("mm1_hf.hub") / "MODEL_CARD.md"
    # In a checkout it lies at the root, from where it goes into the built package.
    return (packaged if packaged.is_file() else Path(__file__).parents[3] / "MODEL_CARD.md").read_text(
        encoding="utf-8"
    )


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _eval_result(result: ResultDetails) -> EvalResult:
    return EvalResult(
        task_type="image-text-to-text",
        task_name=result.task,
        dataset_type=result.dataset,
        dataset_name=result.dataset,
        dataset_split=result.split,
        metric_type=result.metric,
        metric_value=result.value,
        metric_name=f"{result.metric}, {result.shots} shots" if result.shots else result.metric,
    )


def _quantization(model: MM1ForConditionalGeneration) -> str | None:
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    return QuantizationMethod(config["quant_method"] if isinstance(config, dict) else config.quant_method).value


def _facts(repository: Repository) -> dict[str, Any]:
    """What the card's tables say of the parts."""
    model, processor = repository.model, repository.processor
    assert model is not None and processor is not None
    config = model.config
    count = count_parameters(model)
    images = processor.image_processor
    return {
        "encoder": config.vision_config.model_type,
        "encoder_layers": config.vision_config.num_hidden_layers,
        "encoder_parameters": f"{count.encoder.parameters:,}",
        "connector": config.connector_config.connector_type,
        "connector_parameters": f"{count.connector.parameters:,}",
        "decoder": config.text_config.model_type,
        "decoder_parameters": f"{(count.decoder + count.embeddings + count.head).parameters:,}",
        "total": f"{count.total.parameters:,}",
        "active": f"{count.total.active:,}",
        "is_sparse": count.total.active != count.total.parameters,
        "tokens": config.connector_config.num_tokens,
        "tile": images.size["height"],
        "splitting": images.image_splitting,
    }
