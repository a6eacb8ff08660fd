"""The exchange between gait and appearance, against its explicit form."""

import copy

import pytest
import torch

from fastreid_star.methods.dinogrl.exchange import Affinity, PartExchange


class Explicit(torch.nn.Module):
    """E(q, k) with all its K x K x K products, from the layers of an :class:`Affinity`."""

    def __init__(self, affinity):
        super().__init__()
        self.layers = affinity

    def forward(self, q, k):
        layers = self.layers
        theta, phi, g = layers.theta(q[:, None]), layers.phi(k[:, None]), layers.g(k[:, None])
        affinity = theta.transpose(1, 2) @ phi / q.shape[1]  # [R, i, j]
        found = []
        for branch, part in ((layers.plus, affinity.relu()), (layers.minus, (-affinity).relu())):
            found.append(branch((part @ g.transpose(1, 2)).transpose(1, 2))[:, 0])
        return q + found[0] - found[1]


def explicit_exchange(exchange, gait, appearance):
    """As the spec of the method writes it, part by part."""
    shape_net, app_net = Explicit(exchange.gait), Explicit(exchange.appearance)
    new_gait, new_appearance, first = [gait], [appearance], 1
    for count in exchange.bins[1:]:
        u, v = gait[:, 0], appearance[:, 0]
        for i in range(first, first + count):
            u, v = shape_net(u, appearance[:, i]), app_net(v, gait[:, i])
        new_gait.append(u[:, None])
        new_appearance.append(v[:, None])
        first += count
    return torch.cat(new_gait, 1), torch.cat(new_appearance, 1)


@pytest.fixture
def exchange():
    exchange = PartExchange(16, (1, 2, 4)).double()
    for parameter in exchange.parameters():
        torch.nn.init.normal_(parameter)
    return exchange


def parts(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("training", [True, False])
def test_values_gradients_and_statistics_equal_the_explicit_form(exchange, training):
    exchange.train(training)
    other = copy.deepcopy(exchange)
    inputs = parts(3, 7, 16), parts(3, 7, 16)
    found, expected = exchange(*inputs), explicit_exchange(other, *inputs)
    weights = [torch.randn_like(each) for each in expected]
    gradients = []
    for outputs, module in ((found, exchange), (expected, other)):
        total = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
        gradients.append(torch.autograd.grad(total, [*inputs, *module.parameters()]))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == (3, 9, 16)
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    for mine, theirs in zip(exchange.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


def test_at_the_start_it_is_the_identity():
    exchange = PartExchange(16, (1, 2, 4))
    gait, appearance = torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    new_gait, new_appearance = exchange(gait, appearance)
    assert torch.equal(new_gait[:, :7], gait)
    assert torch.equal(new_appearance[:, :7], appearance)
    assert torch.equal(new_gait[:, 7:], gait[:, :1].expand(-1, 2, -1))
    assert torch.equal(new_appearance[:, 7:], appearance[:, :1].expand(-1, 2, -1))


def test_only_the_batch_norms_learn_in_the_first_step():
    exchange = PartExchange(8, (1, 2))
    found = exchange(torch.randn(4, 3, 8), torch.randn(4, 3, 8))
    sum(f.square().sum() for f in found).backward()
    moving = {name for name, p in exchange.named_parameters() if p.grad.abs().max() > 0}
    assert moving == {name for name, _ in exchange.named_parameters() if ".1." in name}


def test_one_clip_trains():
    exchange = PartExchange(8, (1, 2)).train()
    found = exchange(torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    assert all(f.isfinite().all() for f in found)


def test_the_k_by_k_values_are_not_kept_for_the_backward_pass():
    """Twice the width may double what is kept, not quadruple it."""
    sizes = []
    for width in (64, 128):
        affinity, kept = Affinity(width), []
        q, k = torch.randn(2, 4, width, requires_grad=True).unbind()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x
        ):
            affinity(q, k)
        sizes.append(sum(kept))
    assert sizes[1] < 2.5 * sizes[0]
