import numpy as np
import pytest
from fastreid.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.coco import LEFT_RIGHT
from fastreid_star.data.transforms import (
    Clip,
    Compose,
    HorizontalFlip,
    PadCrop,
    RandomErasing,
    Resize,
    build_transforms,
)
from fastreid_star.errors import UserError

sizes = st.integers(3, 24)
seeds = st.integers(0, 2**32 - 1)


def rng(seed=0):
    return np.random.default_rng(seed)


def random_clip(seed=0, length=4, height=9, width=7):
    generator = rng(seed)
    joints = generator.uniform(0, 20, (length, 17, 3)).astype(np.float32)
    present = np.arange(length) != 1
    joints[~present] = 0
    return Clip(
        generator.integers(0, 256, (length, height, width, 3), dtype=np.uint8), joints, present
    )


def dot_clip(seed, height, width, length=3):
    """All joints of a frame are on its only bright pixel; each frame has another one."""
    generator = rng(seed)
    frames = np.zeros((length, height, width, 3), np.uint8)
    joints = np.ones((length, 17, 3), np.float32)
    for t in range(length):
        y, x = generator.integers(height), generator.integers(width)
        frames[t, y, x] = 255
        joints[t, :, :2] = x, y
    return Clip(frames, joints, np.ones(length, bool))


def same(a: Clip, b: Clip) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("frames", "joints", "present")
    )


def assert_dots_on_joints(clip: Clip):
    height, width = clip.frames.shape[1:3]
    for frame, joints in zip(clip.frames, clip.joints, strict=True):
        x, y = joints[0, :2].astype(int)
        assert (joints[:, :2] == (x, y)).all()
        expected = np.zeros_like(frame)
        if 0 <= x < width and 0 <= y < height:  # else the dot has left the frame, as the joint says
            expected[y, x] = 255
        np.testing.assert_array_equal(frame, expected)


@given(height=sizes, width=sizes, shared=st.booleans(), seed=seeds)
def test_shapes_move_with_their_frames(height, width, shared, seed):
    """Equal images stay equal; each frame draws for itself, where crop and flip are not shared."""
    gray = rng(seed).integers(0, 256, (5, height, width), dtype=np.uint8)
    images = np.repeat(gray[..., None], 3, -1)
    clip = Clip(
        list(images), np.zeros((5, 17, 3), np.float32), np.zeros(5, bool), shapes=list(gray)
    )
    move = [Resize((12, 6)), PadCrop(4, shared=shared), HorizontalFlip(0.5, shared=shared)]
    moved = Compose(move)(clip, rng(seed))
    assert moved.shapes.shape == (5, 12, 6)
    assert np.array_equal(moved.shapes, moved.frames[..., 0])
    erased = RandomErasing(1.0)(moved, rng(seed))
    assert np.array_equal(erased.shapes, moved.shapes)
    assert not np.array_equal(erased.frames, moved.frames)


@given(height=sizes, width=sizes, padding=st.integers(0, 30), shared=st.booleans(), seed=seeds)
def test_a_dot_stays_on_its_joint_through_pad_and_crop(height, width, padding, shared, seed):
    assert_dots_on_joints(PadCrop(padding, shared=shared)(dot_clip(seed, height, width), rng(seed)))


@given(
    height=sizes, width=sizes, prob=st.sampled_from([0, 0.5, 1]), shared=st.booleans(), seed=seeds
)
def test_a_dot_stays_on_its_joint_through_flips(height, width, prob, shared, seed):
    assert_dots_on_joints(
        HorizontalFlip(prob, shared=shared)(dot_clip(seed, height, width), rng(seed))
    )


@given(height=sizes, width=sizes, seed=seeds)
def test_a_dot_stays_on_its_joint_through_all_together(height, width, seed):
    transform = Compose(
        [
            Resize((height, width)),
            HorizontalFlip(0.5),
            PadCrop(4),
            HorizontalFlip(0.5, shared=False),
        ]
    )
    assert_dots_on_joints(transform(dot_clip(seed, height, width), rng(seed)))


@settings(max_examples=50)
@given(
    size=st.tuples(st.integers(30, 90), st.integers(30, 90)),
    target=st.tuples(st.integers(30, 120), st.integers(30, 120)),
    where=st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)),
)
def test_a_dot_stays_on_its_joint_through_resize(size, target, where):
    """A smooth dot's center of mass is where the joint is, to a tenth of a pixel."""
    y, x = (part * side for part, side in zip(where, size, strict=True))
    rows, columns = np.indices(size)
    frame = 250 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
    frame = np.repeat(np.rint(frame).astype(np.uint8)[..., None], 3, axis=-1)
    joints = np.tile(np.array([x, y, 0.5], np.float32), (1, 17, 1))
    result = Resize(target)(Clip([frame], joints, np.ones(1, bool)), rng())
    mass = result.frames[0, ..., 0].astype(float)
    rows, columns = np.indices(mass.shape)
    assert result.frames.shape == (1, *target, 3)
    assert (mass * columns).sum() / mass.sum() == pytest.approx(result.joints[0, 0, 0], abs=0.1)
    assert (mass * rows).sum() / mass.sum() == pytest.approx(result.joints[0, 0, 1], abs=0.1)
    assert (result.joints[..., 2] == 0.5).all()


def test_resize_by_hand():
    """Twice as wide: the first pixel's center, 0, moves to 0.5; the left edge, -0.5, stays."""
    frames = [np.zeros((4, 2, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)]
    joints = np.zeros((2, 17, 3), np.float32)
    joints[..., 2] = 0.5
    joints[:, 1, :2] = -0.5
    result = Resize((4, 4))(Clip(frames, joints, np.ones(2, bool)), rng())
    assert result.joints[0, 0].tolist() == [0.5, 0, 0.5]
    assert result.joints[1, 0].tolist() == [-0.25, -0.25, 0.5]
    assert result.joints[0, 1].tolist() == result.joints[1, 1].tolist() == [-0.5, -0.5, 0.5]


def test_flip_swaps_left_and_right():
    clip = random_clip()
    flipped = HorizontalFlip(1)(clip, rng())
    np.testing.assert_array_equal(flipped.frames, clip.frames[:, :, ::-1])
    left_wrist, right_wrist = 9, 10
    np.testing.assert_allclose(flipped.joints[0, left_wrist, 0], 6 - clip.joints[0, right_wrist, 0])
    np.testing.assert_array_equal(flipped.joints[0, :, 1:], clip.joints[0, LEFT_RIGHT, 1:])
    np.testing.assert_allclose(flipped.joints[0, 0, 0], 6 - clip.joints[0, 0, 0])


TRANSFORMS = [
    Resize((12, 5)),
    PadCrop(3),
    PadCrop(3, shared=False),
    HorizontalFlip(1),
    HorizontalFlip(0.5, shared=False),
    RandomErasing(1),
    RandomErasing(0.5),
    Compose([Resize((12, 6)), PadCrop(2), HorizontalFlip(0.7), RandomErasing(0.9)]),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_pure_and_reproducible(transform):
    for seed in range(5):
        clip, before = random_clip(seed), random_clip(seed)
        first = transform(clip, rng(seed))
        assert same(clip, before)
        assert same(transform(clip, rng(seed)), first)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_a_missing_joint_stays_missing(transform):
    """Pose estimators write zeros for a joint that they do not find."""
    for seed in range(5):
        clip = random_clip(seed)
        clip.joints[0, [3, 9]] = 0  # left ear, left wrist
        clip.joints[2, 0] = 0
        result = transform(clip, rng(seed))
        before, after = (~c.joints.any(axis=-1) & c.present[:, None] for c in (clip, result))
        assert after.sum() == before.sum() == 3
        for frame, missing in enumerate(after):
            found = np.flatnonzero(missing).tolist()
            assert found in ([[3, 9], [4, 10]] if frame == 0 else [[], [0]])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_missing_skeletons_stay_zero_and_scores_stay(transform):
    for seed in range(5):
        clip = random_clip(seed)
        result = transform(clip, rng(seed))
        assert not result.joints[~clip.present].any()
        assert result.present.tolist() == clip.present.tolist()
        np.testing.assert_array_equal(
            np.sort(result.joints[..., 2], axis=1), np.sort(clip.joints[..., 2], axis=1)
        )


def shifts(clip, result):
    return {tuple(move) for move in (result.joints - clip.joints)[:, 0, :2].tolist()}


def test_one_crop_for_the_clip_or_one_for_each_frame():
    clip = dot_clip(0, 40, 40, length=12)
    assert all(len(shifts(clip, PadCrop(9)(clip, rng(seed)))) == 1 for seed in range(5))
    assert len(shifts(clip, PadCrop(9, shared=False)(clip, rng(0)))) > 5
    seen = {move for seed in range(400) for move in shifts(clip, PadCrop(2)(clip, rng(seed)))}
    assert seen == {
        (x, y) for x in range(-2, 3) for y in range(-2, 3)
    }  # each shift occurs, none is larger


def flipped(clip, result):
    return [not np.array_equal(a, b) for a, b in zip(clip.frames, result.frames, strict=True)]


def test_one_flip_for_the_clip_or_one_for_each_frame():
    clip = random_clip(length=12)
    together = [sum(flipped(clip, HorizontalFlip(0.5)(clip, rng(seed)))) for seed in range(200)]
    assert set(together) == {0, 12}
    assert 70 < together.count(12) < 130
    alone = flipped(clip, HorizontalFlip(0.5, shared=False)(clip, rng(1)))
    assert 0 < sum(alone) < 12


def test_erasing_draws_a_rectangle_in_each_frame():
    clip = random_clip(length=200, height=40, width=20)
    clip = Clip(np.full_like(clip.frames, 7), clip.joints, clip.present)
    result = RandomErasing(0.5, area=(0.1, 0.3), value=(10, 20.4, 300))(clip, rng())
    np.testing.assert_array_equal(result.joints, clip.joints)
    places = set()
    for frame in result.frames:
        rows, columns = np.nonzero((frame != 7).any(-1))
        if len(rows):
            top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            places.add((top, left, bottom, right))
            assert len(rows) == (bottom - top) * (right - left)  # a full rectangle
            assert (frame[top:bottom, left:right] == (10, 20, 255)).all()
            assert 0.08 < len(rows) / 800 < 0.33
            assert 0.25 < (bottom - top) / (right - left) < 4
    assert 70 < len(places) < 130


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST = [24, 12], [20, 10]
    return cfg


def test_build(cfg):
    assert [type(t) for t in build_transforms(cfg, True).transforms] == [Resize]
    cfg.INPUT.PADDING.ENABLED = cfg.INPUT.FLIP.ENABLED = cfg.INPUT.REA.ENABLED = True
    cfg.INPUT.PADDING.SIZE, cfg.INPUT.FLIP.PROB = 3, 0.2
    cfg.INPUT.REA.PROB, cfg.INPUT.REA.VALUE = 0.3, [10, 20, 255]
    resize, crop, erase, flip = build_transforms(cfg, True).transforms
    assert (resize.height, resize.width) == (24, 12)
    assert (crop.padding, crop.shared) == (3, True)
    assert (flip.prob, flip.shared) == (0.2, True)
    assert (erase.prob, erase.area, erase.value.tolist()) == (0.3, (0.02, 0.4), [10, 20, 255])
    (test,) = build_transforms(cfg, False).transforms
    assert (test.height, test.width) == (20, 10)
    cfg.INPUT.CLIP.SHARED_GEOMETRY = False
    _, crop, _, flip = build_transforms(cfg, True).transforms
    assert not crop.shared
    assert not flip.shared


@pytest.mark.parametrize("name", ["CROP", "CJ", "AFFINE", "AUTOAUG", "AUGMIX", "RPT"])
def test_augmentations_that_clips_do_not_have(cfg, name):
    cfg.INPUT[name].ENABLED = True
    with pytest.raises(UserError, match=rf"INPUT\.{name}\.ENABLED"):
        build_transforms(cfg, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["INPUT.PADDING.ENABLED", True, "INPUT.PADDING.MODE", "reflect"], r"MODE reflect"),
        (["INPUT.PADDING.ENABLED", True, "INPUT.PADDING.SIZE", -4], r"PADDING\.SIZE is -4"),
        (["INPUT.SIZE_TRAIN", [0, 12]], "SIZE_TRAIN"),
        (["INPUT.RANGE_16BIT", [7640, 7250]], r"RANGE_16BIT is \[7640, 7250\]: .*low < high"),
        (["INPUT.RANGE_16BIT", [7640]], "RANGE_16BIT"),
    ],
)
def test_values_out_of_range(cfg, options, message):
    cfg.merge_from_list(options)
    with pytest.raises(UserError, match=message):
        build_transforms(cfg, True)


@pytest.mark.parametrize(("levels", "gray"), [([], [0, 255]), ([1000, 5000], [0, 128])])
def test_frames_of_16_bits_are_scaled_together(cfg, levels, gray):
    cfg.INPUT.RANGE_16BIT = levels
    frames = [np.full((20, 10), count, np.uint16) for count in (1000, 3000)]
    clip = Clip(frames, np.zeros((2, 17, 3), np.float32), np.zeros(2, bool))
    for is_train in (True, False):
        result = build_transforms(cfg, is_train)(clip, rng())
        assert result.frames.shape[0] == 2
        assert result.frames.shape[3] == 3
        assert [np.unique(frame).tolist() for frame in result.frames] == [[gray[0]], [gray[1]]]
