import math

import pytest
import torch
from fastreid.layers.pooling import GeneralizedMeanPooling
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.modeling.layers.pooling import at_least_float32, gem

rows = st.lists(st.floats(0, 10), min_size=1, max_size=8).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)


def test_by_hand():
    x = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 6.0]]])  # one clip, three frames, two channels
    # (1 + 8 + 27) / 3 = 12; 216 / 3 = 72
    assert torch.allclose(
        gem(x, 3.0, dim=1), torch.tensor([[12 ** (1 / 3), 72 ** (1 / 3)]]), rtol=1e-6
    )


def test_eps_is_added_after_the_mean_and_bounds_the_gradient():
    x = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    pooled = gem(x, 3.0, dim=1)
    assert pooled.item() == pytest.approx(1e-4, rel=1e-9)
    pooled.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@settings(deadline=None, max_examples=60)
@given(rows.filter(lambda x: x.max() > 0.1))
def test_a_large_exponent_nears_the_maximum(x):
    p = 200.0
    value, top = gem(x / x.max(), p, dim=0).item(), 1.0
    assert top * len(x) ** (-1 / p) - 1e-9 <= value <= top + 1e-9


def test_agrees_with_fastreid():
    maps = torch.rand(2, 5, 4, 3) + 0.1
    ours = gem(maps.flatten(2), 3.0, dim=2)
    assert torch.allclose(ours, GeneralizedMeanPooling(norm=3)(maps).flatten(1), rtol=1e-5)


def test_half_types_are_pooled_in_float32():
    x = torch.full((1, 2, 1), 100.0, dtype=torch.float16)  # its cube is no float16
    pooled = gem(x, 3.0, dim=1)
    assert pooled.dtype == torch.float32
    assert math.isclose(pooled.item(), 100.0, rel_tol=1e-5)
    assert at_least_float32(x.double()).dtype == torch.float64
