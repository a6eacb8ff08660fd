"""The layers and losses of SGIEL by value."""

import pytest
import torch

from fastreid_star.methods.sgiel.layers import cutmix_donors, erase_shape, paste
from fastreid_star.methods.sgiel.losses import balance, least_similar, orthogonality


def test_nothing_of_the_shape_is_left():
    torch.manual_seed(0)
    f, projection = torch.randn(5, 8).double(), torch.randn(8, 3).double()
    erased = erase_shape(f, projection)
    assert (erased @ projection).abs().max() < 1e-12
    torch.testing.assert_close(erase_shape(erased, projection), erased)
    assert (erase_shape(f, projection, orthogonal=False) @ projection).abs().max() > 1e-2
    basis = torch.linalg.qr(projection)[0]
    torch.testing.assert_close(erase_shape(f, basis, orthogonal=False), erased)


def test_orthogonality_by_hand():
    assert orthogonality(torch.eye(4)[:, :3] * 7) == 0
    projection = torch.tensor([[1.0, 3.0], [0.0, 4.0]])  # columns at a cosine of 0.6
    assert orthogonality(projection).item() == pytest.approx(0.6)


def test_the_least_similar_partner_by_hand():
    shapes = torch.tensor([[1.0, 0], [9, 0], [1, 1], [0, 2], [-1, 0]])
    targets, visible = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1, 1, 0, 0, 0]).bool()
    # visible rows: the second infrared one is at a right angle; infrared rows: both are alike
    assert least_similar(shapes, targets, visible).tolist() == [3, 3, 0, 0, 4]


def test_the_larger_gradient_has_the_larger_weight():
    x = torch.zeros(2, 3).requires_grad_()
    first, second = balance(3 * x[:, 0].sum(), x[:, 1].sum(), x)
    assert (first.item(), second.item()) == pytest.approx((1.5, 0.5))
    assert balance(x.sum() * 0, x.sum() * 0, x)[0] == 0  # and not NaN


def test_donors_are_of_the_other_modality_and_partners_share_their_identity():
    torch.manual_seed(0)
    targets = torch.tensor([4, 4, 7, 7, 9, 9, 4, 7, 9, 4, 7, 9])
    visible = torch.tensor([1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 0, 0]).bool()
    donors = cutmix_donors(targets, visible)
    assert torch.equal(visible[donors], ~visible)
    assert sorted(donors.tolist()) == [*range(12)]
    assert (targets[donors] != targets).any()
    pairs = [*zip(targets.tolist(), targets[donors].tolist(), visible.tolist(), strict=True)]
    mixtures = [sorted(pair[:2] for pair in pairs if pair[2] == flag) for flag in (True, False)]
    assert mixtures[0] == mixtures[1]
    assert cutmix_donors(torch.tensor([0, 1]), torch.tensor([True, True])).tolist() == [0, 1]


def test_a_rectangle_of_the_donor():
    images = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 1, 3, 4, 4)
    mixed = paste(images, torch.tensor([1, 0]), (0, 2, 1, 4))
    assert mixed[0, 0, 0].tolist() == [[0, 1, 1, 1]] * 2 + [[0] * 4] * 2
    assert images.max() == 1
    assert mixed[1].sum() == 3 * 10
