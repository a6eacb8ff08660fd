"""The base class of losses that compare clips of two modalities."""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable

from fastreid_star.modeling.layers.gather import all_rows
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses.loss import Loss
from fastreid_star.modeling.losses.pairing import rows_are_visible


class CrossModalLoss(Loss):
    """A loss of clip features, identities and modalities, in any order of the rows.

    A subclass implements :meth:`compute`. Autocast is off: distances lose their digits in half
    precision. Rows, identities or modalities without a counterpart are left out; where none is
    left, the loss is 0.

    Args:
        all_ranks: with several processes, over the whole batch and not over each process's share;
            ``MODEL.LOSSES.TRI.ALL_RANKS``.
        kwargs: see :class:`Loss`.
    """

    needs: tuple[str, ...] = ("clip_features", "targets", "is_visible")
    compares_identities = True

    @configurable
    def __init__(self, *, all_ranks: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.all_ranks = all_ranks

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        options = {"all_ranks": cfg.MODEL.LOSSES.TRI.ALL_RANKS}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}

    def forward(  # type: ignore[override]
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        """Features ``[R, D]``, parts ``[R, P, D]`` or frames ``[B, T, D]`` of R rows, their targets
        ``[R]``, and `is_visible` ``[N]`` of the frames."""
        of_rows = rows_are_visible(is_visible, targets)
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(features).reshape(len(targets), -1)
            if self.all_ranks:
                features, targets = all_rows(features.contiguous()), all_rows(targets)
                of_rows = all_rows(of_rows.to(torch.uint8)) > 0
            return self.compute(features, targets, of_rows)

    def compute(
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        """The loss of features ``[R, D]`` in float32 or wider, and bool `is_visible` ``[R]``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement compute()")


def mean_where(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean of the chosen values; 0 if there are none."""
    return values.masked_fill(~chosen, 0).sum() / chosen.sum().clamp(min=1)


def row_means(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean of the chosen values of each row, ``[R, Q]`` to ``[R]``; 0 if there are none."""
    return values.masked_fill(~chosen, 0).sum(1) / chosen.sum(1).clamp(min=1)
