"""The attention against torch's own: the same parameters and numbers, and the gradient by finite differences."""

from unittest import mock

import pytest
import torch
from torch import nn

from fastreid_star.modeling import cross_attention
from fastreid_star.modeling.cross_attention import CrossAttention

D, HEADS = 12, 3


def pair(dtype=torch.float32):
    torch.manual_seed(0)
    ours, torchs = (
        CrossAttention(D, HEADS).to(dtype),
        nn.MultiheadAttention(D, HEADS, batch_first=True).to(dtype),
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def sequences(dtype=torch.float32):
    query, key = torch.randn(2, 4, D, dtype=dtype), torch.randn(2, 5, D, dtype=dtype)
    bias = torch.zeros(2, 5, dtype=dtype)
    bias[0, 1] = bias[1, 3:] = float("-inf")
    return query.requires_grad_(), key.requires_grad_(), bias


def results(model, call, query, key):
    output = call()
    weight = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype
    )
    return [output, *torch.autograd.grad(output, [query, key, *model.parameters()], weight)]


@pytest.mark.parametrize("biased", [True, False])
def test_output_and_every_gradient_are_torchs(biased):
    (ours, torchs), (query, key, bias) = pair(torch.float64), sequences(torch.float64)
    bias = bias if biased else None
    with mock.patch.object(cross_attention, "linear", wraps=cross_attention.linear) as used:
        got = results(ours, lambda: ours(query, key, key_bias=bias)[0], query, key)
    assert used.call_count == 3, "queries, keys with values, and what is heard"
    expected = results(
        torchs,
        lambda: torchs(query, key, key, key_padding_mask=bias, need_weights=False)[0],
        query,
        key,
    )
    assert [name for name, _ in ours.named_parameters()] == [
        name for name, _ in torchs.named_parameters()
    ]
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_gradient_by_finite_differences():
    ours, _ = pair(torch.float64)
    query, key, bias = sequences(torch.float64)
    weight = ours.in_proj_weight.detach().clone().requires_grad_()

    def attend(query, key, weight):
        return torch.func.functional_call(
            ours, {"in_proj_weight": weight}, (query, key), {"key_bias": bias}
        )[0]

    assert torch.autograd.gradcheck(attend, (query, key, weight))


def test_in_float32_it_is_torchs_up_to_rounding():
    (ours, torchs), (query, key, bias) = pair(), sequences()
    got = results(ours, lambda: ours(query, key, key_bias=bias)[0], query, key)
    expected = results(
        torchs,
        lambda: torchs(query, key, key, key_padding_mask=bias, need_weights=False)[0],
        query,
        key,
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["no_grad", "weights", "autocast"])
def test_elsewhere_it_is_torchs_own_code(case):
    (ours, torchs), (query, key, bias) = pair(), sequences()
    weighs = case == "weights"
    with (
        torch.set_grad_enabled(case != "no_grad"),
        torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
        mock.patch.object(cross_attention, "linear", side_effect=AssertionError),
    ):
        got = ours(query, key, key_bias=bias, need_weights=weighs)
        expected = torchs(query, key, key, key_padding_mask=bias, need_weights=weighs)
    assert torch.equal(got[0], expected[0])
    assert (got[1] is None) == (expected[1] is None) == (not weighs)
    if weighs:
        assert torch.equal(got[1], expected[1])
        assert got[1].sum(-1).allclose(torch.ones(2, 4))
