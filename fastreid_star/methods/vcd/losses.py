"""The losses of VCD, over its four branches.

Shapes: V = 4 branches in the order of `BRANCHES`, B clips, T frames, N = B T frames, C identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable

from fastreid_star.errors import UserError
from fastreid_star.methods.vcd.layers import sinkhorn_distance
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, CrossEntropyLoss, Loss
from fastreid_star.modeling.losses.pairing import distances, distill, rows_are_visible

READINGS = ("default", "authors")
# A branch, and its weight in the cross entropy and in the rank loss. Both last ones are one
# network, which sees the image and its gray copy.
BRANCHES = {"visible": 0.5, "infrared": 0.5, "shared_color": 0.25, "shared_gray": 0.25}
VISIBLE, INFRARED, COLOR, GRAY = range(4)
SAME, OTHER = True, False  # modality
POSITIVE = {SAME: 1.3, OTHER: 1.0}  # distances above are a loss
NEGATIVE = {SAME: 2.2, OTHER: 2.0}  # distances below are a loss: no distance is above 2


def over_branches(loss: Any, *outputs: torch.Tensor) -> torch.Tensor:
    """The weighted sum of a loss over the branches of each output ``[V, B, ...]``."""
    terms = [
        weight * loss(branch)
        for rows in outputs
        for branch, weight in zip(rows, BRANCHES.values(), strict=True)
    ]
    return torch.stack(terms).sum()


@LOSS_REGISTRY.register()
class BranchCrossEntropyLoss(CrossEntropyLoss):
    """Cross entropy of the observations and the representations; options as for the clips."""

    needs = ("observation_logits", "representation_logits", "targets")
    equation = (
        "CE of observations and representations, weights 0.5, 0.5, 0.25, 0.25 of four branches"
    )
    source = "Tian et al., CVPR 2021 (VCD)"

    def forward(  # type: ignore[override]
        self, seen: torch.Tensor, kept: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        ordinary = super().forward
        return over_branches(lambda logits: ordinary(logits, targets), seen, kept)


def cross_modal_rank_loss(
    features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
) -> torch.Tensor:
    """Distances of unit features: positives below, negatives above a limit for each pairing.

    Ye et al., "Bi-directional center-constrained top-ranking for visible thermal person
    re-identification", TIFS 2020, as VCD's program has it. Of each row: the mean of
    ``max(0, d - 1.3)`` over its other positives of the same modality and of ``max(0, d - 1)`` over
    those of the other one; and the means of ``2.2 - d`` and ``2 - d`` over the negatives below,
    with weights ``exp(limit - d)``. The mean over the rows. No limit depends on the order of rows.

    Args:
        features: ``[B, D]``.
        targets: ``[B]``, identities.
        is_visible: bool ``[B]``, on the device of `targets`.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(at_least_float32(features), dim=1)
        d = distances(unit, unit)
        itself = torch.eye(len(d), dtype=torch.bool, device=d.device)
        identity = targets[:, None] == targets
        alike = is_visible[:, None] == is_visible
        total = d.new_zeros(len(d))
        for kind, pairs in ((SAME, alike), (OTHER, ~alike)):
            positive = identity & pairs & ~itself
            above = F.relu(d - POSITIVE[kind]) * positive
            total = total + above.sum(1) / positive.sum(1).clamp(min=1)
            below = NEGATIVE[kind] - d
            weights = below.exp() * (~identity & pairs & (below > 0))
            total = total + (weights * below).sum(1) / weights.sum(1).clamp(min=1e-5)
        return total.mean()


@LOSS_REGISTRY.register()
class BranchRankLoss(Loss):
    """:func:`cross_modal_rank_loss` of the observations and the representations."""

    needs = ("observations", "representations", "targets", "is_visible")
    log_name = "loss_rank"
    compares_identities = True
    equation = (
        "mean of max(0, d - limit) of positives + mean of limit - d of the negatives below, "
        "weights exp(limit - d), limits by modality; d of unit features, over four branches"
    )
    source = "Tian et al., CVPR 2021 (VCD)"

    def forward(  # type: ignore[override]
        self,
        seen: torch.Tensor,
        kept: torch.Tensor,
        targets: torch.Tensor,
        is_visible: torch.Tensor,
    ) -> torch.Tensor:
        of_clips = rows_are_visible(is_visible, targets)
        return over_branches(lambda x: cross_modal_rank_loss(x, targets, of_clips), seen, kept)


@LOSS_REGISTRY.register()
class SinkhornLoss(Loss):
    """Mutual learning: the Sinkhorn distance of the infrared and the visible branch's classes.

    It compares the two sets of distributions: no row has a partner.
    """

    needs = ("observation_logits",)
    log_name = "loss_sinkhorn"
    equation = (
        "min_T sum T_ij |p_i - q_j|^2, p and q the classes of the infrared and the visible branch"
    )
    source = "Tian et al., CVPR 2021 (VCD)"

    def forward(self, logits: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        with torch.autocast(logits.device.type, enabled=False):
            classes = at_least_float32(logits).softmax(-1)
            return sinkhorn_distance(classes[INFRARED], classes[VISIBLE])


def divergence(kept: torch.Tensor, seen: torch.Tensor, reading: str = "default") -> torch.Tensor:
    """How far the classes of a representation are from those of an observation, detached.

    ``KL(p || q)``, p the observation's and q the representation's distribution, the mean over the
    rows. The reading `authors` computes ``mean(q log q - q p)`` over rows and classes, which is
    least at ``q = softmax(p)``, an almost uniform distribution.

    Args:
        kept, seen: logits ``[B, C]`` of representation and observation.
        reading: one of `READINGS`.
    """
    if reading == "default":
        return distill(kept, seen)
    with torch.autocast(kept.device.type, enabled=False):
        p, q = at_least_float32(seen).detach().softmax(1), at_least_float32(kept)
        return (q.softmax(1) * (q.log_softmax(1) - p)).mean()


class _Distillation(Loss):
    """A loss of :func:`divergence`, by ``MODEL.VCD.READING``.

    Args:
        reading: one of `READINGS`.
        kwargs: see :class:`Loss`.
    """

    needs = ("representation_logits", "observation_logits")

    @configurable
    def __init__(self, *, reading: str = "default", **kwargs: Any):
        super().__init__(**kwargs)
        if reading not in READINGS:
            raise UserError(
                f"MODEL.VCD.READING is {reading!r}: choose one of {', '.join(READINGS)}"
            )
        self.reading = reading

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        reading = {"reading": cfg.MODEL.VCD.READING}
        return {**super().from_config(cfg, feat_dim=feat_dim), **reading}


@LOSS_REGISTRY.register()
class SelfDistillationLoss(_Distillation):
    """VSD: the representations of the visible and of the infrared branch keep the observations."""

    log_name = "loss_vsd"
    equation = "KL(p(v) || p(z)), visible + infrared branch, v detached"
    source = "Tian et al., CVPR 2021 (VCD)"

    def forward(self, kept: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        pairs = [divergence(kept[k], seen[k], self.reading) for k in (VISIBLE, INFRARED)]
        return pairs[0] + pairs[1]


@LOSS_REGISTRY.register()
class CrossDistillationLoss(_Distillation):
    """VCD: in the shared branch, those of an image keep what its gray copy tells, and back."""

    log_name = "loss_vcd"
    equation = (
        "(KL(p(v) || p(z_gray)) + KL(p(v_gray) || p(z))) / 2 in the shared branch, v detached"
    )
    source = "Tian et al., CVPR 2021 (VCD)"

    def forward(self, kept: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        pairs = [
            divergence(kept[a], seen[b], self.reading) for a, b in ((GRAY, COLOR), (COLOR, GRAY))
        ]
        return (pairs[0] + pairs[1]) / 2
