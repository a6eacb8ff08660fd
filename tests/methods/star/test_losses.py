"""The skeleton consistency loss (14) against a float64 computation in plain loops."""

import math

import pytest
import torch
from fastreid.config import get_cfg

from fastreid_star.errors import UserError
from fastreid_star.methods.star import losses as sl
from fastreid_star.methods.star.layers import BoneEncoder, BoneStates


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


def test_it_is_symmetric_zero_at_equality_and_blind_to_a_shift_of_the_logits():
    p, q, everyone = torch.randn(3, 7), torch.randn(3, 7), torch.ones(3, dtype=torch.bool)
    loss = sl.skeleton_consistency(p, q, everyone)
    torch.testing.assert_close(loss, sl.skeleton_consistency(q, p, everyone))
    torch.testing.assert_close(loss, sl.skeleton_consistency(p + 5, q - 3, everyone))
    assert sl.skeleton_consistency(p, p, everyone) == 0
    assert loss > 0


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


@pytest.mark.parametrize("size", [0.0, 1.0, 300.0])
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


@pytest.mark.parametrize("last", sl.LAST_STATES)
def test_the_module_joins_bones_and_joints(last):
    width, count = 6, 3
    loss = sl.SkeletonConsistencyLoss(feat_dim=width, joint_channels=4, last=last).double()
    states = [torch.randn(count, width).double() for _ in range(2)]
    bone_states = BoneStates(None, states[0], states[1], None, None)
    joints, has_clip = torch.randn(count, 17, 4).double(), torch.ones(count, dtype=torch.bool)
    q = joints.reshape(count, -1) @ loss.fc.weight.T + loss.fc.bias
    p = states[sl.LAST_STATES.index(last)]
    expected = sum(loop_divergence(p[b].tolist(), q[b].tolist()) / 2 for b in range(count)) / count
    assert loss(bone_states, joints, has_clip).item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_reaches_the_lstm_and_the_linear_layer():
    encoder, loss = (
        BoneEncoder(feat_dim=8),
        sl.SkeletonConsistencyLoss(feat_dim=8, last="final_states"),
    )
    skeletons = 50 * torch.rand(2, 3, 17, 3) + 1
    bone_states = encoder(skeletons, torch.ones(2, 3, dtype=torch.bool))
    loss(bone_states, torch.randn(2, 17, 12), torch.ones(2, dtype=torch.bool)).backward()
    for parameter in (*encoder.parameters(), *loss.parameters()):
        assert parameter.grad.abs().sum() > 0


def test_from_config():
    cfg = get_cfg()
    cfg.MODEL.STAR.KL_LAST = "final_states"
    loss = sl.SkeletonConsistencyLoss(cfg, feat_dim=10)
    assert loss.last == "final_states"
    assert loss.fc.weight.shape == (10, 17 * 12)
    with pytest.raises(
        UserError, match=r"MODEL\.STAR\.KL_LAST is 'first': choose one of last_step, final_states"
    ):
        sl.SkeletonConsistencyLoss(feat_dim=10, last="first")
