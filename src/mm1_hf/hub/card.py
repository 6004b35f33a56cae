"""Fills in the template `MODEL_CARD.md` for a published model, from the model's files and from facts of its author."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils.quantization_config import QuantizationMethod

from mm1_hf.accounting.parameters import count_parameters
from mm1_hf.hub.licenses import combine_licenses
from mm1_hf.hub.markdown import cell, one_line, prose, written
from mm1_hf.hub.repository import Repository, is_hub_id
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.training.entries import from_entries, read_entries
from mm1_hf.training.settings import PretrainingSettings, build_recipe, load_settings


@dataclass(frozen=True)
class PartDetails:
    """
    Origin and licence of a part of the model.

    Args:
        source: where the part's weights come from: a Hub id if there is one.
        license: the Hub's identifier of the licence, such as `"apple-amlr"`; unset, the card says "not stated".
    """

    source: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class DataDetails:
    """
    A data set that the model was trained on.

    Args:
        name: Hub id of the data set, or another name for it.
        license: the Hub's identifier of the licence, or a description of the terms; unset, the card says "not stated".
        revision: version of the data set that was used.
        share: share of the training data that comes from this data set, from 0 to 1.
        binding: whether the licence of the data set also applies to the model.
    """

    name: str
    license: str | None = None
    revision: str | None = None
    share: float | None = None
    binding: bool = False


@dataclass(frozen=True)
class StageDetails:
    """
    One stage of the training.

    Args:
        name: name of the stage, such as `"pretrain"`.
        data: description of the data that the stage was trained on.
        steps: number of optimizer steps.
        batch: number of rows in one step.
        learning_rate: peak learning rate.
        trained: which parts were trained, and how.
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
    One result that was measured on these weights.

    Args:
        task: name of the task.
        dataset: Hub id of the data set, or another name for it.
        split: split of the data set.
        examples: number of questions that were answered.
        metric: name of the metric, such as `"accuracy"`.
        value: value of the metric.
        shots: number of solved examples that were shown before each question.
        shuffled: value of the metric for the same model with the images shuffled, so that they belong to other
            questions.
        majority: value of the metric if the most frequent answer is always given.
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
    Facts about a model that its files do not tell. If a field is unset, the card says that the fact is not stated, or
    leaves it out.

    Args:
        summary: one or two sentences that describe the model.
        encoder, decoder: origin and licence of the part.
        connector_license: licence of the weights that were trained here, which are those of the connector or adapter;
            unset, the card says "not stated".
        data: data sets that the model was trained on.
        stages: stages of the training.
        evaluation: results that were measured.
        evaluation_notes: how the results were measured: prompts, decoding, seeds, and the command that repeats it.
        languages: codes of the model's languages, such as `"en"`.
        hardware: devices that were used, and for how many hours.
        intended_use: for whom and for what the model is intended.
        known_biases: biases that were measured.
        limits: limits of this model, in addition to those that the card states for every model.
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


# Fields of an author's own sentences, which may hold Markdown.
_PROSE = ("summary", "evaluation_notes", "hardware", "intended_use", "known_biases", "limits")

# Types of the entries that are not plain values, and of the elements of the entries that are lists.
_NESTED = {"encoder": PartDetails, "decoder": PartDetails}
_LISTED = {"data": DataDetails, "stages": StageDetails, "evaluation": ResultDetails, "languages": str, "limits": str}


def load_details(path: str | Path) -> CardDetails:
    """
    Reads [`CardDetails`] from a YAML or JSON file.

    Args:
        path: path of the file. Its entries are the fields of [`CardDetails`]. `evaluation` may be the path of a file
            with the list of results, or of the `results.json` of `mm1 eval`, and a stage may be `{"settings": FILE}`,
            where `FILE` is the settings file of a run of `mm1 pretrain`. Relative paths start at the folder of this
            file.

    Raises:
        ValueError: the file is neither YAML nor JSON, or has unknown, missing or wrong entries.
        OSError: a file cannot be read.
    """
    values = read_entries(path)
    if isinstance(values, dict) and isinstance(values.get("evaluation"), str):
        file = Path(path).parent / values["evaluation"]
        values["evaluation"] = read_entries(file)
        if isinstance(values["evaluation"], Mapping):
            values["evaluation"] = _measured(values["evaluation"], file)
    if isinstance(values, dict):
        for name, kind in _NESTED.items():
            if name in values:
                values[name] = from_entries(kind, values[name], f"{path}, {name}")
        for name, kind in _LISTED.items():
            if name in values:
                if not isinstance(values[name], list):
                    raise ValueError(f"{path}: {name} must be a list, but is {values[name]!r:.100}.")
                values[name] = tuple(
                    _listed(kind, each, f"{path}, {name} {number}", Path(path).parent)
                    for number, each in enumerate(values[name], 1)
                )
    return from_entries(CardDetails, values, str(path))


def load_results(path: str | Path) -> tuple[ResultDetails, ...]:
    """
    Reads the scores that `mm1 eval` measured.

    Args:
        path: path of the `results.json` of a run.

    Raises:
        ValueError: the file is not one that `mm1 eval` wrote.
        OSError: the file cannot be read.
    """
    return tuple(
        from_entries(ResultDetails, each, f"{path}, score {number}")
        for number, each in enumerate(_measured(read_entries(path), path), 1)
    )


def _measured(results: Any, path: str | Path) -> list[dict[str, Any]]:
    """The scores of a run of `mm1 eval` as the entries of [`ResultDetails`]; tasks without references have none."""
    try:
        tasks = {name: entry["task"] for name, entry in results["tasks"].items()}
        return [
            {
                "task": score["task"],
                "dataset": (tasks[score["task"]]["data"] or [score["task"]])[0],
                "split": tasks[score["task"]]["split"],
                "examples": score["samples"],
                "metric": score["metric"],
                "value": round(float(score["score"]), 4),
                "shots": score["shots"],
            }
            for score in results["scores"]
            if score["score"] is not None
        ]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} does not hold the results of an evaluation ({type(error).__name__}: {error}). Give the results.json "
            "that `mm1 eval` wrote, unchanged."
        ) from error


def _listed(kind: type, values: Any, where: str, folder: Path) -> Any:
    if kind is StageDetails and isinstance(values, Mapping) and set(values) == {"settings"}:
        return pretraining_stage(folder / values["settings"])
    return values if kind is str else from_entries(kind, values, where)


def pretraining_stage(settings_file: str | Path) -> StageDetails:
    """
    Describes a run of `mm1 pretrain` as a stage of the training. The data and the trained parts are those of the
    settings; the number of steps and the learning rate are read from the log in the last checkpoint.

    Args:
        settings_file: settings file that the run was started with.

    Raises:
        ValueError: the settings are invalid, or the run has no checkpoint with a logged learning rate.
        OSError: a file cannot be read.
    """
    settings = load_settings(PretrainingSettings, settings_file)
    # A run that cannot be resumed has been trained all the same.
    logs = {
        int(number): path
        for path in Path(settings.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
        if (number := path.parent.name.rpartition("-")[2]).isdecimal()
    }
    if not logs:
        raise ValueError(
            f"{settings.output_dir} has no checkpoint, so the steps and the learning rate of the run are unknown. "
            f"Check output_dir in {settings_file}, or give the details of this stage instead of its settings."
        )
    checkpoint = logs[max(logs)].parent
    state = json.loads(logs[max(logs)].read_text(encoding="utf-8"))
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    if not rates:
        raise ValueError(
            f"{checkpoint} has logged no learning rate. Give the details of this stage instead of its settings."
        )
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
    Fills in the template `MODEL_CARD.md`. The card states only what the files or `details` tell.

    Args:
        repository: files of the model or adapter.
        repo_id: Hub id under which the model or adapter is published.
        details: facts that only the author knows.

    Returns:
        The card, with the metadata that the Hub reads: library, task, base models, data sets, licence and results.

    Raises:
        ValueError: `repo_id` is not a Hub id.
    """
    if not is_hub_id(repo_id):
        raise ValueError(f"{repo_id!r:.100} is not the id of a repository on the Hub. Give one, such as user/name.")
    details = written(details, one_line)
    parts = [details.encoder, details.decoder]
    licenses = [part.license for part in parts] + [details.connector_license]
    if repository.adapter is not None:
        # The base model is not in the repository, but its licence, if stated, still applies to the adapter.
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
        details=written(details, cell, **dict.fromkeys(_PROSE, prose)),
        license=written(license, cell),
        model=None if repository.model is None else _facts(repository),
        quantized=quantized,
        adapter=None if adapter is None else _adapter_facts(adapter),
        versions=", ".join(f"{each} {version(each)}" for each in ("mm1_hf", "transformers", "torch")),
    )


def _template() -> str:
    packaged = files("mm1_hf.hub") / "MODEL_CARD.md"
    # In a checkout, the template lies at the root; building the package copies it into this folder.
    return (packaged if packaged.is_file() else Path(__file__).parents[3] / "MODEL_CARD.md").read_text(
        encoding="utf-8"
    )


def _is_hub_id(name: str) -> bool:
    return "/" in name and is_hub_id(name) and not Path(name).exists()


def _adapter_facts(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says of PEFT's configuration of an adapter."""
    kind, rank = adapter.get("peft_type"), adapter.get("r")
    return {
        "base_model_name_or_path": adapter["base_model_name_or_path"],
        "peft_type": cell(kind) if isinstance(kind, str) else None,
        "r": rank if isinstance(rank, int) else None,
    }


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
    """The model's facts that the card states, mostly in its table of parts."""
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
