"""The skeleton consistency loss (14) against a float64 computation in plain loops."""

import math

import pytest
import torch

from fastreid_star.errors import UserError
from fastreid_star.methods.star import losses as sl
from fastreid_star.methods.star.layers import BoneStates


def loop_softmax(logits):
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def loop_divergence(p_logits, q_logits):
    """sum_i P log(P / Q) + Q log(Q / P)."""
    return sum(
        p * math.log(p / q) + q * math.log(q / p)
        for p, q in zip(loop_softmax(p_logits), loop_softmax(q_logits), strict=True)
    )


def test_equation_14():
    p, q = 2 * torch.randn(4, 9), 2 * torch.randn(4, 9)
    has_clip = torch.tensor([True, False, True, True])
    expected = sum(loop_divergence(p[b].tolist(), q[b].tolist()) / 2 for b in (0, 2, 3)) / 3
    assert sl.skeleton_consistency(p, q, has_clip).item() == pytest.approx(expected, rel=1e-5)


def test_clips_without_a_skeleton_do_not_count_nor_learn():
    p, q = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    has_clip = torch.tensor([True, True, False])
    sl.skeleton_consistency(p, q, has_clip).backward()
    assert (p.grad[2] == 0).all()
    assert (q.grad[2] == 0).all()
    assert p.grad[0].abs().sum() > 0
    nobody = sl.skeleton_consistency(p, q, torch.zeros(3, dtype=torch.bool))
    assert nobody == 0
    nobody.backward()
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("size", [0.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_in_every_precision(size, dtype):
    p, q = ((size * torch.randn(3, 7)).to(dtype).requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sl.skeleton_consistency(p, q, torch.ones(3, dtype=torch.bool))
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(p.grad).all()


def test_the_release_compares_the_modalities_without_the_half():
    logits = torch.randn(6, 5)
    is_visible = torch.tensor([True, False, True, True, False, False])
    has_clip = torch.tensor([True, True, True, True, True, False])
    pairs = [(0, 1), (2, 4)]  # the third pair (3, 5) lacks a skeleton
    expected = sum(loop_divergence(logits[v].tolist(), logits[i].tolist()) for v, i in pairs) / 2
    assert sl.modality_consistency(logits, is_visible, has_clip).item() == pytest.approx(
        expected, rel=1e-5
    )
    with pytest.raises(UserError, match="4 and 2"):
        sl.modality_consistency(
            logits, torch.tensor([True, True, True, True, False, False]), has_clip
        )


def test_the_module_joins_bones_and_joints():
    width, count = 6, 3
    loss = sl.SkeletonConsistencyLoss(feat_dim=width, joint_channels=4).double()
    p = torch.randn(count, width).double()
    bone_states = BoneStates(None, p, None, None)
    joints, has_clip = torch.randn(count, 17, 4).double(), torch.ones(count, dtype=torch.bool)
    q = joints.reshape(count, -1) @ loss.fc.weight.T + loss.fc.bias
    expected = sum(loop_divergence(p[b].tolist(), q[b].tolist()) / 2 for b in range(count)) / count
    assert loss(bone_states, joints, has_clip).item() == pytest.approx(expected, rel=1e-9)
