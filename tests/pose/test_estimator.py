"""The interface: what it refuses before any library is imported, and the small things all estimators share."""

import numpy as np
import pytest
import torch

from fastreid_star.errors import UserError
from fastreid_star.pose import estimator
from fastreid_star.pose.estimator import (
    BACKENDS,
    PoseEstimator,
    build_estimator,
    join_joints,
)

CPU = torch.device("cpu")


def test_an_unknown_backend():
    with pytest.raises(UserError, match="mmpose or vitpose"):
        build_estimator("openpose", device=CPU)


def test_an_unknown_dtype():
    with pytest.raises(UserError, match="half"):
        build_estimator("vitpose", device=CPU, dtype="half")


@pytest.mark.parametrize(
    ("backend", "missing"), [("mmpose", "mmpose, xtcocotools"), ("vitpose", "transformers")]
)
def test_missing_libraries_name_the_command(backend, missing, monkeypatch):
    there = {"mmengine", "mmcv"}
    monkeypatch.setattr(
        estimator.importlib.util, "find_spec", lambda name: object() if name in there else None
    )
    with pytest.raises(UserError) as caught:
        build_estimator(backend, checkpoint="x", device=CPU)
    text = str(caught.value)
    assert missing in text
    assert "`python tools/dev.py pose`" in text
    assert ".venv-pose/bin/python" in text
    assert "\n" not in text


def test_arguments_reach_the_backend(monkeypatch):
    class Fake(PoseEstimator):
        def __init__(self, **options):
            self.options = options

        def estimate(self, prepared):
            return join_joints(np.zeros((len(prepared), 17, 2)), np.zeros((len(prepared), 17)))

        def describe(self):
            return {}

    monkeypatch.setitem(BACKENDS, "fake", ("fake_module", "Fake", ()))
    monkeypatch.setattr(
        estimator.importlib, "import_module", {"fake_module": type("M", (), {"Fake": Fake})}.get
    )
    built = build_estimator(
        "fake", model="", checkpoint="c", device=CPU, flip_test=True, dtype="bfloat16"
    )
    assert built.options == {
        "model": None,
        "checkpoint": "c",
        "device": CPU,
        "flip_test": True,
        "dtype": "bfloat16",
    }
    assert build_estimator("fake", device=CPU).options["flip_test"] is False


def test_join_joints_clips_scores_only():
    xy = np.arange(2 * 17 * 2, dtype=np.float64).reshape(2, 17, 2) - 30
    scores = np.linspace(-1, 2, 34).reshape(2, 17)
    joints = join_joints(xy, scores)
    assert (joints.shape, joints.dtype) == ((2, 17, 3), np.float32)
    np.testing.assert_array_equal(joints[..., :2], xy)
    np.testing.assert_allclose(joints[..., 2], np.clip(scores, 0, 1), rtol=1e-6)
    scores[1, 3] = np.nan
    assert np.isnan(join_joints(xy, scores)[1, 3, 2])  # and is not taken for a joint
    assert join_joints(xy[:0], scores[:0]).shape == (0, 17, 3)
