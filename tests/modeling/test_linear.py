"""Linear layers by oneDNN against torch's own, forward and backward."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastreid_star.modeling.linear import ONEDNN_LINEAR, Linear, linear, product

sizes = st.integers(1, 9)


def inputs(shape, out, dtype=torch.float32):
    generator = torch.Generator().manual_seed(len(shape) + out)
    drawn = (
        torch.randn(s, generator=generator, dtype=dtype) for s in (shape, (out, shape[-1]), (out,))
    )
    return [tensor.requires_grad_() for tensor in drawn]


class Products(TorchDispatchMode):
    """The operators that multiply matrices."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(part in str(function) for part in ("mm", "linear")):
            self.names.add(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


def results(call, tensors, turn_gradient=False):
    with Products() as products:
        y = call(*tensors)
        gradient = torch.randn(
            y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ).to(y.dtype)
        if turn_gradient:  # the same numbers, the last axis with the largest stride
            gradient = gradient.transpose(0, -1).contiguous().transpose(0, -1)
        return [y, *torch.autograd.grad(y, tensors, gradient)], products.names


@given(st.lists(sizes, min_size=1, max_size=3), sizes, sizes, st.booleans())
def test_values_and_gradients_are_torchs(leading, width, out, turned):
    tensors = inputs((*leading, width), out)
    got, operators = results(linear, tensors, turned)
    expected, _ = results(F.linear, tensors, turned)
    if ONEDNN_LINEAR is not None:
        assert operators == {"mkldnn._linear_pointwise"}
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_at_the_width_of_a_resnet():
    tensors = inputs((8, 12, 2048), 512)
    for a, b in zip(results(linear, tensors)[0], results(F.linear, tensors)[0], strict=True):
        assert (a - b).norm() < 2e-6 * b.norm()


def test_the_gradient_by_finite_differences():
    assert torch.autograd.gradcheck(linear, inputs((2, 3, 4), 5, torch.float64))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_nothing_gives_nothing(shape):
    got, _ = results(linear, inputs(shape, 3))
    assert got[0].shape == (*shape[:-1], 3)
    assert not got[2].any()
    assert not got[3].any()


@pytest.mark.parametrize("case", ["no_grad", "autocast"])
def test_elsewhere_it_is_torchs_own_code(case):
    tensors = inputs((2, 3), 4)
    with (
        torch.set_grad_enabled(case != "no_grad"),
        torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
        Products() as products,
    ):
        got, expected = linear(*tensors), F.linear(*tensors)
    assert torch.equal(got, expected)
    assert products.names
    assert not any("mkldnn" in name for name in products.names)


def test_without_onednn_the_product_is_torchs():
    x, weight, bias = (tensor.detach() for tensor in inputs((2, 3), 4))
    with mock.patch("fastreid_star.modeling.linear.ONEDNN_LINEAR", None):
        assert torch.equal(product(x, weight, bias), F.linear(x, weight, bias))


def test_the_layer_is_torchs():
    ours, torchs = Linear(5, 3), nn.Linear(5, 3)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(2, 5)
    torch.testing.assert_close(ours(x), torchs(x))
    with (
        mock.patch("fastreid_star.modeling.linear.linear", side_effect=ArithmeticError),
        pytest.raises(ArithmeticError),
    ):
        ours(x)
