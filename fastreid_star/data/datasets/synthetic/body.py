"""Draws a synthetic person: the projection, and the body as filled polygons.

Shapes: T frames, P points, Q polygons, K corners, h and w height and width of a frame in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

import fastreid_star.data.datasets.synthetic.people as people
import fastreid_star.data.datasets.synthetic.scene as scene
from fastreid_star.structures import Modality

DISTANCE = 6.0  # meters from the camera to the person: a mild perspective
SUBPIXEL = 4  # fixed-point bits of the polygons' coordinates

# material, from point, to point, radius at both ends in meters
LIMBS = (
    ("skin", people.NECK, people.HEAD, 0.06, 0.05),
    *(
        (material, first + right, second + right, start, end)
        for right in (0, 1)
        for material, first, second, start, end in (
            ("skin", people.LEFT_WRIST, people.LEFT_HAND, 0.036, 0.034),
            ("upper", people.LEFT_ELBOW, people.LEFT_WRIST, 0.048, 0.04),
            ("upper", people.LEFT_SHOULDER, people.LEFT_ELBOW, 0.064, 0.052),
            ("shoes", people.LEFT_ANKLE, people.LEFT_TOE, 0.056, 0.042),
            ("lower", people.LEFT_KNEE, people.LEFT_ANKLE, 0.066, 0.05),
            ("lower", people.LEFT_HIP, people.LEFT_KNEE, 0.092, 0.07),
        )
    ),
)
# brightness of a limb by share of its radius: three steps make it look round
CAPSULES = {1.0: 0.72, 0.72: 0.88, 0.4: 1.02}


@dataclass(frozen=True, slots=True)
class View:
    """The pose of the person relative to the camera in each frame.

    Args:
        yaw: 0: towards the camera, pi: away from it; larger: more to the right of the frame, [T].
        tilt: how far the camera looks down, radians.
        scale: pixels a meter.
        center: the middle of the person in the frame, pixels, [T, 2].
        stature: the person's height in meters.
    """

    yaw: np.ndarray
    tilt: float
    scale: float
    center: np.ndarray
    stature: float

    def turn(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [T, ..., 3] from body axes to camera axes: x right, y up, z to the camera."""
        shape = (-1,) + (1,) * (vectors.ndim - 2)
        sine, cosine = np.sin(self.yaw).reshape(shape), np.cos(self.yaw).reshape(shape)
        x, y, z = np.moveaxis(vectors, -1, 0)
        x, z = x * cosine + z * sine, z * cosine - x * sine
        down, level = np.sin(self.tilt), np.cos(self.tilt)
        y, z = y * level - z * down, y * down + z * level
        return np.stack([x, y, z], axis=-1)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points [T, ..., 3] in body axes to pixels [T, ..., 2] and depth [T, ...].

        Pixels count from the frame's upper left corner; a larger depth is nearer.
        """
        turned = self.turn(points - np.array([0.0, self.stature / 2, 0.0]))
        scale = self.scale * DISTANCE / (DISTANCE - turned[..., 2])
        pixels = np.stack([turned[..., 0], -turned[..., 1]], axis=-1) * scale[..., None]
        center = self.center.reshape(-1, *(1,) * (points.ndim - 2), 2)
        return pixels + center, turned[..., 2]


def draw_body(
    person: people.Person,
    points: np.ndarray,
    view: View,
    modality: Modality,
    size: tuple[int, int],
    *,
    shadow: bool = True,
) -> np.ndarray:
    """The person alone: premultiplied RGBA, float32 [T, h, w, 4], colors 0 to 255, alpha 0 to 1.

    Args:
        points: [T, P, 3], of :func:`people.walk`.
        shadow: with the shadow between the feet. False: alpha is the share of a pixel that the
            person covers.
    """
    materials = person.outfit.materials
    colors = {name: scene.color_of(value, modality) for name, value in materials.items()}
    # visible light comes from above and the side, infrared light from the camera's lamp
    light = np.array([0.0, 0.15, 1.0] if modality is Modality.INFRARED else [-0.45, 0.6, 0.66])
    light /= np.linalg.norm(light)
    parts = [
        *_limbs(colors, points, view, light),
        _torso(person, colors, points, view, light),
        _head(person, colors, points, view, light),
        _eyes(person, colors, points, view),
    ]
    return _paint(parts, _shadow(points, view) if shadow else None, size)


class Part(NamedTuple):
    """A part of the body as Q filled convex polygons of K corners, in drawing order.

    Args:
        depth: larger is nearer, meters, [T].
        outlines: pixels, [T, Q, K, 2].
        colors: 0 to 255, [T, Q, 3].
        visible: polygons that face the camera, [T, Q].
    """

    depth: np.ndarray
    outlines: np.ndarray
    colors: np.ndarray
    visible: np.ndarray


def _paint(parts: list[Part], shadows: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """The shadow and the parts, farthest first: premultiplied RGBA, float32 [T, h, w, 4]."""
    factor = int(np.clip(256 // size[0], 2, 4))  # drawn larger, then averaged: smooth edges
    fixed = factor * 2**SUBPIXEL
    half = 2 ** (SUBPIXEL - 1)  # OpenCV puts a pixel's center, not its corner, at whole numbers
    if shadows is not None:
        shadows = np.round(shadows * fixed - half).astype(np.int32)
    order = np.argsort(np.stack([part.depth for part in parts], axis=1), axis=1)
    # all visible polygons are converted at once: much faster than one by one
    outlines = [np.round(p.outlines[p.visible] * fixed - half).astype(np.int32) for p in parts]
    colors = [_opaque(part.colors[part.visible]).tolist() for part in parts]
    ends = [np.cumsum(part.visible.sum(axis=1)).tolist() for part in parts]

    layers = np.empty((len(order), *size, 4), np.float32)
    canvas = np.empty((size[0] * factor, size[1] * factor, 4), np.uint8)
    for t in range(len(order)):
        canvas[:] = 0
        if shadows is not None:
            cv2.fillConvexPoly(canvas, shadows[t], (0, 0, 0, 80), cv2.LINE_8, SUBPIXEL)
        for part in order[t]:
            for index in range(ends[part][t - 1] if t else 0, ends[part][t]):
                outline, color = outlines[part][index], colors[part][index]
                cv2.fillConvexPoly(canvas, outline, color, cv2.LINE_8, SUBPIXEL)
        layers[t] = cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA)
    layers[..., 3] /= 255
    return layers


def _opaque(colors: np.ndarray) -> np.ndarray:
    """Colors [..., 3] as opaque uint8 RGBA, [..., 4]."""
    alpha = np.full((*colors.shape[:-1], 1), 255)
    return np.concatenate([np.clip(colors, 0, 255), alpha], axis=-1).astype(np.uint8)


def _shade(normals: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Brightness [...] of a surface with normals [..., 3] in camera axes."""
    return 0.55 + 0.5 * np.clip(normals @ light, 0, 1)


def _limbs(colors, points, view, light) -> list[Part]:
    """Each of the L limbs as three tapered capsules, from the dark rim to the bright core."""
    materials, first, second, start, end = zip(*LIMBS, strict=True)
    pixels, depth = view.project(points)
    a, b = pixels[:, first], pixels[:, second]  # [T, L, 2]
    start, end = (view.scale * np.array(radius)[:, None] for radius in (start, end))
    axis = b - a
    half_turn = np.linspace(-np.pi / 2, np.pi / 2, 7)
    angle = np.arctan2(axis[..., 1], axis[..., 0])[..., None] + half_turn
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # [T, L, 7, 2]
    towards_light = 0.35 * np.minimum(start, end) * np.array([light[0], -light[1]])
    shares = []
    for share in CAPSULES:
        middle = ((1 - share) * towards_light)[:, None]
        far = b[:, :, None] + share * end[..., None] * arc
        near = a[:, :, None] - share * start[..., None] * arc
        shares.append(np.concatenate([far, near], axis=2) + middle)
    outlines = np.stack(shares, axis=2)  # [T, L, 3, 14, 2]
    nearness = (depth[:, first] + depth[:, second]) / 2
    visible = np.ones((len(points), len(CAPSULES)), bool)
    parts = []
    for limb, material in enumerate(materials):
        paint = np.array(list(CAPSULES.values()))[:, None] * colors[material]
        paint = np.broadcast_to(paint, (len(points), *paint.shape))
        parts.append(Part(nearness[:, limb], outlines[:, limb], paint, visible))
    return parts


def _rings(centers, lateral, forward, half_width, half_depth, count):
    """A body part as a stack of ellipses: points and outward normals, [T, levels, count, 3] each.

    Angle 0 is the front, a quarter turn is the person's left.
    """
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)[:, None]
    sine, cosine = np.sin(angle), np.cos(angle)
    width, depth = half_width[..., None, None], half_depth[..., None, None]
    lateral, forward = lateral[..., None, :], forward[..., None, :]
    surface = centers[..., None, :] + width * sine * lateral + depth * cosine * forward
    normals = depth * sine * lateral + width * cosine * forward
    return surface, normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def _mesh(surface, normals, colors, view, light, depth):
    """The lit quadrilaterals between neighboring rings; colors are [levels - 1, count, 3]."""
    pixels, _ = view.project(surface)
    turned = view.turn(normals)
    following, turned_following = np.roll(pixels, -1, axis=2), np.roll(turned, -1, axis=2)
    around = [pixels[:, :-1], following[:, :-1], following[:, 1:], pixels[:, 1:]]
    corners = np.stack(around, axis=-2)
    normal = turned[:, :-1] + turned[:, 1:] + turned_following[:, :-1] + turned_following[:, 1:]
    normal = normal / 4
    lit = _shade(normal, light)[..., None] * colors
    frames = len(pixels)
    visible = normal[..., 2].reshape(frames, -1) > -0.02
    return Part(depth, corners.reshape(frames, -1, 4, 2), lit.reshape(frames, -1, 3), visible)


def torso_materials(pattern: int, levels: int, count: int) -> np.ndarray:
    """The material of each place on the torso, int [levels, count]: 0 upper, 1 print, 2 trousers.

    Rows run from the hips up, columns around the body, from the front to the person's left.
    """
    row, column = np.arange(levels)[:, None], np.arange(count)[None]
    printed = {
        "plain": 0 * (row + column),
        "hoops": row // 2 % 2 + 0 * column,
        "stripes": (column + 1) // 2 % 2 + 0 * row,
        "checks": (row // 2 + (column + 1) // 2) % 2,
        "yoke": (row >= levels - 4) + 0 * column,
        "diagonal": (row + column) // 4 % 2,
    }[people.PATTERNS[pattern]]
    return np.where(row < 2, 2, printed)


def _torso(person, colors, points, view, light):
    body = person.body
    levels, count = 10, 16
    at = np.linspace(-0.17, 1.08, levels + 1)  # share of the way from the pelvis to the neck
    hip, shoulder = body.hips / 2 + 0.075, body.shoulders / 2 + 0.03
    knots = [-0.17, 0.0, 0.4, 0.78, 0.95, 1.08]
    widths = [0.8 * hip, hip, 0.43 * (hip + shoulder), 0.98 * shoulder, 0.9 * shoulder, 0.06]
    half_width = np.interp(at, knots, widths)
    half_depth = np.interp(at, knots, [0.09, 0.12, 0.105, 0.125, 0.1, 0.06])
    hip_axis = points[:, people.LEFT_HIP] - points[:, people.RIGHT_HIP]
    shoulder_axis = points[:, people.LEFT_SHOULDER] - points[:, people.RIGHT_SHOULDER]
    share = np.clip(at, 0, 1)[:, None]
    upper = share * shoulder_axis[:, None] / body.shoulders
    lateral = (1 - share) * hip_axis[:, None] / body.hips + upper
    lateral /= np.linalg.norm(lateral, axis=-1, keepdims=True)
    trunk = points[:, people.NECK] - points[:, people.PELVIS]
    forward = np.cross(lateral, (trunk / body.torso)[:, None])
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    centers = points[:, people.PELVIS][:, None] + at[:, None] * trunk[:, None]
    surface, normals = _rings(centers, lateral, forward, half_width, half_depth, count)
    palette = np.stack([colors["upper"], colors["print"], colors["lower"]])
    covered_by = palette[torso_materials(person.outfit.pattern, levels, count)]
    _, depth = view.project(centers)
    return _mesh(surface, normals, covered_by, view, light, depth.mean(axis=1))


def _head(person, colors, points, view, light):
    levels, count = 7, 12
    radius = person.body.head / 2
    lateral = points[:, people.LEFT_EAR] - points[:, people.RIGHT_EAR]
    lateral /= np.linalg.norm(lateral, axis=-1, keepdims=True)
    eyes = (points[:, people.LEFT_EYE] + points[:, people.RIGHT_EYE]) / 2
    # the eyes' line and the nose fix the head's axes
    nose = points[:, people.NOSE] - points[:, people.HEAD]
    up = eyes - points[:, people.HEAD] - nose * (0.76 / 0.92)
    up /= np.linalg.norm(up, axis=-1, keepdims=True)
    forward = np.cross(lateral, up)
    latitude = np.linspace(-np.pi / 2, np.pi / 2, levels + 1)
    centers = points[:, people.HEAD][:, None] + radius * np.sin(latitude)[:, None] * up[:, None]
    breadth = np.maximum(np.cos(latitude), 0.05) * radius
    sideways, ahead = (np.broadcast_to(axis[:, None], centers.shape) for axis in (lateral, forward))
    surface, normals = _rings(centers, sideways, ahead, 0.72 * breadth, 0.86 * breadth, count)
    upward = (np.sin(latitude)[:, None] * up[:, None])[..., None, :]
    normals = normals * np.cos(latitude)[:, None, None] + upward
    row, column = np.arange(levels)[:, None], np.arange(count)[None]
    around = np.minimum(column, count - 1 - column)  # steps from the front
    hair = (row >= 5) | ((row >= 2) & (around >= 3)) | ((row == 4) & (around >= 2))
    covered_by = np.where(hair[..., None], colors["hair"], colors["skin"])
    _, depth = view.project(points[:, people.HEAD])
    return _mesh(surface, normals, covered_by, view, light, depth + 0.05)


def _eyes(person, colors, points, view):
    """Two dark dots; each shows if its side of the head faces the camera."""
    eyes = points[:, [people.LEFT_EYE, people.RIGHT_EYE]]
    pixels, _ = view.project(eyes)
    _, head_depth = view.project(points[:, people.HEAD])
    angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    dot = 0.012 * view.scale * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    outward = view.turn(eyes - points[:, people.HEAD][:, None])[..., 2] / person.body.head
    dark = np.broadcast_to(0.3 * colors["skin"], (*outward.shape, 3))
    return Part(head_depth + person.body.head, pixels[..., None, :] + dot, dark, outward > 0.15)


def _shadow(points: np.ndarray, view: View) -> np.ndarray:
    """The shadow on the ground between the feet, as polygons in pixels [T, 24, 2]."""
    feet = points[:, [people.LEFT_ANKLE, people.RIGHT_ANKLE]] * (1, 0, 1)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.sin(angle), 0 * angle, np.cos(angle)], axis=-1)
    reach = 0.14 + 0.5 * np.linalg.norm(feet[:, 0] - feet[:, 1], axis=-1)
    stretched = (0.2, 0, 1) * circle * reach[:, None, None]
    return view.project(feet.mean(axis=1)[:, None] + stretched + (0.22, 0, 0) * circle)[0]
