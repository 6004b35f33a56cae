import pytest
import torch

from mm1_hf.quickstart.embedded_parts import load_decoder, load_vision_encoder, package_folder


def test_the_decoder_knows_what_it_learned():
    model, tokenizer = load_decoder()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of Japan?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert "Tokyo" in tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])


@torch.no_grad()
def test_the_encoder_computes_what_its_file_computes():
    """The expected values are onnxruntime's (1.31.1), from the file itself: tokens 0 (class), 1, 100 and 256."""
    encoder = load_vision_encoder()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 22_056_192
    rows, columns = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    image = torch.stack([torch.sin(rows / 17 + k) * torch.cos(columns / 23 - k) for k in range(3)])
    outputs = encoder(image[None], output_hidden_states=True)
    tokens = [0, 1, 100, 256]
    layer_11 = [[0.0223852, 0.2773581], [-0.3503389, 0.2229752], [-0.2681558, 0.6906859], [-0.3261454, 0.2781664]]
    last = [[-0.7297568, -0.1545824], [-0.3519336, -0.9140583], [-0.1109916, 1.6360353], [-0.3843904, -0.1695913]]
    for given, expected in ((outputs.hidden_states[-2], layer_11), (outputs.last_hidden_state, last)):
        torch.testing.assert_close(given[0, tokens, :2], torch.tensor(expected), rtol=0, atol=1e-4)


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match=r"parts-of-nothing is not installed.*make quickstart"):
        package_folder("parts_of_nothing", "parts-of-nothing")
