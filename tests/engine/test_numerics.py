"""What is not finite in a step is named, in one look; buffers can be put back."""

import math

import pytest
import torch
from torch import nn

from fastreid_star.engine.numerics import Buffers, StepNumbers, measure, not_finite, some, tell


def test_losses_come_to_the_host_as_they_are():
    losses = {
        "one": torch.tensor(0.1),
        "half": torch.tensor(2.5, dtype=torch.float16),
        "many": torch.tensor([7.0]),
    }
    numbers = measure(losses, {"w": torch.ones(3)}, {"b": torch.zeros(2)})
    assert numbers.losses == {"one": torch.tensor(0.1).item(), "half": 2.5, "many": 7.0}
    assert numbers.is_finite
    assert numbers.forward_is_finite
    double = measure({"wide": torch.tensor(0.1, dtype=torch.float64)}, {}, {})
    assert double.losses == {"wide": 0.1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["loss", "gradient", "buffer"])
def test_one_number_is_enough_and_is_named(place, value):
    tensors = {
        "loss": {"a": torch.tensor(1.0), "b": torch.tensor(2.0)},
        "gradient": {"c": torch.ones(3), "d": torch.ones(2, 50)},
        "buffer": {"e": torch.ones(4), "f": torch.ones(5)},
    }
    bad = list(tensors[place])[1]
    tensors[place][bad].view(-1)[-1] = value
    numbers = measure(*tensors.values())
    assert {
        "loss": numbers.bad_losses,
        "gradient": numbers.gradients,
        "buffer": numbers.buffers,
    } == {name: (bad,) if name == place else () for name in tensors}
    assert not numbers.is_finite
    assert numbers.forward_is_finite == (place == "gradient")


def test_numbers_too_large_to_square_count_as_infinite():
    numbers = measure(
        {"loss": torch.tensor(1.0)},
        {"fine": torch.full((9,), 1e18), "large": torch.full((9,), 1e20)},
        {},
    )
    assert numbers.gradients == ("large",)
    assert not_finite(
        {"large": torch.full((9,), 1e20), "whole": torch.tensor(1), "nan": torch.tensor(math.nan)}
    ) == ("nan",)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("color", torch.tensor([7.0]), persistent=False)


def test_buffers_are_put_back_bit_for_bit():
    network = Network()
    buffers = Buffers(network)
    for _ in range(2):  # the second note overwrites the copies of the first
        network.norm(torch.randn(4, 2))
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        buffers.note()
        network.norm(torch.full((4, 2), math.nan))
        assert not network.norm.running_mean.isfinite().all()
        assert all(torch.equal(buffers.noted[name], before[name]) for name in before)
        buffers.restore()
        now = dict(network.named_buffers())
        assert all(torch.equal(now[name], before[name]) for name in before)
        assert before.keys() == buffers.noted.keys()
    assert network.norm.num_batches_tracked == 2
    network.norm(torch.randn(4, 2))
    assert not torch.equal(buffers.noted["norm.running_mean"], network.norm.running_mean), (
        "noted is a copy"
    )


def test_a_mask_of_infinities_is_no_finding():
    network = Network()
    buffers = Buffers(network)
    buffers.note()
    assert set(buffers.watched()) == {"norm.running_mean", "norm.running_var", "color"}
    network.norm.running_var[0] = math.inf
    assert measure({}, {}, buffers.watched()).buffers == ("norm.running_var",)


def test_what_is_told():
    fine = StepNumbers({"loss_cls": 1.0})
    bad = StepNumbers(
        {"loss_cls": math.nan, "loss_triplet": -math.inf}, gradients=("x",), buffers=("y",)
    )
    assert tell([bad]) == "loss_cls is nan, loss_triplet is -inf"
    assert tell([fine, bad]) == "loss_cls is nan, loss_triplet is -inf on rank 1"
    assert (
        tell([StepNumbers({"loss_cls": 1.0}, buffers=("y",))])
        == "1 buffer (y) is not finite, or too large to square"
    )
    gradients = StepNumbers({"loss_cls": 1.0}, gradients=tuple("abcde"))
    assert tell([gradients, gradients]) == (
        "the losses are finite, but 5 gradients (a, b, c, ...) are not finite, or too large to square"
    )
    assert tell([fine]) == "the losses are finite, but the gradients overflow"
    assert some(["a", "b", "c"], "weight") == "3 weights (a, b, c) are"
