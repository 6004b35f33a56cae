"""MM1 and MM1.5 as a first-class Hugging Face model. Importing the package registers it with transformers."""

from .assemble import assemble
from .model.configuration_aim import AIMVisionConfig
from .model.configuration_mm1 import MM1Config, MM1ConnectorConfig, MM1TextConfig, preset_names
from .model.image_processing_mm1 import MM1ImageProcessor
from .model.modeling_aim import AIMVisionModel
from .model.modeling_mm1 import MM1ForConditionalGeneration, MM1Model, MM1PreTrainedModel
from .model.modeling_mm1_text import MM1TextForCausalLM, MM1TextModel, MM1TextPreTrainedModel
from .model.processing_mm1 import MM1Processor
from .registration import register
from .upcycling import average_experts, upcycle


__version__ = "0.1.0"

register()

__all__ = [
    "AIMVisionConfig",
    "AIMVisionModel",
    "MM1Config",
    "MM1ConnectorConfig",
    "MM1ForConditionalGeneration",
    "MM1ImageProcessor",
    "MM1Model",
    "MM1PreTrainedModel",
    "MM1Processor",
    "MM1TextConfig",
    "MM1TextForCausalLM",
    "MM1TextModel",
    "MM1TextPreTrainedModel",
    "assemble",
    "average_experts",
    "preset_names",
    "register",
    "upcycle",
]
