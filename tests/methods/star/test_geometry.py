"""A skeleton is measured in the pixels of its crop, whatever size the crop is resized to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.clips import clip_tensors
from fastreid_star.data.transforms import Clip, HorizontalFlip, Resize
from fastreid_star.modeling.layers.skeleton_graph import (
    bone_features,
    joint_validity,
    measured_skeletons,
    normalize_joints,
)

SIZE = (288, 144)
LENGTH = 3


def person(seed=0):
    """Joints of one person in the pixels of a scene, float32 [T, V, 3]; one joint is missing."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(0, 1, (LENGTH, NUM_JOINTS, 3)) * (60, 130, 1)
    joints[1, 4] = 0
    return joints.astype(np.float32)


def in_crops(joints, boxes, zoom=1.0):
    """The batch of a clip whose crops are boxes (left, top, width, height) in the scene."""
    frames = [np.zeros((int(h * zoom), int(w * zoom), 3), np.uint8) for *_, w, h in boxes]
    offsets = np.float32([[left, top] for left, top, *_ in boxes])[:, None]
    moved = joints.copy()
    moved[..., :2] = (joints[..., :2] - offsets + 0.5) * np.float32(zoom) - 0.5
    moved[~joints.any(-1)] = 0
    clip = Resize(SIZE)(Clip(frames, moved, np.ones(LENGTH, bool)), np.random.default_rng(0))
    return clip_tensors(clip), moved


def measured(batch):
    skeletons = measured_skeletons({name: value[None] for name, value in batch.items()})
    valid = joint_validity(skeletons, batch["has_skeleton"][None], 0.0)
    return skeletons, bone_features(skeletons, valid), normalize_joints(skeletons, valid)


@pytest.mark.parametrize("size", [(256, 128), (128, 64), (192, 80), (288, 144)])
def test_the_resize_is_undone(size):
    batch, joints = in_crops(person(), [(0, 0, size[1], size[0])] * LENGTH)
    found, *_ = measured(batch)
    torch.testing.assert_close(found[0], torch.from_numpy(joints), atol=1e-4, rtol=0)
    assert found[0, 1, 4].tolist() == [0, 0, 0]  # a missing joint stays missing
    assert batch["crop_sizes"].tolist() == [list(size)] * LENGTH
    if size == SIZE:
        assert torch.equal(found[0], torch.from_numpy(joints))


boxes = st.tuples(*[st.integers(-20, 0)] * 2, st.integers(80, 150), st.integers(150, 300))


@given(st.lists(boxes, min_size=LENGTH, max_size=LENGTH), st.sampled_from([0.5, 1.0, 2.0]))
def test_bones_do_not_depend_on_the_size_and_the_aspect_of_the_crop(drawn, zoom):
    _, bones, _ = measured(in_crops(person(), [(0, 0, 100, 200)] * LENGTH)[0])
    _, found, _ = measured(in_crops(person(), drawn, zoom)[0])
    torch.testing.assert_close(found, bones, atol=2e-4, rtol=0)


@given(boxes, st.sampled_from([0.5, 1.0, 2.0]))
def test_nodes_do_not_depend_on_one_box_for_the_whole_clip(box, zoom):
    *_, nodes = measured(in_crops(person(), [(0, 0, 100, 200)] * LENGTH)[0])
    *_, found = measured(in_crops(person(), [box] * LENGTH, zoom)[0])
    torch.testing.assert_close(found, nodes, atol=2e-4, rtol=0)


def test_a_flip_mirrors_the_crop():
    batch, joints = in_crops(person(), [(0, 0, 100, 200)] * LENGTH)
    frames = np.zeros((LENGTH, *SIZE, 3), np.uint8)
    sizes = batch["crop_sizes"].numpy()
    clip = Clip(frames, batch["skeletons"].numpy(), np.ones(LENGTH, bool), sizes)
    flipped = clip_tensors(HorizontalFlip(1.0)(clip, np.random.default_rng(0)))
    found, *_ = measured(flipped)
    assert found[0, 0, 5, 0] == pytest.approx(99 - joints[0, 6, 0], abs=1e-4)  # the other shoulder
