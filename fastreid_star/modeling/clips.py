"""Clips and their frames: the modality of frames, and networks that see single frames.

Methods for images see single frames: each frame of a batch is a clip of one frame with the clip's
label, in training and in evaluation. The features of a clip's frames are joined for retrieval.

Shapes: B clips, T frames of a clip, N = B T frames, D feature width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

UNITS = ("clip", "frame")
JOINS = ("mean", "normalized")
# others have one row a clip
PER_FRAME = ("images", "skeletons", "has_skeleton", "crop_sizes", "shapes")


def check_unit(name: str, units: tuple[str, ...], unit: str, join: str) -> None:
    """Raise a UserError if the method `name`, which has `units`, has no such unit or join."""
    if unit not in units:
        raise UserError(f"MODEL.UNIT is {unit!r}: {name} has {' and '.join(units)}")
    if join not in JOINS:
        raise UserError(f"MODEL.HEADS.JOIN is {join!r}: choose one of {', '.join(JOINS)}")


def frame_modality(batch: dict[str, Any], length: int) -> torch.Tensor:
    """The batch's `modality` or `is_visible` ``[B]`` to the `is_visible` ``[N]`` of its frames.

    Raises:
        UserError: a number that is not a modality.
    """
    if "is_visible" in batch:
        return batch["is_visible"][:, None].expand(-1, length).reshape(-1)
    modality = torch.as_tensor(batch["modality"]).cpu()  # it belongs on the host anyway
    is_visible = modality == Modality.VISIBLE
    if not (is_visible | (modality == Modality.INFRARED)).all():
        raise UserError(
            f"modality must be 1 (infrared) or 2 (visible), but the batch has {modality.tolist()}"
        )
    return is_visible.repeat_interleave(length)


def frames_as_clips(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of B clips of T frames to a batch of B T clips of one frame.

    The frames of a clip follow one another: if the first half of the batch is visible, it stays so,
    and if the n-th visible and the n-th infrared clip have one identity, their frames have too.

    Args:
        batch: see :meth:`~fastreid_star.modeling.video_reid.VideoReID.encode`.
    """
    clips, length = batch["images"].shape[:2]
    split = {}
    for key, value in batch.items():
        if key in PER_FRAME:
            split[key] = value.flatten(0, 1)[:, None]
        elif isinstance(value, torch.Tensor) and value.shape[:1] == (clips,):
            rows = value[:, None].expand(-1, length, *value.shape[1:])
            split[key] = rows.reshape(-1, *value.shape[1:])
        else:
            split[key] = value
    return split


def as_units(batch: dict[str, Any], unit: str) -> dict[str, Any]:
    """The batch, or with frames as units :func:`frames_as_clips`."""
    return frames_as_clips(batch) if unit == "frame" else batch


def join_frames(features: torch.Tensor, length: int, join: str = "mean") -> torch.Tensor:
    """The mean of the frames' features of each clip: ``[B T, D]`` to ``[B, D]``.

    Args:
        features: after the neck.
        length: T.
        join: `mean`, or `normalized`: each frame's feature is first scaled to unit length.
    """
    if join == "normalized":
        features = F.normalize(features, dim=-1)
    return features.unflatten(0, (-1, length)).mean(1)
