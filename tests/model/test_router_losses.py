"""The router's losses of sparse decoders, MM1's own and foreign ones: kept, exact under gradient accumulation and across
ranks, and counted over real tokens only."""

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from tiny import tiny_vision
from trainer_ranks import step, weights_of_one_rank
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from mm1_hf import MM1Config, MM1ForConditionalGeneration, MM1TextConfig


IMAGE = 63
TOKENS = 4
COEFFICIENT = 0.5
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
}
OWN = {"num_experts": 4, "moe_layer_period": 1, "router_aux_loss_coef": COEFFICIENT, "router_z_loss_coef": 0.1}
FOREIGN = {
    "mixtral": {"num_local_experts": 4, "router_aux_loss_coef": COEFFICIENT},
    "qwen3_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
        "head_dim": 8,
        "router_aux_loss_coef": COEFFICIENT,
    },
    "olmoe": {"num_experts": 4, "router_aux_loss_coef": COEFFICIENT},
    # Calls the coefficient by another name.
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8, "aux_loss_coef": COEFFICIENT},
}


def build(kind: str = "mm1_text", **fields) -> MM1ForConditionalGeneration:
    fields = {**TEXT, **(OWN if kind == "mm1_text" else FOREIGN[kind]), **fields}
    config = MM1Config(
        vision_config=tiny_vision().config,
        text_config=MM1TextConfig(**fields) if kind == "mm1_text" else CONFIG_MAPPING[kind](**fields),
        connector_config={"num_tokens": TOKENS, "hidden_size": 16, "depth": 1},
        image_token_id=IMAGE,
    )
    model = MM1ForConditionalGeneration(config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    return model.eval()


def ids(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, IMAGE, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(got, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


# Foreign decoders


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_sparse_decoder_keeps_its_loss(kind):
    model = build(kind)
    source = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    source.model.load_state_dict(model.model.language_model.state_dict())
    source.lm_head.load_state_dict(model.lm_head.state_dict())
    mask = torch.ones_like(ids())
    mask[0, 9:] = 0
    labels = ids().masked_fill(mask == 0, -100)
    batch = {"input_ids": ids(), "attention_mask": mask, "labels": labels}
    expected = source(**batch, output_router_logits=True)
    # The comparison is empty unless transformers' class adds its balance loss.
    assert expected.loss - source(**batch, output_router_logits=False).loss > 0.1
    for training in (False, True):
        output = model.train(training)(**batch)
        close(output.loss, expected.loss)
        close(output.aux_loss, COEFFICIENT * expected.aux_loss)


@pytest.mark.parametrize("kind", [kind for kind in FOREIGN if kind != "jetmoe"])
def test_the_numbers_of_a_foreign_decoder_s_segments_weigh_nothing(kind):
    """A second segment counts as much as the first, and padding, segment 0, not at all."""
    model = build(kind)
    losses = []
    for numbers in ([1, 2, 0], [3, 1, 0]):
        segments = torch.tensor([[numbers[0]] * 5 + [numbers[1]] * 4 + [0] * 3] * 2)
        losses.append(model(ids(), segment_ids=segments, labels=ids()).aux_loss)
    close(*losses)
    other = ids().clone()
    other[:, 9:] = 7
    close(model(other, segment_ids=segments, labels=ids()).aux_loss, losses[0])
    close(model(ids()[:, :9], segment_ids=segments[:, :9], labels=ids()[:, :9]).aux_loss, losses[0])


# MM1's own decoder


@pytest.mark.parametrize("kind", ["mm1_text", "mixtral"])
def test_padding_and_positions_of_packed_rows_count_as_their_segments_do(kind):
    model = build(kind)
    segments = torch.tensor([[1] * 5 + [2] * 4 + [0] * 3] * 2)
    expected = model(ids(), segment_ids=segments, labels=ids()).aux_loss
    restart = torch.tensor([[*range(5), *range(4), *range(3)]])
    mask = (segments != 0).long()
    for training in (False, True):
        output = model.train(training)(ids(), attention_mask=mask, position_ids=restart, labels=ids())
        close(output.aux_loss, expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_layers_losses_are_summed_or_averaged(reduction):
    model = build(aux_loss_reduction=reduction)
    output = model(ids(), labels=ids(), output_router_logits=True)
    terms = []
    for layer in output.router_logits:
        share = F.one_hot(layer.argmax(-1), 4).float().mean(0)
        balance = 4 * (share * layer.softmax(-1).mean(0)).sum()
        terms.append(COEFFICIENT * balance + 0.1 * layer.logsumexp(-1).square().mean())
    assert len(terms) == 2
    close(output.aux_loss, sum(terms) / (2 if reduction == "mean" else 1))


# Trainer


def rows() -> list[dict[str, torch.Tensor]]:
    """Four micro-batches with 11, 3, 7 and 9 targets, two of them with an image."""
    result = []
    for number, first in enumerate((1, 9, 5, 3)):
        row = {"input_ids": ids(1, 12, seed=number)}
        if number % 2:
            row["input_ids"][:, :TOKENS] = IMAGE
            row["pixel_values"] = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(number))
        row["labels"] = row["input_ids"].masked_fill(row["input_ids"] == IMAGE, -100)
        row["labels"][:, :first] = -100
        result.append(row)
    return result


def declared_step(model: MM1ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The weights after a step on the declared loss: each micro-batch weighs its router losses by its share of targets."""
    total = sum(int((row["labels"][:, 1:] != -100).sum()) for row in rows())
    for row in rows():
        labels = row.pop("labels")
        own = int((labels[:, 1:] != -100).sum())
        logits = model(**row).logits
        cross_entropy = F.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum") / total
        aux_loss = model(**row, labels=labels).aux_loss
        (cross_entropy + own / total * aux_loss).backward()
    return {name: (weight - 0.1 * weight.grad).detach() for name, weight in model.named_parameters()}


def same_weights(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["mm1_text", "qwen3_moe"])
def test_accumulated_micro_batches_weigh_their_router_losses_by_their_targets(kind, tmp_path):
    model = build(kind)
    step(model, rows(), str(tmp_path), accumulation=4)
    got = {name: parameter.detach() for name, parameter in model.named_parameters()}
    same_weights(got, declared_step(build(kind)))
    # Weighed 1 each, as transformers' own classes do, the routers would go elsewhere.
    routers = [name for name in got if name.endswith("mlp.gate.weight")]
    assert routers
    without = build(kind, router_aux_loss_coef=0.0, **({"router_z_loss_coef": 0.0} if kind == "mm1_text" else {}))
    same = declared_step(without)
    assert max((got[name] - same[name]).abs().max() for name in routers) > 1e-3


@pytest.mark.parametrize("kind", ["mm1_text", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_two_ranks_step_as_one_rank_on_the_same_micro_batches(kind, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path)
    first, second = run_ranks(weights_of_one_rank, tmp_path, str(tmp_path), rows(), 2)
    step(model, rows(), str(tmp_path), accumulation=4)
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    same_weights(first, expected)
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
