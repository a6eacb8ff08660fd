"""Optimizer and learning-rate schedule: fast-reid's, with the traps taken out."""

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

__all__ = [
    "SCHEDULES",
    "build_lr_scheduler",
    "build_optimizer",
    "optimizer_class",
    "resolve_schedule",
]

SCHEDULES = ("MultiStepLR", "CosineAnnealingLR")  # those fast-reid has arguments for
FUSED_ON_CPU = (
    "SGD",
    "Adam",
    "AdamW",
)  # torch's optimizers with a fused kernel for CPUs since torch 2.4


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``SOLVER``, over fast-reid's parameter groups.

    Differs from fast-reid's own in four ways. It does not flatten the parameters into one buffer: since torch 2,
    ``zero_grad()`` drops the buffer's gradient and ``step()`` then changes nothing at all. Parameters of
    ``model.backbone`` (both stems included) learn at ``SOLVER.BACKBONE_LR_FACTOR`` times the rate. Optimizers of
    fast-reid's own (Lamb, RAdam, ...) are found as well as torch's. And layers stay frozen for so many steps of the
    run, resumed or not.

    Raises:
        UserError: no optimizer of that name, or nothing to train.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        heads_lr_factor=cfg.SOLVER.HEADS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        freeze_layers=cfg.MODEL.FREEZE_LAYERS if cfg.SOLVER.FREEZE_ITERS > 0 else [],
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
    optimizer = maybe_add_gradient_clipping(cfg, optimizer_class(name))
    options = (
        {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV} if name == "SGD" else {}
    )
    if name in FUSED_ON_CPU:
        options["fused"] = _can_fuse(cfg, model)
    built = optimizer(_merge(groups), **options)
    if name in FUSED_ON_CPU:
        built.register_load_state_dict_pre_hook(_keep_own_kernel)
        built.register_load_state_dict_post_hook(_keep_own_layout)
    if cfg.MODEL.FREEZE_LAYERS and cfg.SOLVER.FREEZE_ITERS > 0:
        for group in built.param_groups:
            group["steps_to_freeze"] = (
                cfg.SOLVER.FREEZE_ITERS if group["freeze_status"] == "freeze" else 0
            )
        built.register_step_pre_hook(_freeze)
    if name == "SGD":
        built.register_step_pre_hook(_start_momentum)
    return built


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer of that name, torch's or else fast-reid's.

    Raises:
        UserError: neither has one.
    """
    found = getattr(torch.optim, name, None) or getattr(fastreid.solver.optim, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise UserError(
            f"SOLVER.OPT {name!r}: neither torch.optim nor fastreid.solver.optim has it"
        )
    return found


def _can_fuse(cfg: CfgNode, model: torch.nn.Module) -> bool | None:
    """True where torch has one kernel for the whole update; None leaves the choice to torch.

    torch chooses well on GPUs; on a CPU it takes many passes over the weights where a fused kernel takes one. Not
    with a gradient scaler: a fused optimizer takes the scale off by itself, after fast-reid's clipping, not before.
    """
    scaled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    on_cpu = all(p.device.type == "cpu" and p.is_floating_point() for p in model.parameters())
    return True if on_cpu and not scaled else None


def _freeze(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    """Take the gradients of ``MODEL.FREEZE_LAYERS`` away, for the first ``SOLVER.FREEZE_ITERS`` steps of the run.

    fast-reid's own counts the steps of the process, and so freezes them anew where a run is resumed. This count is the
    optimizer's, and so the checkpoint's.
    """
    for group in optimizer.param_groups:
        if group.get("steps_to_freeze", 0) > 0:  # a checkpoint of before has no count
            group["steps_to_freeze"] -= 1
            for parameter in group["params"]:
                parameter.grad = None


def _start_momentum(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    """Give weights with a first gradient a momentum of 0, from which the step makes what it makes of none.

    torch's fused SGD fails where some weights have a momentum and others none yet: parts that only some losses reach,
    once those losses set in (``MODEL.LOSSES.CE_ONLY_EPOCHS``).
    """
    for group in optimizer.param_groups:
        if not (group["fused"] and group["momentum"]):
            continue
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def _keep_own_kernel(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """A checkpoint's settings replace the optimizer's; which kernel it runs must be this device's choice."""
    groups = [{**group, "fused": optimizer.defaults["fused"]} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _keep_own_layout(optimizer: torch.optim.Optimizer) -> None:
    """Momentum lies in memory as its parameter does: a fused kernel takes that for granted.

    It does not where a run goes on with another ``MODEL.CHANNELS_LAST``.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _merge(groups: list[dict]) -> list[dict]:
    """One group for all parameters of equal settings; fast-reid gives every parameter its own."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        merged.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})[
            "params"
        ] += group["params"]
    return list(merged.values())


def resolve_schedule(cfg: CfgNode, iters_per_epoch: int) -> CfgNode:
    """Translate the plugin's schedule keys into fast-reid's.

    ``SOLVER.WARMUP_EPOCHS`` becomes ``WARMUP_ITERS``. With ``SOLVER.STEPS_FROM_START`` the milestones, epochs from
    the start of training, become counts of scheduler steps: fast-reid's hook takes such a step after every epoch
    but those inside the warm-up or the delay, so its own milestones wander with the length of the warm-up.

    Returns:
        a copy of `cfg`, with both plugin keys back at their defaults.

    Raises:
        UserError: a milestone lies inside the warm-up.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.SOLVER.WARMUP_EPOCHS > 0:
        cfg.SOLVER.WARMUP_ITERS = cfg.SOLVER.WARMUP_EPOCHS * iters_per_epoch
        cfg.SOLVER.WARMUP_EPOCHS = 0
    if cfg.SOLVER.STEPS_FROM_START:
        without = max(
            math.ceil(cfg.SOLVER.WARMUP_ITERS / iters_per_epoch) - 1, cfg.SOLVER.DELAY_EPOCHS, 0
        )
        steps_before = [max(0, milestone - without) for milestone in cfg.SOLVER.STEPS]
        if 0 in steps_before or len(set(steps_before)) < len(steps_before):
            raise UserError(
                f"SOLVER.STEPS {list(cfg.SOLVER.STEPS)}: a milestone inside the warm-up or the delay would be lost; "
                "shorten SOLVER.WARMUP_EPOCHS or move it"
            )
        cfg.SOLVER.STEPS = steps_before
        cfg.SOLVER.STEPS_FROM_START = False
    cfg.freeze()
    return cfg
