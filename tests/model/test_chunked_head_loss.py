"""The head's loss in chunks against the head followed by torch's own losses."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf import MM1Config, MM1TextForCausalLM
from mm1_hf.model import losses
from mm1_hf.model.losses import chunked_head_loss, z_loss


def operands(positions, vocabulary, with_bias, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(positions, 8), (vocabulary, 8), (vocabulary,)]
    states, weight, bias = (
        torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    )
    tokens = torch.randint(vocabulary, (positions,), generator=draw)
    return states, weight, bias if with_bias else None, tokens


def plain(states, weight, bias, tokens, num_items, z_loss_coef):
    logits = F.linear(states, weight, bias)
    return F.cross_entropy(logits.float(), tokens, reduction="sum") / num_items + z_loss_coef * z_loss(
        logits, num_items
    )


def gradients(loss, *inputs):
    return torch.autograd.grad(loss * 3, [each for each in inputs if each is not None and each.requires_grad])


# A chunk has at least 1024 positions.
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0, 1, 1023, 1024, 1025, 2500]),
    st.integers(2, 20),
    st.booleans(),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.integers(1, 5000),
)
def test_loss_and_gradients_are_those_of_the_logits(positions, vocabulary, with_bias, z_loss_coef, num_items):
    *inputs, tokens = operands(positions, vocabulary, with_bias)
    got = chunked_head_loss(*inputs, tokens, torch.tensor(num_items), z_loss_coef)
    expected = plain(*inputs, tokens, num_items, z_loss_coef)
    assert got.dtype == torch.float32 and got.shape == ()
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients(got, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trained", ["states", "weight"])
def test_what_is_frozen_gets_no_gradient(trained):
    states, weight, _, tokens = operands(1500, 11, False)
    (weight if trained == "states" else states).requires_grad_(False)
    got = gradients(chunked_head_loss(states, weight, None, tokens, 7), states, weight)
    expected = gradients(plain(states, weight, None, tokens, 7, 0.0), states, weight)
    assert len(got) == 1
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-5)


def test_under_autocast_the_weights_gradient_keeps_their_dtype():
    states, weight, _, tokens = operands(1500, 11, False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(chunked_head_loss(states, weight, None, tokens, 1500), states, weight)
        expected = gradients(plain(states, weight, None, tokens, 1500, 0.0), states, weight)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype == torch.float32
        # Relative to the largest: both are rounded to bfloat16 in between, in another order.
        assert (one - other).abs().max() < 0.02 * other.abs().max()


def test_no_logits_are_kept_for_the_backward_pass():
    kept = []
    states, weight, _, tokens = operands(3000, 50, False)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        chunked_head_loss(states, weight, None, tokens, 1)
        assert max(kept, default=0) < 1024 * 50
        plain(states, weight, None, tokens, 1, 0.0)
    assert max(kept) >= 3000 * 50


def test_without_gradients_only_the_loss_is_computed():
    states, weight, bias, tokens = operands(1100, 9, True)
    with torch.no_grad():
        loss = chunked_head_loss(states, weight, bias, tokens, 1100, 0.1)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(states, weight, bias, tokens, 1100, 0.1).float())


def test_a_second_backward_pass_is_refused():
    states, weight, _, tokens = operands(10, 5, False)
    loss = chunked_head_loss(states, weight, None, tokens, 10)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="freed by the first backward pass"):
        loss.backward()


def doubled(module, inputs, output):
    return output * 2


@pytest.mark.parametrize("head", ["plain", "hook", "other loss", "logits kept"])
def test_a_model_uses_it_only_for_a_plain_head(head, monkeypatch):
    torch.manual_seed(0)
    model = MM1TextForCausalLM(MM1Config.from_preset("mm1-tiny").text_config).train()
    ids = torch.randint(3, 500, (2, 12))
    calls = []
    monkeypatch.setattr(
        "mm1_hf.model.modeling_mm1_text.chunked_head_loss",
        lambda *arguments: calls.append(1) or losses.chunked_head_loss(*arguments),
    )
    expected = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    keep = {"skip_logits": False} if head == "logits kept" else {}
    if head == "hook":
        model.lm_head.register_forward_hook(doubled)
        expected = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    if head == "other loss":
        model.loss_function = lambda logits, labels, **kwargs: logits.sum() * 0 + 5
        expected = torch.tensor(5.0)
    loss = model(ids, labels=ids.clone(), **keep).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == (head == "plain")
