"""Skeletons as tensors: which joints count, bone features (1)-(2), the spatial-temporal graph (8)-(9).

Pure functions. Shapes: B clips, T frames, V joints, E bones, N = T V nodes of the graph (node t V + i is joint i in
frame t), M neighbors of a node. A joint is (x, y, score), x and y in pixels. A `reading` is `paper`, `normalized`
(ours) or `release` (what the authors' program does); each function names those it knows.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import torch

from fastreid_star.coco import BONES, NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.modeling.pooling import at_least_float32

# how many numbers describe a bone in each reading
BONE_READINGS = {"standardized": 3, "normalized": 3, "release": 2}
GRAPH_READINGS = ("paper", "release")
# A skeleton whose joints are closer together than this (root mean square, in pixels) has no shape to measure:
# rounding of the coordinates would be blown up to the size of a body.
MIN_SCALE = 1.0


def choose(key: str, value: str, known: Collection[str]) -> str:
    """`value` if it is among `known`, else a UserError that names the config key."""
    if value not in known:
        raise UserError(f"MODEL.STAR.{key} is {value!r}: choose one of {', '.join(known)}")
    return value


def joint_validity(
    skeletons: torch.Tensor, has_skeleton: torch.Tensor, threshold: float | None
) -> torch.Tensor:
    """Which joints count: those of a stored skeleton, finite, not all zero, with a score of at least `threshold`.

    Args:
        skeletons: ``[B, T, V, 3]``; three zeros where a joint is missing.
        has_skeleton: bool ``[B, T]``.
        threshold: lowest score; None: every finite joint of a stored skeleton counts, as in the release.

    Returns:
        bool ``[B, T, V]``.
    """
    valid = torch.isfinite(skeletons).all(-1) & has_skeleton[..., None]
    if threshold is None:
        return valid
    return valid & (skeletons != 0).any(-1) & (skeletons[..., 2] >= threshold)


def drop_skeletons(has_skeleton: torch.Tensor, share: float) -> torch.Tensor:
    """Skeleton dropout: each clip loses all its skeletons with probability `share`; bool ``[B, T]`` to the same.

    Drawn once a step and handed to both levels, so that a clip without a skeleton is without it everywhere. Drawn on
    the host: one seed drops the same clips on every device.
    """
    kept = torch.rand(len(has_skeleton)) >= share
    return has_skeleton & kept.to(has_skeleton.device, non_blocking=True)[:, None]


def center_and_scale(
    points: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the valid points, and their root mean square distance to it, at least `MIN_SCALE`.

    Two points of a set are at most sqrt(2 n) of its scales apart: whatever is divided by it stays bounded.

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


def normalize_joints(
    skeletons: torch.Tensor, valid: torch.Tensor, reading: str = "paper"
) -> torch.Tensor:
    """The graph's node inputs (x, y, score), ``[B, T, V, 3]``; joints that do not count are zeros.

    `paper`: x and y relative to the center of all valid joints of the clip, in units of the clip's scale: neither
    the size nor the place of the crop matters, motion within the clip does. `release`: as they are.
    """
    joints = at_least_float32(skeletons).masked_fill(~valid[..., None], 0)
    if reading == "release":
        return joints
    xy = joints[..., :2]
    center, scale = center_and_scale(xy.flatten(1, 2), valid.flatten(1, 2))
    xy = ((xy - center[:, None]) / scale[:, None]).masked_fill(~valid[..., None], 0)
    return torch.cat([xy, joints[..., 2:]], dim=-1)


def bone_features(
    skeletons: torch.Tensor,
    valid: torch.Tensor,
    reading: str = "standardized",
    bones: torch.Tensor | None = None,
) -> torch.Tensor:
    """Length (1) and angle (2) of every bone of every skeleton.

    `standardized`: (d / s, sin, cos) with s the scale of all skeletons of the clip and the angle of atan2, which tells
    up from down where the paper's arctangent of a quotient does not. The name is for what the bone encoder does with
    these numbers next: it standardizes each of them. `normalized`: the same with the scale of each skeleton itself,
    and without that step. `release`: (d, angle), in pixels and radians.
    A bone is zeros where one of its joints does not count.

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
            scale = center_and_scale(xy.flatten(1, 2), valid.flatten(1, 2))[1]
        else:
            scale = center_and_scale(xy, valid)[1].squeeze(-1)
        features = torch.stack([length / scale, angle.sin(), angle.cos()], dim=-1)
    return features.masked_fill(~seen[..., None], 0)


def bone_scores(skeletons: torch.Tensor, valid: torch.Tensor, bones: torch.Tensor) -> torch.Tensor:
    """How far each bone can be trusted, from 0 to 1: the lower score of its two joints; ``[B, T, E]``.

    Args:
        skeletons: ``[B, T, V, 3]``.
        valid: bool ``[B, T, V]``; a bone of a joint that does not count has the score 0.
        bones: ``[E, 2]`` on the skeletons' device.
    """
    scores = at_least_float32(skeletons[..., 2]).clamp(0, 1).masked_fill(~valid, 0)
    start, end = bones.unbind(1)
    return torch.minimum(scores.index_select(-1, start), scores.index_select(-1, end))


def spatial_temporal_edges(length: int, reading: str = "paper") -> torch.Tensor:
    """The directed edges of the spatial-temporal graph without self-loops, each undirected one twice.

    `paper`: the bones in every frame (8) and i(t) - i(t+1) (9), 19 T + 17 (T - 1) undirected edges. `release`: bones
    in frame 0 only, a fault of the authors' program; its checkpoints evaluate as they were trained with it.

    Returns:
        ``[2, n]``: sources, targets.
    """
    frames = torch.arange(length if reading == "paper" else 1)
    spatial = (torch.tensor(BONES) + NUM_JOINTS * frames[:, None, None]).flatten(0, 1)
    earlier = torch.arange(NUM_JOINTS * (length - 1))
    edges = torch.cat([spatial, torch.stack([earlier, earlier + NUM_JOINTS], dim=1)])
    return torch.cat([edges, edges.flip(1)]).t().contiguous()


class Neighbors(NamedTuple):
    """A graph as a table of fixed shape: one row a node, its neighbors, filled up to the longest row.

    Attributes:
        index: ``[N, M]``, the nodes that each node listens to: itself first; itself again where the row is filled up.
        mask: bool ``[N, M]``, False where the row is filled up.
    """

    index: torch.Tensor  # type: ignore[assignment] # a field hides tuple.index
    mask: torch.Tensor


def neighbor_table(edges: torch.Tensor, num_nodes: int) -> Neighbors:
    """Directed edges ``[2, n]`` (sources, targets) as a table, with a self-loop at every node. Host only."""
    adjacent = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    adjacent[edges[1], edges[0]] = True
    adjacent.fill_diagonal_(False)
    own = torch.arange(num_nodes)[:, None]
    widest = int(adjacent.sum(1).max())
    index = (
        (~adjacent).to(torch.int8).argsort(dim=1, stable=True)[:, :widest]
    )  # neighbors first, in their order
    mask = adjacent.gather(1, index)
    index = torch.where(mask, index, own)
    return Neighbors(torch.cat([own, index], dim=1), torch.cat([own == own, mask], dim=1))


@lru_cache(maxsize=32)
def spatial_temporal_neighbors(length: int, reading: str, device: torch.device) -> Neighbors:
    """The table of :func:`spatial_temporal_edges` on `device`, built once for each T."""
    with torch.inference_mode(
        False
    ):  # a later training step must be able to save the index for its backward
        table = neighbor_table(spatial_temporal_edges(length, reading), NUM_JOINTS * length)
        return Neighbors(*(part.to(device) for part in table))
