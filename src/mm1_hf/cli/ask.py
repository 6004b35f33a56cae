"""`mm1 ask`: one question to a saved model."""

from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import mm1_hf  # noqa: F401 - registers MM1 with the Auto classes
from mm1_hf.cli.models import find_model
from mm1_hf.evaluation.answering import answer
from mm1_hf.model.image_inputs import open_image
from mm1_hf.reporting.printable import printable
from mm1_hf.training.machine import this_machine


def run(model: str, image: str, question: str) -> None:
    """
    Prints a saved model's answer to a question about one image.

    Raises:
        ValueError: there is no such image or model.
    """
    opened, model = _opened(image), find_model(model)
    processor = AutoProcessor.from_pretrained(model)
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype="auto").to(this_machine().device).eval()
    print(printable(answer(loaded, processor, [(opened, question)], max_new_tokens=64)[0], keep="\n\t"))


def _opened(image: str) -> Image.Image:
    if not image.startswith(("http://", "https://")) and not Path(image).is_file():
        raise ValueError(f"There is no file {image}. Give the file or the URL of an image.")
    try:
        opened = open_image(image)
        opened.load()
    except Exception as error:
        # Pillow's decoders raise exceptions of nearly any type for broken files.
        raise ValueError(f"{image} cannot be read as an image: {str(error) or type(error).__name__}.") from error
    return opened
