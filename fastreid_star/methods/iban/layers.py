"""The attention between both streams, and the reconstruction of the other modality.

Shapes: B clips, T frames, N = B T frames, C channels, H x W pixels, h x w positions of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.pooling import at_least_float32


def to_volume(maps: torch.Tensor, length: int, *, mixed: bool = False) -> torch.Tensor:
    """Maps of frames ``[N, C, h, w]`` to clips ``[B, C, T, h, w]``.

    Args:
        maps: see above.
        length: T.
        mixed: read the memory of a clip ``[T, C, h, w]`` as ``[C, T, h, w]``, as the published
            program does: then a channel of the result has parts of several channels and frames.
    """
    clips, channels = maps.shape[0] // length, maps.shape[1]
    if mixed:
        return maps.reshape(clips, channels, length, *maps.shape[2:])
    return maps.reshape(clips, length, channels, *maps.shape[2:]).transpose(1, 2)


def to_maps(volume: torch.Tensor, *, mixed: bool = False) -> torch.Tensor:
    """The inverse of :func:`to_volume`."""
    channels, length = volume.shape[1:3]
    volume = volume if mixed else volume.transpose(1, 2)
    return volume.reshape(volume.shape[0] * length, channels, *volume.shape[3:])


class CrossAttention(nn.Module):
    """``x + BN(W softmax(theta(f)^T phi(x)) g(x))`` over all positions of a clip.

    The positions of the anaglyphs f ask, those of the images x answer. A non-local block (Wang et
    al., CVPR 2018) with two inputs: phi(x) and g(x) have half of the channels, and are max-pooled
    over 2 x 2 positions of a frame. The BatchNorm starts at 0, so that the block starts as the
    identity.

    Args:
        width: C.
        mixed: see :func:`to_volume`.
    """

    def __init__(self, width: int, *, mixed: bool = False):
        super().__init__()
        inner = max(1, width // 2)
        self.theta, self.phi, self.g = (nn.Conv1d(width, inner, 1) for _ in range(3))
        norm = nn.BatchNorm1d(width)
        nn.init.zeros_(norm.weight)
        self.out = nn.Sequential(nn.Conv1d(inner, width, 1), norm)
        self.mixed = mixed

    def forward(self, x: torch.Tensor, f: torch.Tensor, length: int) -> torch.Tensor:
        """Maps of images and anaglyphs ``[N, C, h, w]``, `length` T, to maps of the images."""
        images, reliefs = (to_volume(maps, length, mixed=self.mixed) for maps in (x, f))
        shape = images.shape[2:]
        flat = images.flatten(2)
        keys, values = (self._pooled(layer(flat), shape) for layer in (self.phi, self.g))
        queries = self.theta(reliefs.flatten(2)).transpose(1, 2)
        with torch.autocast(x.device.type, enabled=False):  # scores are not scaled
            scores = at_least_float32(queries) @ at_least_float32(keys)
            mixture = (scores.softmax(-1) @ at_least_float32(values).transpose(1, 2)).transpose(
                1, 2
            )
        return x + to_maps(self.out(mixture).reshape(images.shape), mixed=self.mixed)

    @staticmethod
    def _pooled(flat: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """``[B, C, T h w]`` to ``[B, C, T h/2 w/2]``."""
        length, height, width = shape
        rows = flat.reshape(flat.shape[0], flat.shape[1] * length, height, width)
        pooled = F.max_pool2d(rows, (min(2, int(height)), min(2, int(width))))
        return pooled.reshape(flat.shape[0], flat.shape[1], -1)


class Reconstruction(nn.Module):
    """Rebuilds the anaglyph maps of one modality from those of the other, at two depths.

    Args:
        middle: channels after stage 3, rebuilt by a 3 x 3 convolution.
        last: channels after stage 4, rebuilt by a 1 x 1 convolution.
    """

    def __init__(self, middle: int, last: int):
        super().__init__()

        def layers() -> nn.ModuleList:
            first = nn.Conv2d(middle, middle, 3, padding=1, bias=False)
            return nn.ModuleList([first, nn.Conv2d(last, last, 1, bias=False)])

        self.visible, self.infrared = layers(), layers()  # by the modality that they read

    def forward(
        self, maps: tuple[torch.Tensor, torch.Tensor], is_visible: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Rebuilt maps and their targets.

        The first visible clip belongs to the first infrared one, and so on: in a batch of the
        sampler these are clips of one identity.

        Args:
            maps: after stage 3 and after stage 4, ``[N, C, h, w]``.
            is_visible: bool ``[N]``, on the host.

        Returns:
            four pairs; the targets are detached.

        Raises:
            UserError: there are not as many visible frames as infrared ones.
        """
        rows = is_visible.nonzero().flatten(), (~is_visible).nonzero().flatten()
        if len(rows[0]) != len(rows[1]):
            raise UserError(
                "the reconstruction needs as many visible clips as infrared ones in a batch: set "
                "DATALOADER.SAMPLER_TRAIN TrainingSampler, or leave ReconstructionLoss out of "
                "MODEL.LOSSES.NAME"
            )
        pairs = []
        for depth, both in enumerate(maps):
            of_visible, of_infrared = (
                both.index_select(0, chosen.to(both.device, non_blocking=True)) for chosen in rows
            )
            pairs.append((self.visible[depth](of_visible), of_infrared.detach()))
            pairs.append((self.infrared[depth](of_infrared), of_visible.detach()))
        return pairs
