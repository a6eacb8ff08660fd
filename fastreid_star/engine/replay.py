"""Run a kept training step again and find the module where its numbers stop being finite."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from fastreid.utils.events import EventStorage
from torch.utils._pytree import tree_leaves

from fastreid_star.data.build import DeviceLoader
from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import parse_config
from fastreid_star.engine.train_loop import STEP_FORMAT, not_finite, step_seed
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.weights import misfits, read_file


def replay(path: str, device: str = "cpu", *, float64: bool = False) -> str:
    """Run a kept step again with the same weights, batch and random numbers.

    Args:
        path: ``nonfinite-ITERATION.pth`` of a run's OUTPUT_DIR.
        device: as ``MODEL.DEVICE``. Another kind than the step's draws other random numbers.
        float64: compute in double precision, to tell overflow from wrong mathematics.

    Returns:
        a report: losses then and now, the first module whose output (or gradient) is not finite,
        with the range of its input, and the clips of the batch.
    """
    step = read_step(path)
    chosen = devices.choose_device(device)
    model = _rebuild(step, device)
    batch = next(iter(DeviceLoader([step["batch"]], chosen)))  # type: ignore[arg-type]
    amp_dtype = None if float64 else step["amp_dtype"]
    scale = step["grad_scaler"]["scale"] if step["grad_scaler"] and not float64 else 1.0
    if float64:
        model = model.double()
        batch = {key: value.double() if _is_float(value) else value for key, value in batch.items()}
    first: dict[str, str] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(_watch(f"{name or 'model'} ({type(module).__name__})", first))
    devices.seed_everywhere(step_seed(step["seed"], step["rank"], step["iteration"]))
    losses: dict[str, torch.Tensor] = {}
    with (
        EventStorage(step["iteration"]),
        warnings.catch_warnings(record=True) as caught,
        torch.autograd.set_detect_anomaly(True),
    ):
        warnings.simplefilter("always")
        try:
            with devices.autocast(chosen, amp_dtype):
                losses = model(batch)
            (sum(losses.values(), start=torch.zeros(())) * scale).backward()
        except RuntimeError as error:  # of the anomaly detection
            if "returned nan" not in str(error):
                raise
            calls = [str(w.message).rstrip() for w in caught if "forward call" in str(w.message)]
            first["anomaly"] = "\n".join([str(error).splitlines()[0], *calls[-1:]])
    return _report(step, f"{chosen}{' in float64' if float64 else ''}", losses, model, batch, first)


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
    wrong = misfits(model, step["model"])
    if wrong:
        raise UserError(f"the step's weights do not fit its config, first {', '.join(wrong[:3])}")
    model.load_state_dict(step["model"])
    for name, module in model.named_modules():
        module.training = name not in step["evaluating"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in step["frozen"])
    model.epoch = step["epoch"]
    return model


def _watch(label: str, first: dict[str, str]):
    """A forward hook that notes the first non-finite output, and gradient of an output."""

    def note(gradient):
        if "gradient" not in first and not gradient.isfinite().all():
            first["gradient"] = f"{label}: {_range(gradient)}"

    def hook(module, inputs, output):
        for value in filter(_is_float, tree_leaves(output)):
            if "output" not in first and not value.isfinite().all():
                taken = ", ".join(_range(v) for v in tree_leaves(inputs) if _is_float(v))
                first["output"] = f"{label}: input {taken or 'unknown'}; output {_range(value)}"
            if value.requires_grad:
                value.register_hook(note)

    return hook


def _report(step, device, losses, model, batch, first) -> str:
    precision = step["amp_dtype"] or "float32"
    lines = [
        f"Iteration {step['iteration']}, rank {step['rank']} of {step['world_size']}: {precision} "
        f"on {step['device']}, torch {step['torch']}; now on {device}, torch {torch.__version__}"
    ]
    for name, then in step["losses"].items():
        value = float(losses[name].detach()) if name in losses else math.nan
        same = " same" if value == then or (math.isnan(value) and math.isnan(then)) else ""
        lines.append(f"  {name:24} then {then:<14.9g} now {value:<14.9g}{same}")
    parameters = dict(model.named_parameters())
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    before = not_finite({**{k: v for k, v in batch.items() if _is_float(v)}, **parameters})
    after = not_finite(gradients)
    for text, found in (
        ("Not finite before the step", ", ".join(before)),
        ("First output that is not finite", first.get("output")),
        ("First gradient of an output that is not finite", first.get("gradient")),
        ("torch's anomaly detection", first.get("anomaly")),
        (f"{len(after)} gradients of weights are not finite, such as", ", ".join(after[:3])),
        ("The batch", ", ".join(step["clips"])),
    ):
        if found:
            lines.append(f"{text}: {found}")
    if gradients and not (first or before or after):
        name = max(gradients, key=lambda name: float(gradients[name].abs().max()))
        lines.append(f"All is finite here; the largest gradient: {name}, {_range(gradients[name])}")
    return "\n".join(lines)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _range(tensor: torch.Tensor) -> str:
    finite = tensor.detach()[tensor.detach().isfinite()]
    share = f" ({100 * (1 - len(finite) / tensor.numel()):.3g} % not finite)"
    text = f"{float(finite.min()):.3g} .. {float(finite.max()):.3g}" if len(finite) else "nothing"
    return text + (share if len(finite) < tensor.numel() else "")
