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

    A subclass sets class attributes and implements :meth:`forward`, whose arguments are the outputs
    that `needs` names, in that order. A loss may own parameters: they are trained and saved with
    the model.

    Attributes:
        needs: names of the model's outputs, see :meth:`VideoReID.encode`.
        log_name: the name in the log and in metrics.json.
        from_start: whether the loss trains from the first epoch even where
            ``MODEL.LOSSES.CE_ONLY_EPOCHS`` lets the others begin later.
        compares_identities: whether a batch needs clips of two identities.
        pairs_modalities: whether the n-th visible clip of a batch and the n-th infrared one must be
            of one identity.
        equation, source: for docs/losses.md.
        options: names of attributes that ``MODEL.LOSSES.OPTIONS`` may set; the class has their
            defaults.
        readings: the values of the option `reading`, if there is one.

    Args:
        weight: the factor in the sum of the losses.
        first_epoch: the epoch, counted from 0, in which the loss begins to train.
    """

    needs: tuple[str, ...] = ()
    log_name: str = ""
    from_start = False
    compares_identities = False
    pairs_modalities = False
    equation: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()

    @configurable
    def __init__(self, *, weight: float = 1.0, first_epoch: int = 0):
        super().__init__()
        self.weight = weight
        self.first_epoch = first_epoch

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        """The arguments of the constructor; :func:`build_losses` sets the weight and the epoch.

        Args:
            cfg: the whole config.
            feat_dim: D, the feature width of the backbone, for losses with layers.
        """
        return {}

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, without the weight."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward()")

    def of(self, outputs: Mapping[str, Any]) -> torch.Tensor:
        """The weighted loss of a model's outputs."""
        value = self(*(outputs[name] for name in self.needs))
        return value if self.weight == 1 else self.weight * value


def build_losses(cfg: CfgNode, *, feat_dim: int) -> dict[str, Loss]:
    """Build the losses of ``MODEL.LOSSES.NAME``, by name, in that order.

    Sets the weights of ``MODEL.LOSSES.WEIGHTS``, the numbers of ``MODEL.LOSSES.OPTIONS``, and the
    first epoch of losses that do not train from the start to ``MODEL.LOSSES.CE_ONLY_EPOCHS`` at
    least.

    Raises:
        UserError: a name is not registered or given twice, two losses have one name in the log, no
            loss trains from the first epoch, or ``MODEL.LOSSES.WEIGHTS`` or ``OPTIONS`` is wrong.
    """
    node = cfg.MODEL.LOSSES
    names = list(node.NAME)
    known = LOSS_REGISTRY._obj_map  # fast-reid's registry has no other way to list its names
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = ", ".join(unknown) or "no loss"
        registered = ", ".join(sorted(known))
        raise UserError(f"MODEL.LOSSES.NAME has {what}: the registered losses are {registered}")
    weights = _weights(node.WEIGHTS, names)
    losses: dict[str, Loss] = {}
    for name in names:
        loss = known[name](cfg, feat_dim=feat_dim)
        loss.weight = weights.get(name, loss.weight)
        loss.log_name = loss.log_name or name
        if not loss.from_start:
            loss.first_epoch = max(loss.first_epoch, node.CE_ONLY_EPOCHS)
        for twin, other in losses.items():
            if other.log_name == loss.log_name:
                raise UserError(
                    f"MODEL.LOSSES.NAME: {twin} and {name} are both logged as {loss.log_name}: use "
                    "one of them, or give one another log_name"
                )
        losses[name] = loss
    if all(loss.first_epoch > 0 for loss in losses.values()):
        raise UserError(
            f"MODEL.LOSSES.CE_ONLY_EPOCHS is {node.CE_ONLY_EPOCHS}, but no loss of "
            "MODEL.LOSSES.NAME trains in these epochs: set it to 0, or add CrossEntropyLoss"
        )
    _set_options(losses, node.OPTIONS)
    return losses


def outputs_needed(losses: Mapping[str, Any] | nn.ModuleDict) -> set[str]:
    """The names of all outputs that these losses need."""
    found: Any = losses.values()
    return {name for loss in found for name in loss.needs}


def check_needs(parts: Mapping[str, Any], provided: set[str]) -> None:
    """Check that a model provides the outputs that its parts need.

    Args:
        parts: losses and heads, by name.
        provided: names of the outputs.

    Raises:
        UserError: the `needs` of a part has a name that is not among them.
    """
    for name, part in parts.items():
        missing = [output for output in part.needs if output not in provided]
        if missing:
            raise UserError(
                f"{name} needs {', '.join(missing)}, which no part of this model provides: "
                "change MODEL.LOSSES.NAME, MODEL.HEADS.NAME, MODEL.FRAME_CORRECTOR.NAME or "
                f"MODEL.META_ARCHITECTURE; provided are {', '.join(sorted(provided))}"
            )


def _weights(pairs: Any, names: list[str]) -> dict[str, float]:
    """``MODEL.LOSSES.WEIGHTS`` as a dict."""
    try:
        weights = {name: float(factor) for name, factor in pairs}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"MODEL.LOSSES.WEIGHTS is {pairs!r}: give [name, factor] pairs, such as "
            '[["StyleDefenseLoss", 0.5]]'
        ) from error
    for name in weights:
        if name not in names:
            raise UserError(f"MODEL.LOSSES.WEIGHTS names {name}, which MODEL.LOSSES.NAME has not")
    return weights


def _set_options(losses: Mapping[str, Loss], triples: Any) -> None:
    """Set the options of ``MODEL.LOSSES.OPTIONS`` on the losses."""
    for triple in triples:
        if not (isinstance(triple, (list, tuple)) and len(triple) == 3):
            raise UserError(
                f"MODEL.LOSSES.OPTIONS has {triple!r}: give [loss, option, value], such as "
                '["HeteroCenterLoss", "margin", 0.2]'
            )
        name, option, value = triple
        if name not in losses:
            raise UserError(f"MODEL.LOSSES.OPTIONS names {name}, which MODEL.LOSSES.NAME has not")
        loss = losses[name]
        if option not in loss.options:
            known = ", ".join(loss.options) or "none"
            raise UserError(f"MODEL.LOSSES.OPTIONS: {name} has the options {known}, not {option!r}")
        if option == "reading" and value not in loss.readings:
            choices = ", ".join(loss.readings)
            raise UserError(f"MODEL.LOSSES.OPTIONS: {name}'s reading is one of {choices}")
        if option != "reading" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"MODEL.LOSSES.OPTIONS: {name}'s {option} is {value!r}: give a number")
        setattr(loss, option, value)
