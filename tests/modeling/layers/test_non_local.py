"""Non-local blocks against their equation in float64, written with 3-D convolutions."""

import pytest
import torch
import torch.nn.functional as F

from fastreid_star.modeling.layers.non_local import NonLocal


def restated(block, x, length):
    """``x + BN(W softmax(theta(x)^T phi(x)) g(x))`` of ``[B, C, T, h, w]``, in training."""
    clips = x.unflatten(0, (-1, length)).transpose(1, 2)

    def conv(layer, y):
        return F.conv3d(y, layer.weight[..., None], layer.bias)

    theta, phi, g = (conv(layer, clips) for layer in (block.theta, block.phi, block.g))
    y = torch.zeros_like(g)
    for clip in range(len(clips)):
        products = theta[clip].flatten(1).T @ phi[clip].flatten(1)
        y[clip] = (products.softmax(1) @ g[clip].flatten(1).T).T.view(g.shape[1:])
    y = conv(block.out[0], y)
    mean, var = y.mean((0, 2, 3, 4), keepdim=True), y.var((0, 2, 3, 4), False, keepdim=True)
    scale, shift = (p.view(-1, 1, 1, 1) for p in (block.out[1].weight, block.out[1].bias))
    return (clips + (y - mean) / (var + 1e-5).sqrt() * scale + shift).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("length", [1, 3])
def test_a_block_is_its_equation_with_gradients(length):
    torch.manual_seed(0)
    block = NonLocal(8).double()
    torch.nn.init.normal_(block.out[1].weight)
    torch.nn.init.normal_(block.theta.bias)
    x = torch.randn(6, 8, 4, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 8, 4, 2, dtype=torch.float64)
    expected = restated(block, x, length)
    torch.testing.assert_close(block(x, length), expected)
    inputs = (x, *block.parameters())
    found = torch.autograd.grad((block(x, length) * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for name, one, other in zip(("x", *dict(block.named_parameters())), found, wanted, strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_a_new_block_returns_its_input_and_learns():
    block, x = NonLocal(8), torch.randn(6, 8, 4, 2)
    assert torch.equal(block(x, 3), x)
    block(x, 3).square().sum().backward()
    assert block.out[1].weight.grad.abs().sum() > 0


def test_frames_of_a_clip_see_each_other_and_no_other_clip():
    torch.manual_seed(0)
    block, x = NonLocal(8).eval(), torch.randn(6, 8, 4, 2)
    torch.nn.init.ones_(block.out[1].weight)
    other = x.clone()
    other[4] += 1
    changed = (block(x, 3) - block(other, 3)).detach().flatten(1).abs().amax(1) > 1e-6
    assert changed.tolist() == [False] * 3 + [True] * 3
    assert ((block(x) - block(other)).detach().flatten(1).abs().amax(1) > 1e-6).sum() == 1
