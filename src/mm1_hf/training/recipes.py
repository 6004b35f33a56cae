"""
The papers' training recipes as plain data: values for `TrainingArguments`, and how rows are made from the data.

[`recipe`] says which numbers the papers state, and which are inferred, unverified or our own choice.
"""

import math
from dataclasses import dataclass, fields
from pprint import pformat
from typing import Any, Literal

from transformers import PreTrainedModel, TrainingArguments

from mm1_hf.accounting.parameters import count_parameters
from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.training.machine import this_machine


Stage = Literal["pretrain", "continual", "sft"]
STAGES = ("pretrain", "continual", "sft")

MM1_MIXTURE = {"interleaved": 0.45, "caption": 0.45, "text": 0.10}
# Share of VeCap's synthetic captions among all captions. The paper states it of its data; here it is the probability with
# which the synthetic one of an image's two captions is drawn.
SYNTHETIC_SHARE = 0.07
MM1_5_MIXTURE = {"caption": 0.50, "interleaved": 0.10, "text": 0.40}
# The sources have equal shares in every batch.
OCR_MIXTURE = {"pdfa": 0.25, "idl": 0.25, "renderedtext": 0.25, "docstruct-4m": 0.25}
# Number of examples of each source, unverified. A source is weighted by its number of examples.
MM1_SFT_MIXTURE = {
    "text-only": 13_000,
    "llava-conv": 57_000,
    "llava-complex": 77_000,
    "sharegpt-4v": 102_000,
    "vqav2": 83_000,
    "gqa": 72_000,
    "okvqa": 9_000,
    "ocrvqa": 80_000,
    "dvqa": 200_000,
    "chartqa": 18_000,
    "ai2d": 3_000,
    "docvqa": 39_000,
    "infovqa": 24_000,
    "a-okvqa": 66_000,
    "coco-captions": 83_000,
    "textcaps": 22_000,
    "synthdog-en": 500_000,
}
# Weights of the single-image categories relative to `general`. Together they make up 0.8 of the mixture.
_MM1_5_SINGLE_IMAGE = {
    "general": 1.0,
    "text-rich": 3.3,
    "refer-and-ground": 2.0,
    "math": 0.5,
    "code": 0.2,
    "science": 0.1,
}
MM1_5_SFT_MIXTURE = {
    name: 0.8 * weight / sum(_MM1_5_SINGLE_IMAGE.values()) for name, weight in _MM1_5_SINGLE_IMAGE.items()
} | {"multi-image": 0.1, "text-only": 0.1}


@dataclass(frozen=True)
class DataSettings:
    """
    How rows are made from the data.

    Args:
        mixture: weight of each source.
        unit: what the weights count.
        sequence_length: number of positions of a row.
        max_images: largest number of images in a row; unset, as many as fit.
        image_splitting: how the image processor splits images: `"none"`, `"static"` or `"dynamic"`.
        resolution: side in pixels of an unsplit image, of the square that static splitting cuts into tiles, or, with
            dynamic splitting, of one tile.
    """

    mixture: dict[str, float]
    unit: Literal["rows", "documents", "tokens"]
    sequence_length: int
    max_images: int | None
    image_splitting: str
    resolution: int


@dataclass(frozen=True)
class Recipe:
    """
    One stage of a model's training. Show it with `print`; change it with `dataclasses.replace`.

    Args:
        model: name of the preset, or `"custom"`.
        stage: name of the stage.
        parameters: number of parameters of the decoder without embeddings and head, the N of the learning-rate law.
        batch_size: number of rows of one optimizer step, over all devices.
        arguments:
            fields of `TrainingArguments`. `bf16=True` is the recipe's precision; [`Recipe.training_arguments`] replaces
            it on machines that are not fast in bfloat16.
        z_loss_coef: coefficient of the softmax z-loss; [`Recipe.configure`] sets it in the model.
        data: how rows are made from the data.
    """

    model: str
    stage: Stage
    parameters: int
    batch_size: int
    arguments: dict[str, Any]
    z_loss_coef: float
    data: DataSettings

    def configure(self, model: PreTrainedModel) -> None:
        """
        Sets the value of the recipe that belongs to the model's configuration and not to `TrainingArguments`: the
        coefficient of the softmax z-loss.

        Args:
            model: the model that will be trained.
        """
        model.config.z_loss_coef = self.z_loss_coef

    def training_arguments(
        self, output_dir: str, *, num_devices: int, rows_per_device: int = 1, **changes: Any
    ) -> TrainingArguments:
        """
        The recipe as `TrainingArguments` for a given number of devices, with the device and the precision that
        [`mm1_hf.training.machine.this_machine`] decides. What `changes` and `arguments` say about them comes first, except
        for `bf16=True` in `arguments`: the machine may not support it.

        Args:
            output_dir: where to write checkpoints.
            num_devices:
                number of ranks that read different data. The ranks of a tensor-parallel group read the same data:
                count such a group once.
            rows_per_device: number of rows of one forward pass on one device. Gradients are accumulated up to the
                batch size.
            changes: fields of `TrainingArguments` that replace those of the recipe.

        Raises:
            ValueError: the batch is not a whole number of forward passes over all devices, or `fp16` is wanted on a CPU.

        Example:

        ```python
        >>> from mm1_hf.training.recipes import recipe

        >>> sft = recipe("mm1-tiny", "sft")
        >>> arguments = sft.training_arguments("run", num_devices=8, rows_per_device=4)
        >>> arguments.gradient_accumulation_steps, arguments.max_steps
        (8, 10000)

        ```
        """
        arguments: dict[str, Any] = self.arguments | {
            "output_dir": output_dir,
            "per_device_train_batch_size": rows_per_device,
            "gradient_accumulation_steps": accumulation_steps(self.batch_size, num_devices, rows_per_device),
        }
        wanted = self.arguments | changes
        if self.arguments.get("bf16") and "bf16" not in changes:
            del wanted["bf16"]
        return TrainingArguments(**arguments | changes | this_machine(wanted).arguments)

    def __str__(self) -> str:
        lines = [f"{field.name}: {pformat(getattr(self, field.name), sort_dicts=False)}" for field in fields(self)]
        return "\n".join(lines)


def recipe(model: str | MM1Config | MM1ForConditionalGeneration, stage: Stage = "pretrain") -> Recipe:
    """
    The papers' recipe of one training stage.

    - Stated in the papers: the numbers of steps, batch sizes, sequence lengths and mixtures; the learning-rate law of
      pre-training and the rate 1e-5 of the later stages; the warm-up of pre-training; the cosine schedules, which end
      at 10 % of the peak in pre-training and at 0 in the later stages; AdaFactor in the later stages.
    - Inferred from the papers' training code: AdamW's betas, epsilon and clipping, and the meaning of the law's weight
      decay of 0.1 times the learning rate. In that code the optimizer does not multiply the weight decay by the
      learning rate again. `torch.optim.AdamW` does multiply its `weight_decay` by the learning rate, so the recipe
      sets it to 0.1.
    - Unverified: the coefficient of the 30B model's z-loss, and the numbers of examples of MM1's fine-tuning sources.
    - Our choice, because the papers do not state them: for the later stages no warm-up, clipping at 1.0 and no weight
      decay; for the continual stage the sequence length of pre-training; for MM1.5 the resolution of pre-training, and
      those numbers of steps, batch sizes and sequence lengths that are taken from MM1.

    Args:
        model: name of a preset, a configuration or a model. The N of the learning-rate law is counted from it.
        stage: `"pretrain"`, `"continual"` (MM1.5's continual pre-training on text-rich images) or `"sft"`.

    Raises:
        ValueError: the stage or the preset does not exist.

    Example:

    ```python
    >>> from mm1_hf.training.recipes import recipe

    >>> pretrain = recipe("mm1-3b")
    >>> pretrain.arguments["weight_decay"], f"{pretrain.arguments['learning_rate']:.1e}"
    (0.1, '5.9e-05')

    ```
    """
    if stage not in STAGES:
        raise ValueError(f"There is no stage {stage!r}; choose one of {', '.join(STAGES)}.")
    name = model if isinstance(model, str) else "custom"
    is_mm1_5 = name.startswith("mm1.5")
    model = MM1Config.from_preset(name) if isinstance(model, str) else model
    config = model if isinstance(model, MM1Config) else model.config
    number = decoder_size(model)
    resolution = config.vision_config.image_size
    if stage == "pretrain":
        mixture = MM1_5_MIXTURE if is_mm1_5 else MM1_MIXTURE
        steps, batch_size = 200_000, 512
        # Pre-training does not split images. The image size of MM1.5's presets is the tile size of the later stages.
        data = DataSettings(dict(mixture), "rows", 4096, 16, "none", 378 if is_mm1_5 else resolution)
        optimizer = {
            "optim": "adamw_torch",
            "learning_rate": peak_learning_rate(number),
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 2000,
            "weight_decay": 0.1,
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-8,
        }
    else:
        optimizer = {
            "optim": "adafactor",
            "learning_rate": 1e-5,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0,
            "weight_decay": 0.0,
        }
        batch_size = 256
        if stage == "continual":
            steps = 30_000
            data = DataSettings(dict(OCR_MIXTURE), "rows", 4096, None, "static", 1344)
        elif is_mm1_5:
            steps = 10_000
            data = DataSettings(dict(MM1_5_SFT_MIXTURE), "documents", 2048, None, "dynamic", 672)
        else:
            steps = 10_000
            total = sum(MM1_SFT_MIXTURE.values())
            mixture = {source: examples / total for source, examples in MM1_SFT_MIXTURE.items()}
            data = DataSettings(mixture, "documents", 2048, None, "static", 1344)
    return Recipe(
        model=name,
        stage=stage,
        parameters=number,
        batch_size=batch_size,
        arguments={
            "max_steps": steps,
            **optimizer,
            "max_grad_norm": 1.0,
            "bf16": True,
            # Trainer must use the batches of the data stream unchanged. When it resumes, it must not skip batches,
            # because the stream restores its own position. It must not drop columns. It must not distribute rows over
            # the ranks, because the tiles of a batch belong to the rows of the same rank.
            "ignore_data_skip": True,
            "remove_unused_columns": False,
            "accelerator_config": {"dispatch_batches": False, "split_batches": False},
        },
        z_loss_coef=1e-4 if stage == "pretrain" and name == "mm1-30b" else 0.0,
        data=data,
    )


def decoder_size(model_or_config: MM1ForConditionalGeneration | MM1Config) -> int:
    """
    The N of the learning-rate law: the number of parameters of the decoder without embeddings and head. An MM1 decoder
    with experts counts as the dense decoder that it was made from, because it uses the same hyper-parameters (MM1,
    section 4.3). Other decoders with experts count with all their experts.

    Args:
        model_or_config: an MM1 or its configuration.
    """
    config = model_or_config if isinstance(model_or_config, MM1Config) else model_or_config.config
    text = config.text_config
    if text.model_type == "mm1_text" and text.num_experts:
        fields_of_text = text.to_dict() | {"num_experts": 0}
        config = MM1Config(**config.to_dict() | {"text_config": fields_of_text})
        return count_parameters(config).decoder.parameters
    return count_parameters(model_or_config).decoder.parameters


def peak_learning_rate(decoder_parameters: int) -> float:
    """
    The peak learning rate by MM1's law (section 3.4): `exp(-0.4214 ln N - 0.5535)`.

    Args:
        decoder_parameters: N, the number of parameters of the decoder without embeddings and head.

    Example:

    ```python
    >>> from mm1_hf.training.recipes import peak_learning_rate

    >>> f"{peak_learning_rate(1_200_000_000):.1e}"
    '8.6e-05'

    ```
    """
    return math.exp(-0.4214 * math.log(decoder_parameters) - 0.5535)


def accumulation_steps(batch_size: int, num_devices: int, rows_per_device: int = 1) -> int:
    """
    Number of forward passes of each device in one optimizer step.

    Args:
        batch_size: number of rows of the step, over all devices.
        num_devices: number of ranks that read different rows.
        rows_per_device: number of rows of one forward pass on one device.

    Raises:
        ValueError: the batch is not a whole number of forward passes over all devices.
    """
    at_once = num_devices * rows_per_device
    if at_once < 1 or batch_size % at_once:
        raise ValueError(
            f"A batch of {batch_size} rows does not divide into passes of {num_devices} devices x {rows_per_device} "
            f"rows. Choose numbers of devices and rows whose product divides {batch_size}, such as "
            f"{math.gcd(batch_size, num_devices)} devices with 1 row each."
        )
    return batch_size // at_once
