"""Joints, bone features (1)-(2) and the spatial-temporal graph (8)-(9), against plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.coco import BONES, NUM_JOINTS
from fastreid_star.modeling.layers import skeleton_graph as graph


def random_skeletons(clips: int, frames: int, seed: int = 0) -> torch.Tensor:
    """People of some 100 pixels: ``[B, T, V, 3]``."""
    generator = torch.Generator().manual_seed(seed)
    xy = 40 * torch.randn(clips, frames, NUM_JOINTS, 2, generator=generator) + 70
    score = torch.rand(clips, frames, NUM_JOINTS, 1, generator=generator)
    return torch.cat([xy, score], dim=-1)


def all_of(skeletons: torch.Tensor) -> torch.Tensor:
    return torch.ones(skeletons.shape[:3], dtype=torch.bool)


def scale_of(points: list[list[float]]) -> float:
    """Root mean square distance to the mean, in Python's own floats."""
    cx, cy = (sum(p[axis] for p in points) / len(points) for axis in (0, 1))
    return math.sqrt(sum((x - cx) ** 2 + (y - cy) ** 2 for x, y in points) / len(points))


@pytest.mark.parametrize("reading", ["normalized", "release"])
def test_equations_1_and_2(reading):
    skeletons = random_skeletons(2, 3)
    features = graph.bone_features(skeletons, all_of(skeletons), reading)
    for b in range(2):
        for t in range(3):
            points = skeletons[b, t, :, :2].tolist()
            for e, (i, j) in enumerate(BONES):
                dx, dy = points[j][0] - points[i][0], points[j][1] - points[i][1]
                d, theta = math.sqrt(dx * dx + dy * dy), math.atan2(dy, dx)
                expected = [d / scale_of(points), math.sin(theta), math.cos(theta)]
                expected = [d, theta] if reading == "release" else expected
                assert features[b, t, e].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_bone_is_zeros_where_a_joint_does_not_count_and_the_scale_leaves_it_out():
    skeletons = random_skeletons(1, 1)
    valid = all_of(skeletons)
    valid[0, 0, 13] = False
    skeletons[0, 0, 13, 0] = float("nan")
    features = graph.bone_features(skeletons, valid, "normalized")
    for e, bone in enumerate(BONES):
        assert bool((features[0, 0, e] == 0).all()) == (13 in bone)
    points = [p for v, p in enumerate(skeletons[0, 0, :, :2].tolist()) if v != 13]
    i, j = BONES[7]
    assert features[0, 0, 7, 0].item() == pytest.approx(
        math.dist(points[i], points[j]) / scale_of(points), rel=1e-4
    )


@settings(max_examples=30, deadline=None)
@given(
    factor=st.floats(0.3, 8),
    shift=st.tuples(st.floats(-200, 200), st.floats(-200, 200)),
    frames=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_size_and_place_of_the_crop_do_not_matter(factor, shift, frames, seed):
    skeletons = random_skeletons(2, frames, seed)
    moved = torch.cat(
        [skeletons[..., :2] * factor + torch.tensor(shift), skeletons[..., 2:]], dim=-1
    )
    valid = skeletons[..., 2] > 0.3
    torch.testing.assert_close(
        graph.bone_features(moved, valid),
        graph.bone_features(skeletons, valid),
        atol=2e-3,
        rtol=1e-3,
    )
    torch.testing.assert_close(
        graph.normalize_joints(moved, valid),
        graph.normalize_joints(skeletons, valid),
        atol=2e-3,
        rtol=1e-3,
    )


def test_joints_are_centered_on_the_clip_not_on_the_frame():
    skeletons = random_skeletons(2, 4)
    valid = skeletons[..., 2] > 0.2
    joints = graph.normalize_joints(skeletons, valid, "normalized")
    by_body = graph.normalize_joints(skeletons, valid)
    assert (joints[~valid] == 0).all()
    assert (by_body[~valid] == 0).all()
    for b in range(2):
        around = []
        for frame, seen in zip(skeletons[b], valid[b], strict=True):
            own = frame[seen][:, :2].double()
            around.append(own - own.mean(0))
        scale = torch.cat(around).square().sum(1).mean().sqrt()
        points = skeletons[b][valid[b]][:, :2].double()
        centered = points - points.mean(0)
        expected = centered / centered.square().sum(1).mean().sqrt()
        torch.testing.assert_close(
            joints[b][valid[b]][:, :2].double(), expected, atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            by_body[b][valid[b]][:, :2].double(), centered / scale, atol=1e-5, rtol=1e-5
        )
        assert torch.equal(joints[b][valid[b]][:, 2], skeletons[b][valid[b]][:, 2])


def test_validity():
    skeletons = random_skeletons(1, 2)
    skeletons[..., 2] = 0.9
    skeletons[0, 0, 0, 2] = 0.29
    skeletons[0, 0, 1, 2] = 0.3
    skeletons[0, 0, 2] = 0
    skeletons[0, 0, 3, 1] = float("inf")
    skeletons[0, 0, 4, 2] = float("nan")
    has = torch.tensor([[True, False]])
    valid = graph.joint_validity(skeletons, has, 0.3)
    assert valid[0, 0].tolist() == [False, True, False, False, False] + 12 * [True]
    assert not valid[0, 1].any()
    for threshold, first in ((0.0, [True, True, False]), (None, [True, True, True])):
        valid = graph.joint_validity(skeletons, has, threshold)
        assert valid[0, 0].tolist() == [*first, False, False] + 12 * [True]


@pytest.mark.parametrize("length", [1, 2, 12])
def test_equations_8_and_9(length):
    edges = graph.spatial_temporal_edges(length).t().tolist()
    undirected = {frozenset(edge) for edge in edges}
    assert len(undirected) == 19 * length + 17 * (length - 1)
    assert len(edges) == len({tuple(edge) for edge in edges}) == 2 * len(undirected)
    expected = {frozenset((17 * t + i, 17 * t + j)) for t in range(length) for i, j in BONES}
    expected |= {
        frozenset((17 * t + i, 17 * (t + 1) + i)) for t in range(length - 1) for i in range(17)
    }
    assert undirected == expected
    for a, b in edges:  # no bone across frames
        assert a // 17 == b // 17 or a % 17 == b % 17


def test_the_release_has_bones_in_frame_0_only():
    edges = graph.spatial_temporal_edges(4, "release").t().tolist()
    assert len(edges) == 2 * (19 + 17 * 3)
    within = [(a, b) for a, b in edges if a // 17 == b // 17]
    assert {frozenset(edge) for edge in within} == {frozenset(bone) for bone in BONES}
    assert torch.equal(graph.spatial_temporal_edges(1, "release"), graph.spatial_temporal_edges(1))


def test_skeleton_dropout_takes_whole_clips():
    has = torch.rand(400, 3) > 0.2
    kept = graph.drop_skeletons(has, 0.25)
    lost = (kept != has).any(1)
    assert torch.equal(kept[~lost], has[~lost])
    assert not kept[lost].any()
    assert 0.15 < lost.float().mean() < 0.35
    assert torch.equal(graph.drop_skeletons(has, 0.0), has)
    assert not graph.drop_skeletons(has, 1.0).any()
