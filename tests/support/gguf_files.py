"""Writes small GGUF files."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize


V, D, N, HIDDEN = 64, 32, 4, 64


def write_gguf(path: Path, kind_name: str) -> dict[str, np.ndarray]:
    """A Llama of one layer, as llama.cpp lays it out: neighbouring channels are the pairs of its rotary positions."""
    kind = GGMLQuantizationType[kind_name]
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(N)
    writer.add_head_count_kv(N)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D // N)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*map(chr, range(33, 33 + V - 1)), '!"'])
    writer.add_token_types([1] * V)
    writer.add_token_merges(['! "'])
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (V, D),
        "output_norm.weight": (D,),
        "output.weight": (V, D),
        "blk.0.attn_norm.weight": (D,),
        "blk.0.ffn_norm.weight": (D,),
        **{f"blk.0.attn_{name}.weight": (D, D) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (HIDDEN, D),
        "blk.0.ffn_up.weight": (HIDDEN, D),
        "blk.0.ffn_down.weight": (D, HIDDEN),
    }
    tensors = {name: generator.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        # Norms are never quantised.
        quantised = quantize(tensor, kind if tensor.ndim == 2 else GGMLQuantizationType.F32)
        writer.add_tensor(name, quantised, raw_dtype=kind if tensor.ndim == 2 else None)
        tensors[name] = dequantize(quantised, kind) if tensor.ndim == 2 else tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
