"""The experts' capacity: AXLearn's drop rule with a row as the group, against a loop over the tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_vision

from mm1_hf import MM1Config, MM1ForConditionalGeneration, MM1TextConfig, MM1TextForCausalLM
from mm1_hf.model.modeling_mm1_text import MM1TextTopKRouter, choices_within_capacity


TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "moe_layer_period": 1,
}
IDS = torch.randint(3, 63, (3, 12), generator=torch.Generator().manual_seed(0))
# Room for 12 * 0.5 / 4 = 1.5, so 1 choice of each expert's.
TIGHT = 0.5


def within_capacity(rows: list[list[list[int]]], masks: list[list[int]], num_experts: int, factor: float):
    """The rule, a token at a time: `rows[row][token][choice]` is an expert."""
    kept = [[[False for _ in token] for token in row] for row in rows]
    for number, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        room = [max(1, int(sum(1 for real in mask if real) * factor / num_experts))] * num_experts
        for choice in range(len(row[0])):
            for token, experts in enumerate(row):
                if mask[token] and room[experts[choice]] > 0:
                    room[experts[choice]] -= 1
                    kept[number][token][choice] = True
    return kept


@given(data=st.data(), factor=st.sampled_from([0.1, 0.5, 1.0, 1.25, 2.0, 3, 100.0]))
@settings(deadline=None, max_examples=200)
def test_the_rule_is_axlearn_s(data, factor):
    num_experts, rows, length = (data.draw(st.integers(*span)) for span in ((2, 6), (1, 3), (1, 9)))
    top_k = data.draw(st.integers(1, min(3, num_experts)))
    token = st.permutations(range(num_experts)).map(lambda order: order[:top_k])
    experts = data.draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=rows, max_size=rows))
    # Numbers of segments mark real tokens too, and padding may stand anywhere.
    mark = st.sampled_from([0, 1, 1, 1, 2])
    masks = data.draw(st.lists(st.lists(mark, min_size=length, max_size=length), min_size=rows, max_size=rows))
    kept = choices_within_capacity(torch.tensor(experts).flatten(0, 1), torch.tensor(masks), num_experts, factor)
    expected = within_capacity(experts, masks, num_experts, factor)
    assert kept.view(rows, length, top_k).tolist() == expected


def test_a_drop_is_a_zero_gate_and_the_others_keep_theirs():
    torch.manual_seed(0)
    router = MM1TextTopKRouter(MM1TextConfig(**TEXT, expert_capacity_factor=1.0))
    torch.nn.init.normal_(router.weight)
    hidden, mask = torch.randn(2 * 12, 32), torch.ones(2, 12)
    logits, free, experts = router(hidden)
    limited_logits, gates, limited_experts = router(hidden, mask)
    # Statistics are taken before capacity.
    assert torch.equal(logits, limited_logits) and torch.equal(experts, limited_experts)
    kept = torch.tensor(within_capacity(experts.view(2, 12, 2).tolist(), mask.tolist(), 4, 1.0)).flatten(0, 1)
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(gates, torch.where(kept, free, 0.0))


def decoder(**fields) -> MM1TextForCausalLM:
    model = MM1TextForCausalLM(MM1TextConfig(**{**TEXT, "expert_capacity_factor": TIGHT, **fields}))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model.eval()


def without_limit(model: MM1TextForCausalLM) -> MM1TextForCausalLM:
    free = decoder(expert_capacity_factor=None)
    free.load_state_dict(model.state_dict())
    return free


def limited_logits(model: MM1TextForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of a model without a limit whose gates a hook sets to 0 by the loop above."""
    free = without_limit(model)

    def drop(module, inputs, output):
        logits, gates, experts = output
        chosen = experts.view(*ids.shape, -1).tolist()
        kept = within_capacity(chosen, mask.tolist(), TEXT["num_experts"], model.config.expert_capacity_factor)
        return logits, gates * torch.tensor(kept).flatten(0, 1), experts

    for layer in free.model.layers:
        layer.mlp.gate.register_forward_hook(drop)
    return free(ids, attention_mask=mask).logits


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("padding", [0, 4])
def test_every_experts_kernel_drops_the_same(implementation, padding):
    model = decoder()
    mask = torch.ones_like(IDS)
    mask[1, : padding // 2] = 0
    mask[2, 12 - padding :] = 0
    expected = limited_logits(model, IDS, mask)
    model.set_experts_implementation(implementation)
    logits = model(IDS, attention_mask=mask, labels=IDS).logits
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-5, rtol=1e-5)
    assert (without_limit(model)(IDS, attention_mask=mask).logits - expected)[real].abs().max() > 0.01


def test_dropped_choices_teach_their_experts_nothing():
    model = decoder(
        num_experts_per_tok=1, moe_layer_period=2, router_aux_loss_coef=0.0, router_z_loss_coef=0.0
    ).train()
    seen = []
    model.model.layers[1].mlp.gate.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(IDS, labels=IDS).loss.backward()
    (_, gates, _), fed = seen
    dropped = (gates == 0).all(-1).view(3, 12)
    assert 0 < dropped.sum() < 36
    # Only the residual carries such a token on.
    assert fed[dropped].abs().max() == 0 and fed[~dropped].abs().min() > 0


def test_padding_takes_no_room():
    """On either side and however long, it changes nothing, and a row's neighbours in the batch never do."""
    model = decoder(expert_capacity_factor=1.0)
    alone = model(IDS[:1], labels=IDS[:1])
    for left, right in ((0, 5), (5, 0), (3, 20)):
        ids = torch.nn.functional.pad(IDS[:1], (left, right), value=9)
        mask = torch.nn.functional.pad(torch.ones_like(IDS[:1]), (left, right))
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, left] = -100
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(ids, attention_mask=mask, position_ids=positions, labels=labels)
        torch.testing.assert_close(output.logits[:, left : left + 12], alone.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.loss, alone.loss)
        packed = model(ids, segment_ids=mask, labels=labels)
        torch.testing.assert_close(packed.logits[:, left : left + 12], alone.logits, atol=1e-5, rtol=1e-5)
    batch = model(IDS, labels=IDS)
    torch.testing.assert_close(batch.logits[:1], alone.logits, atol=1e-5, rtol=1e-5)


def test_segments_of_a_row_share_its_capacity():
    model = decoder()
    segments = torch.tensor([[1] * 5 + [2] * 7] * 3)
    seen = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(IDS, segment_ids=segments, labels=IDS)
    _, gates, experts = seen[0]
    kept = within_capacity(experts.view(3, 12, 2).tolist(), [[1] * 12] * 3, 4, TIGHT)
    assert torch.equal(gates.ne(0), torch.tensor(kept).flatten(0, 1))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_generation_has_no_limit(use_cache, training):
    model = decoder().train(training)
    kwargs = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "use_cache": use_cache}
    expected = without_limit(model).generate(IDS, **kwargs)
    assert torch.equal(model.generate(IDS, **kwargs), expected)
    beams = model.generate(IDS, num_beams=3, **kwargs)
    assert torch.equal(beams, without_limit(model).generate(IDS, num_beams=3, **kwargs))


def test_the_limit_holds_in_training_and_where_a_loss_is_computed():
    model = decoder()
    free, limited = without_limit(model)(IDS).logits, limited_logits(model, IDS, torch.ones_like(IDS))
    same = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(model(IDS).logits, free, **same)
    torch.testing.assert_close(model(IDS, use_expert_capacity=True).logits, limited, **same)
    torch.testing.assert_close(model(IDS, labels=IDS).logits, limited, **same)
    torch.testing.assert_close(model(IDS, labels=IDS, use_expert_capacity=False).logits, free, **same)
    model.train()
    torch.testing.assert_close(model(IDS).logits, limited, **same)
    torch.testing.assert_close(model(IDS, use_expert_capacity=False).logits, free, **same)
    evaluated, trained = (model.train(mode)(IDS, labels=IDS).loss for mode in (False, True))
    torch.testing.assert_close(evaluated, trained)


def test_room_for_all_drops_nothing():
    # Top-2 of 4 experts: at most all 12 tokens of a row choose one expert.
    model = decoder(expert_capacity_factor=4.0)
    expected = without_limit(model)(IDS, labels=IDS)
    output = model(IDS, labels=IDS)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss)


def test_checkpointing_drops_the_same_choices():
    model = decoder().train()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)


def test_inside_an_mm1():
    """Image tokens take room like others, and `generate()` is free."""
    config = MM1Config(
        vision_config=tiny_vision().config,
        text_config=MM1TextConfig(**TEXT, expert_capacity_factor=TIGHT, pad_token_id=0, eos_token_id=1),
        connector_config={"num_tokens": 4, "hidden_size": 16, "depth": 1},
        image_token_id=63,
    )
    torch.manual_seed(0)
    model = MM1ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    ids = torch.cat([torch.full((1, 4), 63), IDS[:1]], dim=1)
    batch = {"input_ids": ids, "pixel_values": torch.rand(1, 3, 56, 56)}
    embeds = model.get_input_embeddings()(ids)
    embeds[:, :4] = model.get_image_features(batch["pixel_values"]).pooler_output
    labels = ids.masked_fill(ids == 63, -100)
    decoder_alone = MM1TextForCausalLM(config.text_config).eval()
    decoder_alone.model.load_state_dict(model.model.language_model.state_dict())
    decoder_alone.lm_head.load_state_dict(model.lm_head.state_dict())
    expected = decoder_alone(inputs_embeds=embeds, labels=labels)
    torch.testing.assert_close(model.eval()(**batch, labels=labels).logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.train()(**batch, labels=labels).loss, expected.loss, atol=1e-5, rtol=1e-5)
    free = decoder_alone(inputs_embeds=embeds, use_expert_capacity=False).logits
    assert (free - expected.logits).abs().max() > 0.01
    torch.testing.assert_close(model.eval()(**batch).logits, free, atol=1e-5, rtol=1e-5)
    for use_cache in (True, False):
        kwargs = {"max_new_tokens": 1, "do_sample": False, "use_cache": use_cache}
        scores = model.train().generate(**batch, output_logits=True, return_dict_in_generate=True, **kwargs).logits[0]
        torch.testing.assert_close(scores, free[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [0, -1.0])
def test_a_factor_that_leaves_no_room_is_refused(factor):
    with pytest.raises(ValueError, match=f"expert_capacity_factor={factor} must be above 0"):
        MM1TextConfig(**TEXT, expert_capacity_factor=factor)
