import pytest
import torch
from tiny import tiny_mm1, tiny_vision

from mm1_hf import (
    MM1Config,
    MM1ForConditionalGeneration,
    MM1TextConfig,
    MM1TextForCausalLM,
    MM1TextModel,
    average_experts,
    upcycle,
)
from mm1_hf.model.modeling_mm1_text import MM1TextTopKRouter


TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
IDS = torch.randint(3, 63, (2, 11), generator=torch.Generator().manual_seed(0))


def randomised(model):
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model.eval()


def decoder(**fields):
    return randomised(MM1TextForCausalLM(MM1TextConfig(**{**TEXT, **fields})))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("fields", [{}, {"moe_layer_period": 1, "num_experts_per_tok": 3}, {"num_experts_per_tok": 1}])
def test_logits_begin_as_the_dense_model_s(fields, implementation):
    dense = decoder(attention_bias=True, qk_norm=True)
    sparse = upcycle(dense, 4, **fields)
    sparse.set_experts_implementation(implementation)
    torch.testing.assert_close(sparse(IDS).logits, dense(IDS).logits, atol=1e-5, rtol=1e-5)


def test_what_the_identity_rests_on():
    """Gates that sum to less, or dropped choices, give other logits: the comparison above can fail."""
    dense = decoder()
    for fields in ({"norm_topk_prob": False}, {"expert_capacity_factor": 0.25}):
        sparse = upcycle(dense, 4, **fields)
        logits = sparse(IDS, labels=IDS).logits
        assert (logits - dense(IDS).logits).abs().max() > 0.01


def test_an_mm1_is_upcycled_as_a_whole():
    config = MM1Config(
        vision_config=tiny_vision().config,
        text_config=MM1TextConfig(**TEXT, tie_word_embeddings=True),
        connector_config={"num_tokens": 4, "hidden_size": 16, "depth": 1},
        image_token_id=63,
    )
    dense = randomised(MM1ForConditionalGeneration(config))
    dense.generation_config.max_new_tokens = 7
    dense.set_attn_implementation("eager")
    before = {name: weight.clone() for name, weight in dense.state_dict().items()}
    sparse = upcycle(dense, 8, router_aux_loss_coef=0.02)
    batch = {"input_ids": torch.tensor([[63] * 4 + [5, 6, 7]]), "pixel_values": torch.rand(1, 3, 56, 56)}
    torch.testing.assert_close(sparse(**batch).logits, dense(**batch).logits, atol=1e-5, rtol=1e-5)
    text_config = sparse.config.text_config
    assert sparse.model.language_model.config._attn_implementation == text_config._attn_implementation == "eager"
    assert (text_config.num_experts, text_config.router_aux_loss_coef) == (8, 0.02)
    # A dense decoder has no weight of its own to hand on.
    assert config.text_config.router_aux_loss_coef == 0.0
    assert upcycle(dense, 2).config.text_config.router_aux_loss_coef == 0.01
    # The plans are those of a sparse decoder.
    assert text_config.base_model_ep_plan and "layers.*.mlp.experts" in text_config.base_model_tp_plan
    assert sparse.generation_config.max_new_tokens == 7
    assert sparse.lm_head.weight is sparse.get_input_embeddings().weight
    # The dense model stays as it was, and shares no memory with the sparse one.
    assert dense.config.text_config.num_experts == 0
    torch.nn.init.zeros_(sparse.lm_head.weight)
    assert all(torch.equal(weight, before[name]) for name, weight in dense.state_dict().items())


def test_it_saves_loads_and_trains(tmp_path):
    dense = decoder()
    sparse = upcycle(dense, 4)
    sparse.save_pretrained(tmp_path)
    again = MM1TextForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS).logits, dense(IDS).logits, atol=1e-5, rtol=1e-5)
    again.train()(IDS, labels=IDS).loss.backward()
    # Equal experts part by what their tokens teach them; no router stands still.
    experts = again.model.layers[1].mlp.experts
    assert not torch.equal(experts.down_proj.grad[0], experts.down_proj.grad[1])
    assert again.model.layers[1].mlp.gate.weight.grad.abs().max() > 0


def test_dtype_mode_and_fresh_routers():
    dense = MM1TextModel(MM1TextConfig(**TEXT)).bfloat16()
    sparse = upcycle(dense, 4)
    assert isinstance(sparse, MM1TextModel) and sparse.training == dense.training
    assert {parameter.dtype for parameter in sparse.parameters()} == {torch.bfloat16}
    routers = [module.weight for module in sparse.modules() if isinstance(module, MM1TextTopKRouter)]
    assert len(routers) == 2
    for weight in routers:
        assert 0.015 < weight.float().std() < 0.025
    assert not torch.equal(*routers)


def test_noise_parts_the_experts_as_far_as_asked_for():
    dense = decoder()
    torch.manual_seed(1)
    sparse = upcycle(dense, 4, noise=0.05)
    down = dense.model.layers[1].mlp.down_proj.weight
    for expert in sparse.model.layers[1].mlp.experts.down_proj:
        assert 0.045 < ((expert - down).std() / down.std()).item() < 0.055
    assert 0 < (sparse(IDS).logits - dense(IDS).logits).abs().mean() < dense(IDS).logits.std()
    # The layers without experts stay.
    assert torch.equal(sparse.model.layers[0].mlp.down_proj.weight, dense.model.layers[0].mlp.down_proj.weight)


@pytest.mark.parametrize("fields", [{}, {"moe_layer_period": 1}])
def test_averaging_undoes_upcycling(fields):
    dense = decoder(tie_word_embeddings=True)
    dense.generation_config.max_new_tokens = 7
    again = average_experts(upcycle(dense, 4, expert_capacity_factor=2.0, **fields))
    torch.testing.assert_close(again(IDS).logits, dense(IDS).logits, atol=1e-5, rtol=1e-5)
    assert again.config.num_experts == 0 and again.state_dict().keys() == dense.state_dict().keys()
    assert again.generation_config.max_new_tokens == 7 and again.lm_head.weight is again.model.embed_tokens.weight


def test_the_average_is_that_of_the_experts():
    sparse = randomised(MM1TextForCausalLM(MM1TextConfig(**TEXT, num_experts=4, moe_layer_period=1)))
    dense = average_experts(sparse)
    for before, after in zip(sparse.model.layers, dense.model.layers, strict=True):
        gates, ups = before.mlp.experts.gate_up_proj.mean(0).chunk(2)
        torch.testing.assert_close(after.mlp.gate_proj.weight, gates)
        torch.testing.assert_close(after.mlp.up_proj.weight, ups)
        torch.testing.assert_close(after.mlp.down_proj.weight, before.mlp.experts.down_proj.mean(0))


def test_what_it_refuses():
    with pytest.raises(ValueError, match="this decoder is 'llama'"):
        upcycle(tiny_mm1()[0], 4)
    with pytest.raises(ValueError, match="sparse already, with num_experts=4"):
        upcycle(upcycle(decoder(), 4), 8)
    with pytest.raises(ValueError, match="moe_intermediate_size=16, but copies of the dense layers are 48 wide"):
        upcycle(decoder(), 4, moe_intermediate_size=16)
    with pytest.raises(ValueError, match="num_experts_per_tok=5"):
        upcycle(decoder(), 4, num_experts_per_tok=5)
    with pytest.raises(ValueError, match="noise=-1 is negative"):
        upcycle(decoder(), 4, noise=-1)
    with pytest.raises(ValueError, match="dense already"):
        average_experts(decoder())
    with pytest.raises(ValueError, match="The experts are 16 wide and the dense layers 48"):
        average_experts(decoder(num_experts=4, moe_intermediate_size=16))
