"""
MM1 in lmms-eval: a model of this package for its `--model`, and few-shot tasks for its `--include_path`, whose
demonstrations have images.

Importing this module does not need lmms-eval.
"""

from pathlib import Path
from typing import Any


# The folders of the few-shot tasks: for chat models, and for models that continue a text.
TASKS = Path(__file__).parent / "few_shot"
TEXT_TASKS = Path(__file__).parent / "few_shot_text"


def manifest() -> Any:
    """What lmms-eval's registry of models holds of this package, as its entry point gives it."""
    from lmms_eval.models.registry_v2 import ModelManifest  # ty: ignore[import-not-found]

    return ModelManifest(
        model_id="mm1_hf",
        simple_class_path=f"{__name__}.model.MM1Text",
        chat_class_path=f"{__name__}.model.MM1Chat",
    )
