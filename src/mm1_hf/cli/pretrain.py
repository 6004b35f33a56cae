"""`mm1 pretrain`: pre-training from a settings file."""

from dataclasses import replace

from mm1_hf.cli.models import find_model
from mm1_hf.training.runs import train
from mm1_hf.training.settings import PretrainingSettings, load_settings


def run(config: str) -> None:
    """Pre-trains as a YAML or JSON file says, or resumes."""
    settings = load_settings(PretrainingSettings, config)
    train(replace(settings, model=find_model(settings.model)))
