"""The shape head of SGIEL, and its CutMix.

Shapes: B clips, T frames, D feature width, d = D / 4, C identities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.modeling.losses.pairing import partners


def erase_shape(
    features: torch.Tensor, projection: torch.Tensor, *, orthogonal: bool = True
) -> torch.Tensor:
    """``f - Q Q^T f``: features without the directions that tell a body shape.

    Args:
        features: ``[B, D]``.
        projection: P ``[D, d]``.
        orthogonal: Q is an orthonormal basis of P's columns. False: Q is P with columns of unit
            length, as published. While the columns are not orthogonal, this takes more than their
            plane.
    """
    basis = torch.linalg.qr(projection)[0] if orthogonal else F.normalize(projection, dim=0)
    return features - (features @ basis) @ basis.T


class ShapeHead(nn.Module):
    """The projections to the shape, and the classifier of shapes.

    Args:
        width: D.
        classes: C.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        inner = max(1, width // 4)
        self.image = nn.Parameter(torch.empty(width, inner))  # P
        self.shape = nn.Parameter(torch.empty(width, inner))  # P_s
        self.weight = nn.Parameter(torch.empty(classes, inner))  # W_s
        for projection in (self.image, self.shape):
            nn.init.kaiming_normal_(projection, nonlinearity="linear")
        nn.init.normal_(self.weight, std=0.001)

    def classify(self, shapes: torch.Tensor, *, learn: bool = True) -> torch.Tensor:
        """Projected shapes ``[B, d]`` to logits ``[B, C]``; the classifier learns if `learn`."""
        return F.linear(shapes, self.weight if learn else self.weight.detach())


def cutmix_donors(targets: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
    """Draw a clip of the other modality for each clip: ``[B]``, on the device of `targets`.

    A visible clip and its partner get donors of one identity, so that both have the same mixture of
    labels. A clip for which there is none is its own donor.

    Args:
        targets: ``[B]``, identities.
        is_visible: bool ``[B]``, on the host.
    """
    visible = is_visible.nonzero().flatten()
    drawn = visible[torch.randperm(len(visible))].to(targets.device, non_blocking=True)
    visible = visible.to(targets.device, non_blocking=True)
    flags = is_visible.to(targets.device, non_blocking=True)
    partner, _ = partners(targets, flags)
    donors = torch.arange(len(targets), device=targets.device)
    donors = donors.index_copy(0, partner[visible], drawn)
    donors = donors.index_copy(0, visible, partner[drawn])
    return torch.where(flags[donors] != flags, donors, torch.arange(len(targets)).to(donors))


def paste(
    images: torch.Tensor, donors: torch.Tensor, box: tuple[int, int, int, int]
) -> torch.Tensor:
    """Clips ``[B, T, 3, H, W]`` with a rectangle of their donors' frames, in a new tensor.

    Args:
        images: see above.
        donors: ``[B]``, rows.
        box: top, bottom, left and right.
    """
    top, bottom, left, right = box
    part = (..., slice(top, bottom), slice(left, right))
    mixed = images.clone()
    mixed[part] = images[part].index_select(0, donors)
    return mixed
