"""The triplet loss of parts, and the cross entropy of parts."""

import torch

from fastreid_star.modeling.losses import cross_entropy_loss, part_triplet_loss


def restated(parts, targets, margin):
    means = []
    for p in range(parts.shape[1]):
        x, above = parts[:, p], []
        for a in range(len(x)):
            for b in range(len(x)):
                for n in range(len(x)):
                    if targets[a] == targets[b] and targets[a] != targets[n]:
                        value = margin + (x[a] - x[b]).norm() - (x[a] - x[n]).norm()
                        if value > 0:
                            above.append(value)
        means.append(sum(above) / len(above) if above else torch.zeros(()))
    return sum(means) / len(means)


def test_it_equals_all_triplets_one_by_one():
    generator = torch.Generator().manual_seed(3)
    parts = torch.randn(7, 3, 4, dtype=torch.float64, generator=generator)
    parts[:, 2] *= 50  # a part in which hardly any triplet is above 0
    targets = torch.tensor([0, 1, 0, 2, 1, 1, 0])
    found = part_triplet_loss(parts, targets, margin=0.2)
    torch.testing.assert_close(found, restated(parts, targets, 0.2), rtol=0, atol=1e-8)


def test_rows_that_coincide_have_finite_gradients():
    parts = torch.ones(4, 2, 3, requires_grad=True)
    part_triplet_loss(parts, torch.tensor([0, 0, 1, 1])).backward()
    assert parts.grad.isfinite().all()


def test_a_batch_of_one_identity_costs_nothing():
    parts = torch.randn(3, 2, 4, requires_grad=True)
    loss = part_triplet_loss(parts, torch.zeros(3))
    loss.backward()
    assert loss == 0
    assert parts.grad.abs().max() == 0


def test_cross_entropy_of_parts_is_the_mean_over_clips_and_parts():
    logits, targets = torch.randn(4, 3, 5), torch.tensor([0, 4, 2, 2])
    expected = sum(cross_entropy_loss(logits[:, p], targets, epsilon=0.1) for p in range(3)) / 3
    torch.testing.assert_close(cross_entropy_loss(logits, targets, epsilon=0.1), expected)
