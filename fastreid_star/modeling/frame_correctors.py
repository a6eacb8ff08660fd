"""Frame correctors: modules that change the frame features by what else is known of the clip."""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.utils.registry import Registry
from torch import nn

from fastreid_star.errors import UserError

FRAME_CORRECTOR_REGISTRY = Registry("FRAME_CORRECTOR")
FRAME_CORRECTOR_REGISTRY.__doc__ = """
Frame correctors by class name, for ``MODEL.FRAME_CORRECTOR.NAME``. A registered class is called as
``Corrector(cfg, feat_dim=D)``.
"""


class FrameCorrectorBase(nn.Module):
    """Base class of the frame correctors.

    Attributes:
        reads_skeletons: whether :meth:`forward` needs `skeletons` and `has_skeleton` of the batch.
        provides: the names of the outputs it adds, beside `corrected`.
        without_gradient: those of them that no gradient passes, such as masks.
        corrects: whether it changes the frames; one that does not serves only those who need the
            outputs it provides.
    """

    reads_skeletons = False
    provides: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] = ()
    corrects = True

    def forward(
        self, frames: torch.Tensor, batch: dict[str, Any], explain: bool = False
    ) -> dict[str, Any]:
        """Correct the frame features of a batch.

        Args:
            frames: X ``[B, T, D]``.
            batch: the model's batch, with its skeletons on the model's device.
            explain: add `attention`, a dict of what the corrector attended to.

        Returns:
            a dict with `corrected` ``[B, T, D]`` and all that :attr:`provides` names.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement forward()")


def build_frame_corrector(cfg: CfgNode, *, feat_dim: int) -> FrameCorrectorBase | None:
    """Build ``MODEL.FRAME_CORRECTOR.NAME``; None where the name is empty.

    Raises:
        UserError: the name is not registered.
    """
    name = cfg.MODEL.FRAME_CORRECTOR.NAME
    if not name:
        return None
    known = FRAME_CORRECTOR_REGISTRY._obj_map  # the registry cannot list its names otherwise
    if name not in known:
        choices = ", ".join(sorted(known))
        raise UserError(f"MODEL.FRAME_CORRECTOR.NAME is {name!r}: choose one of {choices}")
    return FRAME_CORRECTOR_REGISTRY.get(name)(cfg, feat_dim=feat_dim)
