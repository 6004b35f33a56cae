"""A checkpoint far larger than the memory that its conversion may take."""

import json
import struct
import subprocess
import sys

import pytest
from transformers import LlamaConfig

from mm1_hf import MM1TextForCausalLM
from mm1_hf.convert import text_config_of
from mm1_hf.convert.engine import empty_model, target_names


LIMIT = 2.5 * 2**30
# Its own process, which prints the most memory that it ever held.
CONVERSION = """
import resource, sys
from mm1_hf.convert import convert_decoder
convert_decoder(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_checkpoint(folder, config):
    """One file of 4 GB in float32; its zeros, never written, take no room on most disks."""
    model = empty_model(MM1TextForCausalLM, text_config_of(config))
    weights = model.state_dict()
    header, end = {}, 0
    for name in target_names(model):
        start, end = end, end + weights[name].numel() * 4
        header[name] = {"dtype": "F32", "shape": list(weights[name].shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    config.save_pretrained(folder)
    return end


@pytest.mark.slow
def test_4_gb_convert_in_less_than_2_5(tmp_path):
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=17, num_attention_heads=16
    )
    size = write_checkpoint(tmp_path / "source", config)
    assert size > 4e9
    arguments = [str(tmp_path / "source"), str(tmp_path / "converted")]
    run = subprocess.run([sys.executable, "-c", CONVERSION, *arguments], capture_output=True, text=True, check=True)
    assert int(run.stdout.splitlines()[-1]) < LIMIT
    files = list((tmp_path / "converted").glob("*.safetensors"))
    assert len(files) > 3 and sum(file.stat().st_size for file in files) > size
