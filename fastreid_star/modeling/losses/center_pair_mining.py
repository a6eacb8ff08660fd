"""The center-guided pair mining loss of DEEN."""

from __future__ import annotations

import torch

from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.cross_modal import CrossModalLoss, mean_where
from fastreid_star.modeling.losses.loss import LOSS_REGISTRY
from fastreid_star.modeling.losses.pairing import Centers, centers, distances, rows_are_visible


def _nearest_other(to: Centers, among: Centers) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance of each center to the nearest of another identity, and whether there is one."""
    d = distances(to.features, among.features)
    other = (to.targets[:, None] != among.targets) & (among.counts > 0)
    found = other.any(1)
    return d.masked_fill(~(other | ~found[:, None]), torch.inf).amin(1), found


def pair_mining(
    plain: Centers, embedded: Centers, other: Centers, *, margin: float
) -> torch.Tensor:
    """One direction: the plain centers i1 of a modality, and embedded ones v2 of the other.

    Args:
        plain: i1, of one modality.
        embedded: v2, of the other modality.
        other: v1, the plain centers of that modality.
        margin: of the distances.
    """
    both = (plain.counts > 0) & (embedded.counts > 0)
    pair = torch.linalg.vector_norm(plain.features - embedded.features, dim=1)
    own = torch.linalg.vector_norm(other.features - embedded.features, dim=1).detach()
    total = mean_where((margin + pair - own).clamp(min=0), both)
    for among in (embedded, other):
        nearest, found = _nearest_other(plain, among)
        total = total + mean_where((margin + pair - nearest).clamp(min=0), both & found) / 2
    return total


@LOSS_REGISTRY.register()
class CenterPairMiningLoss(CrossModalLoss):
    """CPM: a center is nearer to its identity's embedding in the other modality than to others.

    The diverse embeddings are the attacked frames of SAD, their mean over T: DEEN's come from
    branches of its own, which are not here.
    """

    needs = ("clip_features", "targets", "is_visible", "attacked_frames")
    log_name = "loss_pair_mining"
    equation = (
        "1/2 sum over (i,v), (v,i) of mean_y h(m + d(i1,v2) - d(v1,v2)) + h(m + d(i1,v2) - "
        "min d(i1, other v2))/2 + h(m + d(i1,v2) - min d(i1, other v1))/2; centers 1 plain, 2 "
        "embedded, h = max(0, .), d(v1,v2) detached"
    )
    source = "Zhang et al., CVPR 2023 (DEEN), weight 0.8"
    options = ("margin",)
    margin = 0.2

    def forward(  # type: ignore[override]
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        is_visible: torch.Tensor,
        attacked: torch.Tensor,
    ) -> torch.Tensor:
        """As :class:`CrossModalLoss`, with attacked frames ``[B, T, D]``; each process's share."""
        of_rows = rows_are_visible(is_visible, features)
        with torch.autocast(features.device.type, enabled=False):
            rows = at_least_float32(features), at_least_float32(attacked).mean(1)
            (v1, i1), (v2, i2) = (
                [centers(each, targets, m) for m in (of_rows, ~of_rows)] for each in rows
            )
            there = pair_mining(i1, v2, v1, margin=self.margin)
            back = pair_mining(v1, i2, i1, margin=self.margin)
            return (there + back) / 2
