"""What an exported model must compute: random clips, the model's features, and how they compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode

import fastreid_star
from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.tracklets import as_modality
from fastreid_star.engine import device as devices
from fastreid_star.errors import UserError
from fastreid_star.evaluation.similarity import check_features
from fastreid_star.inference.fingerprint import fingerprint
from fastreid_star.inference.onnx_graph import ExportedModel
from fastreid_star.modeling.video_reid import VideoReID
from fastreid_star.structures import Modality

# The largest difference of a value of a feature, as a share of the length of a feature or part.
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2  # in float16: the largest cosine distance of a feature to the model's
BATCHES = (1, 2, 5, 2)  # numbers of clips that are compared; the last two have no skeletons
_FEATURES = {
    2: "of unit length: their dot product is the similarity",
    3: "parts: minus their mean Euclidean distance is the similarity",
}


class Case(NamedTuple):
    """A model to be exported, and what its file must compute.

    Args:
        module: the graph's module.
        kind: the modality of all clips; None: both.
        length: T, the number of frames.
        inputs: of the module, for some random batches.
        expected: the model's features for them.
    """

    module: ExportedModel
    kind: Modality | None
    length: int
    inputs: list[tuple[torch.Tensor, ...]]
    expected: list[torch.Tensor]

    def metadata(self, cfg: CfgNode) -> dict[str, str]:
        """What the file says about itself."""
        return {
            **_about(self.module.model, cfg),
            "modality": "both" if self.kind is None else self.kind.name.lower(),
            "frames": str(self.length),
            "feature_width": ", ".join(map(str, self.expected[0].shape[1:])),
            "comparison": _FEATURES[self.expected[0].ndim],
        }

    @torch.no_grad()
    def difference_in_half(self) -> float:
        """The largest difference of the network's features in float16, computed by torch.

        onnxruntime computes float16 in float32 on CPUs: its features do not show an overflow.
        """
        with devices.autocast(self.module.model.device, "float16"):
            found = [self.module(*batch).to("cpu", torch.float32) for batch in self.inputs]
        pairs = zip(found, self.expected, strict=True)
        return max(difference_of(features, expected, "float16") for features, expected in pairs)


def prepare(
    model: torch.nn.Module, cfg: CfgNode, modality: Modality | str | None, length: int | None
) -> Case:
    """The case of a model; see :func:`export_onnx` for the arguments.

    Raises:
        UserError: an argument is not valid, or a feature is not finite.
    """
    length = cfg.INPUT.CLIP.LENGTH if length is None else length
    kind = None if modality is None else as_modality(modality)
    if not isinstance(model, VideoReID):
        raise UserError(f"{type(model).__name__} is not a model of clips, such as SAD and STAR")
    if length < 1:
        raise UserError(f"{length} frames: a clip has at least one")
    batches = comparison_batches(length, cfg.INPUT.SIZE_TEST, kind)
    with torch.no_grad():
        expected = [model(batch).to("cpu", torch.float32) for batch in batches]
    check_features(torch.cat(expected), "the model's")
    module = ExportedModel(model, modality=kind).eval()
    return Case(module, kind, length, [module.inputs(batch) for batch in batches], expected)


def require_parity(difference: float, precision: str, part: str) -> None:
    """Refuse an exported model whose features differ too much.

    Args:
        difference: of :func:`difference_of`.
        precision: float32 or float16.
        part: the config of the model, for the message.

    Raises:
        UserError: it does.
    """
    if difference > (TOLERANCE if precision == "float32" else HALF_TOLERANCE):
        raise UserError(
            f"the exported graph's features differ from the model's by "
            f"{measured(difference, precision)}: no file is kept; docs/export.md lists what can be "
            f"exported; this model has {part}"
        )


def difference_of(found: torch.Tensor, expected: torch.Tensor, precision: str) -> float:
    """The largest difference of features: in float32 of a value, as a share of the mean length of
    a feature or part; in float16 the cosine distance.

    Raises:
        ValueError: their shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"{len(expected)} clips give features {list(found.shape)}")
    if precision == "float32":
        differences = (found - expected).abs() / expected.norm(dim=-1).mean()
    else:
        differences = 1 - F.cosine_similarity(found.flatten(1), expected.flatten(1))
    return float(differences.nan_to_num(nan=torch.inf).max())


def measured(difference: float, precision: str) -> str:
    """A difference in words, with what is allowed."""
    if precision == "float32":
        return f"{difference:.1e} ({TOLERANCE:.0e} is allowed)"
    return f"a cosine distance of {difference:.1e} ({HALF_TOLERANCE:.0e} is allowed)"


def part_of(cfg: CfgNode) -> str:
    """What decides whether a model can be exported, for messages."""
    return (
        f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} and MODEL.HEADS.NAME {cfg.MODEL.HEADS.NAME}"
    )


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


def _about(model: VideoReID, cfg: CfgNode) -> dict[str, str]:
    identity = fingerprint(model, cfg)
    return {
        "fastreid_star_version": fastreid_star.__version__,
        "model": type(model).__name__,
        "image_size": "x".join(map(str, cfg.INPUT.SIZE_TEST)),
        "weights_sha256": identity["weights_sha256"],
        "config": json.dumps(identity["config"], sort_keys=True),
    }
