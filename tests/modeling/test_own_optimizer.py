"""A model's own optimizer: its step, and what stays frozen."""

import pytest
import torch
import torch.distributed as dist

from fastreid_star.modeling.own_optimizer import step_alone


@pytest.fixture
def part():
    part = torch.nn.Linear(3, 1)
    return part.requires_grad_(False)


def test_a_step_is_taken_and_the_part_stays_frozen(part):
    optimizer = torch.optim.SGD(part.parameters(), lr=0.5)
    x, before = torch.randn(4, 3), part.weight.clone()
    value = step_alone(optimizer, lambda: part(x).sum())
    assert not value.requires_grad
    torch.testing.assert_close(part.weight, before - 0.5 * x.sum(0))
    assert not part.weight.requires_grad
    assert part.weight.grad is None
    inputs = x.requires_grad_()
    part(inputs).sum().backward()  # gradients of others pass through it
    assert torch.equal(inputs.grad[0], part.weight[0])
    with pytest.raises(ZeroDivisionError):
        step_alone(optimizer, lambda: 1 / 0)
    assert not part.weight.requires_grad


def test_gradients_are_averaged_over_the_processes(part, monkeypatch):
    """The other process has gradients of 10."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(10))
    optimizer = torch.optim.SGD(part.parameters(), lr=1.0)
    x, before = torch.randn(4, 3), {n: p.clone() for n, p in part.named_parameters()}
    step_alone(optimizer, lambda: part(x).sum())
    torch.testing.assert_close(part.weight, before["weight"] - (x.sum(0) + 10) / 2)
    torch.testing.assert_close(part.bias, before["bias"] - 7)
