"""Train a small DINOv2 transformer on the identities of a video dataset.

DINOv2's own weights cannot be had everywhere, and a transformer with random weights tells little
about a method that is led by its tokens. This one has learned in some minutes, with labels, to tell
the people of the training set apart. It is no DINOv2: it has seen one small dataset.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastreid_star.files import write_whole
from fastreid_star.modeling.backbones.dinov2 import Dinov2
from fastreid_star.structures import Tracklet

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, for 0 to 255


def read_frames(
    tracklets: Sequence[Tracklet], size: tuple[int, int], every: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every n-th frame of each tracklet: uint8 ``[N, 3, H, W]``, and identities ``[N]`` from 0."""
    images, pids = [], []
    for tracklet in tracklets:
        for index in range(0, len(tracklet), every):
            with Image.open(tracklet.path(index)) as image:
                images.append(np.asarray(image.convert("RGB").resize(size[::-1])))
            pids.append(tracklet.pid)
    labels = np.unique(pids, return_inverse=True)[1]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(labels)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Flip, shift by up to 1/16, and change the brightness of each image ``[N, 3, H, W]``, 0 to 1.

    The channels are permuted for each image, so that colors tell less than shape.
    """
    count, _, height, width = images.shape
    flip = torch.rand(count, 1, 1, 1) < 0.5
    images = torch.where(flip, images.flip(3), images)
    theta = torch.eye(2, 3).repeat(count, 1, 1)
    theta[:, :, 2] = (torch.rand(count, 2) - 0.5) / 4
    grid = F.affine_grid(theta, [count, 3, height, width], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    order = torch.rand(count, 3).argsort(1)[:, :, None, None].expand_as(images)
    return images.gather(1, order) * (0.7 + 0.6 * torch.rand(count, 1, 1, 1))


def train_on_identities(
    network: Dinov2,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int,
    batch: int = 64,
    rate: float = 1e-3,
    report: Callable[[str], object] | None = None,
) -> float:
    """Train a transformer to classify frames by the mean of its patch tokens.

    Args:
        network: is changed.
        images, labels: of :func:`read_frames`.
        steps: of AdamW, with a cosine schedule.
        batch: images of a step.
        rate: learning rate.
        report: called with a line every 100 steps.

    Returns:
        the mean cross entropy of the last tenth of the steps.
    """
    classifier = nn.Linear(network.width, int(labels.max()) + 1)
    parameters = [*network.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    losses = []
    for step in range(steps):
        rows = torch.randint(len(images), (batch,))
        pixels = 255 * augment(images[rows].float() / 255)
        features = network.train()((pixels - mean) / std).mean((2, 3))
        loss = F.cross_entropy(classifier(features), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if report is not None and (step + 1) % 100 == 0:
            report(f"step {step + 1} of {steps}: cross entropy {np.mean(losses[-100:]):.3f}")
    return float(np.mean(losses[-max(steps // 10, 1) :]))


def save_network(network: Dinov2, path: str | os.PathLike) -> None:
    """Write the weights to a file for ``MODEL.DINOGRL.DINOV2``."""
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    write_whole(os.fspath(path), lambda file: torch.save(state, file))
