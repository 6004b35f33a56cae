"""`mm1 sft`: fine-tuning from a settings file."""

from mm1_hf.training.runs import train
from mm1_hf.training.settings import SFTSettings, load_settings


def run(config: str) -> None:
    """Fine-tunes as a YAML or JSON file says, or resumes."""
    train(load_settings(SFTSettings, config))
