import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.model.losses import live_targets, router_losses, z_loss


def reference_router_losses(router_logits, mask, reduction) -> tuple[float, float]:
    """Token by token, in Python's own numbers."""
    balances, zs = [], []
    for layer in router_logits:
        tokens, experts = layer.shape
        counted, chosen, probability, z = 0, [0] * experts, [0.0] * experts, 0.0
        for token in range(tokens):
            if mask is not None and not mask[token]:
                continue
            row = [float(value) for value in layer[token]]
            exponentials = [math.exp(value) for value in row]
            times = 1 if mask is None else mask[token]
            counted += times
            chosen[row.index(max(row))] += times
            for expert in range(experts):
                probability[expert] += times * exponentials[expert] / sum(exponentials)
            z += times * math.log(sum(exponentials)) ** 2
        counted = max(counted, 1)
        balances.append(experts * sum(c / counted * p / counted for c, p in zip(chosen, probability, strict=True)))
        zs.append(z / counted)
    number = 1 if reduction == "sum" else len(router_logits)
    return sum(balances) / number, sum(zs) / number


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("mask", [None, "padding", "branches", "empty"])
def test_router_losses_equal_a_loop_over_the_tokens(reduction, mask):
    torch.manual_seed(0)
    router_logits = tuple(torch.randn(12, 5) * 2 for _ in range(3))
    token_mask = {
        None: None,
        "padding": torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]]),
        # Shared beginnings of two and of three branches.
        "branches": torch.tensor([[2, 2, 1, 1, 1, 0], [3, 3, 1, 1, 1, 1]]),
        "empty": torch.zeros(2, 6, dtype=torch.long),
    }[mask]
    flat = None if token_mask is None else token_mask.flatten().tolist()
    expected = reference_router_losses(router_logits, flat, reduction)
    got = router_losses(router_logits, token_mask, reduction)
    torch.testing.assert_close(torch.stack(got), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_balance_is_1_when_all_experts_are_used_alike_and_grows_to_their_number():
    alike = torch.eye(4).repeat(3, 1)
    balance, _ = router_losses((alike,), None, "sum")
    torch.testing.assert_close(balance, torch.tensor(1.0))
    one = torch.zeros(12, 4)
    one[:, 2] = 50
    balance, _ = router_losses((one,), None, "sum")
    torch.testing.assert_close(balance, torch.tensor(4.0))


def test_router_losses_run_in_float32():
    torch.manual_seed(0)
    layer = torch.randn(64, 8).bfloat16()
    half, exact = router_losses((layer,), None, "sum"), router_losses((layer.float(),), None, "sum")
    assert [value.dtype for value in half] == [torch.float32] * 2
    assert torch.equal(torch.stack(half), torch.stack(exact))


def test_masked_tokens_get_no_gradient():
    layer = torch.randn(6, 4, requires_grad=True)
    sum(router_losses((layer,), torch.tensor([[1, 1, 0, 2, 0, 0]]), "sum")).backward()
    assert layer.grad[[2, 4, 5]].abs().max() == 0
    assert layer.grad[[0, 1, 3]].abs().min() > 0


def test_z_loss_is_the_mean_square_of_logsumexp_in_float32():
    logits = torch.randn(5, 9)
    expected = sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in logits.tolist())
    torch.testing.assert_close(z_loss(logits, 5), torch.tensor(expected / 5))
    torch.testing.assert_close(z_loss(logits, torch.tensor(10)), torch.tensor(expected / 10))
    assert z_loss(logits.bfloat16(), 5).dtype == torch.float32


@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([-100, -100, 3, 7]), min_size=width, max_size=width), min_size=1, max_size=3
        )
    )
)
@settings(deadline=None)
def test_live_targets_are_the_next_tokens_of_each_row(rows):
    labels = torch.tensor(rows)
    width = len(rows[0])
    expected = [
        (row * width + column - 1, rows[row][column])
        for row in range(len(rows))
        for column in range(1, width)
        if rows[row][column] != -100
    ]
    found = live_targets(labels, None)
    assert list(zip(found.index.tolist(), found.tokens.tolist(), strict=True)) == expected
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    for got, want in zip(live_targets(None, shifted), found, strict=True):
        assert torch.equal(got, want)


def test_shifted_labels_win_as_in_trainer_s_count():
    shifted = torch.tensor([[4, -100, 5]])
    found = live_targets(torch.tensor([[1, 2, 3]]), shifted)
    assert (found.index.tolist(), found.tokens.tolist()) == ([0, 2], [4, 5])
