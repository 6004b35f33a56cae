import pytest
import torch
from gguf_files import D, N, write_gguf
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mm1_hf import MM1TextForCausalLM
from mm1_hf.convert import convert_decoder, convert_gguf


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_a_gguf_decoder_becomes_transformers_own_and_then_mm1_text(kind, tmp_path):
    tensors = write_gguf(tmp_path / "tiny.gguf", kind)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "converted", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    assert type(model) is LlamaForCausalLM
    layer = model.model.layers[0]
    down = torch.from_numpy(tensors["blk.0.ffn_down.weight"])
    torch.testing.assert_close(layer.mlp.down_proj.weight.data, down)
    # Pairs of channels from next to each other to half a head apart.
    query = tensors["blk.0.attn_q.weight"].reshape(N, D // N // 2, 2, D).swapaxes(1, 2).reshape(D, D).copy()
    torch.testing.assert_close(layer.self_attn.q_proj.weight.data, torch.from_numpy(query))
    convert_decoder(tmp_path / "converted", tmp_path / "mm1_text")
    ids = torch.arange(10)[None]
    converted = MM1TextForCausalLM.from_pretrained(tmp_path / "mm1_text")
    torch.testing.assert_close(converted(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_is_no_gguf_file(tmp_path):
    with pytest.raises(ValueError, match=r"is not a GGUF file. Give the path of the \.gguf file itself"):
        convert_gguf(tmp_path, tmp_path / "converted")
