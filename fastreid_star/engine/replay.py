"""Run a kept training step again, and find where its numbers stop being finite."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.utils.events import EventStorage
from tabulate import tabulate

from fastreid_star.data.build import DeviceLoader
from fastreid_star.engine import device as devices
from fastreid_star.engine.checkpoint import misfits
from fastreid_star.engine.numerics import StepNumbers, measure, not_finite, some
from fastreid_star.engine.step import step_seed
from fastreid_star.engine.trace import Birth, Passage, Range, Trace, is_float
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError

HUGE = 1e6  # no pixel, joint or sound weight is as large
BEFORE, AFTER = 6, 3  # modules shown around the one where it began
WIDTH = 118


@dataclass(frozen=True)
class Replay:
    """A step that was run again.

    Args:
        step: what the file holds; see :func:`~fastreid_star.engine.step_file.read_step`.
        device: where it ran now.
        float64: whether it ran in double precision.
        numbers: what came out now.
        origin: where what is not finite began; None where all is finite, or nothing was found.
        inputs: ranges of the batch's floating point tensors, its images and the largest weights, by name.
        passages: modules in the order of the pass in which it began.
        largest: the parameter with the largest gradient among the finite ones, and that gradient's largest number.
    """

    step: dict[str, Any]
    device: torch.device
    float64: bool
    numbers: StepNumbers
    origin: Birth | None
    inputs: dict[str, Range]
    passages: list[Passage]
    largest: tuple[str, float]

    @property
    def reproduces(self) -> bool:
        """Whether every loss is what it was, bit for bit, and NaN where it was NaN."""
        then, now = self.step["losses"], self.numbers.losses
        return then.keys() == now.keys() and all(_same(then[name], now[name]) for name in then)


def replay(step: dict[str, Any], device: str = "cpu", *, float64: bool = False) -> Replay:
    """Run a step again: the same weights, batch and random numbers, one forward and backward pass.

    Args:
        step: see :func:`~fastreid_star.engine.step_file.read_step`.
        device: as ``MODEL.DEVICE``. Another kind than the step's draws other random numbers for dropout.
        float64: compute in double precision, without autocast: what is finite there was lost to rounding or overflow.

    Raises:
        UserError: the device is not usable, or the file's weights do not fit its config.
    """
    chosen = devices.choose_device(device)
    if float64 and chosen.type != "cpu":
        raise UserError(
            "--float64 is computed on the CPU, which any device's step can be: leave --device out"
        )
    model = rebuild(step, device)
    batch = {
        key: value.to(chosen) if _goes_along(key, value) else value
        for key, value in step["batch"].items()
    }
    amp_dtype, scale = step["amp_dtype"], 1.0
    if float64:
        model, amp_dtype = model.double(), None
        batch = {key: value.double() if is_float(value) else value for key, value in batch.items()}
    elif step["grad_scaler"]:
        scale = step["grad_scaler"]["scale"]
    inputs = _inputs(batch, model)
    buffers = {name: buffer for name, buffer in model.named_buffers() if is_float(buffer)}
    given = not_finite(buffers)  # a mask of infinities is no finding
    devices.seed_everywhere(step_seed(step["seed"], step["rank"], step["iteration"]))
    trace = Trace(model, {key: value for key, value in batch.items() if is_float(value)})
    with EventStorage(step["iteration"]), trace:
        with devices.autocast(chosen, amp_dtype):
            losses = model(batch)
            total = sum(losses.values())
        (total * scale if scale != 1.0 else total).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    numbers = measure(
        losses, gradients, {name: buffer for name, buffer in buffers.items() if name not in given}
    )
    bad = [losses[name] for name in numbers.bad_losses] + [
        buffers[name] for name in numbers.buffers
    ]
    origins = [origin for origin in map(trace.origin, bad) if origin is not None]
    origin = (
        min(origins, key=lambda birth: birth.number) if origins else trace.origin_of_gradients()
    )
    peaks = [(name, Range.of(gradient).magnitude) for name, gradient in gradients.items()]
    largest = max(peaks, key=lambda pair: pair[1], default=("", 0.0))
    backward = bool(origin and origin.backward)
    return Replay(
        step,
        chosen,
        float64,
        numbers,
        origin,
        inputs,
        trace.backward if backward else trace.forward,
        largest,
    )


def rebuild(step: dict[str, Any], device: str) -> torch.nn.Module:
    """The model as it was before the step, in training mode.

    Raises:
        UserError: the config has keys that are not known here, or the weights do not fit it.
    """
    cfg = get_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(step["config"])))
    except (KeyError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"the file's config is of another version of the project: {error}"
        ) from error
    cfg.MODEL.DEVICE = device
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.WEIGHTS = ""
    cfg.freeze()
    try:
        model = Trainer.build_model(cfg)
    except KeyError as error:  # a registry has no such name
        raise UserError(f"the file's network cannot be built here: {error.args[0]}") from error
    wrong = misfits(model, step["model"])
    if wrong:
        raise UserError(
            f"{len(wrong)} of the file's weights do not fit its config, first {', '.join(wrong[:3])}"
        )
    model.load_state_dict(step["model"])
    model.train()
    for name, module in model.named_modules():
        module.training = name not in step["evaluating"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in step["frozen"])
    if step["loss_names"]:
        model.loss_names = tuple(step["loss_names"])
    return model


def describe(found: Replay) -> str:
    """The replay as text for a terminal."""
    step = found.step
    where = f"rank {step['rank']} of {step['world_size']}, " if step["world_size"] > 1 else ""
    precision = "float64" if found.float64 else step["amp_dtype"] or "float32"
    parts = [
        f"Iteration {step['iteration']} (epoch {step['epoch']}, {where}learning rate {step['learning_rate']:.3g}, "
        f"{step['amp_dtype'] or 'float32'} on {step['device']}, torch {step['torch']})\n"
        f"run again in {precision} on {found.device}, torch {torch.__version__}",
        _losses(found),
        textwrap.fill(_verdict(found), WIDTH, break_on_hyphens=False),
        _table(
            [(name, str(spread), _remark(spread)) for name, spread in found.inputs.items()],
            ("came in", "range", ""),
        ),
    ]
    if found.origin is not None:
        parts.append(_origin(found.origin))
        parts += _surroundings(found)
    if step["clips"]:
        parts.append(
            textwrap.fill(f"The batch: {', '.join(step['clips'])}", WIDTH, break_on_hyphens=False)
        )
    return "\n\n".join(parts)


def _losses(found: Replay) -> str:
    then, now = found.step["losses"], found.numbers.losses
    rows = []
    for name in dict.fromkeys([*then, *now]):
        pair = [values.get(name, math.nan) for values in (then, now)]
        same = "the same" if _same(*pair) else ""
        if all(map(math.isfinite, pair)) and not same:
            same = f"differs by {abs(pair[0] - pair[1]):.2g}"
        rows.append((name, *(f"{value:.9g}" for value in pair), same))
    return _table(rows, ("loss", "then", "now", ""))


def _verdict(found: Replay) -> str:
    step, numbers = found.step, found.numbers
    if found.float64:
        told = "In float64"
    elif found.reproduces:
        told = "The losses are the same, bit for bit"
    else:
        told = f"The losses differ: {_why_other(found)}"
    if numbers.is_finite:
        return f"{told}. {_why_finite(found)}"
    if not numbers.forward_is_finite:
        bad = [", ".join(numbers.bad_losses)] if numbers.bad_losses else []
        bad += [some(numbers.buffers, "buffer").rpartition(" ")[0]] if numbers.buffers else []
        return f"{told}. Not finite, or too large to square: {' and '.join(bad)}."
    told += f". The losses are finite, but {some(numbers.gradients, 'gradient')} not (then {len(step['gradients'])})."
    if found.origin is None:
        name, peak = found.largest
        told += f" No single number overflows, the sum of their squares does: up to {peak:.3g} in {name}."
    return told


def _why_other(found: Replay) -> str:
    step = found.step
    if found.device.type != step["device"]:
        return f"the step ran on {step['device']}, whose sums and dropout are others; --device {step['device']}"
    if step["torch"] != str(torch.__version__):
        return f"the step ran with torch {step['torch']}"
    if step["world_size"] > 1:
        return "a loss may look at all processes' clips (TRI.ALL_RANKS, SyncBN), and here is one process's share"
    return "another machine, or another number of threads, adds up in another order"


def _why_finite(found: Replay) -> str:
    then = StepNumbers(found.step["losses"], (), tuple(found.step["buffers"]))
    if found.float64:
        return (
            "All is finite: what was lost is lost to the range or the rounding of the shorter type."
        )
    if found.step["world_size"] > 1 and then.forward_is_finite:
        return "All is finite: the gradients were averaged over the processes; replay the other ranks' files."
    return "All is finite here."


def _origin(birth: Birth) -> str:
    if not birth.operator:
        return f"It began before the step: {birth.module} came in with {birth.output}."
    lines = [
        f"It began in the {'backward' if birth.backward else 'forward'} pass, in {birth.operator}:"
    ]
    rows = (
        [("module", birth.module or "(the network itself)")]
        if birth.module or not birth.backward
        else []
    )
    rows += [("code", birth.line)] if birth.line else []
    rows += [("took", str(spread)) for spread in birth.inputs]
    rows.append(("gave", str(birth.output)))
    return "\n".join([*lines, *(f"  {key:7}{value}" for key, value in rows)])


def _surroundings(found: Replay) -> list[str]:
    first = next(
        (number for number, passage in enumerate(found.passages) if passage.output.bad), None
    )
    backward = found.origin is not None and found.origin.backward
    what = "gradient of the output" if backward else "output"
    if first is None:
        return [f"No module's {what} has it: it began after the last."] if not backward else []
    shown = found.passages[max(0, first - BEFORE) : first + AFTER + 1]
    rows = [
        (
            ">" if passage is found.passages[first] else "",
            passage.module,
            passage.kind,
            passage.input,
            passage.output,
        )
        for passage in shown
    ]
    order = "backward" if backward else "forward"
    title = f"Modules around the first (>) whose {what} has it, in the order of the {order} pass:"
    return [title + "\n" + _table(rows, ("", "module", "", "input", what))]


def _table(rows: list[tuple], headers: tuple[str, ...]) -> str:
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)


def _remark(spread: Range) -> str:
    if spread.bad:
        return "not finite"
    return "huge" if spread.magnitude > HUGE else ""


def _inputs(batch: dict[str, Any], model: torch.nn.Module) -> dict[str, Range]:
    """Ranges of images and other floating point tensors of the batch, and of the largest weights."""
    tensors = {
        key: v
        for key, v in batch.items()
        if isinstance(v, torch.Tensor) and (key == "images" or is_float(v))
    }
    found = {
        key: Range.of(value.float() if not is_float(value) else value)
        for key, value in tensors.items()
    }
    weights = {name: Range.of(parameter) for name, parameter in model.named_parameters()}
    order = sorted(
        weights, key=lambda name: (weights[name].bad, weights[name].magnitude), reverse=True
    )
    return {**found, **{name: weights[name] for name in order[:3]}}


def _goes_along(key: str, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and key not in DeviceLoader.host_keys


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
