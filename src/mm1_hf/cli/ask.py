"""`mm1 ask`: one question to a saved model."""

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.image_utils import load_image

import mm1_hf  # noqa: F401 - registers MM1 with the Auto classes
from mm1_hf.evaluation.answering import answer


def run(model: str, image: str, question: str) -> None:
    """Prints a saved model's answer to a question about one image."""
    loaded_image = load_image(image)
    processor = AutoProcessor.from_pretrained(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype="auto").to(device).eval()
    print(answer(loaded, processor, [(loaded_image, question)], max_new_tokens=64)[0])
