"""The operator is named that made a number not finite, and not one whose result did no harm."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.engine.trace import Range, Trace


class Part(nn.Module):
    """A function as a module without children."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def follow(model, x, backward=False):
    trace = Trace(model, {"x": x})
    with trace:
        loss = model(x).sum()
        if backward:
            loss.backward()
    return trace, trace.origin_of_gradients() if backward else trace.origin(loss)


def test_the_operator_the_module_and_the_line():
    model = nn.Sequential(Part(lambda x: x - 1), Part(lambda x: x.log()), Part(lambda x: x * 2))
    trace, origin = follow(model, torch.tensor([1.0, 3.0]))
    assert (origin.operator, origin.module, origin.backward) == ("aten::log", "1", False)
    assert origin.line.startswith("test_trace.py:")
    assert "x.log()" in origin.line
    assert origin.inputs == (Range(0.0, 2.0, 0, 2),)
    assert (origin.output.bad, origin.output.count) == (1, 2)
    assert origin.output.high == pytest.approx(math.log(2))
    assert [(passage.module, passage.output.bad) for passage in trace.forward] == [
        ("0", 0),
        ("1", 1),
        ("2", 1),
    ]


def masked(x, hidden):
    return x.masked_fill(torch.tensor(hidden), -math.inf).softmax(0)


def test_an_infinity_that_was_asked_for_is_not_blamed():
    trace, origin = follow(Part(lambda x: masked(x, [True, False])), torch.ones(2))
    assert origin is None
    assert trace.births == []


def test_a_softmax_over_nothing_is():
    _, origin = follow(Part(lambda x: masked(x, [True, True])), torch.ones(2))
    assert origin.operator == "aten::_softmax"


def test_an_infinity_that_goes_nowhere_is_not_blamed():
    def function(x):
        inverse = torch.where(x > 0, 1 / x, torch.zeros(()))
        return inverse + (x - 1).sqrt()

    trace, origin = follow(Part(function), torch.zeros(2))
    assert trace.births[0].operator in ("aten::reciprocal", "aten::div")
    assert origin.operator == "aten::sqrt"


def test_the_first_of_a_chain_is_the_origin():
    """exp overflows, and inf - inf is a NaN of its own: it all began with exp."""
    trace, origin = follow(Part(lambda x: x.exp() - x.exp()), torch.tensor([100.0]))
    assert {birth.operator for birth in trace.births} == {"aten::exp", "aten::sub"}
    assert origin.operator == "aten::exp"


@pytest.mark.parametrize("where", ["x", "weight"])
def test_what_came_in_is_named(where):
    model, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.no_grad():
        (x if where == "x" else model.weight)[0, 1] = math.nan
    _, origin = follow(model, x)
    assert (origin.operator, origin.module, origin.output.bad) == ("", where, 1)


def test_the_backward_pass_is_told_by_the_line_of_the_forward_pass():
    """The slope of sqrt at 0 is infinite, and 0 times infinity is NaN."""
    model = nn.Sequential(
        nn.Linear(2, 2), Part(lambda x: x + 0), Part(lambda x: x.sqrt()), Part(lambda x: x * 0)
    )
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    trace, origin = follow(model, torch.ones(1, 2), backward=True)
    assert origin.backward
    assert "x.sqrt()" in origin.line
    assert origin.module == "2"
    assert set(trace.bad_gradients) == {"0.bias", "0.weight"}
    assert [(passage.module, passage.output.bad > 0) for passage in trace.backward] == [
        ("3", False),
        ("2", False),
        ("1", True),
        ("0", True),
    ]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
        self.lstm = nn.LSTM(3, 3, bidirectional=True, batch_first=True)

    def forward(self, x):
        maps = self.layer(self.layer(x))
        return F.dropout(self.lstm(maps.flatten(2).transpose(1, 2))[0]) + torch.rand(())


def test_following_changes_nothing():
    results = []
    for traced in (False, True):
        torch.manual_seed(3)
        model, x = Twice(), torch.randn(2, 3, 7, 7)
        torch.manual_seed(4)
        if traced:
            trace, origin = follow(model, x, backward=True)
        else:
            model(x).sum().backward()
        results.append(
            [tensor for p in model.parameters() for tensor in (p, p.grad)] + list(model.buffers())
        )
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert origin is None
    assert trace.births == []
    names = ["layer.0", "layer.1", "layer.2", "layer.0#2", "layer.1#2", "layer.2#2", "lstm"]
    assert [passage.module for passage in trace.forward] == names
    assert [passage.module for passage in trace.backward] == names[::-1]
    assert not torch.is_anomaly_enabled()
    assert not any(module._forward_hooks for module in model.modules())


def test_ranges():
    spread = Range.of(torch.tensor([-2.0, 5.0, math.nan, math.inf]))
    assert spread == Range(-2.0, 5.0, 2, 4)
    assert spread.magnitude == 5.0
    assert str(spread) == "-2 .. 5, 50 % not finite"
    assert str(Range.of(torch.tensor([math.nan]))) == "nothing finite"
    assert Range.of(torch.tensor([math.nan])).magnitude == 0
    assert str(Range.of(torch.empty(0))) == "empty"
