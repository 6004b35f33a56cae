"""The `any-to-any` pipeline without torchvision, which transformers' own pipeline requires although MM1 does not."""

from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.pipelines.any_to_any import AnyToAnyPipeline
from transformers.pipelines.base import Pipeline

from .model.modeling_mm1 import MM1PreTrainedModel


class MM1AnyToAnyPipeline(AnyToAnyPipeline):
    """transformers' `any-to-any` pipeline, which does not require torchvision if the model is an MM1."""

    def __init__(self, *args, **kwargs):
        model = kwargs["model"] if "model" in kwargs else args[0]
        if isinstance(model, MM1PreTrainedModel):
            Pipeline.__init__(self, *args, **kwargs)
            self.check_model_type(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
        else:
            super().__init__(*args, **kwargs)
