"""Films a synthetic person: walk, camera, sensor, and the joints a pose estimator would find.

Shapes: T frames, P points, h and w the height and width of a frame in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

import fastreid_star.data.datasets.synthetic.people as people
import fastreid_star.data.datasets.synthetic.scene as scene
from fastreid_star.coco import LEFT_RIGHT, NUM_JOINTS
from fastreid_star.data.datasets.synthetic.body import View, draw_body
from fastreid_star.data.datasets.synthetic.detections import crop, draw_boxes
from fastreid_star.data.datasets.synthetic.options import SyntheticOptions
from fastreid_star.structures import Modality

FILL = 0.86  # mean height of the person as a share of the frame's height
SCALE = 0.1  # spread of this height: up to 10 % smaller or larger
FACE = (people.NOSE, people.LEFT_EYE, people.RIGHT_EYE)


@dataclass(frozen=True, slots=True)
class Footage:
    """One filmed tracklet.

    Args:
        images: T images, uint8 [h, w, 3], of one size or of several; three equal channels in
            infrared.
        joints: of the simulated pose estimator, float32 [T, 17, 3]: x, y in pixels, with the
            center of the first pixel at (0, 0), and the score.
        hidden: joints that are occluded, on the far side of the head or outside, bool [T, 17].
        masks: where the person is seen, T bool arrays [h, w], if they are asked for.
    """

    images: np.ndarray | list[np.ndarray]
    joints: np.ndarray
    hidden: np.ndarray
    masks: list[np.ndarray] | None = None


def film(
    person: people.Person,
    camera_number: int,
    modality: Modality,
    options: SyntheticOptions,
    rng: np.random.Generator,
    *,
    masks: bool = False,
) -> Footage:
    """A new tracklet of `person` walking past a camera.

    With `masks`, also where the person is seen; the images and joints are the same.
    """
    size, frames, seed = picture_size(options), options.frames, options.seed
    camera = scene.camera(seed, camera_number)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * person.gait.cadence * np.arange(frames)
    points = people.walk(person, phase)
    view = draw_view(person, camera, options, rng)

    # 1.4 m/s at 25 frames a second, across the frame
    speed = 0.056 * view.scale * np.sin(view.yaw.mean())
    start = rng.random()
    if options.background:
        images = scene.backgrounds(seed, camera_number, modality, size, start, speed, frames)
    else:
        images = np.full((frames, *size, 3), scene.PLAIN_GRAY, np.float32)
    images = over(draw_body(person, points, view, modality, size), images)
    covers = None
    if masks:
        covers = draw_body(person, points, view, modality, size, shadow=False)[..., 3]

    joints, _ = view.project(points[:, :NUM_JOINTS])
    hidden = looks_away(points, view) | outside(joints, size)
    if rng.random() < options.occlusion:
        rows, columns = ((s - o) // 2 for s, o in zip(size, options.size, strict=True))
        layer = scene.occluders(rng, modality, options.size, frames)  # in front of the person
        layer = np.pad(layer, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
        images = over(layer, images)
        hidden |= covered(joints, layer[..., 3])
        if covers is not None:
            covers = covers * (1 - layer[..., 3])
    blur = options.blur * options.size[0] / size[0]  # of the person, not of the room around it
    images = expose(images, camera, modality, blur, rng)
    # the projection counts from the corner of the first pixel, joints from its center
    found = estimate(joints - 0.5, hidden, options.joint_noise * options.size[0], rng)
    if modality is Modality.INFRARED and (options.swapped or options.missing):
        spoil(found, options.swapped, options.missing, rng)
    if not options.detections:
        return Footage(images, found, hidden, None if covers is None else list(covers > 0.5))
    boxes = draw_boxes(view.project(points)[0], options.size, rng)
    seen = None
    if covers is not None:
        pictures = np.repeat(np.rint(255 * covers).astype(np.uint8)[..., None], 3, axis=-1)
        seen = [image[..., 0] > 127 for image in crop(pictures, found, boxes)[0]]
    crops, found, cut = crop(images, found, boxes)
    return Footage(crops, found, hidden | cut, seen)


def picture_size(options: SyntheticOptions) -> tuple[int, int]:
    """Height and width of what is drawn; a detector's boxes need room around the person."""
    height = options.size[0]
    return (2 * height, 2 * height) if options.detections else options.size


def draw_view(
    person: people.Person,
    camera: scene.Camera,
    options: SyntheticOptions,
    rng: np.random.Generator,
) -> View:
    """A walk towards or away from the camera, at up to 60 degrees, in a slightly shaking crop."""
    height, size = options.size[0], picture_size(options)
    along = np.linspace(-0.5, 0.5, options.frames)
    turn = np.radians(rng.uniform(-55, 55) + rng.uniform(-10, 10) * along)
    away = np.pi if rng.random() < 0.5 else 0.0
    stature = person.body.stature
    resized = rng.uniform(1 - SCALE, 1 + SCALE)
    scale = FILL * height / stature * camera.zoom * resized
    shift = rng.uniform(-0.04, 0.04, 2) + 0.006 * rng.standard_normal((options.frames, 2))
    center = np.array([size[1] / 2, size[0] / 2]) + height * shift * (0.8, 0.4)
    return View(turn + away, camera.tilt, scale, center, stature)


def spoil(joints: np.ndarray, swapped: float, missing: float, rng: np.random.Generator) -> None:
    """Swap left and right in some frames, and remove some joints, in place.

    Args:
        joints: [T, 17, 3].
        swapped: share of the frames; pose networks confuse the sides in infrared.
        missing: share of the joints, which become three zeros.
    """
    turned = rng.random(len(joints)) < swapped
    joints[turned] = joints[turned][:, LEFT_RIGHT]
    joints[rng.random(joints.shape[:2]) < missing] = 0


def over(layer: np.ndarray, images: np.ndarray) -> np.ndarray:
    """A premultiplied RGBA layer [T, h, w, 4] over images [T, h, w, 3]."""
    return layer[..., :3] + (1 - layer[..., 3:]) * images


def expose(
    images: np.ndarray,
    camera: scene.Camera,
    modality: Modality,
    blur: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The sensor: images [T, h, w, 3], 0 to 255, to uint8 of the same shape."""
    _, height, width, _ = images.shape
    infrared = modality is Modality.INFRARED
    images = images[..., :1] if infrared else images
    if infrared:
        y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        distance = np.clip((x - rng.uniform(-0.4, 0.4)) ** 2 + (y + 0.1) ** 2, 0, 1.8)
        lamp = 1.12 - camera.vignette * distance / 1.8
        gain = camera.gain[1] * rng.uniform(0.9, 1.1)
        images = (images * lamp[None, ..., None] * gain - 110) * camera.contrast + 110
    else:
        images = images * (np.array(camera.cast) * camera.gain[0] * rng.uniform(0.85, 1.15))
    sigma = rng.uniform(0, blur) * height / 64
    images = images.astype(np.float32)
    if sigma > 0.05:
        blurred = [cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape) for image in images]
        images = np.stack(blurred)
    images = images + camera.noise[infrared] * rng.standard_normal(images.shape, dtype=np.float32)
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    return np.repeat(images, 3, axis=-1) if infrared else images


def looks_away(points: np.ndarray, view: View) -> np.ndarray:
    """Joints of the face that are on the far side of the head, bool [T, 17]."""
    outward = view.turn(points[:, :NUM_JOINTS] - points[:, people.HEAD][:, None])[..., 2]
    hidden = np.zeros(outward.shape, bool)
    hidden[:, FACE] = outward[:, FACE] < 0
    return hidden


def outside(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Joints [T, 17, 2] that are not in the frame, bool [T, 17]."""
    return np.any((joints < 0) | (joints >= size[::-1]), axis=-1)


def covered(joints: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Joints [T, 17, 2] behind a layer of opacity [T, h, w], bool [T, 17]."""
    height, width = alpha.shape[1:]
    x = np.clip(joints[..., 0].astype(int), 0, width - 1)
    y = np.clip(joints[..., 1].astype(int), 0, height - 1)
    return alpha[np.arange(len(alpha))[:, None], y, x] > 0.5


def estimate(
    joints: np.ndarray, hidden: np.ndarray, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """The joints as a pose estimator would find them: float32 [T, 17, 3].

    Args:
        joints: true pixels, [T, 17, 2].
        hidden: joints that get three times the noise and a low score, [T, 17].
        noise: standard deviation in pixels.
    """
    spread = noise * np.where(hidden, 3.0, 1.0)
    found = joints + spread[..., None] * rng.standard_normal(joints.shape)
    low, high = rng.uniform(0.1, 0.5, hidden.shape), rng.uniform(0.6, 0.98, hidden.shape)
    score = np.where(hidden, low, high)
    return np.concatenate([found, score[..., None]], axis=-1).astype(np.float32)
