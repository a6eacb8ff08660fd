"""What STAR looked at in a query and in its match: joints, frames, bones, body parts, exponents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import matplotlib
import numpy as np
from markupsafe import Markup

from fastreid_star.coco import PARTS
from fastreid_star.data.clips import collate_clips
from fastreid_star.methods.star import STAR
from fastreid_star.report import diagrams
from fastreid_star.report.pictures import Album, Clip, Picture, encode, side_by_side

HEIGHT, LONG_HEIGHT = 184, 160  # of a frame, CSS pixels; of a long clip's
RADIUS = 0.012, 0.045  # of the smallest and the largest circle, as shares of a frame's height
COLORS = matplotlib.colormaps["plasma"]
LOW, HIGH = 0.2, 0.95  # the part of the colors that is seen on dark and on bright frames


@dataclass(frozen=True)
class Look:
    """What the network looked at in one clip.

    Args:
        clip: who is on it.
        role: what it is here: the query, its match.
        picture: its frames, a circle on each joint as large as the attention it received.
        gates: of the frames, [T]; None where the network has none.
        span: the attention that the smallest and the largest circle stand for; None where no joint received any.
    """

    clip: Clip
    role: str
    picture: Picture
    gates: list[float] | None
    span: tuple[float, float] | None


@dataclass(frozen=True)
class Example:
    """A query and its match.

    Args:
        title: what is to be said of the pair.
        looks: the query's and the match's.
        charts: bones, frames, parts and exponents, as far as the network has them.
    """

    title: str
    looks: list[Look]
    charts: list[Markup]


def look_at(model: STAR, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """``model.look`` for some clips: one array for each of its parts, a row a clip."""
    seen = model.explain(collate_clips([clip.item for clip in clips]))
    return {name: value.cpu().double().numpy() for name, value in seen.items()}


def example(
    model: STAR, album: Album, query: int, match: int, *, title: str, exponents: Sequence[float]
) -> Example:
    """What the network looked at in a query and in its match.

    Args:
        model: has ``look``, and reads skeletons.
        album: the clips.
        query, match: positions of their tracklets.
        title: what is to be said of the pair.
        exponents: MODEL.STAR.EXPONENTS, the names of the exponents' weights.
    """
    clips = {"query": album.clip(query), "match": album.clip(match)}
    seen = look_at(model, list(clips.values()))
    looks, height = [], LONG_HEIGHT if album.long else HEIGHT
    for row, (role, clip) in enumerate(clips.items()):
        attention = (
            seen["joint_attention"][row]
            if "joint_attention" in seen
            else np.zeros(clip.joints.shape[:2])
        )
        given = attention[attention > 0]
        span = (float(given.min()), float(given.max())) if len(given) else None
        frames = album.drawn(clip, height)
        marked = [
            mark_joints(*frame, values, span)
            for frame, values in zip(frames, attention, strict=True)
        ]
        alt = f"{len(frames)} frames of the {role}, a circle on each joint as large as the attention it received"
        looks.append(
            Look(
                clip=clip,
                role=role,
                picture=encode(side_by_side(marked), height=height, alt=alt),
                gates=seen["frame_gates"][row].tolist() if "frame_gates" in seen else None,
                span=span,
            )
        )
    return Example(title, looks, charts(seen, list(clips), exponents, title))


def mark_joints(
    frame: np.ndarray, joints: np.ndarray, attention: np.ndarray, span: tuple[float, float] | None
) -> np.ndarray:
    """A circle on each joint, whose area and color are the attention it received; none where that is 0.

    Args:
        frame: uint8 [H, W, 3], stays as it is.
        joints: [V, 3] in pixels of it.
        attention: [V].
        span: what the smallest and the largest circle of the clip stand for; None: there are no circles.
    """
    frame = np.ascontiguousarray(frame).copy()
    smallest, largest = (share * frame.shape[0] for share in RADIUS)
    for joint in np.argsort(attention):
        if span is None or attention[joint] <= 0:
            continue
        share = (attention[joint] - span[0]) / max(span[1] - span[0], 1e-12)
        radius = np.sqrt(smallest**2 + share * (largest**2 - smallest**2))
        center = tuple(round(16 * float(place)) for place in joints[joint, :2])
        color = [int(255 * part) for part in COLORS(LOW + (HIGH - LOW) * share)[:3]]
        cv2.circle(frame, center, round(16 * radius), color, -1, cv2.LINE_AA, shift=4)
        cv2.circle(frame, center, round(16 * radius), (255, 255, 255), 1, cv2.LINE_AA, shift=4)
    return frame


def charts(
    seen: Mapping[str, np.ndarray], roles: Sequence[str], exponents: Sequence[float], about: str
) -> list[Markup]:
    """Diagrams of whatever the network has beside joints and gates; clips without a skeleton have weights of 0.

    Args:
        seen: as :func:`look_at` gives it.
        roles: what each row of `seen` is.
        exponents: MODEL.STAR.EXPONENTS.
        about: which pair of clips it is, for readers who do not see the diagrams.
    """

    def by_role(name: str, neutral: float = 0.0) -> dict[str, np.ndarray]:
        pairs = zip(roles, seen[name], strict=True)
        return {role: values - neutral if values.any() else values for role, values in pairs}

    drawn = []
    if "bone_weights" in seen:
        weights = {role: values.mean(0) for role, values in by_role("bone_weights").items()}
        title = "Bones (1)–(3): their share"
        drawn.append(diagrams.bone_figure(weights, title=title, label=f"{title}. {about}"))
    if "frame_attention" in seen:
        title, axes = (
            "Frames (4): who listens to whom",
            {"x_label": "bones of frame", "y_label": "frame"},
        )
        drawn.append(
            diagrams.matrices(
                by_role("frame_attention"), title=title, label=f"{title}. {about}", **axes
            )
        )
    if "part_weights" in seen:
        title, x_label = "Body parts (12)", "mean gate, above or below 1/2"
        parts = by_role("part_weights", neutral=1 / 2)
        drawn.append(
            diagrams.bars(
                parts, list(PARTS), title=title, x_label=x_label, label=f"{title}. {about}"
            )
        )
    if "exponent_weights" in seen:
        title, x_label = "Exponents (13)", f"share, above or below 1/{len(exponents)}"
        shares, names = (
            by_role("exponent_weights", neutral=1 / len(exponents)),
            [f"p = {p:g}" for p in exponents],
        )
        drawn.append(
            diagrams.bars(shares, names, title=title, x_label=x_label, label=f"{title}. {about}")
        )
    return drawn
