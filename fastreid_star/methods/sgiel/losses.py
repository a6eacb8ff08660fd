"""The losses of SGIEL.

Shapes: B clips, T frames, N = B T frames, D feature width, d = D / 4, C identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, CrossEntropyLoss, Loss, cross_entropy_loss
from fastreid_star.modeling.losses.pairing import distill, partners, rows_are_visible


@LOSS_REGISTRY.register()
class MixedCrossEntropyLoss(CrossEntropyLoss):
    """Cross entropy with both identities of a clip that CutMix has mixed, by their areas.

    Without CutMix it is the cross entropy of the clips. Options as there.
    """

    needs = ("clip_logits", "targets", "second_targets", "first_share")
    equation = (
        "s CE(y) + (1 - s) CE(y2), s the area of the first of two clips that CutMix has mixed"
    )
    source = "Feng et al., CVPR 2023 (SGIEL)"

    def forward(  # type: ignore[override]
        self, logits: torch.Tensor, first: torch.Tensor, second: torch.Tensor, share: float
    ) -> torch.Tensor:
        loss = super().forward(logits, first)
        return loss if share == 1 else share * loss + (1 - share) * super().forward(logits, second)


@LOSS_REGISTRY.register()
class ShapeCrossEntropyLoss(MixedCrossEntropyLoss):
    """The same of the body shapes."""

    needs = ("shape_logits", "targets", "second_targets", "first_share")
    log_name = "loss_cls_shape"
    equation = "the same of the body shapes"


def mutual_distillation(logits: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    """``H(softmax(b), softmax(a))``, b detached: each row a learns from its partner b.

    The mean over the rows of each modality, summed over both. A row that is its own partner gets no
    gradient.

    Args:
        logits: ``[B, C]``.
        partner: ``[B]``, rows.
    """
    return 2 * distill(logits, logits[partner], kind="ce")


@LOSS_REGISTRY.register()
class MutualDistillationLoss(Loss):
    """:func:`mutual_distillation` of the clips, between the modalities of an identity."""

    needs = ("clip_logits", "targets", "is_visible")
    log_name = "loss_distillation"
    equation = "mean H(p_b, p_a) over pairs a, b of an identity, both ways, the teacher b detached"
    source = "Feng et al., CVPR 2023 (SGIEL)"

    def forward(  # type: ignore[override]
        self, logits: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        return mutual_distillation(
            logits, partners(targets, rows_are_visible(is_visible, logits))[0]
        )


def least_similar(
    shapes: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
) -> torch.Tensor:
    """The row of the same identity and the other modality with the least cosine: ``[B]``.

    A row without such rows is its own.

    Args:
        shapes: ``[B, d]``.
        targets: ``[B]``, identities.
        is_visible: bool ``[B]``, on the device of `targets`.
    """
    unit = F.normalize(shapes.detach(), dim=1)
    other = (targets[:, None] == targets) & (is_visible[:, None] != is_visible)
    cosines = (unit @ unit.T).masked_fill(~other, torch.inf)
    rows = torch.arange(len(targets), device=targets.device)
    return torch.where(other.any(1), cosines.argmin(1), rows)


def balance(
    first: torch.Tensor, second: torch.Tensor, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of two losses: 2 a / (a + b) and 2 b / (a + b), a and b the sizes of their gradients.

    As published, the loss with the larger gradient gets the larger weight. Both are 1 where nothing
    has a gradient.

    Args:
        first, second: losses.
        features: ``[B, D]``; a size is the mean norm of the gradients of its rows.
    """
    if not features.requires_grad:
        return first.new_ones(()), second.new_ones(())
    sizes = [
        torch.autograd.grad(loss, features, retain_graph=True)[0].norm(dim=1).mean()
        for loss in (first, second)
    ]
    total = (sizes[0] + sizes[1]).clamp(min=1e-12)
    return 2 * sizes[0] / total, 2 * sizes[1] / total


@LOSS_REGISTRY.register()
class ShapeErasureLoss(Loss):
    """``w1 E + w2 C``: a feature tells its shape, and without the shape it tells the identity.

    E is the mean squared error of the shape's estimate, and the cross entropy of the estimate's
    classes with those of the shape, both as the averaged network sees it. C is, of the features
    without the shape, the cross entropy and two mutual distillations: between partners, and with
    the partner whose shape is least similar. :func:`balance` weighs both.
    """

    needs = (
        *("clip", "targets", "is_visible", "erased_logits", "shape_features"),
        *("shape_estimates", "estimate_logits", "average_shapes", "average_logits"),
    )
    log_name = "loss_shape"
    from_start = False
    equation = (
        "w1 [|P^T f - z|^2 + H(p(z), p(P^T f))] + w2 [CE(f_e) + 2 distillations of f_e], f_e = f - "
        "Q Q^T f"
    )
    source = "Feng et al., CVPR 2023 (SGIEL)"

    def forward(  # type: ignore[override]
        self,
        clip: torch.Tensor,
        targets: torch.Tensor,
        is_visible: torch.Tensor,
        erased_logits: torch.Tensor,
        shapes: torch.Tensor,
        estimates: torch.Tensor,
        estimate_logits: torch.Tensor,
        average_shapes: torch.Tensor,
        average_logits: torch.Tensor,
    ) -> torch.Tensor:
        of_clips = rows_are_visible(is_visible, clip)
        tells = F.mse_loss(estimates, average_shapes.detach())
        tells = tells + distill(estimate_logits, average_logits, kind="ce")
        erased = cross_entropy_loss(erased_logits, targets)
        for partner in (partners(targets, of_clips)[0], least_similar(shapes, targets, of_clips)):
            erased = erased + mutual_distillation(erased_logits, partner)
        first, second = balance(tells, erased, clip)
        return first * tells + second * erased


def orthogonality(projection: torch.Tensor) -> torch.Tensor:
    """``mean_j sum_i |Q^T Q - 1|_ij``, Q the projection ``[D, d]`` with columns of unit length."""
    unit = F.normalize(at_least_float32(projection), dim=0)
    identity = torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device)
    return (unit.T @ unit - identity).abs().sum(0).mean()


@LOSS_REGISTRY.register()
class ProjectionLoss(Loss):
    """:func:`orthogonality` of the projection of features to shapes."""

    needs = ("projection",)
    log_name = "loss_projection"
    equation = "mean_j sum_i |Q^T Q - 1|_ij, Q = P with columns of unit length"
    source = "Feng et al., CVPR 2023 (SGIEL)"

    def forward(self, projection: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        with torch.autocast(projection.device.type, enabled=False):
            return orthogonality(projection)


MIXED_LOSSES: tuple[type[Any], ...] = (  # of a step with CutMix
    *(MixedCrossEntropyLoss, MutualDistillationLoss, ProjectionLoss),
)
