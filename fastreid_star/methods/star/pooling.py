"""Pooling over a clip guided by its body parts, equations (11)-(13) of STAR, as pure functions.

Shapes: B clips, T frames, V joints, D feature width, C channels of a node, P body parts,
K exponents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fastreid_star.modeling.layers.pooling import at_least_float32, gem


def gem_pyramid(
    frames: torch.Tensor, exponents: Sequence[float], eps: float = 1e-6
) -> torch.Tensor:
    """Equation (11) over T for each exponent: frames ``[B, T, D]``, non-negative, to ``[B, K, D]``.

    Frames are clamped at `eps`, because x^0.7 has an infinite slope at 0. The root adds the 1e-12
    of :func:`gem`: x^7 of small features underflows in float32, and a root of 0 has no gradient.
    """
    frames = at_least_float32(frames).clamp(min=eps)
    return torch.stack([gem(frames, p, dim=1) for p in exponents], dim=1)


def joint_means(nodes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of each joint over the frames in which it is valid; 0 where it never is.

    Args:
        nodes: ``[B, T, V, C]``.
        valid: bool ``[B, T, V]``.

    Returns:
        ``[B, V, C]``.
    """
    weights = valid[..., None].to(nodes.dtype)
    return (nodes * weights).sum(1) / weights.sum(1).clamp(min=1)


def part_tokens(
    nodes: torch.Tensor, valid: torch.Tensor, members: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (12) in each frame: mean of h' over the joints of each part.

    Args:
        nodes: h' ``[B, T, V, C]``.
        valid: bool ``[B, T, V]``.
        members: bool ``[P, V]``, which joints belong to a part.

    Returns:
        tokens ``[B, T, P, C]``, 0 for a part that is not seen, and bool ``[B, T, P]``: which parts
        are seen.
    """
    members = members.to(nodes.dtype)
    weights = valid[..., None].to(nodes.dtype)
    sums, counts = (members @ x for x in (nodes * weights, weights))
    return sums / counts.clamp(min=1), counts[..., 0] > 0


def clip_part_tokens(
    nodes: torch.Tensor, valid: torch.Tensor, members: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (12) over all frames of a clip: tokens ``[B, P, C]`` and seen ``[B, P]``.

    Arguments as for :func:`part_tokens`; the mean is over the frames and the joints of each part.
    """
    tokens, seen = part_tokens(
        nodes.flatten(1, 2)[:, None],
        valid.flatten(1, 2)[:, None],
        members.repeat(1, nodes.shape[1]),
    )
    return tokens[:, 0], seen[:, 0]


def add_parts(
    contributions: torch.Tensor, seen: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """Equation (13) as the reading `parts`: the parts of each frame add to the pooled feature.

    Args:
        contributions: ``W_p alpha_p(t) + b_p``, ``[B, T, P, D]``.
        seen: bool ``[B, T, P]``; parts that are not seen are left out.
        pooled: g ``[B, K, D]``, for each exponent.

    Returns:
        G ``[B, D]``: the mean over K, and the mean over the frames with a part of the ReLU of the
        sum over the parts.
    """
    of_frames = F.relu(contributions.masked_fill(~seen[..., None], 0).sum(2))
    frames = seen.any(2).sum(1).clamp(min=1)[:, None]
    return pooled.mean(1) + of_frames.sum(1) / frames


def part_shares(contributions: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The share of each part in the lengths of the contributions, mean over the frames, ``[B, P]``.

    Arguments as for :func:`add_parts`. The shares of a frame have the sum 1.
    """
    lengths = contributions.norm(dim=-1).masked_fill(~seen, 0)
    shares = lengths / lengths.sum(-1, keepdim=True).clamp(min=1e-12)
    return shares.sum(1) / seen.any(2).sum(1).clamp(min=1)[:, None]


def weigh_by_parts(logits: torch.Tensor, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (13) with a sigmoid gate for each part.

    Args:
        logits: ``[B, K, P, D]``.
        pooled: ``[B, K, D]``.

    Returns:
        G ``[B, D]``, the mean over K where all gates are 1/2, and the gates ``[B, K, P, D]``.
    """
    gates = logits.sigmoid()
    exponents, parts = gates.shape[1:3]
    return 2 / (exponents * parts) * (gates.sum(2) * pooled).sum(1), gates


def weigh_by_softmax(
    logits: torch.Tensor, pooled: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A softmax over the exponents: logits and pooled ``[B, K, D]`` to G ``[B, D]`` and weights."""
    weights = logits.softmax(1)
    return (weights * pooled).sum(1), weights
