"""Left and right over a tracklet: planted swaps are undone, sound tracklets stay as they are."""

import numpy as np
import pytest

from fastreid_star.coco import LEFT_RIGHT
from fastreid_star.data.datasets.synthetic import people
from fastreid_star.data.datasets.synthetic.body import View
from fastreid_star.pose.sides import confused_frames, settle_sides

ORDER = list(LEFT_RIGHT)


def walk(rng, *, frames=24, turn=55, noise=0.015, cycles=1.0):
    """The joints of a walker in a crop 64 pixels high, as a pose network finds them: [frames, 17, 3].

    Args:
        turn: the walker is seen from the front or from behind, at up to this angle.
        noise: of the joints, as a share of the height.
        cycles: speed of the walk; 3 is like every third frame of a video.
    """
    person = people.draw_person(rng)
    steps = 2 * np.pi * person.gait.cadence * cycles * np.arange(frames)
    points = people.walk(person, rng.uniform(0, 2 * np.pi) + steps)[:, :17]
    yaw = np.radians(
        rng.uniform(-turn, turn) + rng.uniform(-10, 10) * np.linspace(-0.5, 0.5, frames)
    )
    yaw += np.pi * (rng.random() < 0.5)
    center = 32 + 0.4 * rng.standard_normal((frames, 2))
    xy, _ = View(yaw, 0.1, 50 / person.body.stature, center, person.body.stature).project(points)
    xy = xy + noise * 64 * rng.standard_normal(xy.shape)
    return np.concatenate([xy, rng.uniform(0.5, 1, (frames, 17, 1))], axis=-1).astype(np.float32)


def plant(joints, share, rng):
    swapped = rng.random(len(joints)) < share
    return np.where(swapped[:, None, None], joints[:, ORDER], joints), swapped


@pytest.mark.parametrize(("share", "cycles", "turn"), [(0.1, 1, 55), (0.2, 1, 90), (0.2, 3, 55)])
def test_planted_swaps_are_undone(share, cycles, turn):
    rng = np.random.default_rng(0)
    planted = undone = right = frames = 0
    for _ in range(40):
        sound = walk(rng, cycles=cycles, turn=turn)
        joints, swapped = plant(sound, share, rng)
        settled, count = settle_sides(joints)
        same = (settled == sound).all(axis=(1, 2))
        planted, undone = planted + swapped.sum(), undone + (same & swapped).sum()
        right, frames = right + same.sum(), frames + len(same)
        assert count == confused_frames(joints).sum()
    assert undone / planted >= 0.95
    assert right / frames >= 0.95


@pytest.mark.parametrize(("cycles", "turn"), [(1, 55), (1, 90), (3, 55)])
def test_sound_tracklets_stay_as_they_are(cycles, turn):
    rng = np.random.default_rng(1)
    changed = sum(confused_frames(walk(rng, cycles=cycles, turn=turn)).any() for _ in range(40))
    assert changed == 0


def test_missing_joints_and_frames():
    """A tenth of the joints and some frames are missing; they stay missing."""
    rng = np.random.default_rng(2)
    right = []
    for _ in range(40):
        sound = walk(rng)
        sound[rng.random(sound.shape[:2]) < 0.1] = 0
        sound[[3, 11]] = np.nan
        joints, _ = plant(sound, 0.15, rng)
        settled, _ = settle_sides(joints)
        assert np.isnan(settled[[3, 11]]).all()
        np.testing.assert_array_equal((settled == 0).all(2).sum(1), (joints == 0).all(2).sum(1))
        good = np.delete(settled, [3, 11], axis=0) == np.delete(sound, [3, 11], axis=0)
        right.append(good.all(axis=(1, 2)).mean())
    assert np.mean(right) >= 0.95


def test_the_majority_is_right_and_a_long_run_is_found():
    rng = np.random.default_rng(3)
    sound = walk(rng, frames=40, turn=30)
    joints, swapped = sound.copy(), np.zeros(40, bool)
    swapped[12:26] = True
    joints[swapped] = joints[swapped][:, ORDER]
    np.testing.assert_array_equal(confused_frames(joints), swapped)
    np.testing.assert_array_equal(confused_frames(joints[:, ORDER]), swapped)


def test_two_people_in_a_tracklet_keep_their_sides():
    """A tracklet that begins with somebody seen from behind and goes on with another from the front."""
    rng = np.random.default_rng(5)
    seen = {True: [], False: []}
    while min(map(len, seen.values())) < 10:
        joints = walk(rng, frames=60, turn=40)
        seen[bool(joints[:, 5, 0].mean() > joints[:, 6, 0].mean())].append(joints)
    for front, back in zip(seen[True], seen[False], strict=False):
        assert not confused_frames(np.concatenate([back[:30], front])).any()


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_short_tracklets_and_people_without_extent(frames):
    joints = walk(np.random.default_rng(4), frames=max(frames, 1))[:frames]
    assert not confused_frames(joints).any()
    assert confused_frames(joints).shape == (frames,)
    assert not confused_frames(np.zeros_like(joints)).any()
