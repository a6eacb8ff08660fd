"""Export of a trained model as an ONNX file that gives the same features as the model.

docs/export.md describes the graph's inputs and outputs, the models that were tried, and the way to
Ascend's .om.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode

import fastreid_star
from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.tracklets import as_modality
from fastreid_star.errors import UserError
from fastreid_star.evaluation.similarity import check_features
from fastreid_star.files import prepare_output, write_output
from fastreid_star.inference.fingerprint import fingerprint
from fastreid_star.inference.onnx_graph import ExportedModel, trace
from fastreid_star.modeling.video_reid import VideoReID
from fastreid_star.structures import Modality

# Opset 13 is documented for every compiler for Ascend since CANN 5.0; no opset above 18 is
# documented for any.
OPSETS, DEFAULT_OPSET = range(13, 19), 13
# The largest difference of a value of a feature, as a share of the length of a feature or part.
TOLERANCE = 1e-4
BATCHES = (1, 2, 5, 2)  # numbers of clips that are compared; the last two have no skeletons

_DESCRIPTIONS = {
    "images": "frames, RGB, 0 to 255; the graph normalizes them",
    "is_visible": "1 for a clip of a visible camera, 0 for one of an infrared camera",
    "skeletons": "COCO joints (x, y, score), x and y in pixels of images; zeros: a missing joint",
    "has_skeleton": "1 for a frame that has a skeleton, else 0",
    "crop_sizes": "height and width of each crop before it was resized, in pixels",
}
_FEATURES = {
    2: "of unit length: their dot product is the similarity",
    3: "parts: minus their mean Euclidean distance is the similarity",
}


class Export(NamedTuple):
    """An exported file.

    Args:
        path: the file.
        opset: the version of ONNX's operators.
        inputs: name -> shape without the batch.
        difference: the largest difference of a value of a feature to the model's.
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
            f"{self.path}: {os.path.getsize(self.path) / 1e6:.1f} MB, opset {self.opset}, "
            f"{about['model']}, modality: {about['modality']}\n"
            f"inputs:  {', '.join(shapes)}; all float32\n"
            f"output:  features [batch, {about['feature_width']}], {about['comparison']}\n"
            f"parity:  {self.difference:.1e} at most on {sum(BATCHES)} clips in onnxruntime, "
            f"{TOLERANCE:.0e} is allowed"
        )


def export_onnx(
    model: torch.nn.Module,
    cfg: CfgNode,
    path: str | os.PathLike,
    *,
    modality: Modality | str | None = None,
    length: int | None = None,
    opset: int = DEFAULT_OPSET,
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

    Raises:
        UserError: an argument is not valid, onnx or onnxruntime is not installed, or no graph gives
            the features.
    """
    path, length = os.fspath(path), cfg.INPUT.CLIP.LENGTH if length is None else length
    kind = None if modality is None else as_modality(modality)
    if not isinstance(model, VideoReID):
        raise UserError(f"{type(model).__name__} is not a model of clips, such as SAD and STAR")
    if opset not in OPSETS:
        raise UserError(f"opset {opset}: choose one from {OPSETS[0]} to {OPSETS[-1]}")
    if length < 1:
        raise UserError(f"{length} frames: a clip has at least one")
    prepare_output(path, ".onnx")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"export needs onnx and onnxruntime ({error}): pip install onnx onnxruntime"
        ) from error
    batches = comparison_batches(length, cfg.INPUT.SIZE_TEST, kind)
    with torch.no_grad():
        expected = [model(batch).to("cpu", torch.float32) for batch in batches]
    check_features(torch.cat(expected), "the model's")
    module = ExportedModel(model, modality=kind).eval()
    inputs = [module.inputs(batch) for batch in batches]
    part = (
        f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} and MODEL.HEADS.NAME {cfg.MODEL.HEADS.NAME}"
    )
    try:
        graph = trace(module, inputs[1], opset)
        onnx.checker.check_model(graph, full_check=True)
        difference = _difference(onnxruntime, graph, module.input_names, inputs, expected)
    except Exception as error:  # exporter, checker and runtime raise errors of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"this model cannot be exported with opset {opset} ({reason}): docs/export.md lists "
            f"what can be exported; this model has {part}"
        ) from error
    if difference > TOLERANCE:
        raise UserError(
            f"the exported graph's features differ from the model's by {difference:.1e}, "
            f"{TOLERANCE:.0e} is allowed: no file is kept; docs/export.md lists what can be "
            f"exported; this model has {part}"
        )
    metadata = {
        **_about(model, cfg),
        "modality": "both" if kind is None else kind.name.lower(),
        "frames": str(length),
        "feature_width": ", ".join(map(str, expected[0].shape[1:])),
        "comparison": _FEATURES[expected[0].ndim],
        "largest_difference": f"{difference:.1e}",
    }
    content = _describe(onnx, graph, metadata)
    write_output(path, lambda file: file.write(content))
    kept = {value.name for value in onnx.load_from_string(graph).graph.input}
    shapes = {
        name: tuple(x.shape[1:])
        for name, x in zip(module.input_names, inputs[0], strict=True)
        if name in kept
    }
    return Export(path, opset, shapes, difference, metadata)


def comparison_batches(
    length: int, size: Sequence[int], modality: Modality | None = None
) -> list[dict[str, torch.Tensor]]:
    """Batches of random clips on which a graph is compared with its model; always the same.

    They contain what a graph may compute differently: numbers of clips other than the traced one,
    both modalities in a batch, frames and clips without a skeleton, joints that are missing, have a
    low score, are not finite or coincide, and level bones.

    Args:
        length: T, frames of a clip.
        size: height and width.
        modality: of all clips; None: both.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [_clips(clips, length, size, generator) for clips in BATCHES]
    batches[-1]["has_skeleton"][:] = False
    if modality is not None:
        for batch in batches:
            batch["modality"][:] = int(modality)
    return batches


def _clips(
    clips: int, length: int, size: Sequence[int], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    coarse = torch.randint(0, 256, (clips * length, 3, 8, 4), generator=generator).float()
    images = F.interpolate(coarse, tuple(size), mode="bilinear").round().to(torch.uint8)
    scale = torch.tensor([size[1], size[0], 1.0])
    skeletons = torch.rand(clips, length, NUM_JOINTS, 3, generator=generator) * scale
    has_skeleton = torch.rand(clips, length, generator=generator) < 0.8
    has_skeleton[0, 0] = True
    has_skeleton[2:3] = False  # the third clip, if there is one
    skeletons[-1, -1, 0] = 0  # a missing joint
    skeletons[-1, -1, 1, 0] = float("nan")
    skeletons[0, 0, :, 2] = 0.9
    skeletons[0, 0, 9] = skeletons[0, 0, 7]  # a bone without length
    # A level bone that points to the left.
    skeletons[0, 0, 6] = skeletons[0, 0, 5] - torch.tensor([5.0, 0.0, 0.0])
    return {
        "images": images.unflatten(0, (clips, length)),
        "modality": torch.tensor([Modality.VISIBLE, Modality.INFRARED]).repeat(clips)[:clips],
        "skeletons": skeletons,
        "has_skeleton": has_skeleton,
        "crop_sizes": torch.tensor(size)
        * (0.5 + torch.rand(clips, length, 2, generator=generator)),
    }


def _difference(
    runtime: Any,
    graph: bytes,
    names: Sequence[str],
    inputs: list[tuple[torch.Tensor, ...]],
    expected: list[torch.Tensor],
) -> float:
    """The largest difference of onnxruntime's features to the expected ones, see `TOLERANCE`."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch, features in zip(inputs, expected, strict=True):
        arrays = {name: value.cpu().numpy() for name, value in zip(names, batch, strict=True)}
        # tracing leaves out an input that the model does not use, such as crop_sizes
        arrays = {value.name: arrays[value.name] for value in session.get_inputs()}
        found = torch.from_numpy(session.run(None, arrays)[0])
        if found.shape != features.shape:
            raise ValueError(f"{len(features)} clips give features {list(found.shape)}")
        length = features.norm(dim=-1).mean()  # 1, or the mean length of the parts
        differences = (found - features).abs() / length
        largest = max(largest, float(differences.nan_to_num(nan=torch.inf).max()))
    return largest


def _about(model: VideoReID, cfg: CfgNode) -> dict[str, str]:
    identity = fingerprint(model, cfg)
    return {
        "fastreid_star_version": fastreid_star.__version__,
        "model": type(model).__name__,
        "image_size": "x".join(map(str, cfg.INPUT.SIZE_TEST)),
        "weights_sha256": identity["weights_sha256"],
        "config": json.dumps(identity["config"], sort_keys=True),
    }


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
