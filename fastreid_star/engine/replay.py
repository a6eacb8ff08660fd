"""Run a kept training step again and find the module where its numbers stop being finite."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import torch
from fastreid.utils.events import EventStorage

from fastreid_star.data.build import DeviceLoader
from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import load_plain, misfits, parse_config
from fastreid_star.engine.train_loop import STEP_FORMAT, not_finite, step_seed
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError


def replay(path: str, device: str = "cpu", *, float64: bool = False) -> str:
    """Run a kept step again: the same weights, batch and random numbers, forward and backward.

    Args:
        path: ``nonfinite-ITERATION.pth`` of a run's OUTPUT_DIR.
        device: as ``MODEL.DEVICE``. Another kind than the step's draws other random numbers.
        float64: compute in double precision on the CPU, without autocast: if everything is finite
            there, the numbers were lost to rounding or overflow.

    Returns:
        a report: losses then and now, the first module whose output (or gradient) is not finite
        with the range of its input, and the clips of the batch.

    Raises:
        UserError: the file is not a kept step, or the device is not usable.
    """
    step = read_step(path)
    chosen = devices.choose_device("cpu" if float64 else device)
    model = _rebuild(step, "cpu" if float64 else device)
    amp_dtype = None if float64 else step["amp_dtype"]
    batch = {
        key: value.to(chosen)
        if isinstance(value, torch.Tensor) and key not in DeviceLoader.host_keys
        else value
        for key, value in step["batch"].items()
    }
    if float64:
        model = model.double()
        batch = {key: value.double() if _is_float(value) else value for key, value in batch.items()}
    scale = step["grad_scaler"]["scale"] if step["grad_scaler"] and not float64 else 1.0
    first: dict[str, str] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(_watch(name, first))
    devices.seed_everywhere(step_seed(step["seed"], step["rank"], step["iteration"]))
    losses, failed, traceback = {}, "", ""
    with (
        EventStorage(step["iteration"]),
        warnings.catch_warnings(record=True) as caught,
        torch.autograd.set_detect_anomaly(True),
    ):
        warnings.simplefilter("always")
        try:
            with devices.autocast(chosen, amp_dtype):
                losses = model(batch)
            (sum(losses.values()) * scale).backward()
        except RuntimeError as error:  # of the anomaly detection
            if "returned nan" not in str(error):
                raise
            failed = str(error).splitlines()[0]
            traceback = next((str(w.message) for w in caught if "forward call" in str(w.message)), "")
    return _report(step, str(chosen), losses, model, batch, first, failed, traceback)


def read_step(path: str) -> dict[str, Any]:
    """The content of a kept step, on the CPU; no code in the file is run.

    Raises:
        UserError: the file is missing, damaged or not a kept step of this version.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist: give a nonfinite-*.pth of a run's OUTPUT_DIR")
    try:
        content = load_plain(path)
    except Exception as error:  # damaged content raises anything from EOFError on
        raise UserError(
            f"{path} cannot be read: it is damaged or not a training step ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != STEP_FORMAT:
        raise UserError(
            f"{path} is not a training step of this version: give a nonfinite-*.pth of a run"
        )
    return content


def _rebuild(step: dict[str, Any], device: str) -> torch.nn.Module:
    """The model as it was before the step, in training mode."""
    cfg = parse_config(step["config"])
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.freeze()
    model = Trainer.build_model(cfg)
    wrong = misfits(model, step["model"])
    if wrong:
        raise UserError(f"the step's weights do not fit its config, first {', '.join(wrong[:3])}")
    model.load_state_dict(step["model"])
    for name, module in model.named_modules():
        module.training = name not in step["evaluating"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in step["frozen"])
    model.epoch = step["epoch"]
    if step["loss_names"]:
        model.loss_names = tuple(step["loss_names"])
    return model


def _watch(name: str, first: dict[str, str]):
    """A forward hook: notes the first non-finite output, and gradient of an output."""

    def hook(module, inputs, output):
        values = [v for v in _tensors(output) if _is_float(v)]
        label = f"{name or 'the model'} ({type(module).__name__})"
        taken = ", ".join(_range(v) for v in _tensors(inputs) if _is_float(v))
        for value in values:
            if "output" not in first and not value.isfinite().all():
                first["output"] = f"{label}: input {taken or 'unknown'}; output {_range(value)}"
            if value.requires_grad:
                value.register_hook(lambda gradient: note(gradient))

        def note(gradient):
            if "gradient" not in first and not gradient.isfinite().all():
                first["gradient"] = f"{label}: gradient of its output {_range(gradient)}"

    return hook


def _report(step, device, losses, model, batch, first, failed, traceback) -> str:
    rank = f", rank {step['rank']} of {step['world_size']}" if step["world_size"] > 1 else ""
    precision = step["amp_dtype"] or "float32"
    lines = [
        f"Iteration {step['iteration']}{rank}: {precision} on {step['device']}, torch "
        f"{step['torch']}; replayed on {device}, torch {torch.__version__}"
    ]
    now = {name: float(value.detach()) for name, value in losses.items()}
    for name, then in step["losses"].items():
        value = now.get(name, math.nan)
        same = value == then or (math.isnan(value) and math.isnan(then))
        lines.append(f"  {name:24} then {then:<14.9g} now {value:<14.9g}{' same' if same else ''}")
    came_in = {key: value for key, value in batch.items() if _is_float(value)}
    bad = not_finite({**came_in, **dict(model.named_parameters())})
    if bad:
        lines.append(f"Not finite before the step: {', '.join(bad)}")
    if "output" in first:
        lines.append(f"First output that is not finite: {first['output']}")
    if "gradient" in first:
        lines.append(f"First gradient that is not finite: {first['gradient']}")
    if failed:
        lines += [f"Anomaly detection: {failed}", traceback.rstrip()]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad = not_finite(gradients)
    if bad:
        lines.append(f"{len(bad)} gradients are not finite, such as {', '.join(bad[:3])}")
    elif gradients and not first:
        name = max(gradients, key=lambda name: float(gradients[name].abs().max()))
        lines.append(f"Everything is finite here; the largest gradient is {_range(gradients[name])} ({name})")
    if step["clips"]:
        lines.append(f"The batch: {', '.join(step['clips'])}")
    return "\n".join(lines)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(leaf)]


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _range(tensor: torch.Tensor) -> str:
    finite = tensor.detach()[tensor.detach().isfinite()]
    if not len(finite):
        return "nothing finite"
    bad = tensor.numel() - len(finite)
    share = f" ({100 * bad / tensor.numel():.3g} % not finite)" if bad else ""
    return f"{float(finite.min()):.3g} .. {float(finite.max()):.3g}{share}"
