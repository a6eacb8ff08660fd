"""MoveNet (single pose): a MobileNetV2 with a feature pyramid, four heads and its decoder.

The layers are those of Google's published graph: batch norms are merged into the convolutions, and
a stride of 2 pads at the right and at the bottom only. MoveNet follows CenterNet (Zhou et al.,
"Objects as Points", 2019): the person is the highest cell of the center map, and each joint is the
highest cell of its heatmap near the place that the person's cell predicts.

Letters: N images, S the side of an image, G = S / 4 the side of the maps, V = 17 joints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.coco import LEFT_RIGHT, NUM_JOINTS

CELL = 4  # pixels per cell of the maps
# of MobileNetV2 (Sandler et al., CVPR 2018): channels, blocks and first stride of each stage
STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
TAPS = {2: 24, 5: 32, 9: 64}  # blocks whose outputs join the pyramid, and their channels there
HEADS = {"center": 1, "heatmap": NUM_JOINTS, "regress": 2 * NUM_JOINTS, "offset": 2 * NUM_JOINTS}


class Conv(nn.Conv2d):
    """A convolution with TensorFlow's padding ``SAME``, for images of an even size."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, **kwargs: Any):
        super().__init__(inputs, outputs, kernel, **kwargs)
        before, after = (kernel - self.stride[0]) // 2, (kernel - 1) // 2
        self._same = (before, after, before, after)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, self._same) if any(self._same) else input)


class InvertedResidual(nn.Module):
    """The block of MobileNetV2: expand, filter each channel, project; the first does not expand."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expand: bool):
        super().__init__()
        middle = 6 * inputs if expand else inputs
        self.expand = Conv(inputs, middle) if expand else None
        self.depthwise = Conv(middle, middle, 3, stride=stride, groups=middle)
        self.project = Conv(middle, outputs)
        self.residual = expand and stride == 1 and inputs == outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = inputs if self.expand is None else F.relu6(self.expand(inputs))
        x = self.project(F.relu6(self.depthwise(x)))
        return inputs + x if self.residual else x


class Separable(nn.Module):
    """A depthwise convolution without a bias, a pointwise one, and ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.depthwise = Conv(inputs, inputs, 3, groups=inputs, bias=False)
        self.pointwise = Conv(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.pointwise(self.depthwise(x)))


class MoveNet(nn.Module):
    """The joints of the person in the middle of each image.

    Args:
        size: S, a multiple of 32.
        width: the factor on MobileNetV2's channels.
        flip_test: average the maps with those of the mirrored image.

    Shapes:
        images: uint8 or float ``[N, 3, S, S]``, RGB, 0 to 255.
        output: ``[N, V, 3]``: x and y in pixels, with the center of the first pixel at (0, 0), and
        the score in [0, 1].
    """

    grid: torch.Tensor
    prior: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    nearness: torch.Tensor
    cell: torch.Tensor

    def __init__(self, *, size: int, width: float, flip_test: bool = False):
        super().__init__()
        self.size, self.side, self.flip_test = size, size // CELL, flip_test
        channels = [channels_of(32, width)]
        self.stem = Conv(3, channels[0], 3, stride=2)
        blocks: list[nn.Module] = []
        for outputs, count, stride in STAGES:
            for number in range(count):
                channels.append(channels_of(outputs, width))
                blocks.append(
                    InvertedResidual(
                        *channels[-2:], stride=1 if number else stride, expand=len(blocks) > 0
                    )
                )
        self.blocks = nn.ModuleList(blocks)
        self.last = Conv(channels[-1], 1280)
        self.top = Conv(1280, 64)
        self.laterals = nn.ModuleList(Conv(channels[tap + 1], TAPS[tap]) for tap in (9, 5, 2))
        self.merges = nn.ModuleList(Separable(*ends) for ends in ((64, 32), (32, 24), (24, 24)))
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(Separable(24, 96), Conv(96, n)) for name, n in HEADS.items()}
        )
        # constants of the published graph, which a checkpoint replaces
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("scale", torch.full((3, 1, 1), 1 / 127.5))
        self.register_buffer("prior", torch.ones(self.side, self.side))
        self.register_buffer("nearness", torch.tensor(1.8))
        self.register_buffer("cell", torch.full((2,), 1 / self.side))
        cells = torch.arange(self.side, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(cells, cells, indexing="ij"), dim=-1)
        self.register_buffer("grid", grid.flatten(0, 1), persistent=False)  # [G * G, (y, x)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.scale.dtype)
        maps = self.maps(images)
        if self.flip_test:
            mirrored = mirror(self.maps(images.flip(-1)))
            maps = {name: (value + mirrored[name]) / 2 for name, value in maps.items()}
        return self.decode(maps)

    def maps(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs of the heads, float32 ``[N, C, G, G]``; center and heatmap in [0, 1]."""
        x = F.relu6(self.stem((images - self.mean) * self.scale - 1))
        taps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAPS:
                taps.append(x)
        x = self.top(F.relu6(self.last(x)))
        for lateral, merge, tap in zip(self.laterals, self.merges, reversed(taps), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = merge(x + lateral(tap))
        maps = {name: head(x).float() for name, head in self.heads.items()}
        return {
            name: torch.sigmoid(value) if name in ("center", "heatmap") else value
            for name, value in maps.items()
        }

    def decode(self, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """The joints of the person whose center, weighted by the prior, is the highest.

        Of each heatmap the cell with the highest ::

            score / (distance to the predicted place in cells + nearness)

        is taken. The offset there moves the joint within and around the cell.
        """
        heatmap = maps["heatmap"].flatten(2)  # [N, V, G * G]
        regress, offset = (
            maps[name].flatten(2).unflatten(1, (NUM_JOINTS, 2)) for name in ("regress", "offset")
        )  # [N, V, (y, x), G * G]
        person = (maps["center"] * self.prior).flatten(1).argmax(1)  # [N]
        at_person = person[:, None, None, None].expand(-1, NUM_JOINTS, 2, 1)
        place = self.grid[person][:, None] + regress.gather(3, at_person)[..., 0]  # [N, V, 2]
        distance = (self.grid - place[:, :, None]).square().sum(-1).sqrt()  # [N, V, G * G]
        best = (heatmap / (distance + self.nearness)).argmax(2, keepdim=True)  # [N, V, 1]
        shift = offset.gather(3, best[:, :, None].expand(-1, -1, 2, 1))[..., 0]
        yx = (self.grid[best[..., 0]] + shift) * self.cell * self.size
        # the graph's images begin at the edge of their first pixel, not at its center
        return torch.cat([yx.flip(-1) - 0.5, heatmap.gather(2, best)], dim=-1)


def mirror(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The maps of mirrored images, as maps of the images.

    Cell c becomes G - 1 - c, and a place at c + d becomes G - (c + d): so d becomes 1 - d.
    """
    order = list(LEFT_RIGHT)
    mirrored = {name: value.flip(-1) for name, value in maps.items()}
    mirrored["heatmap"] = mirrored["heatmap"][:, order]
    for name in ("regress", "offset"):
        y, x = mirrored[name].unflatten(1, (NUM_JOINTS, 2))[:, order].unbind(2)
        mirrored[name] = torch.stack([y, 1 - x], dim=2).flatten(1, 2)
    return mirrored


def channels_of(channels: int, width: float) -> int:
    """MobileNetV2's channels times a factor, rounded to a multiple of 8."""
    return max(8, int(channels * width + 4) // 8 * 8)
