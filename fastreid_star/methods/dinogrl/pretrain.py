"""Train a small DINOv2 transformer to see where the bodies of a video dataset are.

DINOv2's own weights cannot be had everywhere. Their patch tokens tell a person from the background,
which DinoGRL's silhouettes need, and those of a transformer with random weights do not. This one
learns it in some minutes from the skeletons of the training set: it is no DINOv2, and has seen one
small dataset, with labels.

Letters: N images, V = 17 joints, E limbs, H x W pixels, h x w patches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastreid_star.data.silhouettes import on_body
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.files import write_whole
from fastreid_star.modeling.backbones.dinov2 import Dinov2
from fastreid_star.structures import Tracklet

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, for 0 to 255


def read_frames(
    tracklets: Sequence[Tracklet], store: SkeletonStore, size: tuple[int, int], every: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every n-th frame of each tracklet, and its joints.

    Returns:
        uint8 ``[N, 3, H, W]``; float ``[N, V, 2]``, x and y in heights of the resized frame.
    """
    images, joints = [], []
    for tracklet in tracklets:
        for index in range(0, len(tracklet), every):
            with Image.open(tracklet.path(index)) as image:
                scale = np.array([size[1] / image.width, size[0] / image.height]) / size[0]
                images.append(np.asarray(image.convert("RGB").resize(size[::-1])))
            joints.append(store.raw([tracklet.key(index)])[0, :, :2] * scale)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels, torch.from_numpy(np.stack(joints)).float()


def recolor(images: torch.Tensor) -> torch.Tensor:
    """Permute the channels of each image ``[N, 3, H, W]``, and change its brightness."""
    count = len(images)
    order = torch.rand(count, 3).argsort(1)[:, :, None, None].to(images.device)
    brightness = (0.7 + 0.6 * torch.rand(count, 1, 1, 1)).to(images.device)
    return images.gather(1, order.expand_as(images)) * brightness


def train_on_skeletons(
    network: Dinov2,
    images: torch.Tensor,
    joints: torch.Tensor,
    *,
    steps: int,
    batch: int = 32,
    rate: float = 1e-3,
    report: Callable[[str], object] | None = None,
) -> float:
    """Train a transformer to tell from each patch token whether a limb passes its patch.

    Args:
        network: is changed. Its grid must be that of the images' patches.
        images, joints: of :func:`read_frames`.
        steps: of AdamW, with a cosine schedule.
        batch: images of a step.
        rate: learning rate.
        report: called with a line every 100 steps.

    Returns:
        the mean binary cross entropy of the last tenth of the steps.
    """
    size = (images.shape[2], images.shape[3])
    targets = on_body(joints, size, network.grid)
    classifier = nn.Conv2d(network.width, 1, 1).to(images.device)
    parameters = [*network.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean, std = (torch.tensor(numbers).view(3, 1, 1).to(images.device) for numbers in (MEAN, STD))
    losses = []
    for step in range(steps):
        rows = torch.randint(len(images), (batch,))
        found = classifier(network.train()((recolor(images[rows].float()) - mean) / std))
        loss = F.binary_cross_entropy_with_logits(found, targets[rows])
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
