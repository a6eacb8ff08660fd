"""Export of a trained model as a program of torch.export, which torch runs without this package."""

from __future__ import annotations

import io
import json
import os
import warnings
from typing import NamedTuple

import torch
from fastreid.config import CfgNode

from fastreid_star.errors import UserError
from fastreid_star.files import prepare_output, write_output
from fastreid_star.inference.parity import (
    BATCHES,
    difference_of,
    measured,
    part_of,
    prepare,
    require_parity,
)
from fastreid_star.modeling.mirror import require_single
from fastreid_star.structures import Modality

ENDING = ".pt2"
ABOUT = "about.json"  # beside the program, in the file


class Program(NamedTuple):
    """An exported program.

    Args:
        path: the file.
        inputs: names of the arguments, in order.
        difference: the largest difference of a value of a feature to the model's.
        metadata: the file's own description.
    """

    path: str
    inputs: tuple[str, ...]
    difference: float
    metadata: dict[str, str]

    def __str__(self) -> str:
        about = self.metadata
        return (
            f"{self.path}: {os.path.getsize(self.path) / 1e6:.1f} MB, torch.export, "
            f"{about['model']}, modality: {about['modality']}\n"
            f"inputs:  {', '.join(self.inputs)}; all float32, any number of clips\n"
            f"output:  features [batch, {about['feature_width']}], {about['comparison']}\n"
            f"parity:  {measured(self.difference, 'float32')} at most on {sum(BATCHES)} clips"
        )


def export_program(
    model: torch.nn.Module,
    cfg: CfgNode,
    path: str | os.PathLike,
    *,
    modality: Modality | str | None = None,
    length: int | None = None,
) -> Program:
    """Export a model with torch.export, and keep the file only if it gives the model's features.

    Args:
        model: a model of clips in evaluation mode, such as `StarPredictor.model`.
        cfg: its config.
        path: a ``.pt2`` file.
        modality: of all clips, for a program with one stem; None: both.
        length: T, the number of frames; None: ``INPUT.CLIP.LENGTH``.

    Raises:
        UserError: an argument is not valid, or no program gives the features.
    """
    path = os.fspath(path)
    require_single(cfg)
    prepare_output(path, ENDING)
    case = prepare(model, cfg, modality, length)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what may go wrong: the comparison finds it
            # buffers that are built in the first call must not become part of the program
            case.module(*case.inputs[1])
            program = torch.export.export(
                case.module,
                case.inputs[1],
                dynamic_shapes={"inputs": tuple({0: batch} for _ in case.inputs[1])},
                strict=False,
            )
        file = io.BytesIO()
        metadata = {**case.metadata(cfg), "inputs": ", ".join(case.module.input_names)}
        torch.export.save(program, file, extra_files={ABOUT: json.dumps(metadata)})
        file.seek(0)
        run = torch.export.load(file).module()  # what a user will run
        with torch.no_grad():
            pairs = zip(case.inputs, case.expected, strict=True)
            difference = max(difference_of(run(*x).cpu(), y, "float32") for x, y in pairs)
    except Exception as error:  # torch.export raises errors of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"this model cannot be exported with torch.export of torch {torch.__version__} "
            f"({reason}): docs/export.md lists what can be exported; this model has {part_of(cfg)}"
        ) from error
    require_parity(difference, "float32", part_of(cfg))
    write_output(path, lambda output: output.write(file.getbuffer()))
    return Program(path, case.module.input_names, difference, metadata)
