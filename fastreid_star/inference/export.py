"""Export of a trained model as an ONNX file that gives the same features as the model.

docs/export.md describes the graph's inputs and outputs, the models that were tried, and the way to
Ascend's .om.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from fastreid.config import CfgNode

from fastreid_star.errors import UserError
from fastreid_star.files import prepare_output, write_output
from fastreid_star.inference.float16 import to_float16
from fastreid_star.inference.onnx_graph import trace
from fastreid_star.inference.parity import (
    BATCHES,
    Case,
    difference_of,
    measured,
    part_of,
    prepare,
    require_parity,
)
from fastreid_star.modeling.mirror import require_single
from fastreid_star.structures import Modality

# Opset 13 is documented for every compiler for Ascend since CANN 5.0; no opset above 18 is
# documented for any.
OPSETS, DEFAULT_OPSET = range(13, 19), 13
_DESCRIPTIONS = {
    "images": "frames, RGB, 0 to 255; the graph normalizes them",
    "is_visible": "1 for a clip of a visible camera, 0 for one of an infrared camera",
    "skeletons": "COCO joints (x, y, score), x and y in pixels of images; zeros: a missing joint",
    "has_skeleton": "1 for a frame that has a skeleton, else 0",
    "crop_sizes": "height and width of each crop before it was resized, in pixels",
}


class Export(NamedTuple):
    """An exported file.

    Args:
        path: the file.
        opset: the version of ONNX's operators.
        inputs: name -> shape without the batch.
        difference: the largest difference to the model's features: of a value, or in float16 the
            cosine distance.
        metadata: the file's own description.
    """

    path: str
    opset: int
    inputs: dict[str, tuple[int, ...]]
    difference: float
    metadata: dict[str, str]

    def __str__(self) -> str:
        shapes = [
            f"{name} [{', '.join(map(str, ('batch', *sizes)))}]"
            for name, sizes in self.inputs.items()
        ]
        about = self.metadata
        return (
            f"{self.path}: {os.path.getsize(self.path) / 1e6:.1f} MB, {about['precision']}, opset "
            f"{self.opset}, {about['model']}, modality: {about['modality']}\n"
            f"inputs:  {', '.join(shapes)}; all float32\n"
            f"output:  features [batch, {about['feature_width']}], {about['comparison']}\n"
            f"parity:  {measured(self.difference, about['precision'])} at most on {sum(BATCHES)} "
            "clips in onnxruntime"
        )


def export_onnx(
    model: torch.nn.Module,
    cfg: CfgNode,
    path: str | os.PathLike,
    *,
    modality: Modality | str | None = None,
    length: int | None = None,
    opset: int = DEFAULT_OPSET,
    precision: str = "float32",
) -> Export:
    """Export a model to ONNX, and keep the file only if onnxruntime computes the model's features
    with it.

    The file is written whole or not at all; an earlier file stays until then.

    Args:
        model: a model of clips in evaluation mode, such as `StarPredictor.model`.
        cfg: its config; ``INPUT.SIZE_TEST`` is the size of the images.
        path: an ``.onnx`` file.
        modality: of all clips, for a graph with one stem; None: both, and an input tells the
            modality of each clip.
        length: T, the number of frames; None: ``INPUT.CLIP.LENGTH``.
        opset: one of `OPSETS`.
        precision: ``float16``: see :mod:`fastreid_star.inference.float16`.

    Raises:
        UserError: an argument is not valid, onnx or onnxruntime is not installed, or no graph gives
            the features.
    """
    path = os.fspath(path)
    if opset not in OPSETS:
        raise UserError(f"opset {opset}: choose one from {OPSETS[0]} to {OPSETS[-1]}")
    require_single(cfg)
    prepare_output(path, ".onnx")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"export needs onnx and onnxruntime ({error}): pip install onnx onnxruntime"
        ) from error
    case = prepare(model, cfg, modality, length)
    try:
        graph = trace(case.module, case.inputs[1], opset)
        if precision == "float16":
            graph = to_float16(graph)
        onnx.checker.check_model(graph, full_check=True)
        difference = _difference(onnxruntime, graph, case, precision)
        if precision == "float16":
            difference = max(difference, case.difference_in_half())
    except Exception as error:  # exporter, checker and runtime raise errors of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"this model cannot be exported with opset {opset} ({reason}): docs/export.md lists "
            f"what can be exported; this model has {part_of(cfg)}"
        ) from error
    require_parity(difference, precision, part_of(cfg))
    metadata = {
        **case.metadata(cfg),
        "precision": precision,
        "largest_difference": f"{difference:.1e}",
    }
    content = _describe(onnx, graph, metadata)
    write_output(path, lambda file: file.write(content))
    kept = {value.name for value in onnx.load_from_string(graph).graph.input}
    shapes = {
        name: tuple(x.shape[1:])
        for name, x in zip(case.module.input_names, case.inputs[0], strict=True)
        if name in kept
    }
    return Export(path, opset, shapes, difference, metadata)


def _difference(runtime: Any, graph: bytes, case: Case, precision: str) -> float:
    """The largest difference of onnxruntime's features to the expected ones."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch, expected in zip(case.inputs, case.expected, strict=True):
        named = zip(case.module.input_names, batch, strict=True)
        arrays = {name: value.cpu().numpy() for name, value in named}
        # tracing leaves out an input that the model does not use, such as crop_sizes
        arrays = {value.name: arrays[value.name] for value in session.get_inputs()}
        found = torch.from_numpy(session.run(None, arrays)[0])
        largest = max(largest, difference_of(found, expected, precision))
    return largest


def _describe(onnx: Any, graph: bytes, metadata: dict[str, str]) -> bytes:
    """The graph with its metadata, and with a description of each input and output."""
    proto = onnx.load_from_string(graph)
    onnx.helper.set_model_props(proto, metadata)
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = _DESCRIPTIONS.get(value.name, metadata["comparison"])
    sizes = metadata["feature_width"].split(", ")
    for axis, size in zip(proto.graph.output[0].type.tensor_type.shape.dim[1:], sizes, strict=True):
        axis.dim_value = int(size)
    return proto.SerializeToString()
