import pytest
import torch

from mm1_hf.quickstart.parts import load_decoder, load_vision_encoder, package_folder


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
def test_the_encoder_tells_similar_pictures_from_others():
    """Trained features of a picture and of its mirror image are nearer to each other than to another picture's; random
    weights do not tell them apart like that."""
    encoder = load_vision_encoder()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 22_056_192 - 384
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.linspace(-2, 2, 112), torch.linspace(-2, 2, 112), indexing="ij")
    disc = ((rows**2 + (columns - 0.5) ** 2) < 0.5).float().expand(3, -1, -1) * 4 - 2
    stripes = torch.sin(columns * 12).sign().expand(3, -1, -1)
    features = encoder(torch.stack([disc, disc.flip(-1), stripes]), output_hidden_states=True).hidden_states[-2]
    pooled = torch.nn.functional.normalize(features[:, 1:].mean(dim=1), dim=-1)
    similarity = pooled @ pooled.T
    assert similarity[0, 1] > 0.95 and similarity[0, 2] < 0.6


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match=r"parts-of-nothing is not installed.*make quickstart"):
        package_folder("parts_of_nothing", "parts-of-nothing")
