"""Masks, pooling under masks, augmentation, and the corrector of several views."""

import pytest
import torch
from torch import nn

from fastreid_star.methods.m3reid.layers import VIEWS, ViewCorrector
from fastreid_star.methods.m3reid.losses import MaskDiversityLoss
from fastreid_star.modeling.layers.colors import erase, gray_mixing, mix_channels
from fastreid_star.modeling.layers.parts import PartMasks, masked_gem

from .program import WIDTH, Program, separation


def test_one_convolution_is_the_three_views():
    """Three convolutions on frames, on rows over time and on columns over time, as published."""
    torch.manual_seed(0)
    program = Program().mvl_attention.double()
    masks = PartMasks(WIDTH, VIEWS).double()
    convs = [program[f"view_attention_{plane}"] for plane in ("hw", "tw", "th")]
    masks.conv.weight.data = torch.cat([conv.weight for conv in convs])
    masks.conv.bias.data = torch.cat([conv.bias for conv in convs])
    maps = torch.randn(2, 3, WIDTH, 4, 2, dtype=torch.float64).relu().requires_grad_()
    holder = nn.Module()
    holder.mvl_attention = program
    expected, vectors = Program.views(holder, maps)
    found = masks(maps.flatten(0, 1))
    features = masked_gem(maps.flatten(0, 1), found)
    torch.testing.assert_close(features.flatten(1), expected)
    diversity = MaskDiversityLoss()(found.unflatten(0, (2, 3)))
    torch.testing.assert_close(diversity, sum(map(separation, vectors)))
    weights = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((x * weights).sum() + y, maps)[0]
        for x, y in ((features.flatten(1), diversity), (expected, sum(map(separation, vectors))))
    ]
    torch.testing.assert_close(*gradients)


def test_pooling_of_empty_maps_has_a_finite_gradient_in_half_precision():
    maps = torch.zeros(2, 3, 4, 2, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = masked_gem(maps, torch.full((2, 6, 4, 2), 0.5))
    assert pooled.dtype == torch.float32
    pooled.sum().backward()
    assert maps.grad.isfinite().all()


class Add(nn.Module):
    reads_skeletons, provides, corrects = True, ("more",), True

    def forward(self, frames, batch, explain=False):
        return {"corrected": frames * 2 + batch, "more": 1}


def test_each_view_gets_the_correction_of_the_mean():
    frames = torch.randn(2, 3, 6 * 4)
    corrector = ViewCorrector(Add())
    assert (corrector.reads_skeletons, corrector.provides) == (True, ("more",))
    found = corrector(frames, 10.0)
    views = frames.view(2, 3, 6, 4)
    expected = views + views.mean(2, keepdim=True) + 10
    torch.testing.assert_close(found["corrected"], expected.flatten(2))
    assert found["more"] == 1


def test_half_of_the_visible_clips_become_gray():
    torch.manual_seed(0)
    is_visible = torch.arange(400) % 2 == 0
    mixing = gray_mixing(is_visible)
    changed = (mixing != torch.eye(3)).flatten(1).any(1)
    assert not changed[1::2].any()
    assert 70 < changed.sum() < 130
    torch.testing.assert_close(mixing.sum(2), torch.ones(400, 3))
    rows = mixing[changed]
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert rows.min() > 0
    assert rows[:, 0].std(0).min() > 0.1, "the weights are random"
    clips = torch.rand(400, 2, 3, 4, 5)
    mixed = mix_channels(clips, mixing)
    torch.testing.assert_close(mixed, torch.einsum("bcd,btdhw->btchw", mixing, clips))
    assert torch.equal(mixed[1::2], clips[1::2])


def test_one_rectangle_is_erased_in_all_frames_of_half_of_the_clips():
    torch.manual_seed(0)
    clips = torch.ones(300, 3, 3, 32, 16)
    erase(clips)
    erased = clips == 0
    assert torch.equal(erased, erased[:, :1, :1].expand_as(erased))
    hit = erased.flatten(1).any(1)
    assert 120 < hit.sum() < 180
    maps = erased[hit][:, 0, 0]
    heights, widths = maps.any(2).sum(1), maps.any(1).sum(1)
    assert torch.equal(maps.flatten(1).sum(1), heights * widths), "a rectangle"
    shares = maps.float().mean((1, 2))
    assert 0.01 < shares.min() < 0.05
    assert 0.25 < shares.max() < 0.36
    untouched = torch.ones(9, 3, 3, 32, 16)
    erase(untouched, 0.0)
    assert untouched.min() == 1


def test_a_rectangle_that_never_fits_erases_nothing():
    clips = torch.ones(20, 1, 3, 1, 1)
    erase(clips, 1.0)
    assert clips.min() == 1


@pytest.mark.parametrize("length", [1, 4])
def test_masks_are_between_0_and_1(length):
    masks = PartMasks(8, VIEWS)(100 * torch.randn(length, 8, 4, 2))
    assert masks.shape == (length, 6, 4, 2)
    assert 0 <= masks.min() <= masks.max() <= 1
