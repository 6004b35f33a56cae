import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.utils import logging

from mm1_hf import MM1TextConfig, MM1TextForCausalLM, MM1TextModel
from mm1_hf.model.modeling_mm1_text import MM1TextSparseMLP, MM1TextTopKRouter


SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
SPARSE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


def build(**fields) -> MM1TextForCausalLM:
    torch.manual_seed(0)
    model = MM1TextForCausalLM(MM1TextConfig(**{**SIZES, **fields}))
    return randomise(model).eval()


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere: fresh biases are 0 and norms 1, and would hide that one is left out."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


def ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(5))


def twin(source, **fields) -> MM1TextForCausalLM:
    """`mm1_text` with the weights of one of transformers' own models, which must fit key by key."""
    own = {
        name: getattr(source.config, name)
        for name in ("head_dim", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", *SIZES)
        if hasattr(source.config, name)
    }
    model = MM1TextForCausalLM(MM1TextConfig(**{**own, **fields})).eval()
    model.load_state_dict(source.state_dict(), strict=True)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("source", "fields"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), {}),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=16, rms_norm_eps=1e-3)), {}),
        (lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 4}, attention_bias=True)), "bias"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)), {}),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)), {}),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=YARN)), {}),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
            ),
            {},
        ),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    **{**SIZES, "max_position_embeddings": 8},
                    rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
                )
            ),
            {},
        ),
        (lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)), "qwen2"),
        (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)), {"qk_norm": True}),
        (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, attention_bias=True)), "qwen3 bias"),
    ],
    ids=[
        "llama",
        "llama-head-dim",
        "llama-bias",
        "llama-tied",
        "llama-llama3-rope",
        "llama-yarn",
        "llama-linear-rope",
        "llama-dynamic-rope",
        "qwen2",
        "qwen3",
        "qwen3-bias",
    ],
)
def test_logits_equal_transformers_own(source, fields, attention):
    fields = {
        "bias": {"attention_bias": True},
        "qwen2": {"attention_bias": True, "attention_output_bias": False},
        "qwen3 bias": {"attention_bias": True, "qk_norm": True},
    }.get(fields if isinstance(fields, str) else None, fields)
    torch.manual_seed(0)
    source = randomise(source()).eval()
    model = twin(source, **fields)
    for each in (source, model):
        each.set_attn_implementation(attention)
    batch = {"input_ids": ids(), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    batch["attention_mask"][1, :5] = 0
    expected, logits = source(**batch).logits, model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-5, rtol=1e-5)


def qwen3_moe(**fields) -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**{**SIZES, "head_dim": 16, "decoder_sparse_step": 2, **SPARSE, **fields})
    return randomise(Qwen3MoeForCausalLM(config)).eval()


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_sparse_layer_equals_qwen3_moe_s(norm_topk_prob, top_k):
    fields = {**SPARSE, "num_experts_per_tok": top_k, "norm_topk_prob": norm_topk_prob}
    theirs = randomise(Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(**SIZES, **fields)))
    ours = MM1TextSparseMLP(MM1TextConfig(**SIZES, **fields))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    hidden = torch.randn(2, 9, 32)
    expected = theirs(hidden)
    torch.testing.assert_close(ours(hidden), expected[0] if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize("period", [1, 2, 4])
def test_sparse_model_equals_qwen3_moe_s(period):
    source = qwen3_moe(decoder_sparse_step=period, norm_topk_prob=True)
    model = twin(source, qk_norm=True, moe_layer_period=period, **SPARSE)
    sparse = [isinstance(layer.mlp, MM1TextSparseMLP) for layer in model.model.layers]
    assert sparse == {1: [True] * 4, 2: [False, True] * 2, 4: [False] * 3 + [True]}[period]
    ours, theirs = (each(ids(), output_router_logits=True) for each in (model, source))
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    assert len(ours.router_logits) == sum(sparse)
    for own, other in zip(ours.router_logits, theirs.router_logits, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_expert_kernels_agree_with_eager(implementation):
    model = build(**SPARSE)
    results = []
    for name in ("eager", implementation):
        model.set_experts_implementation(name)
        assert model.model.layers[1].mlp.experts.config._experts_implementation == name
        model.zero_grad()
        output = model(ids(), labels=ids())
        output.loss.backward()
        gradients = [p.grad.clone() for n, p in model.named_parameters() if ".mlp." in n]
        results.append([output.logits, *gradients])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how", ["bf16", "autocast"])
def test_router_runs_in_float32(how):
    torch.manual_seed(0)
    router = randomise(MM1TextTopKRouter(MM1TextConfig(**{**SIZES, "num_experts": 8})))
    hidden = torch.randn(64, 32).bfloat16()
    if how == "bf16":
        router = router.bfloat16()
        logits, gates, experts = router(hidden)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, gates, experts = router(hidden)
    exact = hidden.double() @ router.weight.double().T
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, atol=1e-4, rtol=1e-4)
    # What a router in half precision would give is further off than that.
    assert (F.linear(hidden, router.weight.bfloat16()).double() - exact).abs().max() > 1e-3
    chosen = exact.softmax(-1).topk(2)
    assert torch.equal(experts, chosen.indices)
    expected = (chosen.values / chosen.values.sum(-1, keepdim=True)).bfloat16()
    assert gates.dtype == torch.bfloat16
    torch.testing.assert_close(gates, expected)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_a_sparse_model_trains_under_autocast(implementation):
    model = build(**SPARSE).train()
    model.set_experts_implementation(implementation)
    exact = model(ids(), labels=ids()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids(), labels=ids()).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss - exact) / exact < 0.02
    # Experts that no token chose are full tensors of zeros, not None, so every weight has a gradient.
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def declared_loss(model, batch, labels, num_items=None, token_mask=None) -> torch.Tensor:
    """The loss that the documentation declares, from the logits of a plain forward, one target at a time."""
    model_training = model.training
    model.eval()
    output = model(**batch, output_router_logits=model.config.num_experts > 0)
    model.train(model_training)
    logits, config = output.logits.double(), model.config
    terms = [
        (logits[row, column - 1], labels[row, column])
        for row in range(labels.shape[0])
        for column in range(1, labels.shape[1])
        if labels[row, column] != -100
    ]
    total = len(terms) if num_items is None else num_items
    loss = sum(
        row.logsumexp(0) - row[target] + config.z_loss_coef * row.logsumexp(0).square() for row, target in terms
    )
    loss = loss / total
    if config.num_experts:
        aux = 0.0
        for layer in output.router_logits:
            layer = layer.double() if token_mask is None else layer.double()[token_mask.flatten().bool()]
            share = F.one_hot(layer.argmax(-1), config.num_experts).double().mean(0)
            balance = config.num_experts * (share * layer.softmax(-1).mean(0)).sum()
            z = layer.logsumexp(-1).square().mean()
            aux = aux + config.router_aux_loss_coef * balance + config.router_z_loss_coef * z
        if config.aux_loss_reduction == "mean":
            aux = aux / len(output.router_logits)
        loss = loss + len(terms) / total * aux
    return loss


def labelled(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, SIZES["vocab_size"], (2, 12), generator=generator)
    labels = input_ids.clone()
    labels[0, :5] = -100
    labels[1, 7] = -100
    return input_ids, labels


@pytest.mark.parametrize("fields", [{}, {"z_loss_coef": 0.1}, SPARSE, {**SPARSE, "aux_loss_reduction": "mean"}])
@pytest.mark.parametrize("num_items", [None, 50, torch.tensor(50)])
def test_loss_equals_the_declared_formula(fields, num_items):
    model = build(
        **fields, **({"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.3} if "num_experts" in fields else {})
    )
    input_ids, labels = labelled()
    expected = declared_loss(model, {"input_ids": input_ids}, labels, None if num_items is None else 50)
    for training in (False, True):
        loss = model.train(training)(input_ids, labels=labels, num_items_in_batch=num_items).loss
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)


def test_loss_runs_in_float32_in_a_bf16_model():
    model = build().bfloat16()
    input_ids, labels = labelled()
    loss = model(input_ids, labels=labels).loss
    logits = model(input_ids).logits
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("fields", [{}, {**SPARSE, "z_loss_coef": 0.01}])
def test_skipping_logits_changes_neither_loss_nor_gradients(fields):
    model = build(**fields)
    input_ids, labels = labelled()
    results = []
    for skip in (True, False):
        model.zero_grad()
        output = model(input_ids, labels=labels, skip_logits=skip)
        assert (output.logits is None) == skip
        output.loss.backward()
        results.append([output.loss.detach(), *[parameter.grad.clone() for parameter in model.parameters()]])
    for skipped, full in zip(*results, strict=True):
        torch.testing.assert_close(skipped, full, atol=1e-6, rtol=1e-5)


def test_logits_are_skipped_in_training_with_labels_only():
    model = build().train()
    input_ids, labels = labelled()
    assert model(input_ids, labels=labels).logits is None
    assert model(input_ids, labels=labels, skip_logits=False).logits.shape == (2, 12, 67)
    assert model(input_ids).logits.shape == (2, 12, 67)
    assert model.eval()(input_ids, labels=labels).logits.shape == (2, 12, 67)
    with pytest.raises(ValueError, match="needs labels"):
        model(input_ids, skip_logits=True)


def test_labels_that_are_all_ignored_give_a_zero_loss_that_backpropagates():
    model = build(**SPARSE).train()
    input_ids, _ = labelled()
    loss = model(input_ids, labels=torch.full_like(input_ids, -100)).loss
    assert loss == 0
    loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_logits_to_keep_are_the_last_ones_and_leave_the_loss():
    model = build()
    input_ids, labels = labelled()
    full, kept = model(input_ids, labels=labels), model(input_ids, labels=labels, logits_to_keep=3)
    torch.testing.assert_close(kept.logits, full.logits[:, -3:])
    torch.testing.assert_close(kept.loss, full.loss)


def test_gradient_accumulation_adds_up_to_the_declared_loss():
    """Micro-batches of unequal numbers of targets: each weighs its cross-entropy and its router losses by its share."""
    model = build(**SPARSE, router_aux_loss_coef=0.5, router_z_loss_coef=0.1, z_loss_coef=0.01).train()
    micro_batches = [labelled(seed) for seed in (0, 1)]
    micro_batches[1][1][:, :6] = -100
    total = sum(int((labels[:, 1:] != -100).sum()) for _, labels in micro_batches)
    for input_ids, labels in micro_batches:
        model(input_ids, labels=labels, num_items_in_batch=torch.tensor(total)).loss.backward()
    accumulated = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(declared_loss(model, {"input_ids": i}, labels, total) for i, labels in micro_batches).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            accumulated[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("how", ["attention_mask", "segment_ids"])
def test_router_statistics_leave_padding_out(how):
    model = build(**SPARSE, router_aux_loss_coef=0.5, router_z_loss_coef=0.3)
    input_ids, labels = labelled()
    mask = torch.ones_like(input_ids)
    mask[:, -4:] = 0
    labels[:, -4:] = -100
    batch = {"attention_mask": mask} if how == "attention_mask" else {"segment_ids": mask}
    losses = []
    for padding in (3, 8):
        input_ids[:, -4:] = padding
        output = model(input_ids, labels=labels, **batch)
        losses += [output.loss, output.aux_loss]
        expected = declared_loss(model, {"input_ids": input_ids, **batch}, labels, token_mask=mask)
        torch.testing.assert_close(output.loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses[:2], losses[2:])
    # And the short batch alone says the same.
    alone = model(input_ids[:, :-4], labels=labels[:, :-4])
    torch.testing.assert_close(alone.aux_loss, losses[1])


@pytest.mark.parametrize(
    ("fields", "use_reentrant"),
    [({}, True), ({}, False), ({**SPARSE, "router_aux_loss_coef": 0.5}, False)],
    ids=["dense-reentrant", "dense", "sparse"],
)
def test_gradient_checkpointing_gives_the_same_gradients(fields, use_reentrant):
    model = build(**fields).train()
    input_ids, labels = labelled()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        loss = model(input_ids, labels=labels).loss
        loss.backward()
        results.append([loss.detach(), *[parameter.grad.clone() for parameter in model.parameters()]])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)


def test_reentrant_checkpointing_does_not_lose_the_router_losses_in_silence(caplog):
    logging.warning_once.cache_clear()
    model = build(**SPARSE).train()
    input_ids, labels = labelled()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(input_ids, labels=labels)
    assert "use_reentrant" not in caplog.text
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model(input_ids, labels=labels)
    assert "gives the router's losses no gradient" in caplog.text


def packed(lengths: list[int], padding: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    examples = [ids(1, length + 3)[:, 3:] if number else ids(1, length) for number, length in enumerate(lengths)]
    row = torch.cat([*examples, torch.zeros(1, padding, dtype=torch.long)], dim=1)
    segments = [number for number, length in enumerate(lengths, start=1) for _ in range(length)]
    return row, examples, torch.tensor([segments + [0] * padding])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_packed_rows_equal_separate_rows(attention, fields, use_cache, mask, training):
    model = build(**fields, attn_implementation=attention).train(training)
    model.set_attn_implementation(attention)
    row, examples, segments = packed([5, 1, 6], padding=3)
    kwargs = {"use_cache": use_cache} if use_cache is not None else {}
    if mask:
        kwargs["attention_mask"] = torch.ones_like(row)
    output = model(row, segment_ids=segments, **kwargs)
    assert output.past_key_values is None
    expected = torch.cat([model(example).logits for example in examples], dim=1)
    torch.testing.assert_close(output.logits[:, :12], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [None, True])
@pytest.mark.parametrize("mask", [False, True])
def test_restarting_positions_are_segments_in_training(attention, use_cache, mask):
    model = build().train()
    model.set_attn_implementation(attention)
    row, examples, _ = packed([5, 7])
    kwargs = {"use_cache": use_cache} if use_cache is not None else {}
    if mask:
        kwargs["attention_mask"] = torch.ones_like(row)
    logits = model(row, position_ids=torch.tensor([[*range(5), *range(7)]]), **kwargs).logits
    expected = torch.cat([model(example).logits for example in examples], dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_neighbour_never_shows():
    model = build()
    row, _, segments = packed([5, 7])
    swapped = row.clone()
    swapped[:, :5] = (swapped[:, :5] + 11) % SIZES["vocab_size"]
    results = [model(each, segment_ids=segments).logits[:, 5:] for each in (row, swapped)]
    torch.testing.assert_close(*results, atol=0, rtol=0)
    # Without segments it does, so the comparison can fail.
    results = [model(each).logits[:, 5:] for each in (row, swapped)]
    assert (results[0] - results[1]).abs().max() > 0.01


@pytest.mark.parametrize("fields", [{}, {**SPARSE, "router_aux_loss_coef": 0.5}], ids=["dense", "sparse"])
def test_packed_gradients_equal_separate_ones(fields):
    model = build(**fields).train()
    row, examples, segments = packed([5, 7], padding=2)
    labels = row.clone()
    labels[:, [0, 5, 12, 13]] = -100
    output = model(row, segment_ids=segments, labels=labels, num_items_in_batch=10)
    (output.loss - output.aux_loss if fields else output.loss).backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for example in examples:
        own = model(example, labels=example, num_items_in_batch=10)
        share = (example.shape[1] - 1) / 10
        (own.loss - share * own.aux_loss if fields else own.loss).backward()
    for packed_gradient, parameter in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(packed_gradient, parameter.grad, atol=1e-5, rtol=1e-4)


def test_segments_refuse_a_filled_cache_and_generation():
    model = build()
    row, _, segments = packed([5, 7])
    cache = model(row, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values holds 12 tokens"):
        model(row, segment_ids=segments, past_key_values=cache)
    with pytest.raises(ValueError, match="refuses segment_ids"):
        model.generate(row, segment_ids=segments, max_new_tokens=2)


def test_a_ready_made_mask_is_taken_as_it_is():
    model = build()
    row, examples, _ = packed([5, 7])
    positions = torch.tensor([[*range(5), *range(7)]])
    embeds = model.get_input_embeddings()(row)
    mask = create_causal_mask(
        config=model.config, inputs_embeds=embeds, attention_mask=None, past_key_values=None, position_ids=positions
    )
    expected = torch.cat([model(example).logits for example in examples], dim=1)
    for training in (False, True):
        logits = model.train(training)(row, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cache_changes_nothing(fields, cache):
    model = build(**fields)
    prompt = ids(2, 6)
    kwargs = {"cache_implementation": "static"} if cache == "static" else {}
    with_cache = model.generate(prompt, max_new_tokens=8, do_sample=False, **kwargs)
    assert with_cache.shape == (2, 14)
    assert torch.equal(with_cache, model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=False))


def test_left_padding_changes_nothing():
    model = build(pad_token_id=0)
    prompts = [ids(1, 4), ids(1, 7)]
    alone = [model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :] for prompt in prompts]
    batch = torch.cat([F.pad(prompts[0], (3, 0)), prompts[1]])
    mask = torch.tensor([[0] * 3 + [1] * 4, [1] * 7])
    together = model.generate(batch, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, 7:]
    assert torch.equal(together, torch.stack(alone))


def test_embeddings_in_place_of_tokens():
    model = build()
    torch.testing.assert_close(
        model(inputs_embeds=model.get_input_embeddings()(ids())).logits, model(ids()).logits, atol=0, rtol=0
    )
    for wrong in ({}, {"input_ids": ids(), "inputs_embeds": torch.zeros(2, 12, 32)}):
        with pytest.raises(ValueError, match="exactly one"):
            MM1TextModel(model.config)(**wrong)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fields", [{}, SPARSE], ids=["dense", "sparse"])
def test_save_and_load_is_bit_equal(fields, tied, tmp_path):
    model = build(**fields, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    again = MM1TextForCausalLM.from_pretrained(tmp_path)
    own, others = again.state_dict(), model.state_dict()
    assert own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
    # Tensors mapped from a file lie at other addresses, where matrix products round differently.
    torch.testing.assert_close(again(ids()).logits, model(ids()).logits, atol=1e-5, rtol=1e-5)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_router_logits_are_returned_where_asked_for():
    model = build(**SPARSE)
    assert model(ids()).router_logits is None
    output = model(ids(), output_router_logits=True)
    assert [tuple(layer.shape) for layer in output.router_logits] == [(24, 8)] * 2
    assert output.aux_loss is not None
    # Trainers that leave out the head read them from the base model.
    config = copy.deepcopy(model.config)
    config.output_router_logits = True
    assert len(MM1TextModel(config)(ids()).router_logits) == 2


def test_attention_dropout_is_for_training_only():
    model = build(attention_dropout=0.5).train()
    torch.manual_seed(0)
    first = model(ids()).logits
    torch.manual_seed(0)
    assert torch.equal(model(ids()).logits, first)
    assert not torch.equal(model(ids()).logits, first)
    assert torch.equal(model.eval()(ids()).logits, model(ids()).logits)
