"""What is given is used, and what looks wrong about it is said once."""

import logging

import numpy as np
import pytest
import torch

from fastreid_star.data.tracklets import TrackletInput
from fastreid_star.inference import StarPredictor

from .tracklets import from_memory


def test_star_without_skeletons_warns_once(runs, sad, data, caplog):
    star = StarPredictor.from_run(runs / "STAR", device="cpu")
    inputs = from_memory(data[0][:4], data[1])
    bare = [TrackletInput(tracklet.frames, tracklet.modality) for tracklet in inputs]
    missing = [
        TrackletInput(i.frames, i.modality, np.full_like(i.skeletons, np.nan)) for i in inputs
    ]
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        sad.features(bare)
        star.features(inputs)
        assert not caplog.records
        without = star.features([inputs[0], bare[1], *missing[2:]])
        star.features(bare)
    (record,) = caplog.records
    assert "3 of 4 tracklets have no skeletons" in record.getMessage()
    assert "no better" in record.getMessage()
    torch.testing.assert_close(star.features(missing)[1:], without[1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(star.features(inputs)[:1], without[:1], atol=1e-6, rtol=0)
    assert not torch.allclose(star.features(inputs)[1:], without[1:], atol=1e-4)


def test_infrared_frames_with_colors_are_warned_of(runs, caplog):
    sad = StarPredictor.from_run(runs / "SAD", device="cpu")
    gray = np.repeat(np.random.default_rng(0).integers(0, 256, (32, 16, 1), np.uint8), 3, axis=2)
    color = gray * np.array([1, 0, 1], np.uint8)
    sad.features([TrackletInput([gray] * 3, "infrared"), TrackletInput([color] * 3, "visible")])
    assert "colors" not in caplog.text
    ben = TrackletInput([color] * 3, "infrared", name="ben")
    sad.features([TrackletInput([gray] * 3, "infrared"), ben])
    assert "1 of 2 tracklets are infrared, but their frames have colors" in caplog.text
    assert "(ben)" in caplog.text


@pytest.mark.parametrize(
    ("scale", "warned"), [((1, 1, 1), False), ((1 / 16, 1 / 32, 1), True), ((1, 1, 100), True)]
)
def test_skeletons_that_are_not_in_pixels_are_warned_of(runs, caplog, scale, warned):
    star = StarPredictor.from_run(runs / "STAR", device="cpu")
    corner, far = np.array([1, 1, 0.5]), np.array([14, 30, 1])
    joints = np.random.default_rng(0).uniform(corner, far, (3, 17, 3)) * np.array(scale)
    gray = np.zeros((32, 16, 3), np.uint8)
    star.features([TrackletInput([gray] * 3, "infrared", joints.astype(np.float32))])
    assert ("give x and y in pixels" in caplog.text) == warned


def test_whole_scenes_are_warned_of(runs, caplog):
    sad = StarPredictor.from_run(runs / "SAD", device="cpu")
    crop, scene = np.zeros((40, 20, 3), np.uint8), np.zeros((90, 160, 3), np.uint8)
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        sad.features([TrackletInput([crop, crop], "visible")])
        assert not caplog.records
        sad.features([TrackletInput([crop], "visible"), TrackletInput([scene, scene], "visible")])
    assert "1 of 2 tracklets have frames that are wider than high" in caplog.text


def test_frames_of_16_bits_are_warned_of_unless_their_range_is_fixed(runs, caplog):
    counts = np.arange(7250, 7250 + 32 * 16, dtype=np.uint16).reshape(32, 16)
    gray = ((counts - 7250.0) / 511 * 255).round().astype(np.uint8)[..., None].repeat(3, 2)
    tracklets = [TrackletInput([image] * 3, "infrared") for image in (counts, gray)]
    options = ["INPUT.RANGE_16BIT", [7250, 7250 + 511]]
    fixed = StarPredictor.from_run(runs / "SAD", device="cpu", opts=options)
    features = fixed.features(tracklets)
    assert "16 bits" not in caplog.text
    torch.testing.assert_close(features[0], features[1], atol=1e-6, rtol=0)
    StarPredictor.from_run(runs / "SAD", device="cpu").features(tracklets)
    assert caplog.text.count("1 of 2 tracklets have frames of 16 bits") == 1
