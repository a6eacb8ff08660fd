"""Partners and centers go by identity and modality, not by the order of the rows."""

import pytest
import torch

from fastreid_star.modeling.losses.pairing import (
    centers,
    distances,
    distill,
    partners,
    rows_are_visible,
)


def test_partners_by_hand():
    # identities:        0  0  1  1  0  0  1  2
    targets = torch.tensor([0, 0, 1, 1, 0, 0, 1, 2])
    visible = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1]).bool()
    partner, found = partners(targets, visible)
    # identity 0 in pairs; the one visible row of 1 is the partner of both infrared ones; 2 is alone
    assert partner.tolist() == [4, 5, 3, 2, 0, 1, 2, 7]
    assert found.tolist() == [True] * 7 + [False]


def test_partners_of_a_shuffled_batch_are_of_the_other_modality():
    torch.manual_seed(0)
    order = torch.randperm(24)
    targets = torch.arange(4).repeat_interleave(3).repeat(2)[order]
    visible = (torch.arange(24) < 12)[order]
    partner, found = partners(targets, visible)
    assert found.all()
    assert torch.equal(targets[partner], targets)
    assert torch.equal(visible[partner], ~visible)
    assert torch.equal(partner[partner], torch.arange(24))  # a pairing: equally many rows


def test_centers_by_hand():
    rows = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 2.0]], dtype=torch.float64)
    targets, visible = torch.tensor([7, 3, 7]), torch.tensor([True, True, False])
    of_all = centers(rows, targets)
    assert of_all.targets.tolist() == [7, 3, 7]
    assert of_all.features.tolist() == [[3, 1], [3, 4], [0, 0]]
    assert (of_all.counts.tolist(), of_all.of_row.tolist()) == ([2, 1, 0], [0, 1, 0])
    infrared = centers(rows, targets, ~visible)  # in the same places
    assert infrared.features.tolist() == [[5, 2], [0, 0], [0, 0]]
    assert infrared.counts.tolist() == [1, 0, 0]


def test_rows_of_clips_and_frames():
    visible = torch.tensor([1, 1, 1, 0, 0, 0]).bool()  # two clips of three frames
    assert rows_are_visible(visible, torch.zeros(2, 5)).tolist() == [True, False]
    assert torch.equal(rows_are_visible(visible, torch.zeros(6, 5)), visible)


def test_near_rows_far_from_0_keep_their_distance():
    a = 1e4 + torch.tensor([[0.0], [1.0], [1.0]])
    a.requires_grad_()
    found = distances(a, a)
    assert found[0].tolist() == [0, 1, 1]
    found[1:, 1:].sum().backward()  # equal rows
    assert a.grad.flatten().tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["kl", "ce"])
def test_distillation_is_least_at_the_teacher_whom_it_leaves_alone(kind):
    torch.manual_seed(0)
    student, teacher = (torch.randn(5, 4).double().requires_grad_() for _ in range(2))
    loss = distill(student, teacher, temperature=3.0, kind=kind)
    loss.backward()
    s, t = (x.detach().div(3).softmax(1) for x in (student, teacher))
    entropy = -(t * t.log()).sum(1).mean()
    expected = 9 * (-(t * s.log()).sum(1).mean() - (entropy if kind == "kl" else 0))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(student.grad, 3 * (s - t) / 5)
    assert teacher.grad is None
    assert distill(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
