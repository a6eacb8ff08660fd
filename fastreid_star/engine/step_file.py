"""The file that a failing training step leaves: everything that :mod:`fastreid_star.engine.replay` runs it again from.

One dict of tensors and plain values. Weights, optimizer, scaler and buffers are those from before the step.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from fastreid_star.engine.checkpoint import load_plain, on_host
from fastreid_star.engine.numerics import StepNumbers
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole

FORMAT = "fastreid_star training step 1"


def step_path(folder: str, iteration: int, rank: int, world_size: int) -> str:
    """Where the step of this rank is kept."""
    return os.path.join(
        folder, f"nonfinite-{iteration}" + (f"-rank{rank}" if world_size > 1 else "") + ".pth"
    )


def keep_step(
    path: str,
    *,
    model: torch.nn.Module,
    buffers: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: dict | None,
    batch: dict[str, Any],
    numbers: StepNumbers,
    **facts: Any,
) -> None:
    """Write a step whole, or not at all.

    Args:
        path: of the file; its folder is made where it is missing.
        model: with the weights of before the step, not wrapped.
        buffers: as they were before it.
        optimizer: before its step.
        scaler: the gradient scaler's state before the step.
        batch: as the model got it.
        numbers: what came out.
        facts: plain values: what else the replay or its reader wants to know, see :func:`read_step`.
    """
    weights = model.state_dict()
    weights.update((name, value) for name, value in buffers.items() if name in weights)
    content = {
        "format": FORMAT,
        **facts,
        "torch": str(torch.__version__),
        "losses": dict(numbers.losses),
        "gradients": list(numbers.gradients),
        "buffers": list(numbers.buffers),
        # what hooks may have changed since the model was built
        "loss_names": list(getattr(model, "loss_names", [])),
        "evaluating": [name for name, module in model.named_modules() if not module.training],
        "frozen": [
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        ],
        "batch": on_host(batch),
        "model": on_host(dict(weights)),
        "optimizer": on_host(optimizer.state_dict()),
        "grad_scaler": on_host(scaler),
    }
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    write_whole(path, lambda file: torch.save(content, file))


def read_step(path: str) -> dict[str, Any]:
    """What :func:`keep_step` wrote, on the CPU; no code in the file is run.

    Returns:
        `config` (YAML), `seed`, `rank`, `world_size`, `iteration`, `epoch`, `learning_rate`, `amp_dtype`, `device`,
        `clips` (names), `torch`, `losses`, `gradients`, `buffers`, `loss_names`, `evaluating`, `frozen`, `batch`,
        `model`, `optimizer`, `grad_scaler`.

    Raises:
        UserError: there is no such file, it is damaged, or it is no training step.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist: give a nonfinite-*.pth of a run's OUTPUT_DIR")
    try:
        content = load_plain(path)
    except Exception as error:  # a damaged file can raise anything from EOFError to UnpicklingError
        raise UserError(
            f"{path} cannot be read: it is damaged or no training step ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path} is no training step of this version: give a nonfinite-*.pth of a run's OUTPUT_DIR"
        )
    return content
