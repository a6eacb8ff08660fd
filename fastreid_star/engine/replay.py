"""Run a kept training step again and find the module where its numbers stop being finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from fastreid.utils.events import EventStorage
from torch.utils._pytree import tree_leaves

from fastreid_star.data.build import DeviceLoader
from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import parse_config
from fastreid_star.engine.finite import not_finite
from fastreid_star.engine.train_loop import STEP_FORMAT, step_seed
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.weights import read_file


def replay(path: str, device: str = "cpu", *, float64: bool = False) -> str:
    """Run a kept step again with the same weights, batch and random numbers.

    Args:
        path: ``nonfinite-ITERATION.pth`` of a run's OUTPUT_DIR.
        device: as ``MODEL.DEVICE``. Another kind than the step's draws other random numbers.
        float64: compute in double precision, to tell overflow from wrong mathematics.

    Returns:
        a report: losses then and now, the first module whose output (or gradient) is not finite,
        and the clips of the batch.
    """
    step = read_step(path)
    chosen = devices.choose_device(device)
    model = _rebuild(step, device)
    batch = next(iter(DeviceLoader([step["batch"]], chosen)))  # type: ignore[arg-type]
    scale = step["grad_scaler"]["scale"] if step["grad_scaler"] and not float64 else 1.0
    if float64:
        model = model.double()
        batch = {key: value.double() if _is_float(value) else value for key, value in batch.items()}
    found = {"Not finite before the step": ", ".join(not_finite(dict(model.named_parameters())))}
    for name, module in model.named_modules():
        module.register_forward_hook(_watch(f"{name or 'model'} ({type(module).__name__})", found))
    devices.seed_everywhere(step_seed(step["seed"], step["rank"], step["iteration"]))
    losses: dict[str, torch.Tensor] = {}
    try:
        with EventStorage(step["iteration"]), torch.autograd.set_detect_anomaly(True):
            with devices.autocast(chosen, None if float64 else step["amp_dtype"]):
                losses = model(batch)
            (sum(losses.values(), start=torch.zeros(())) * scale).backward()
    except RuntimeError as error:  # of the anomaly detection, which also prints the forward call
        if "returned nan" not in str(error):
            raise
        found["torch's anomaly detection"] = str(error).splitlines()[0]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found["Gradients of weights that are not finite"] = ", ".join(not_finite(gradients)[:3])
    lines = [f"Iteration {step['iteration']}, rank {step['rank']} of {step['world_size']}"]
    for name, then in step["losses"].items():
        now = float(losses[name].detach()) if name in losses else math.nan
        same = " same" if now == then or (math.isnan(now) and math.isnan(then)) else ""
        lines.append(f"  {name:24} then {then:<14.9g} now {now:<14.9g}{same}")
    lines += [f"{what}: {names}" for what, names in found.items() if names]
    lines += [] if any(found.values()) else ["All numbers are finite here"]
    return "\n".join([*lines, f"The batch: {', '.join(step['clips'])}"])


def read_step(path: str) -> dict[str, Any]:
    """The content of a kept step, on the CPU; no code in the file is run."""
    content = read_file(path)
    if content.get("format") != STEP_FORMAT:
        raise UserError(f"{path} is not a kept step of this version: give a run's nonfinite-*.pth")
    return content


def _rebuild(step: dict[str, Any], device: str) -> torch.nn.Module:
    """The model as it was before the step."""
    cfg = parse_config(step["config"])
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.freeze()
    model = Trainer.build_model(cfg)
    model.load_state_dict(step["model"])
    for name, module in model.named_modules():
        module.training = name not in step["evaluating"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in step["frozen"])
    model.epoch = step["epoch"]
    if step.get("own_optimizer"):
        model.own_optimizer.load_state_dict(step["own_optimizer"])
    return model


def _watch(module: str, found: dict[str, str]):
    """A forward hook that notes the first non-finite output, and gradient of an output."""

    def note(gradient):
        if not gradient.isfinite().all():
            found.setdefault("First gradient of an output that is not finite", module)

    def hook(_, inputs, output):
        for value in filter(_is_float, tree_leaves(output)):
            if not value.isfinite().all():
                taken = [float(v.abs().max()) for v in tree_leaves(inputs) if _is_float(v)]
                largest = f", largest input {max(taken):.3g}" if taken else ""
                found.setdefault("First output that is not finite", f"{module}{largest}")
            if value.requires_grad:
                value.register_hook(note)

    return hook


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
