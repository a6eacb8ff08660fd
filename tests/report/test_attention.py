"""What the network looked at: the numbers are ``model.look``'s, and they are what is drawn."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from fastreid_star.coco import PARTS
from fastreid_star.data.clips import collate_clips
from fastreid_star.report.attention import LOW, RADIUS, charts, example, look_at, mark_joints
from fastreid_star.report.html import signed

from .test_plots import texts

EXPONENTS = [0.7, 1.0, 3.0, 5.0, 7.0]


def test_it_is_the_models_own_look(star):
    clips = [star.album.clip(0), star.album.clip(20)]
    seen = look_at(star.model, clips)
    expected = star.model.look(collate_clips([clip.item for clip in clips]))
    assert set(seen) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-6)


def test_an_example_has_gates_circles_and_four_charts(star):
    made = example(star.model, star.album, 0, 20, title="a pair", exponents=EXPONENTS)
    seen = look_at(star.model, [star.album.clip(0), star.album.clip(20)])
    assert [look.role for look in made.looks] == ["query", "match"]
    for row, look in enumerate(made.looks):
        assert look.gates == pytest.approx(seen["frame_gates"][row])
        given = seen["joint_attention"][row]
        assert look.span == pytest.approx((given[given > 0].min(), given.max()))
    assert len(made.charts) == 4
    assert numbers(made.charts[2]) == [
        signed(value - 0.5, 4) for value in seen["part_weights"].flatten()
    ]
    assert numbers(made.charts[3]) == [
        signed(value - 0.2, 4) for value in seen["exponent_weights"].flatten()
    ]


def numbers(svg):
    """What is written at the bars: the query's, then the match's."""
    return [text for text in texts(svg) if re.fullmatch(r"[+−]?\d\.\d{4}", text)][
        -2 * len(names(svg)) :
    ]


def names(svg):
    return [text for text in texts(svg) if text in PARTS or text.startswith("p = ")]


def test_a_network_with_fewer_parts_has_fewer_charts():
    assert charts({"joint_attention": np.ones((2, 3, 17))}, ["query", "match"], EXPONENTS, "") == []
    assert (
        len(
            charts(
                {"bone_weights": np.ones((2, 3, 19)) / 19}, ["query", "match"], EXPONENTS, "a pair"
            )
        )
        == 1
    )


def test_a_clip_without_a_skeleton_has_no_circles(star):
    clip = star.album.clip(2)
    lost = dataclasses.replace(
        clip, item={**clip.item, "has_skeleton": torch.zeros(3, dtype=torch.bool)}
    )
    star.album._clips[2] = lost
    try:
        made = example(star.model, star.album, 2, 20, title="", exponents=EXPONENTS)
    finally:
        del star.album._clips[2]
    assert made.looks[0].span is None
    assert made.looks[0].gates == [0, 0, 0]
    assert numbers(made.charts[2])[:4] == ["0.0000"] * 4, "no weights are no deviation"
    assert "0.0000" not in numbers(made.charts[2])[4:]


def test_circles_grow_with_the_attention():
    frame = np.zeros((200, 200, 3), np.uint8)
    joints = np.full((17, 3), -100.0)
    joints[0, :2], joints[1, :2] = (50, 50), (150, 150)
    attention = np.zeros(17)
    attention[:2] = 2.0, 0.5
    marked = mark_joints(frame, joints, attention, (0.5, 2.0)).any(-1)
    assert not frame.any(), "the frame stays as it is"
    areas = marked[:100, :100].sum(), marked[100:, 100:].sum()
    for area, share in zip(areas, reversed(RADIUS), strict=True):
        assert area == pytest.approx(np.pi * (200 * share + 1) ** 2, rel=0.35)
    assert not mark_joints(frame, joints, np.zeros(17), None).any()
    assert 0 < LOW < 1
