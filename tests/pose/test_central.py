"""Which of several people a joint is taken from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.pose.estimator import FALL_OFF, keep_central_peaks

WIDTH, HEIGHT = 48, 64
WHOLE = torch.ones(1)


def peaks(*people, size=(HEIGHT, WIDTH), sigma=2.0):
    """One map, [1,1,h,w], with a Gaussian for each (x, y, height)."""
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    maps = [
        h * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        for x, y, h in people
    ]
    return torch.stack(maps).amax(0)[None, None]


def highest(maps):
    place = maps.flatten(2).argmax(2)
    return torch.stack([place % maps.shape[-1], place // maps.shape[-1]], dim=-1).tolist()


@pytest.mark.parametrize(
    ("edge", "center", "width", "which"),
    [
        # of similar peaks the central one, at either side
        ((2, 30, 0.9), (24, 28, 0.8), 1.0, 1),
        ((45, 30, 0.9), (24, 28, 0.8), 1.0, 1),
        # a clearly higher one wins wherever it is
        ((1, 30, 0.9), (24, 28, 0.5), 1.0, 0),
        ((46, 30, 0.9), (24, 28, 0.5), 1.0, 0),
        # the window by hand: exp(-(21.5 / 24)^2 / 2) = 0.6694 at x = 2, 0.9998 at x = 24
        ((2, 30, 0.9), (24, 30, 0.9 * 0.6694 / 0.9998 + 0.001), 1.0, 1),
        ((2, 30, 0.9), (24, 30, 0.9 * 0.6694 / 0.9998 - 0.001), 1.0, 0),
        # a narrow crop leaves black sides in the input: its own edge counts as the edge
        ((14, 30, 0.9), (24, 30, 0.75), 1.0, 0),
        ((14, 30, 0.9), (24, 30, 0.75), 0.4, 1),
        # no window along y
        ((24, 3, 0.81), (24, 32, 0.8), 1.0, 0),
        ((24, 3, 0.80), (24, 32, 0.81), 1.0, 1),
    ],
)
def test_the_chosen_person(edge, center, width, which):
    assert FALL_OFF == 0.5
    kept = keep_central_peaks(peaks(edge, center), torch.tensor([width]))
    assert highest(kept) == [[list((edge, center)[which][:2])]]


def test_each_crop_and_joint_for_itself():
    edge, center, clear = (2, 10, 0.9), (24, 40, 0.8), (2, 10, 0.3)
    first = torch.cat([peaks(edge, center), peaks(clear, center)], 1)
    maps = torch.cat([first, torch.cat([peaks(edge), peaks(center)], 1)])
    kept = keep_central_peaks(maps, torch.tensor([1.0, 0.5]))
    assert highest(kept) == [[[24, 40], [24, 40]], [[2, 10], [24, 40]]]
    assert torch.equal(kept[0, 1], maps[0, 1])
    assert torch.equal(kept[1], maps[1])


@settings(deadline=None, max_examples=50)
@given(
    x=st.floats(0, 1),
    y=st.floats(0, HEIGHT - 1),
    width=st.floats(0.2, 1),
    seed=st.integers(0, 1000),
)
def test_one_person_is_untouched(x, y, width, seed):
    """To the last bit, noise and all, wherever in the crop the person is."""
    noise = 0.05 * torch.randn(1, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    maps = peaks(((WIDTH - 1) / 2 + (x - 0.5) * width * WIDTH, y, 1.0)) + noise
    assert torch.equal(keep_central_peaks(maps, torch.tensor([width])), maps)


def test_around_the_chosen_peak_nothing_changes():
    maps = peaks((3, 30, 0.9), (26, 28, 0.8)) - 0.01
    kept = keep_central_peaks(maps, WHOLE)
    assert torch.equal(kept[..., 22:35, 20:33], maps[..., 22:35, 20:33])
    changed = kept != maps
    assert changed.any()
    assert (kept[changed] == 0).all()
    assert (maps[changed] > 0).all()


def test_peaks_that_touch_are_one():
    """Two cells side by side, equally high, as half precision makes them, and a shoulder."""
    maps = peaks((20.5, 30, 0.8), (24, 30, 0.5))
    assert torch.equal(keep_central_peaks(maps, WHOLE), maps)


def test_maps_without_a_peak_and_with_nan():
    for value in (0.0, -1.0):
        maps = torch.full((2, 17, HEIGHT, WIDTH), value)
        assert torch.equal(keep_central_peaks(maps, torch.ones(2)), maps)
    assert keep_central_peaks(torch.full((1, 1, 9, 9), torch.nan), WHOLE).isnan().all()


def test_vectors_and_larger_maps_in_half_precision():
    """The x vectors of SimCC are maps of one row."""
    along_x = peaks((30, 0, 0.9), (190, 0, 0.8), size=(1, 384), sigma=5.0)
    assert highest(keep_central_peaks(along_x, WHOLE)) == [[[190, 0]]]
    maps = peaks((3, 40, 0.9), (36, 40, 0.8), size=(96, 72)).bfloat16()
    assert highest(keep_central_peaks(maps, WHOLE)) == [[[36, 40]]]
