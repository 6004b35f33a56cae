"""Weights split over ranks, by the plans in the configurations."""

import torch
from ranks import run_ranks, tensor_parallel
from tiny import tiny_vision

from mm1_hf import MM1Config, MM1ConnectorConfig, MM1ForConditionalGeneration, MM1TextConfig


def test_two_ranks_read_images_and_generate_as_one_and_save_what_one_loads(tmp_path):
    config = MM1Config(
        vision_config=tiny_vision().config,
        text_config=MM1TextConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=1,
        ),
        connector_config=MM1ConnectorConfig(num_tokens=4, hidden_size=16, depth=1),
        image_token_id=3,
    )
    torch.manual_seed(0)
    model = MM1ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    inputs = {
        "input_ids": torch.cat([torch.full((2, 4), 3), torch.randint(4, 96, (2, 6))], dim=1),
        "attention_mask": torch.ones(2, 10, dtype=torch.long),
        "pixel_values": torch.rand(2, 3, 56, 56),
    }
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)

    for rank in run_ranks(tensor_parallel, tmp_path, str(tmp_path), inputs):
        assert rank["local"].tolist() == [16, 32], "half of the queries' rows"
        torch.testing.assert_close(rank["logits"], logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(rank["tokens"], tokens)

    again = MM1ForConditionalGeneration.from_pretrained(tmp_path / "saved").state_dict()
    assert again.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again[name], weight, rtol=0, atol=0, msg=name)
