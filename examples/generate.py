"""
Asks a model a question about images.

    python examples/generate.py --model lora-mm1 --image picture.png "Describe the picture."

The model can be any folder that another example wrote: a whole model, or an adapter, which is loaded with its base
model.
"""

import argparse

from transformers import AutoModelForImageTextToText, AutoProcessor

import mm1_hf  # noqa: F401 - registers MM1 with the Auto classes
from mm1_hf.training.machine import this_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a model")
    parser.add_argument(
        "--image", action="append", default=[], help="file or URL of an image; repeat the option for several images"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="maximum length of the answer in tokens (default: 64)"
    )
    parser.add_argument("question")
    options = parser.parse_args()

    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto").to(this_machine().device).eval()
    processor = AutoProcessor.from_pretrained(options.model)
    content = [{"type": "image", "image": image} for image in options.image]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": options.question}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)
    tokens = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)
    print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())


if __name__ == "__main__":
    main()
