"""The scenes of the synthetic dataset: cameras, backgrounds and occluders."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from fastreid_star.data.datasets.synthetic.people import infrared_reflectance
from fastreid_star.structures import Modality

TRAIN, TEST, PLACES = 0, 1, 2  # second number of every generator's seed
PANORAMA = 6  # width of a background in frames
PLAIN_GRAY = 112.0


@dataclass(frozen=True, slots=True)
class Camera:
    """Properties that all tracklets of one camera share.

    Args:
        tilt: how far it looks down, radians.
        zoom: factor on the person's size.
        gain: factor on the brightness, for visible and infrared light.
        cast: factor a color channel, [3].
        contrast: factor around mid-gray, in infrared.
        vignette: darkening of the corners in infrared, 0 to 1: the camera's lamp is a spot.
        noise: standard deviation of the sensor noise in gray levels, visible and infrared.
    """

    tilt: float
    zoom: float
    gain: tuple[float, float]
    cast: tuple[float, float, float]
    contrast: float
    vignette: float
    noise: tuple[float, float]


@functools.lru_cache(maxsize=64)
def camera(seed: int, number: int) -> Camera:
    """Camera `number`, counted from 1, of the world made from `seed`."""
    rng = np.random.default_rng([seed, PLACES, number])
    return Camera(
        tilt=np.radians(rng.uniform(2, 20)),
        zoom=rng.uniform(0.95, 1.05),
        gain=(rng.uniform(0.7, 1.2), rng.uniform(0.75, 1.25)),
        cast=tuple(rng.uniform(0.9, 1.1, 3)),
        contrast=rng.uniform(0.8, 1.25),
        vignette=rng.uniform(0.25, 0.6),
        noise=(rng.uniform(2, 5), rng.uniform(4, 9)),
    )


def color_of(material, modality: Modality) -> np.ndarray:
    """The color [3], 0 to 255, of an (r, g, b, infrared) material in this modality."""
    if modality is Modality.INFRARED:
        return np.full(3, material[3])
    return np.asarray(material[:3], dtype=float)


def draw_material(
    rng: np.random.Generator, low: float, high: float, tint: float
) -> tuple[float, ...]:
    """A random material: gray between `low` and `high`, colored by up to `tint`."""
    color = np.clip(rng.uniform(low, high) + rng.uniform(-tint, tint, 3), 0, 255)
    return (*color.tolist(), infrared_reflectance(color, rng))


@functools.lru_cache(maxsize=64)
def panorama(seed: int, number: int, modality: Modality, size: tuple[int, int]) -> np.ndarray:
    """The background of camera `number`: float32 [h, PANORAMA * w, 3], 0 to 255.

    A wall with doors, windows and posters, a curb, trees and pillars, and a paved ground; the same
    place in both modalities.
    """
    rng = np.random.default_rng([seed, PLACES, number, 1])  # the same draws for both modalities
    height, width = 2 * size[0], 2 * size[1] * PANORAMA
    canvas = np.empty((height, width, 3), np.float32)

    def paint(material, brightness=1.0):
        return tuple(float(value) * brightness for value in color_of(material, modality))

    horizon = int(height * rng.uniform(0.55, 0.75))
    wall, ground = draw_material(rng, 110, 190, 16), draw_material(rng, 90, 160, 10)
    canvas[:horizon] = paint(wall)
    canvas[horizon:] = paint(ground)
    canvas[:horizon] *= np.linspace(0.85, 1.08, horizon, dtype=np.float32)[:, None, None]
    canvas[horizon:] *= np.linspace(0.8, 1.05, height - horizon, dtype=np.float32)[:, None, None]
    joint = paint(ground, 0.82)
    for x in np.arange(0, width, height * rng.uniform(0.15, 0.3)):  # paving
        near = (int(x + (x - width / 2) * 0.35), height)
        cv2.line(canvas, (int(x), horizon), near, joint, 1, cv2.LINE_AA)
    for depth in (0.15, 0.4, 0.75):
        y = int(horizon + depth * (height - horizon))
        cv2.line(canvas, (0, y), (width, y), paint(ground, 0.86), 1, cv2.LINE_AA)
    x = 0.0
    while x < width:  # along the wall
        w, h = height * rng.uniform(0.12, 0.35), height * rng.uniform(0.15, 0.45)
        top = height * rng.uniform(0.02, 0.3)
        material = draw_material(rng, 30, 220, 30)
        door = rng.random() < 0.3
        bottom = horizon if door else min(top + h, horizon - 4)
        corner, opposite = (int(x), int(top)), (int(x + w), int(bottom))
        cv2.rectangle(canvas, corner, opposite, paint(material), -1)
        cv2.rectangle(canvas, corner, opposite, paint(material, 0.6), 2, cv2.LINE_AA)
        if rng.random() < 0.5:  # a window's cross
            ends = ((int(x + w / 2), int(top)), (int(x + w / 2), int(bottom)))
            cv2.line(canvas, *ends, paint(material, 0.65), 2, cv2.LINE_AA)
        x += w + height * rng.uniform(0.05, 0.35)
    cv2.rectangle(canvas, (0, horizon - 2), (width, horizon + 3), paint(wall, 0.55), -1)
    for _ in range(rng.integers(4, 9)):  # trees and pillars
        x, w = int(rng.uniform(0, width)), int(height * rng.uniform(0.03, 0.08))
        trunk = draw_material(rng, 40, 110, 25)
        foot = int(horizon + rng.uniform(0.02, 0.2) * height)
        cv2.rectangle(canvas, (x, 0), (x + w, foot), paint(trunk), -1)
        if rng.random() < 0.6:
            # leaves are bright in near infrared
            leaves = (*(rng.uniform(0.7, 1.2) * np.array((62, 104, 52))), 172.0)
            for _ in range(14):
                across = int(x + rng.normal(0, 0.13) * height)
                center = (across, int(abs(rng.normal(0, 0.13)) * height))
                radius = int(height * rng.uniform(0.04, 0.09))
                color = paint(leaves, rng.uniform(0.7, 1.15))
                cv2.circle(canvas, center, radius, color, -1, cv2.LINE_AA)
    blotches = rng.normal(0, 1, (height // 8, width // 8)).astype(np.float32)
    large = cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)
    canvas *= 1 + 0.06 * large[..., None]
    blurred = cv2.GaussianBlur(canvas, (0, 0), height / 110)  # out of focus
    return cv2.resize(blurred, (width // 2, height // 2), interpolation=cv2.INTER_AREA)


def backgrounds(
    seed: int,
    number: int,
    modality: Modality,
    size: tuple[int, int],
    start: float,
    speed: float,
    frames: int,
) -> np.ndarray:
    """The background behind a person that the crop follows, float32 [T, h, w, 3].

    Args:
        start: position in the panorama at which the tracklet begins, 0 to 1.
        speed: pixels per frame that the person moves to the right and the background to the left.
    """
    whole = panorama(seed, number, modality, size)
    first = start * whole.shape[1] + speed * np.arange(frames)
    columns = (np.round(first).astype(int)[:, None] + np.arange(size[1])) % whole.shape[1]
    return whole[:, columns].transpose(1, 0, 2, 3)


def occluders(
    rng: np.random.Generator, modality: Modality, size: tuple[int, int], frames: int
) -> np.ndarray:
    """An object in front of the person: premultiplied RGBA, float32 [T, h, w, 4].

    A pole, a wall that hides the lower body, a bush, or a board at any height. Half of them stand
    still in the frame, the others pass through it.
    """
    kind = rng.choice(["pole", "wall", "bush", "board"])
    factor = 3
    height, width = factor * size[0], factor * size[1]
    canvas = np.zeros((height, 3 * width, 4), np.float32)
    material = draw_material(rng, 35, 200, 35)

    def paint(brightness, material=material):
        return (*(float(value) * brightness for value in color_of(material, modality)), 1.0)

    middle = width + width * rng.uniform(0.25, 0.75)
    if kind == "pole":
        half = 0.5 * height * rng.uniform(0.06, 0.13)
        for share, brightness in ((1.0, 0.75), (0.6, 1.0), (0.2, 1.15)):  # round
            left, right = int(middle - share * half), int(middle + share * half)
            cv2.rectangle(canvas, (left, 0), (right, height), paint(brightness), -1)
    elif kind == "wall":
        top = int(height * rng.uniform(0.55, 0.75))
        half = width * rng.uniform(0.6, 1.0)
        left, right = int(middle - half), int(middle + half)
        cv2.rectangle(canvas, (left, top), (right, height), paint(0.9), -1)
        cv2.rectangle(canvas, (left, top), (right, top + height // 24), paint(1.2), -1)
        for x in range(left, right, height // 7):
            cv2.line(canvas, (x, top + height // 24), (x, height), paint(0.72), 2)
    elif kind == "bush":
        leaves = (*(rng.uniform(0.7, 1.2) * np.array((58, 100, 48))), 165.0)
        tall, wide = height * rng.uniform(0.25, 0.45), width * rng.uniform(0.3, 0.5)
        for brightness in np.sort(rng.uniform(0.55, 1.2, 44)):
            up, aside = rng.uniform(0, 1), rng.normal(0, 0.45)
            center = (int(middle + aside * wide * (1.1 - 0.6 * up)), int(height - up * tall))
            radius = int(height * rng.uniform(0.03, 0.07))
            cv2.circle(canvas, center, radius, paint(brightness, leaves), -1)
    else:
        half_w = 0.5 * width * rng.uniform(0.35, 0.65)
        half_h = 0.5 * height * rng.uniform(0.18, 0.32)
        y = height * rng.uniform(0.25, 0.85)
        corner = (int(middle - half_w), int(y - half_h))
        opposite = (int(middle + half_w), int(y + half_h))
        cv2.rectangle(canvas, corner, opposite, paint(1.0), -1)
        cv2.rectangle(canvas, corner, opposite, paint(0.65), max(2, height // 64))
        ends = ((corner[0], int(y)), (opposite[0], int(y)))
        cv2.line(canvas, *ends, paint(0.8), max(2, height // 64))
    travel = width * rng.uniform(0.4, 1.2) * rng.choice([-1, 1]) if rng.random() < 0.5 else 0.0
    offsets = np.round(width + travel * np.linspace(-0.5, 0.5, frames)).astype(int)
    views = [canvas[:, offset : offset + width] for offset in offsets]
    return np.stack([cv2.resize(view, size[::-1], interpolation=cv2.INTER_AREA) for view in views])
