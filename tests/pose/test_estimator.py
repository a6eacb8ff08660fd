"""The small things all estimators share."""

import numpy as np
import pytest
import torch

from fastreid_star.errors import UserError
from fastreid_star.pose import estimator
from fastreid_star.pose.estimator import build_estimator, join_joints


@pytest.mark.parametrize(
    ("backend", "missing"), [("mmpose", "mmpose, xtcocotools"), ("vitpose", "transformers")]
)
def test_missing_libraries_name_the_command(backend, missing, monkeypatch):
    there = {"mmengine", "mmcv"}
    monkeypatch.setattr(
        estimator.importlib.util, "find_spec", lambda name: object() if name in there else None
    )
    with pytest.raises(UserError, match=rf"{missing}: run `python tools/dev.py pose`"):
        build_estimator(backend, device=torch.device("cpu"))
    with pytest.raises(UserError, match="mmpose or movenet or vitpose"):
        build_estimator("openpose", device=torch.device("cpu"))


def test_join_joints_clips_scores_only():
    xy = np.arange(2 * 17 * 2, dtype=np.float64).reshape(2, 17, 2) - 30
    scores = np.linspace(-1, 2, 34).reshape(2, 17)
    joints = join_joints(xy, scores)
    assert (joints.shape, joints.dtype) == ((2, 17, 3), np.float32)
    np.testing.assert_array_equal(joints[..., :2], xy)
    np.testing.assert_allclose(joints[..., 2], np.clip(scores, 0, 1), rtol=1e-6)
    scores[1, 3] = np.nan
    assert np.isnan(join_joints(xy, scores)[1, 3, 2])  # and is not taken for a joint
