"""A trained model as an ONNX file that gives the model's own features, or no file at all.

The graph's inputs and outputs, the models that were tried, and the way on to Ascend's .om: docs/export.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode

import fastreid_star
from fastreid_star.coco import NUM_JOINTS
from fastreid_star.engine.export_graph import ExportedModel, trace
from fastreid_star.engine.fingerprint import Fingerprint
from fastreid_star.errors import UserError
from fastreid_star.evaluation.retrieval import check_features
from fastreid_star.files import write_whole
from fastreid_star.methods.sad import SAD
from fastreid_star.structures import Modality

logger = logging.getLogger(__name__)

# 13 is the one that every compiler for Ascend since CANN 5.0 documents; above 18 none does.
OPSETS, DEFAULT_OPSET = range(13, 19), 13
TOLERANCE = 1e-4  # largest difference of a feature's numbers, whose squares sum to 1
BATCHES = (1, 2, 5)  # clips, to compare with; a batch without any skeleton comes on top

_DESCRIPTIONS = {
    "images": "frames, RGB, 0 to 255; the graph normalizes them",
    "is_visible": "1 for a clip of a visible camera, 0 for one of an infrared camera",
    "skeletons": "COCO joints (x, y, score), x and y in pixels of images; zeros where a joint is missing",
    "has_skeleton": "1 for a frame that has a skeleton, else 0",
    "features": "of unit length: their dot product is the similarity",
}


@dataclass(frozen=True)
class Export:
    """What was written.

    Args:
        path: the file.
        size: of it, in bytes.
        opset: of ONNX's operators.
        inputs: name -> shape after the batch.
        width: D, of the feature.
        clips: how many were compared.
        difference: the largest of a feature's numbers to the model's.
        runtime: which onnxruntime it was compared in.
        metadata: what the file says of itself.
    """

    path: str
    size: int
    opset: int
    inputs: dict[str, tuple[int, ...]]
    width: int
    clips: int
    difference: float
    runtime: str
    metadata: dict[str, str]

    def __str__(self) -> str:
        def shape(sizes):
            return f"[{', '.join(map(str, ('batch', *sizes)))}]"

        inputs = ", ".join(f"{name} {shape(sizes)}" for name, sizes in self.inputs.items())
        modality = self.metadata["modality"]
        return "\n".join(
            (
                f"{self.path}: {self.size / 1e6:.1f} MB, opset {self.opset}, {self.metadata['model']}, "
                + ("both modalities" if modality == "both" else f"{modality} clips only"),
                f"inputs:  {inputs}; all float32",
                f"output:  features {shape([self.width])}, of unit length",
                f"parity:  {self.difference:.1e} at most on {self.clips} clips in onnxruntime {self.runtime}, "
                f"{TOLERANCE:.0e} allowed",
            )
        )


def export_onnx(
    model: SAD,
    cfg: CfgNode,
    path: str | os.PathLike,
    *,
    modality: Modality | None = None,
    length: int | None = None,
    opset: int = DEFAULT_OPSET,
) -> Export:
    """Write a model as an ONNX file, once onnxruntime has given the model's features with it.

    The file is written whole or not at all; what was there before stays until then.

    Args:
        model: SAD or STAR in evaluation mode, see :func:`fastreid_star.engine.trainer.load_trained`.
        cfg: its config; ``INPUT.SIZE_TEST`` is the size of the images.
        path: an ``.onnx`` file in a folder that exists.
        modality: of all clips, for a graph with one stem; None: both, and an input says which.
        length: T; None: ``INPUT.CLIP.LENGTH``.
        opset: of `OPSETS`.

    Raises:
        UserError: `path` or an argument is of no use, onnx or onnxruntime is missing, or no graph gives the model's
            features: then with the config key of the part that is in the way.
    """
    path, length = os.fspath(path), cfg.INPUT.CLIP.LENGTH if length is None else length
    _check_arguments(model, path, length, opset)
    onnx, runtime = _packages()
    batches = comparison_batches(length, cfg.INPUT.SIZE_TEST, modality)
    with torch.no_grad():
        expected = [model(batch).to("cpu", torch.float32) for batch in batches]
    check_features(torch.cat(expected), "the model's")
    module = ExportedModel(model, modality=modality).eval()
    try:
        graph, difference = _graph(module, batches, expected, opset)
    except _NoGraph as problem:
        culprit = _culprit(model, cfg, modality, batches, opset)
        raise UserError(
            f"no ONNX graph of opset {opset} gives this model's features ({problem}): {culprit}"
        ) from problem
    _warn_where_features_are_alike(expected)

    width = expected[0].shape[1]
    metadata = _metadata(model, cfg, modality, length, width, difference)
    content = _described(onnx, graph, metadata)
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    inputs = zip(module.input_names, module.inputs(batches[0]), strict=True)
    return Export(
        path=path,
        size=len(content),
        opset=opset,
        inputs={name: tuple(value.shape[1:]) for name, value in inputs},
        width=width,
        clips=sum(map(len, expected)),
        difference=difference,
        runtime=runtime.__version__,
        metadata=metadata,
    )


def comparison_batches(
    length: int, size: Sequence[int], modality: Modality | None = None
) -> list[dict]:
    """Batches of random clips to compare a graph with its model on: `BATCHES`, then one without any skeleton.

    They have what a graph may get wrong: other numbers of clips than it was traced with, both modalities mixed, frames
    and whole clips without a skeleton, joints that are missing, below the score, not finite, in one place, or level.

    Args:
        length: T.
        size: height and width.
        modality: of all clips; None: both.

    Returns:
        batches as the model takes them, always the same.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [_clips(clips, length, size, generator) for clips in BATCHES]
    batches.append(_clips(2, length, size, generator))
    batches[-1]["has_skeleton"][:] = False
    if modality is not None:
        for batch in batches:
            batch["modality"][:] = modality
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
    has_skeleton[2:3] = False  # the third clip, where there is one
    skeletons[-1, -1, 0] = 0  # a joint that is missing
    skeletons[-1, -1, 1, 0] = float("nan")
    skeletons[0, 0, :, 2] = 0.9
    skeletons[0, 0, 9] = skeletons[0, 0, 7]  # a bone without a length
    skeletons[0, 0, 6] = skeletons[0, 0, 5] - torch.tensor(
        [5.0, 0.0, 0.0]
    )  # a bone that is level, pointing left
    return {
        "images": images.unflatten(0, (clips, length)),
        "modality": torch.tensor([Modality.VISIBLE, Modality.INFRARED]).repeat(clips)[:clips],
        "skeletons": skeletons,
        "has_skeleton": has_skeleton,
    }


class _NoGraph(Exception):
    """The module cannot be traced, or its graph does not give what it gives."""


def _graph(
    module: ExportedModel, batches: list[dict], expected: list[torch.Tensor], opset: int
) -> tuple[bytes, float]:
    """The module as a serialized ONNX model, and its largest difference to `expected`, in units of their largest."""
    onnx, runtime = _packages()
    try:
        graph = trace(module, module.inputs(batches[1]), opset)
        onnx.checker.check_model(graph, full_check=True)
        options = runtime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = (
            4,
            torch.get_num_threads(),
        )  # 4: what fails is raised
        session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except (
        Exception
    ) as error:  # the exporter, the checker and the runtime have errors of many kinds
        raise _NoGraph(_first_line(error)) from error
    difference = 0.0
    for batch, theirs in zip(batches, expected, strict=True):
        inputs = zip(module.input_names, module.inputs(batch), strict=True)
        try:
            found = session.run(None, {name: value.cpu().numpy() for name, value in inputs})[0]
        except Exception as error:
            raise _NoGraph(f"{len(theirs)} clip(s): {_first_line(error)}") from error
        found = torch.from_numpy(found)
        if found.shape != theirs.shape:
            raise _NoGraph(
                f"{len(theirs)} clip(s) give {list(found.shape)} in place of {list(theirs.shape)}"
            )
        difference = max(difference, float((found - theirs).abs().nan_to_num(nan=torch.inf).max()))
    if module.until != "features":  # features are of unit length, those of a part are not
        difference /= max(1.0, *(float(theirs.abs().max()) for theirs in expected))
    if difference > TOLERANCE:
        raise _NoGraph(f"its own differ by {difference:.1e}, {TOLERANCE:.0e} is allowed")
    return graph, difference


def _culprit(
    model: SAD, cfg: CfgNode, modality: Modality | None, batches: list[dict], opset: int
) -> str:
    """Which part has no graph of its own, by trying one after the other, and what to change."""
    backbone, star = cfg.MODEL.BACKBONE, cfg.MODEL.STAR
    parts = {
        "backbone": f"it is the backbone, MODEL.BACKBONE.NAME {backbone.NAME}: train another of docs/export.md"
    }
    if getattr(model, "corrector", None) is not None:
        parts["frame level"] = (
            f"it is the frame level, MODEL.STAR.FRAME_LEVEL True with BONES {star.BONES} and CORRECTOR "
            f"{star.CORRECTOR}: change one of them, and train anew"
        )
    for part, advice in parts.items():
        module = ExportedModel(model, modality=modality, until=part).eval()
        with torch.no_grad():
            expected = [module(*module.inputs(batch)).cpu() for batch in batches]
        try:
            _graph(module, batches, expected, opset)
        except _NoGraph:
            return advice
    return f"it is the head, MODEL.HEADS.NAME {cfg.MODEL.HEADS.NAME}: choose ClipHead or GATGeMHead, and train anew"


def _metadata(
    model: SAD, cfg: CfgNode, modality: Modality | None, length: int, width: int, difference: float
) -> dict[str, str]:
    fingerprint = Fingerprint.of(model, cfg)
    config = json.dumps(dict(fingerprint.config), sort_keys=True)
    return {
        "fastreid_star_version": fastreid_star.__version__,
        "model": type(model).__name__,
        "modality": "both" if modality is None else modality.name.lower(),
        "frames": str(length),
        "image_size": "x".join(map(str, cfg.INPUT.SIZE_TEST)),
        "feature_width": str(width),
        "weights_sha256": fingerprint.weights,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "config": config,
        "largest_difference": f"{difference:.1e}",
    }


def _described(onnx, graph: bytes, metadata: dict[str, str]) -> bytes:
    proto = onnx.load_from_string(graph)
    onnx.helper.set_model_props(proto, metadata)
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = _DESCRIPTIONS[value.name]
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = int(
        metadata["feature_width"]
    )  # known by now
    return proto.SerializeToString()


def _warn_where_features_are_alike(expected: list[torch.Tensor]) -> None:
    distance = min(float(F.pdist(features).min()) for features in expected if len(features) > 1)
    if distance < 100 * TOLERANCE:
        logger.warning(
            "the model tells random clips hardly apart (distance %.1e), so that the comparison says little: are these "
            "trained weights?",
            distance,
        )


def _check_arguments(model: torch.nn.Module, path: str, length: int, opset: int) -> None:
    if not isinstance(model, SAD):
        raise UserError(
            f"{type(model).__name__} is no model of clips: SAD and STAR can be exported"
        )
    if model.training:
        raise ValueError("the model is in training mode")
    if opset not in OPSETS:
        raise UserError(f"opset {opset}: choose one from {OPSETS[0]} to {OPSETS[-1]}")
    if length < 1:
        raise UserError(f"{length} frames: a clip has at least one")
    if not path.endswith(".onnx"):
        raise UserError(f"{path} is no name for an ONNX file: let it end in .onnx")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f"the folder {folder} does not exist: make it, or write elsewhere")


def _packages():
    """onnx and onnxruntime: only an export needs them."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"export needs onnx and onnxruntime ({error}): pip install onnx onnxruntime"
        ) from error
    return onnx, onnxruntime


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return textwrap.shorten(
        f"{type(error).__name__}: {lines[0] if lines else ''}", 200, placeholder=" ..."
    )
