"""Skeletons as tensors: valid joints, bone features (1)-(2), the spatial-temporal graph (8)-(9).

Pure functions. The equation numbers are those of STAR. Shapes: B clips, T frames, V joints, E
bones, N = T V nodes of the graph; node t V + i is joint i in frame t. A joint is (x, y, score), x
and y in pixels. A `reading` is one way to read the paper; `release` is what the authors' program
does. Each function names the readings it knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import torch

from fastreid_star.coco import BONES, NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.upgrade import EARLIER_VALUES

# how many numbers describe a bone in each reading
BONE_READINGS = {"standardized": 3, "normalized": 3, "release": 2}
GRAPH_READINGS = ("standardized", "normalized", "release")
GEOMETRIES = ("crop", "image")
# A skeleton whose joints are closer together than this (root mean square, in pixels) has no shape
# to measure: the rounding of its coordinates would be scaled up to the size of a body.
MIN_SCALE = 1.0


def choose(key: str, value: str, known: Collection[str]) -> str:
    """`value` if it is among `known`, else a UserError that names the config key."""
    if value not in known:
        earlier = EARLIER_VALUES.get((f"MODEL.STAR.{key}", value))
        found = f"{value!r}, {earlier}" if earlier else repr(value)
        raise UserError(f"MODEL.STAR.{key} is {found}: choose one of {', '.join(known)}")
    return value


def joint_validity(
    skeletons: torch.Tensor, has_skeleton: torch.Tensor, threshold: float | None
) -> torch.Tensor:
    """Which joints are valid: finite, not all zero, and with a score of at least `threshold`.

    Args:
        skeletons: ``[B, T, V, 3]``; three zeros where a joint is missing.
        has_skeleton: bool ``[B, T]``, whether a frame has a skeleton at all.
        threshold: lowest score; None: every finite joint of a skeleton is valid, as in the release.

    Returns:
        bool ``[B, T, V]``.
    """
    valid = torch.isfinite(skeletons).all(-1) & has_skeleton[..., None]
    if threshold is None:
        return valid
    return valid & (skeletons != 0).any(-1) & (skeletons[..., 2] >= threshold)


def measured_skeletons(batch: Mapping[str, Any], geometry: str = "crop") -> torch.Tensor:
    """The skeletons of a batch in the pixels in which lengths and angles are measured.

    `crop`: in pixels of the crops. Resizing a crop to 288x144 changes the lengths and the angles of
    its bones, and each frame of a tracklet may be changed in another way. `image`: in pixels of the
    resized images, as before version 0.2.

    Args:
        batch: `skeletons` ``[B, T, V, 3]`` in pixels of `images` ``[B, T, 3, H, W]``, three zeros
            where a joint is missing; `crop_sizes` ``[B, T, 2]``, height and width of the crops.
            Without `crop_sizes` the images are the crops.
        geometry: `crop` or `image`.

    Returns:
        ``[B, T, V, 3]``; missing joints are still three zeros.
    """
    skeletons = batch["skeletons"]
    if geometry == "image" or "crop_sizes" not in batch:
        return skeletons
    skeletons = at_least_float32(skeletons)
    height, width = batch["images"].shape[-2:]
    rows, columns = batch["crop_sizes"].to(skeletons)[:, :, None].unbind(-1)
    scale = torch.stack([columns / width, rows / height], dim=-1)
    # the centers of the pixels have whole coordinates
    xy = skeletons[..., :2] * scale + 0.5 * (scale - 1)
    missing = (skeletons == 0).all(-1, keepdim=True)
    return torch.cat([xy.masked_fill(missing, 0), skeletons[..., 2:]], dim=-1)


def drop_skeletons(has_skeleton: torch.Tensor, share: float) -> torch.Tensor:
    """Skeleton dropout: each clip loses all its skeletons with probability `share`.

    The choice is drawn on the host, so that one seed drops the same clips on every device.

    Args:
        has_skeleton: bool ``[B, T]``.
        share: from 0 to 1.

    Returns:
        bool ``[B, T]``.
    """
    kept = torch.rand(len(has_skeleton)) >= share
    return has_skeleton & kept.to(has_skeleton.device, non_blocking=True)[:, None]


def center_and_scale(
    points: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the valid points, and their root mean square distance to it, at least `MIN_SCALE`.

    Two of n points are at most sqrt(2 n) scales apart, so distances divided by the scale are
    bounded.

    Args:
        points: ``[..., n, 2]``, finite.
        valid: bool ``[..., n]``.

    Returns:
        center ``[..., 1, 2]`` and scale ``[..., 1, 1]``.
    """
    absent = ~valid[..., None]
    count = valid.sum(-1).clamp(min=1)[..., None, None].to(points.dtype)
    center = points.masked_fill(absent, 0).sum(-2, keepdim=True) / count
    squares = (points - center).masked_fill(absent, 0).square().sum((-2, -1), keepdim=True)
    return center, (squares / count).clamp(min=MIN_SCALE**2).sqrt()


def body_scale(xy: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The scale of all skeletons of a clip, each about its own center: ``[B, 1, 1, 1]``.

    Args:
        xy: ``[B, T, V, 2]``, finite.
        valid: bool ``[B, T, V]``.
    """
    around = xy - center_and_scale(xy, valid)[0]  # where the box lies does not matter
    return center_and_scale(around.flatten(1, 2), valid.flatten(1, 2))[1][:, None]


def normalize_joints(
    skeletons: torch.Tensor, valid: torch.Tensor, reading: str = "standardized"
) -> torch.Tensor:
    """The inputs (x, y, score) of the graph's nodes, ``[B, T, V, 3]``; zeros for invalid joints.

    `standardized`: x and y are relative to the center of all valid joints of the clip, in units of
    :func:`body_scale`. The size and the place of the crop do not matter, the motion within the clip
    does. The head then standardizes each of these numbers, hence the name. `normalized`: the same
    in units of the scale of the clip's joints about their common center, and without that step.
    `release`: unchanged.
    """
    joints = at_least_float32(skeletons).masked_fill(~valid[..., None], 0)
    if reading == "release":
        return joints
    xy = joints[..., :2]
    center, scale = (
        each[:, None] for each in center_and_scale(xy.flatten(1, 2), valid.flatten(1, 2))
    )
    if reading == "standardized":
        scale = body_scale(xy, valid)
    xy = ((xy - center) / scale).masked_fill(~valid[..., None], 0)
    return torch.cat([xy, joints[..., 2:]], dim=-1)


def bone_features(
    skeletons: torch.Tensor,
    valid: torch.Tensor,
    reading: str = "standardized",
    bones: torch.Tensor | None = None,
) -> torch.Tensor:
    """Length (1) and angle (2) of every bone of every skeleton.

    `standardized`: (d / s, sin, cos), where s is the :func:`body_scale`. The angle is that of
    atan2, which distinguishes up from down; the paper's arctangent of a quotient does not. The bone
    encoder then standardizes each of these numbers, hence the name. `normalized`: the same with the
    scale of each single skeleton, and without that step. `release`: (d, angle), in pixels and
    radians. A bone with an invalid joint is zeros.

    Args:
        skeletons: ``[B, T, V, 3]``.
        valid: bool ``[B, T, V]``.
        reading: `standardized`, `normalized` or `release`.
        bones: ``[E, 2]`` on the skeletons' device; None: COCO's, copied there.

    Returns:
        ``[B, T, E, 3]``, or ``[B, T, E, 2]`` for `release`.
    """
    bones = torch.tensor(BONES, device=skeletons.device) if bones is None else bones
    start, end = bones.unbind(1)
    xy = at_least_float32(skeletons[..., :2]).masked_fill(~valid[..., None], 0)
    seen = valid.index_select(-1, start) & valid.index_select(-1, end)
    vector = xy.index_select(-2, end) - xy.index_select(-2, start)
    length = torch.linalg.vector_norm(vector, dim=-1)
    angle = torch.atan2(vector[..., 1], vector[..., 0])
    if reading == "release":
        features = torch.stack([length, angle], dim=-1)
    else:
        if reading == "standardized":
            scale = body_scale(xy, valid).squeeze(-1)
        else:
            scale = center_and_scale(xy, valid)[1].squeeze(-1)
        features = torch.stack([length / scale, angle.sin(), angle.cos()], dim=-1)
    return features.masked_fill(~seen[..., None], 0)


def bone_scores(skeletons: torch.Tensor, valid: torch.Tensor, bones: torch.Tensor) -> torch.Tensor:
    """The score of each bone, the lower one of its two joints, from 0 to 1; ``[B, T, E]``.

    Args:
        skeletons: ``[B, T, V, 3]``.
        valid: bool ``[B, T, V]``; a bone with an invalid joint has the score 0.
        bones: ``[E, 2]`` on the skeletons' device.
    """
    scores = at_least_float32(skeletons[..., 2]).clamp(0, 1).masked_fill(~valid, 0)
    start, end = bones.unbind(1)
    return torch.minimum(scores.index_select(-1, start), scores.index_select(-1, end))


def spatial_temporal_edges(length: int, reading: str = "standardized") -> torch.Tensor:
    """The edges of the spatial-temporal graph without self-loops, in both directions.

    The bones in every frame (8) and i(t) - i(t+1) (9), 19 T + 17 (T - 1) undirected edges.
    `release`: bones in frame 0 only. This is a fault of the authors' program, kept so that its
    checkpoints evaluate as they were trained.

    Returns:
        ``[2, n]``: sources, targets.
    """
    frames = torch.arange(1 if reading == "release" else length)
    spatial = (torch.tensor(BONES) + NUM_JOINTS * frames[:, None, None]).flatten(0, 1)
    earlier = torch.arange(NUM_JOINTS * (length - 1))
    edges = torch.cat([spatial, torch.stack([earlier, earlier + NUM_JOINTS], dim=1)])
    return torch.cat([edges, edges.flip(1)]).t().contiguous()


@lru_cache(maxsize=32)
def spatial_temporal_adjacency(length: int, reading: str, device: torch.device) -> torch.Tensor:
    """:func:`spatial_temporal_edges` with self-loops as a matrix, built once for each T.

    Returns:
        bool ``[N, N]`` on `device`: whether row node i listens to column node j.
    """
    with torch.inference_mode(False):  # a later training step must be able to use it
        nodes = NUM_JOINTS * length
        adjacency = torch.eye(nodes, dtype=torch.bool)
        sources, targets = spatial_temporal_edges(length, reading)
        adjacency[targets, sources] = True
        return adjacency.to(device)
