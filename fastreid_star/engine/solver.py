"""Optimizer and learning-rate schedule: fast-reid's, with their traps removed."""

from __future__ import annotations

import math
from typing import Any

import fastreid.solver.optim
import torch
from fastreid.config import CfgNode
from fastreid.solver.build import (
    build_lr_scheduler,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
)

from fastreid_star.errors import UserError

__all__ = ["build_lr_scheduler", "build_optimizer", "resolve_schedule"]

_OTHER_INTERFACE = ("LBFGS", "SparseAdam")  # need a closure, or sparse gradients


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``SOLVER``, over fast-reid's parameter groups.

    It differs from fast-reid's own in three ways. It does not flatten the parameters into one
    buffer: since torch 2, ``zero_grad()`` drops the buffer's gradient, and ``step()`` then changes
    nothing. Parameters of ``model.backbone`` (both stems included) learn at
    ``SOLVER.BACKBONE_LR_FACTOR`` times the rate. fast-reid's optimizers (Lamb, RAdam, ...) are
    found as well as torch's. Freezing is a hook, see :class:`fastreid_star.engine.hooks.Freeze`.

    Raises:
        UserError: no optimizer has this name, or the model has no parameter to train.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        heads_lr_factor=cfg.SOLVER.HEADS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    if not groups:
        raise UserError("the model has no parameter to train")
    backbone = {id(p) for p in getattr(model, "backbone", torch.nn.Module()).parameters()}
    for group in groups:
        if id(group["params"][0]) in backbone:
            group["lr"] *= cfg.SOLVER.BACKBONE_LR_FACTOR
    name = cfg.SOLVER.OPT
    optimizer = maybe_add_gradient_clipping(cfg, _optimizer_class(name))
    nesterov = cfg.SOLVER.NESTEROV  # read in any case: the base configs set it
    options = {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": nesterov} if name == "SGD" else {}
    if name in ("Adam", "AdamW"):
        # On CPUs torch does not choose its fused kernel by itself. A fused optimizer unscales the
        # gradients only after clipping, so it cannot be used with a gradient scaler.
        scaled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        options["fused"] = True if on_cpu and not scaled else None
    return optimizer(_merge(groups), **options)


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer of that name in torch or fast-reid."""
    found: Any = getattr(torch.optim, name, None) or getattr(fastreid.solver.optim, name, None)
    known = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    if not known or name in _OTHER_INTERFACE:
        raise UserError(
            f"SOLVER.OPT {name!r} is not supported: choose one of torch.optim or "
            "fastreid.solver.optim, such as SGD, Adam, AdamW or Lamb"
        )
    return found


def _merge(groups: list[dict]) -> list[dict]:
    """One group for all parameters with equal settings; fast-reid makes one per parameter."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        same = merged.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})
        same["params"] += group["params"]
    return list(merged.values())


def resolve_schedule(cfg: CfgNode, iters_per_epoch: int) -> CfgNode:
    """Translate the plugin's schedule keys into fast-reid's.

    ``SOLVER.WARMUP_EPOCHS`` becomes ``WARMUP_ITERS``. With ``SOLVER.STEPS_FROM_START`` the
    milestones, epochs from the start of training, become counts of scheduler steps: fast-reid's
    hook takes such a step after every epoch except those inside the warm-up or the delay.

    Returns:
        a copy of `cfg`, with both plugin keys at their defaults.

    Raises:
        UserError: milestones that are not ascending or lie inside the warm-up, or no epoch is left
            for a cosine.
    """
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    if solver.WARMUP_EPOCHS > 0:
        solver.WARMUP_ITERS = solver.WARMUP_EPOCHS * iters_per_epoch
        solver.WARMUP_EPOCHS = 0
    warmup_epochs = math.ceil(solver.WARMUP_ITERS / iters_per_epoch)
    if solver.SCHED == "CosineAnnealingLR":
        if max(warmup_epochs, solver.DELAY_EPOCHS) >= solver.MAX_EPOCH:
            raise UserError(
                f"SOLVER.MAX_EPOCH {solver.MAX_EPOCH} leaves no epoch for CosineAnnealingLR after "
                "the warm-up or the delay: raise it, or lower WARMUP_EPOCHS and DELAY_EPOCHS"
            )
    else:
        steps = list(solver.STEPS)
        whole = all(isinstance(step, int) and step >= 1 for step in steps)
        if not whole or steps != sorted(set(steps)):
            raise UserError(f"SOLVER.STEPS is {steps}: give epochs from 1 on, in ascending order")
    if solver.STEPS_FROM_START:
        without = max(warmup_epochs - 1, solver.DELAY_EPOCHS, 0)
        steps_before = [max(0, milestone - without) for milestone in solver.STEPS]
        if 0 in steps_before or len(set(steps_before)) < len(steps_before):
            raise UserError(
                f"SOLVER.STEPS {list(solver.STEPS)}: a milestone inside the warm-up or the delay "
                "has no effect; shorten SOLVER.WARMUP_EPOCHS or move the milestone"
            )
        solver.STEPS = steps_before
        solver.STEPS_FROM_START = False
    cfg.freeze()
    return cfg
