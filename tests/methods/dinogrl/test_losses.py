"""The losses of the silhouettes, against loops over positions."""

import math

import pytest
import torch

from fastreid_star.methods.dinogrl.losses import (
    MaskSmoothnessLoss,
    PartSmoothnessLoss,
    diversity,
    smoothness,
)

KX = ((1, 0, -1), (2, 0, -2), (1, 0, -1))


def gradient(image, y, x, transposed):
    """One Sobel gradient of an image with zeros around it."""
    total = 0.0
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if 0 <= y + dy < image.shape[0] and 0 <= x + dx < image.shape[1]:
                weight = KX[dx + 1][dy + 1] if transposed else KX[dy + 1][dx + 1]
                total += weight * image[y + dy, x + dx].item()
    return total


@pytest.fixture
def maps():
    return torch.rand(2, 3, 6, 5, dtype=torch.float64)


def test_smoothness_counts_positions_whose_neighborhood_is_in_the_support(maps):
    support = torch.rand(2, 1, 6, 5) < 0.9
    support[0, 0, 1:5, 1:5] = True
    total, count = 0.0, 0
    for n in range(2):
        for y in range(1, 5):
            for x in range(1, 4):
                if support[n, 0, y - 1 : y + 2, x - 1 : x + 2].all():
                    count += 3
                    for c in range(3):
                        image = maps[n, c]
                        total += abs(gradient(image, y, x, False))
                        total += abs(gradient(image, y, x, True))
    assert count > 0
    assert smoothness(maps, support).item() == pytest.approx(total / count, abs=1e-8)


def test_without_a_support_both_default_losses_are_zero(maps):
    support = torch.zeros(2, 1, 6, 5, dtype=torch.bool)
    assert smoothness(maps, support) == 0
    assert diversity(maps * support, support) == 0


def program_sobel(maps):
    """The published program's loss: one kernel for all channels into one output."""
    kernel = torch.tensor(KX, dtype=maps.dtype)
    total = 0
    for k in (kernel, kernel.T):
        weight = k.expand(1, maps.shape[1], 3, 3)
        total = total + torch.nn.functional.conv2d(maps, weight, padding=1).abs().sum()
    return total / maps.numel()


def test_the_authors_mask_smoothness_reads_the_positions_without_a_transposition():
    classes = torch.rand(2, 2, 6, 5, dtype=torch.float64).softmax(1)
    rows = classes.permute(0, 2, 3, 1).reshape(2, 30, 2)  # as their branch gives them
    expected = program_sobel(rows.reshape(2, 2, 6, 5))
    found = MaskSmoothnessLoss(reading="authors")(classes, None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_the_authors_part_smoothness_is_that_of_one_map():
    denoised = torch.rand(2, 16, 6, 5, dtype=torch.float64).softmax(1)
    found = PartSmoothnessLoss(reading="authors")(denoised, None)
    torch.testing.assert_close(found, program_sobel(denoised[:, :15]), rtol=0, atol=1e-8)
    torch.testing.assert_close(found, program_sobel(1 - denoised[:, 15:]) / 15)


def test_diversity_is_the_missing_entropy_of_frames_with_a_support():
    denoised = torch.zeros(3, 4, 2, 2, dtype=torch.float64)
    denoised[0] = 0.25  # all channels alike: nothing is missing
    denoised[1, 2] = 1.0  # one channel only: log2(4) bits are missing
    support = torch.tensor([True, True, False]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert diversity(denoised, support).item() == pytest.approx(1.0, abs=1e-4)
    shares = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    one = shares.view(1, 4, 1, 1).expand(1, 4, 2, 2)
    expected = math.log2(4) - 1.5
    assert diversity(one, support[:1]).item() == pytest.approx(expected, abs=1e-4)
