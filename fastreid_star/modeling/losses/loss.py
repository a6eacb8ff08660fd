"""What a loss is: a module that names the outputs it needs, registered by its class name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.utils.registry import Registry
from torch import nn

from fastreid_star.errors import UserError

LOSS_REGISTRY = Registry("LOSS")
LOSS_REGISTRY.__doc__ = """
Losses by class name, for ``MODEL.LOSSES.NAME``. A registered class is called as
``Loss(cfg, feat_dim=D)``.
"""


class Loss(nn.Module):
    """Base class of the losses.

    A subclass sets the three class attributes and implements :meth:`forward`, whose arguments are
    the outputs that `needs` names, in that order. A loss may own parameters: they are trained and
    saved with the model.

    Attributes:
        needs: names of the model's outputs, see :meth:`VideoReID.encode`.
        log_name: the name in the log and in metrics.json.
        from_start: whether the loss trains from the first epoch even where
            ``MODEL.LOSSES.CE_ONLY_EPOCHS`` lets the others begin later.

    Args:
        weight: the factor in the sum of the losses.
        first_epoch: the epoch, counted from 0, in which the loss begins to train.
    """

    needs: tuple[str, ...] = ()
    log_name: str = ""
    from_start = False

    @configurable
    def __init__(self, *, weight: float = 1.0, first_epoch: int = 0):
        super().__init__()
        self.weight = weight
        self.first_epoch = first_epoch

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        """Read ``MODEL.LOSSES.WEIGHTS`` and ``CE_ONLY_EPOCHS``.

        Args:
            cfg: the whole config.
            feat_dim: D, the feature width of the backbone, for losses with layers.
        """
        weights = dict(cfg.MODEL.LOSSES.WEIGHTS)
        return {
            "weight": float(weights.get(cls.__name__, 1.0)),
            "first_epoch": 0 if cls.from_start else cfg.MODEL.LOSSES.CE_ONLY_EPOCHS,
        }

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, without the weight."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward()")

    def of(self, outputs: Mapping[str, Any]) -> torch.Tensor:
        """The weighted loss of a model's outputs."""
        value = self(*(outputs[name] for name in self.needs))
        return value if self.weight == 1 else self.weight * value


def build_losses(cfg: CfgNode, *, feat_dim: int) -> dict[str, Loss]:
    """Build the losses of ``MODEL.LOSSES.NAME``, by name, in that order.

    Raises:
        UserError: a name is not registered, or ``MODEL.LOSSES.WEIGHTS`` names another loss.
    """
    names = list(cfg.MODEL.LOSSES.NAME)
    known = LOSS_REGISTRY._obj_map  # fast-reid's registry has no other way to list its names
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = ", ".join(unknown) or "no loss"
        registered = ", ".join(sorted(known))
        raise UserError(f"MODEL.LOSSES.NAME has {what}: the registered losses are {registered}")
    for name in dict(cfg.MODEL.LOSSES.WEIGHTS):
        if name not in names:
            raise UserError(f"MODEL.LOSSES.WEIGHTS names {name}, which MODEL.LOSSES.NAME has not")
    return {name: LOSS_REGISTRY.get(name)(cfg, feat_dim=feat_dim) for name in names}
