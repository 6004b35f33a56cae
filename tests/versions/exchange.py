"""
What one version of transformers saves, another one loads, with equal inputs and logits: with the package, and by the files
that travel with the model.

    PYTHONPATH=... python tests/versions/exchange.py save FOLDER
    PYTHONPATH=... python tests/versions/exchange.py load FOLDER...            # with the package
    PYTHONPATH=... python tests/versions/exchange.py load --stranger FOLDER... # where it is not installed
"""

import json
import sys
from pathlib import Path


arguments = sys.argv[1:]
if "--stranger" in arguments:
    arguments.remove("--stranger")
    # As if it were not installed.
    sys.modules["mm1_hf"] = None
else:
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    import mm1_hf

import torch  # noqa: E402 - after the package was hidden, or not
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402


TOLERANCE = 1e-4


def chat() -> list[dict]:
    image = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Grey."}]}]


def results(folder: Path) -> dict[str, torch.Tensor]:
    """Inputs of a chat and the logits that they lead to."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="float32").eval()
    inputs = processor.apply_chat_template(
        chat(), tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    masks = inputs.pop("assistant_masks")
    with torch.no_grad():
        logits = model(**inputs).logits
        answer = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=256)
    found = {**inputs, "assistant_masks": masks, "logits": logits, "answer": answer}
    return {name: value.contiguous() for name, value in found.items()}


def save(folder: Path) -> None:
    from tiny import TINY_DECODERS, byte_tokenizer, tiny_vision

    for number, (name, decoder) in enumerate(TINY_DECODERS.items()):
        torch.manual_seed(number)
        model, processor = mm1_hf.assemble(
            tiny_vision("aim" if name == "mm1_text" else "clip"),
            decoder().eval(),
            mm1_hf.MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=1),
            tokenizer=byte_tokenizer(),
            verbose=False,
        )
        for parameter_name, weight in model.named_parameters():
            # Random enough that logits differ by more than kernels do.
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.15)
            assert torch.isfinite(weight).all(), parameter_name
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        save_file(results(folder / name), folder / f"{name}.safetensors")


def load(folders: list[Path]) -> int:
    """Prints a line of JSON for each saved model: where it differs from what was saved beside it."""
    wrong = 0
    for expected_file in sorted(file for folder in folders for file in folder.glob("*.safetensors")):
        expected = load_file(expected_file)
        try:
            found = results(expected_file.with_suffix(""))
        except Exception as error:
            differs = [f"{type(error).__name__}: {error}"]
        else:
            differs = [
                name
                for name in sorted({*expected, *found})
                if name not in found
                or name not in expected
                or found[name].shape != expected[name].shape
                or not torch.allclose(found[name].double(), expected[name].double(), rtol=0, atol=TOLERANCE)
            ]
        wrong += bool(differs)
        name = f"{expected_file.parent.name}/{expected_file.stem}"
        print(json.dumps({"transformers": transformers.__version__, "saved": name, "differs": differs}), flush=True)
    return wrong


if __name__ == "__main__":
    action, *paths = arguments
    folders = [Path(path).resolve() for path in paths]
    sys.exit(save(*folders) if action == "save" else load(folders))
