"""Optimizer and learning-rate schedule: fast-reid's, with their traps removed."""

from __future__ import annotations

import math

import fastreid.solver.optim
import torch
from fastreid.config import CfgNode
from fastreid.solver.build import (
    build_lr_scheduler,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
)

from fastreid_star.errors import UserError

__all__ = ["apply_config", "build_lr_scheduler", "build_optimizer", "resolve_schedule"]

FUSED = ("Adam", "AdamW")
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
    backbone = (
        {id(p) for p in model.get_submodule("backbone").parameters()}
        if hasattr(model, "backbone")
        else set()
    )
    for group in groups:
        if id(group["params"][0]) in backbone:
            group["lr"] *= cfg.SOLVER.BACKBONE_LR_FACTOR
    name = cfg.SOLVER.OPT
    optimizer = maybe_add_gradient_clipping(cfg, _optimizer_class(name))
    options = {"nesterov": cfg.SOLVER.NESTEROV}  # Base configs set it for any optimizer
    if name == "SGD":
        options["momentum"] = cfg.SOLVER.MOMENTUM
    else:
        options = {"fused": True} if name in FUSED and _can_fuse(cfg, model) else {}
    return optimizer(_merge(groups), **options)


def _can_fuse(cfg: CfgNode, model: torch.nn.Module) -> bool:
    """On a CPU, where torch does not choose its fused kernel by itself.

    Not with a gradient scaler: a fused optimizer unscales the gradients only after clipping.
    """
    scaled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    on_cpu = all(p.device.type == "cpu" and p.is_floating_point() for p in model.parameters())
    return on_cpu and not scaled


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer of that name in torch or fast-reid."""
    found = getattr(torch.optim, name, None) or getattr(fastreid.solver.optim, name, None)
    if (
        not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer))
        or name in _OTHER_INTERFACE
    ):
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
        merged.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})[
            "params"
        ] += group["params"]
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
        _check_milestones(list(solver.STEPS))
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


def _check_milestones(steps: list) -> None:
    whole = all(isinstance(step, int) and step >= 1 for step in steps)
    if not whole or steps != sorted(set(steps)):
        raise UserError(f"SOLVER.STEPS is {steps}: give epochs from 1 on, in ascending order")


def apply_config(optimizer: torch.optim.Optimizer, schedulers: dict, fresh: dict) -> None:
    """Give a restored optimizer and schedule the settings of this config again.

    A checkpoint restores rates, weight decay and milestones too. Only the momenta and how far the
    schedule is stay.

    Args:
        optimizer, schedulers: restored from a checkpoint.
        fresh: :func:`settings` of both before that.
    """
    for group, settings_of_group in zip(optimizer.param_groups, fresh["groups"], strict=True):
        group.update(settings_of_group)
    for name, scheduler in schedulers.items():
        done = {key: scheduler.state_dict()[key] for key in ("last_epoch", "_step_count")}
        scheduler.load_state_dict({**fresh["schedulers"][name], **done})
    warmup = schedulers.get("warmup_sched")
    if warmup is not None and warmup.last_epoch < warmup.warmup_iters:
        rates = warmup.get_lr()
    else:
        rates = schedulers["lr_sched"]._get_closed_form_lr()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def settings(optimizer: torch.optim.Optimizer, schedulers: dict) -> dict:
    """What the config says of optimizer and schedule, for :func:`apply_config`."""
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return {
        "groups": groups,
        "schedulers": {name: s.state_dict().copy() for name, s in schedulers.items()},
    }
