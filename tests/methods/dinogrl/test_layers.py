"""The branches of the silhouettes, against restatements in float64."""

import pytest
import torch

from fastreid_star.methods.dinogrl.layers import (
    AppearanceBranch,
    AttentionFusion,
    DenoisingBranch,
    GaitMaps,
    MaskBranch,
    clip_drop,
    fills_edge,
    silhouette_of,
    support_of,
    support_statistics,
    upsample,
)
from fastreid_star.modeling.layers.frozen_tokens import TokenMaps


def draw(*rows):
    return torch.tensor([[float(c) for c in row] for row in rows])[None, None]


def grown(mask, radius):
    """Whether a position has a set one within `radius` rows and columns, one by one."""
    found = torch.zeros_like(mask)
    for y, x in mask.nonzero().tolist():
        found[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = True
    return found


@pytest.mark.parametrize("seed", range(3))
def test_support_and_silhouette_equal_the_program_pixel_by_pixel(seed):
    person = torch.rand(1, 1, 12, 9, generator=torch.Generator().manual_seed(seed)) * 0.65
    person[0, 0, 3, 3] = 0.5  # rounds to 0
    mask = person[0, 0].round().bool()
    d = grown(mask, 1)
    e = ~grown(~d, 2)  # outside of the frame nothing is taken away
    closed = torch.where(e, torch.ones(()), torch.where(d, person[0, 0], torch.zeros(())))
    assert torch.equal(silhouette_of(person)[0, 0], closed)
    # the program's support is where its closed silhouette is not 0
    assert torch.equal(support_of(person)[0, 0], closed != 0)


def test_a_mask_that_fills_the_top_and_bottom_rows_is_swapped():
    branch = MaskBranch(4, fixed=True)
    frame = torch.zeros(3, 1, 64, 32)
    rows = frame.view(3, 64 * 32)
    rows[0, :160] = 1  # 160 of the 320 positions: not more than half
    rows[1, :160] = 1
    rows[1, -1:] = 1  # 161
    rows[2, 32 * 5 : -32 * 5] = 1  # all but the edges
    assert fills_edge(frame).flatten().tolist() == [False, True, False]
    person = branch.person(torch.cat([frame, 1 - frame], 1))
    assert torch.equal(person[1], 1 - frame[1])
    assert torch.equal(person[[0, 2]], frame[[0, 2]])


def test_no_gradient_reaches_the_mask_branch_through_the_person():
    branch = MaskBranch(4)
    classes, _ = branch(torch.randn(2, 4, 8, 4))
    assert classes.requires_grad
    assert not branch.person(classes).requires_grad


def test_the_mask_branch_equals_a_restatement_on_rows_of_tokens():
    branch = MaskBranch(5).double().train()
    branch.dropout.p = 0.0
    tokens = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    classes, rebuilt = branch(tokens)
    rows = tokens.permute(0, 2, 3, 1).reshape(-1, 5)
    normed = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    expected = (normed @ branch.down.weight[..., 0, 0].T + branch.down.bias).softmax(-1)
    back = expected @ branch.up.weight[..., 0, 0].T + branch.up.bias
    for found, want in ((classes, expected), (rebuilt, back)):
        found = found.permute(0, 2, 3, 1).reshape(want.shape)
        torch.testing.assert_close(found, want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("person_class", [0, 1])
def test_the_person_is_the_class_that_avoids_the_border(person_class):
    """Frames with a pillar of one class in the middle, and a branch that separates both classes.

    The pillar fills half of the top and bottom rows: the check of the edges leaves it alone.
    """
    branch = MaskBranch(2).train()
    branch.dropout.p = 0.0
    with torch.no_grad():
        branch.down.weight.copy_(torch.eye(2).view(2, 2, 1, 1) * 4)
    tokens = torch.zeros(4, 2, 16, 8)
    tokens[:, person_class, :, 2:6] = 1
    tokens[:, 1 - person_class] = 1 - tokens[:, person_class]
    for _ in range(3):
        classes, _ = branch(tokens)
    person = branch.eval().person(classes)
    assert (person[:, :, :, 2:6] > 0.5).all()
    assert (person[:, :, :, 0] < 0.5).all()
    # the rule is stored with the model
    other = MaskBranch(2)
    other.load_state_dict(branch.state_dict())
    assert torch.equal(other.person(classes), person)


@pytest.fixture
def frames():
    """Tokens of 11 frames, more than one chunk, and a support that is empty in one frame."""
    tokens = 3 + torch.randn(11, 8, 5, 3, dtype=torch.float64)
    support = torch.rand(11, 1, 10, 6) < 0.4
    support[4] = False
    return tokens, support


def normalized(x, dim=0):
    return (x - x.mean(dim)) / (x.var(dim, unbiased=False) + 1e-5).sqrt()


def rows_on(maps, support):
    return maps.permute(0, 2, 3, 1)[support[:, 0]]


def test_statistics_are_those_of_the_upsampled_tokens_on_the_support(frames):
    tokens, support = frames
    rows = rows_on(upsample(tokens), support)
    found = support_statistics(tokens, support)
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.var, rows.var(0, unbiased=False), rtol=0, atol=1e-10)
    assert found.positions == support.sum()


def test_the_denoising_branch_equals_a_restatement_on_support_rows(frames):
    tokens, support = frames
    branch = DenoisingBranch(8, 3).double().train()
    found = branch(tokens, support, support_statistics(tokens, support))
    rows = normalized(rows_on(upsample(tokens), support))
    hidden = normalized(rows @ branch.first.linear.weight.T + branch.first.linear.bias)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = (hidden @ branch.last.weight[..., 0, 0].T + branch.last.bias).softmax(-1)
    torch.testing.assert_close(rows_on(found, support), expected, rtol=0, atol=1e-8)
    assert rows_on(found, ~support).abs().max() == 0
    weight = branch.first.linear.weight
    (gradient,) = torch.autograd.grad(found[:, 0].square().sum(), weight, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected[:, 0].square().sum(), weight)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-8)
    # running statistics as BatchNorm1d keeps them
    norm = torch.nn.BatchNorm1d(8, affine=False).double()
    norm(rows_on(upsample(tokens), support))
    torch.testing.assert_close(branch.first.running_mean, norm.running_mean)
    torch.testing.assert_close(branch.first.running_var, norm.running_var)


def test_the_appearance_branch_equals_a_restatement_in_both_modes(frames):
    tokens, support = frames
    branch = AppearanceBranch(8, 3).double().train()
    found = branch(tokens, support, support_statistics(tokens, support))
    rows = rows_on(upsample(tokens), support)
    linear = branch.first.linear
    expected = normalized(normalized(rows) @ linear.weight.T + linear.bias).sigmoid()
    torch.testing.assert_close(rows_on(found, support), expected, rtol=0, atol=1e-8)
    assert rows_on(found, ~support).abs().max() == 0
    found = branch.eval()(tokens, support, None)
    first, norm = branch.first, branch.norm
    rows = (rows - first.running_mean) / (first.running_var + 1e-5).sqrt()
    rows = rows @ linear.weight.T + linear.bias
    expected = ((rows - norm.running_mean) / (norm.running_var + 1e-5).sqrt()).sigmoid()
    torch.testing.assert_close(rows_on(found, support), expected, rtol=0, atol=1e-8)


def test_fusion_weighs_two_maps_channel_by_channel():
    fusion = AttentionFusion(3).double().eval()
    first, second = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    logits = fusion.weigh(torch.cat([first, second], 1))
    expected = torch.empty_like(first)
    for c in range(3):
        weights = logits[:, 2 * c : 2 * c + 2].softmax(1)
        expected[:, c] = weights[:, 0] * first[:, c] + weights[:, 1] * second[:, c]
    torch.testing.assert_close(fusion(first, second), expected, rtol=0, atol=1e-12)


def test_a_share_of_the_clips_loses_one_of_two_kinds_of_maps():
    keep = clip_drop(10, 0.2)
    assert keep.sum(1).tolist().count(1.0) == 2
    assert keep.sum() == 18
    assert clip_drop(1, 0.2).tolist() == [[1, 1]]
    both = torch.stack([clip_drop(4, 1.0) for _ in range(20)]).mean((0, 1))
    assert (both > 0.2).all()  # either kind is dropped


@pytest.mark.parametrize("training", [True, False])
def test_frames_without_foreground_give_finite_maps_and_gradients(training):
    maps = GaitMaps(6, 8, channels=4).train(training)
    with torch.no_grad():
        maps.mask.down.weight.zero_()
        maps.mask.down.bias.copy_(torch.tensor([-9.0, 9.0]))
        maps.mask.border_share.fill_(0.0)
        maps.mask.fixed = True
    tokens = TokenMaps(torch.randn(2, 6, 4, 2), torch.randn(2, 24, 4, 2))
    outputs = maps(tokens, 2)
    assert not outputs["support"].any()
    assert outputs["gait_maps"].isfinite().all()
    outputs["gait_maps"].sum().backward()
    assert all(p.grad.isfinite().all() for p in maps.parameters() if p.grad is not None)
    assert all(b.isfinite().all() for b in maps.buffers())


def test_dropped_maps_of_a_clip_are_zero_in_all_its_frames():
    maps = GaitMaps(6, 8, channels=4, drop=1.0).train()
    seen = []
    for stem in maps.stems:
        stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = TokenMaps(torch.randn(6, 6, 4, 2), torch.randn(6, 24, 4, 2))
    support = maps(tokens, 3)["support"]
    assert support.flatten(1).any(1).all()
    for clip in range(2):
        kept = [bool(each[3 * clip : 3 * clip + 3].abs().sum() > 0) for each in seen]
        assert sum(kept) == 1
