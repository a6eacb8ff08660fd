"""Synthetic people: body, gait and clothing.

Body axes in meters: x to the person's left, y up, z in walking direction; the ground is y = 0.
Angles are in radians. Shapes: T frames, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# COCO-17
NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = range(5)
LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_ELBOW, RIGHT_ELBOW, LEFT_WRIST, RIGHT_WRIST = range(5, 11)
LEFT_HIP, RIGHT_HIP, LEFT_KNEE, RIGHT_KNEE, LEFT_ANKLE, RIGHT_ANKLE = range(11, 17)
# more points, for drawing only
PELVIS, NECK, HEAD, LEFT_TOE, RIGHT_TOE, LEFT_HAND, RIGHT_HAND = range(17, 24)
NUM_POINTS = 24

ANKLE_HEIGHT = 0.08
SOLE = 0.03


@dataclass(frozen=True, slots=True)
class Body:
    """Ten lengths in meters."""

    head: float = 0.23  # chin to crown
    neck: float = 0.10
    shoulders: float = 0.36  # joint to joint
    torso: float = 0.51  # hip line to shoulder line
    hips: float = 0.20  # joint to joint
    upper_arm: float = 0.30
    forearm: float = 0.26
    thigh: float = 0.43
    shin: float = 0.42
    foot: float = 0.24

    @property
    def stature(self) -> float:
        """Height when standing upright, in meters."""
        return ANKLE_HEIGHT + self.shin + self.thigh + self.torso + self.neck + self.head


@dataclass(frozen=True, slots=True)
class Gait:
    """Eleven parameters of gait and posture; angles in radians."""

    cadence: float  # walking cycles a frame
    thigh_swing: float
    knee_flexion: float  # at mid-swing
    arm_swing: float
    elbow_bend: float  # at the back of the swing
    elbow_swing: float  # added at its front
    arm_spread: float  # away from the trunk
    trunk_lean: float  # forward
    trunk_sway: float  # to the sides
    twist: float  # of pelvis and shoulders, against each other
    head_pitch: float  # down


GAIT_MEAN = Gait(1 / 24, *np.radians([25, 50, 24, 16, 22, 9, 4, 3, 8, 6]))
GAIT_SPREAD = Gait(1 / 160, *np.radians([5, 9, 9, 10, 8, 4, 4, 2, 4, 8]))
BODY_SPREAD = 0.12

UPPER_COLORS = ((176, 44, 42), (44, 84, 166), (58, 124, 74), (220, 218, 208), (40, 40, 46))
LOWER_COLORS = ((54, 72, 116), (36, 36, 40), (178, 154, 112), (118, 120, 124))
PATTERNS = ("plain", "hoops", "stripes", "checks", "yoke", "diagonal")
SKIN_COLORS = ((232, 190, 160), (196, 146, 108), (132, 88, 62))
HAIR_COLORS = ((36, 28, 24), (92, 60, 36), (150, 118, 74))
SHOE_COLORS = ((30, 30, 32), (214, 212, 206))


@dataclass(frozen=True, slots=True)
class Outfit:
    """The clothing of a person. A material is (red, green, blue, infrared), 0 to 255.

    Many identities share colors and patterns. The infrared brightness of a fabric depends only
    partly on its color, so it is drawn once for each identity.
    """

    upper: int
    lower: int
    pattern: int
    materials: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Person:
    """One identity: the same in all its tracklets, in both modalities."""

    body: Body
    gait: Gait
    outfit: Outfit


def luminance(color) -> float:
    """Brightness of an (r, g, b) color, 0 to 255."""
    return float(np.dot(color[:3], (0.299, 0.587, 0.114)))


def infrared_reflectance(color, rng: np.random.Generator) -> float:
    """Infrared brightness, 0 to 255, of a material; its correlation with luminance is 0.6."""
    deviation = 0.6 * (luminance(color) - 105) / 60 + 0.8 * rng.standard_normal()
    return float(np.clip(118 + 42 * deviation, 25, 230))


def draw_person(rng: np.random.Generator) -> Person:
    """A new identity."""
    means = _values(Body())
    body = Body(*(means * (1 + BODY_SPREAD * _bounded_normal(rng, len(means)))).tolist())
    means = _values(GAIT_MEAN)
    gait = Gait(*(means + _values(GAIT_SPREAD) * _bounded_normal(rng, len(means))).tolist())
    return Person(body, gait, _draw_outfit(rng))


def _bounded_normal(rng: np.random.Generator, count: int) -> np.ndarray:
    """Standard normal, clipped at two standard deviations, so that no arm reaches the ground."""
    return np.clip(rng.standard_normal(count), -2, 2)


def _values(record) -> np.ndarray:
    return np.array([getattr(record, name) for name in record.__dataclass_fields__])


def _draw_outfit(rng: np.random.Generator) -> Outfit:
    lists = (UPPER_COLORS, LOWER_COLORS, PATTERNS, SKIN_COLORS, HAIR_COLORS, SHOE_COLORS)
    upper, lower, pattern, skin, hair, shoes = (int(rng.integers(len(each))) for each in lists)
    colors = {
        "upper": UPPER_COLORS[upper],
        "lower": LOWER_COLORS[lower],
        "shoes": SHOE_COLORS[shoes],
    }
    materials: dict[str, tuple[float, ...]] = {
        name: (*color, infrared_reflectance(color, rng)) for name, color in colors.items()
    }
    # melanin absorbs little near infrared: all skin is bright, all hair mid-gray
    materials["skin"] = (*SKIN_COLORS[skin], 190.0)
    materials["hair"] = (*HAIR_COLORS[hair], 84.0)
    # the pattern's second color: lighter on dark cloth, darker on light cloth, in either spectrum
    base = np.array(materials["upper"])
    bright = luminance(base) > 128
    print_color = 0.35 * base[:3] if bright else 0.35 * base[:3] + 0.65 * np.array((236, 222, 184))
    step = rng.uniform(55, 95) * (-1 if base[3] > 118 else 1)
    materials["print"] = (*print_color.tolist(), float(base[3] + step))
    return Outfit(upper, lower, pattern, materials)


def walk(person: Person, phase: np.ndarray) -> np.ndarray:
    """The points of a walking body.

    Args:
        phase: position in the walking cycle, radians, [T]; the left leg is foremost at pi / 2.

    Returns:
        Points [T, P, 3] in body axes, in meters: the 17 COCO joints, then the points for drawing.
        The pelvis stays at x = z = 0 and the lower foot on the ground, so the body bobs.
    """
    body, gait = person.body, person.gait
    zero = np.zeros_like(phase)
    points = np.zeros((len(phase), NUM_POINTS, 3))

    lean, sway = gait.trunk_lean + zero, gait.trunk_sway * np.cos(phase)
    trunk = _vector(np.sin(sway), np.cos(sway) * np.cos(lean), np.cos(sway) * np.sin(lean))
    points[:, NECK] = body.torso * trunk
    pelvis_twist, shoulder_twist = gait.twist * np.sin(phase), -gait.twist * np.sin(phase)
    hip_axis = _vector(np.cos(pelvis_twist), zero, np.sin(pelvis_twist))
    turn, side_turn = np.cos(shoulder_twist), np.sin(shoulder_twist)
    shoulder_axis = _vector(turn * np.cos(sway), -np.sin(sway), side_turn * np.cos(sway))

    pitch = gait.head_pitch + 0.5 * gait.trunk_lean + zero
    up = _vector(zero, np.cos(pitch), np.sin(pitch))
    face = _vector(zero, -np.sin(pitch), np.cos(pitch))
    left = np.array([1.0, 0.0, 0.0])
    head = points[:, NECK] + body.neck * trunk + 0.5 * body.head * up
    radius = 0.5 * body.head
    points[:, HEAD] = head
    points[:, NOSE] = head + radius * (0.92 * face - 0.1 * up)

    for side, leg_phase in ((1, phase), (-1, phase + np.pi)):
        right = int(side < 0)  # in COCO order each right joint follows its left one
        points[:, LEFT_EYE + right] = head + radius * (0.76 * face + 0.14 * up + side * 0.3 * left)
        points[:, LEFT_EAR + right] = head + radius * (0.02 * up + side * 0.68 * left)

        hip = side * 0.5 * body.hips * hip_axis
        thigh = gait.thigh_swing * np.sin(leg_phase) + 0.08
        bend = 0.1 + gait.knee_flexion * (0.5 + 0.5 * np.cos(leg_phase + 0.6)) ** 2
        shin = thigh - bend
        # the heel lifts behind the body and strikes first in front of it
        toe_down = np.where(shin < 0, 0.7 * np.maximum(-shin - 0.15, 0), -0.5 * shin)
        knee = hip + body.thigh * _vector(zero, -np.cos(thigh), np.sin(thigh))
        ankle = knee + body.shin * _vector(zero, -np.cos(shin), np.sin(shin))
        for joint, place in ((LEFT_HIP, hip), (LEFT_KNEE, knee), (LEFT_ANKLE, ankle)):
            points[:, joint + right] = place
        ahead = _vector(side * 0.15 + zero, -np.sin(toe_down), np.cos(toe_down))
        lift = (ANKLE_HEIGHT - SOLE) * _vector(zero, np.cos(toe_down), np.sin(toe_down))
        points[:, LEFT_TOE + right] = ankle + 0.7 * body.foot * ahead - lift

        shoulder = points[:, NECK] + side * 0.5 * body.shoulders * shoulder_axis
        swing = gait.arm_swing * np.sin(leg_phase + np.pi) - 0.05
        bent = gait.elbow_swing * (0.5 - 0.5 * np.sin(leg_phase))
        fore = swing + np.maximum(gait.elbow_bend, 0.05) + bent
        elbow = shoulder + body.upper_arm * _arm(side, gait.arm_spread + 0.06, swing)
        wrist = elbow + body.forearm * _arm(side, 0.5 * gait.arm_spread, fore)
        points[:, LEFT_SHOULDER + right], points[:, LEFT_ELBOW + right] = shoulder, elbow
        points[:, LEFT_WRIST + right] = wrist
        points[:, LEFT_HAND + right] = wrist + 0.3 * (wrist - elbow)

    heels = points[:, [LEFT_ANKLE, RIGHT_ANKLE], 1] - ANKLE_HEIGHT
    toes = points[:, [LEFT_TOE, RIGHT_TOE], 1] - SOLE
    points[..., 1] -= np.minimum(heels.min(axis=1), toes.min(axis=1))[:, None]
    return points


def _vector(x, y, z) -> np.ndarray:
    return np.stack([x, y, z], axis=-1)


def _arm(side: int, spread: float, swing: np.ndarray) -> np.ndarray:
    """Unit vector along an arm that is lifted sideways by `spread`, forward by `swing`."""
    across, along = np.sin(spread), np.cos(spread)
    return _vector(side * across + 0 * swing, -along * np.cos(swing), along * np.sin(swing))
