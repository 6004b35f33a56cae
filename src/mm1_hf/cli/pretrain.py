"""`mm1 pretrain`: pre-training from a settings file."""

from mm1_hf.training.runs import train
from mm1_hf.training.settings import PretrainingSettings, load_settings


def run(config: str) -> None:
    """Pre-trains as a YAML or JSON file says, or resumes."""
    train(load_settings(PretrainingSettings, config))
