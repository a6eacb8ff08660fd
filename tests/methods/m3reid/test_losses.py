"""The losses against loops in float64, and batches in which they have nothing to compare."""

import pytest
import torch

from fastreid_star.methods.m3reid import losses as ours
from fastreid_star.methods.m3reid.losses import by_plane
from fastreid_star.modeling.losses.modality_alignment import alignment
from fastreid_star.modeling.losses.orthogonality import separation

from . import program


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def compare(found, expected, x):
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, x)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


# a query that has no partner, one without a negative, a modality that is rare
BATCHES = {
    "pairs": ([0, 0, 1, 1], [1, 0, 1, 0]),
    "more queries in one modality": ([0, 0, 0, 1, 1], [1, 1, 0, 1, 0]),
    "lonely": ([0, 0, 1, 1, 2, 2, 2], [1, 0, 1, 0, 1, 1, 1]),
    "one identity in infrared": ([0, 0, 1, 1], [1, 0, 1, 1]),
    "one visible": ([0, 0, 1, 2], [1, 0, 0, 0]),
}


@pytest.mark.parametrize(("ids", "visible"), BATCHES.values(), ids=BATCHES)
def test_alignment_goes_query_by_query(ids, visible):
    ids, visible = torch.tensor(ids), torch.tensor(visible) > 0
    x = draw(len(ids), 5)
    compare(alignment(x, ids, visible), program.alignment(x, ids, visible), x)


def test_alignment_by_hand():
    """Two pairs on the axes of a plane: d_p = 0 and d_n = 1/2 for each query."""
    x = torch.tensor([[2.0, 0], [0, 1], [3, 0], [0, 5]])
    ids, visible = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 0, 0]) > 0
    assert alignment(x, ids, visible).item() == pytest.approx(torch.tensor(-0.5).exp().log1p())


@pytest.mark.parametrize(
    ("ids", "visible"),
    [([0, 1, 2], [1, 1, 1]), ([0, 0, 0], [1, 0, 1]), ([0, 1, 2], [1, 0, 1]), ([0], [1])],
    ids=["one modality", "one identity", "no partner", "one row"],
)
def test_alignment_is_0_with_nothing_to_align(ids, visible):
    x = draw(len(ids), 5)
    loss = alignment(x, torch.tensor(ids), torch.tensor(visible) > 0)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, x)[0].abs().max() == 0


@pytest.mark.parametrize("number", [1, 2, 4])
def test_separation_is_the_mean_over_the_pairs(number):
    x = draw(3, number, 5)
    compare(separation(x), program.separation(x), x)


def test_separation_by_hand():
    same, apart = torch.ones(1, 3, 4), torch.eye(4)[None]
    assert separation(same).item() == pytest.approx(1)
    assert separation(apart).item() == 0
    halfway = torch.tensor([[[1.0, 0], [1, 1]]])  # cos^2 is 1/2
    assert separation(halfway).item() == pytest.approx(0.5)


def test_planes_of_the_masks():
    b, t, h, w = 2, 3, 4, 2
    masks = torch.arange(b * t * 6 * h * w).view(b, t, 6, h, w)
    hw, tw, th = by_plane(masks)
    assert (hw.shape, tw.shape, th.shape) == ((2, 3, 2, 8), (2, 4, 2, 6), (2, 2, 2, 12))
    assert torch.equal(hw[1, 2, 0], masks[1, 2, 0].flatten())
    assert torch.equal(tw[1, 3, 1], masks[1, :, 3, 3].flatten())
    assert torch.equal(th[1, 0, 1], masks[1, :, 5, :, 0].flatten())


def test_values_of_half_precision_and_of_zero_are_finite():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.zeros(4, 3, 8, dtype=torch.bfloat16, requires_grad=True)
        loss = ours.FrameOrthogonalityLoss()(x)
        ids, visible = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 1, 0]) > 0
        loss = loss + ours.ModalityAlignmentLoss()(x[:, 0], ids, visible.repeat_interleave(3))
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
