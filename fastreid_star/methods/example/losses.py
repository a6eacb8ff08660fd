"""A loss of the example."""

from __future__ import annotations

import torch

from fastreid_star.modeling.losses import LOSS_REGISTRY, Loss


@LOSS_REGISTRY.register()
class CenterLoss(Loss):
    """Pull the two modalities of an identity together.

    Mean over the identities of the batch of ``|c_visible - c_infrared|^2``, where c is the mean
    feature of the identity's clips of one modality.
    """

    needs = ("clip", "targets", "is_visible")
    log_name = "loss_center"

    def forward(  # type: ignore[override]
        self, clip: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        """Clip features ``[B, D]``, targets ``[B]``, is_visible ``[B T]`` of the frames."""
        visible = is_visible.view(len(clip), -1)[:, 0].to(clip.device)
        distances = []
        for identity in targets.unique():
            mine = targets == identity
            if (mine & visible).any() and (mine & ~visible).any():
                centers = [clip[mine & half].mean(0) for half in (visible, ~visible)]
                distances.append((centers[0] - centers[1]).square().sum())
        return torch.stack(distances).mean() if distances else 0 * clip.sum()
