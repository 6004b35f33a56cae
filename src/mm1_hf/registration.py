"""Registers MM1 with transformers, so that Auto classes, pipelines and serving find it after `import mm1_hf`."""

from importlib.resources import files

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_torchvision_available

from .model.configuration_aim import AIMVisionConfig
from .model.configuration_mm1 import MM1Config, MM1ConnectorConfig, MM1TextConfig
from .model.image_processing_mm1 import MM1ImageProcessor
from .model.modeling_aim import AIMVisionModel
from .model.modeling_mm1 import MM1ForConditionalGeneration, MM1Model
from .model.modeling_mm1_text import MM1TextForCausalLM, MM1TextModel
from .model.processing_mm1 import MM1Processor


# The files that are saved with a model as remote code: all modules of `model/`, which import only each other.
MODEL_FILES = tuple(
    sorted(
        file.name
        for file in files("mm1_hf.model").iterdir()
        if file.name.endswith(".py") and file.name != "__init__.py"
    )
)


def register() -> None:
    """
    Registers MM1 with transformers: Auto classes, pipelines and serving. Importing the package calls it; calling it
    again has no effect.

    Example:

    ```python
    >>> import mm1_hf
    >>> from transformers import AutoConfig

    >>> AutoConfig.for_model("mm1").connector_config.num_tokens
    144

    ```
    """
    for config in (AIMVisionConfig, MM1TextConfig, MM1ConnectorConfig, MM1Config):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(AIMVisionConfig, AIMVisionModel, exist_ok=True)
    AutoModel.register(MM1TextConfig, MM1TextModel, exist_ok=True)
    AutoModel.register(MM1Config, MM1Model, exist_ok=True)
    AutoModelForCausalLM.register(MM1TextConfig, MM1TextForCausalLM, exist_ok=True)
    AutoModelForCausalLM.register(MM1Config, MM1ForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(MM1Config, MM1ForConditionalGeneration, exist_ok=True)
    AutoModelForMultimodalLM.register(MM1Config, MM1ForConditionalGeneration, exist_ok=True)
    # "pil" is transformers' key for image processors that need no torchvision.
    AutoImageProcessor.register(MM1Config, image_processor_classes={"pil": MM1ImageProcessor}, exist_ok=True)
    AutoProcessor.register(MM1Config, MM1Processor, exist_ok=True)

    # Saving a model copies MODEL_FILES beside its weights, so that it can be loaded without this package.
    AIMVisionModel.register_for_auto_class("AutoModel")
    MM1TextModel.register_for_auto_class("AutoModel")
    MM1TextForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    MM1Model.register_for_auto_class("AutoModel")
    MM1ForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
    MM1ImageProcessor.register_for_auto_class("AutoImageProcessor")
    MM1Processor.register_for_auto_class("AutoProcessor")

    # vLLM looks up the class of a saved model here, unless it may run the code that lies beside the model.
    vars(transformers)[MM1ForConditionalGeneration.__name__] = MM1ForConditionalGeneration
    # Pipelines and `transformers serve` look up class names in these tables, which registering does not change.
    modeling_auto.MODEL_MAPPING_NAMES["aim_vision_model"] = "AIMVisionModel"
    modeling_auto.MODEL_MAPPING_NAMES["mm1"] = "MM1Model"
    modeling_auto.MODEL_MAPPING_NAMES["mm1_text"] = "MM1TextModel"
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["mm1_text"] = "MM1TextForCausalLM"
    # Like Gemma 3, MM1 is in this table too: Trainer's label smoothing shifts the labels only for classes in it.
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["mm1"] = "MM1ForConditionalGeneration"
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["mm1"] = "MM1ForConditionalGeneration"
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["mm1"] = "MM1ForConditionalGeneration"

    if not is_torchvision_available():
        task = PIPELINE_REGISTRY.supported_tasks["any-to-any"]
        if isinstance(task["impl"], str):
            task["impl"] = "mm1_hf.pipelines.MM1AnyToAnyPipeline"
        else:
            # Up to 5.20 the table holds classes, not their names. Can go when a later one is the oldest of the range.
            from .pipelines import MM1AnyToAnyPipeline

            task["impl"] = MM1AnyToAnyPipeline
