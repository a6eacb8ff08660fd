"""The interface: what it refuses before any library is imported, and the small things all estimators share."""

import hashlib
import importlib.util
import inspect

import numpy as np
import pytest
import torch

from fastreid_star.errors import UserError
from fastreid_star.pose import estimator
from fastreid_star.pose.estimator import (
    BACKENDS,
    PoseEstimator,
    build_estimator,
    joined,
    mixed_precision,
    sha256,
)

CPU = torch.device("cpu")


def test_backends():
    assert set(BACKENDS) == {"mmpose", "vitpose"}
    for backend in BACKENDS.values():
        assert importlib.util.find_spec(backend.module) is not None


def test_no_device_is_chosen():
    assert (
        inspect.signature(build_estimator).parameters["device"].default is inspect.Parameter.empty
    )


def test_an_unknown_backend():
    with pytest.raises(
        UserError, match=r"^there is no pose backend 'openpose': use mmpose or vitpose$"
    ):
        build_estimator("openpose", device=CPU)


def test_an_unknown_dtype():
    with pytest.raises(UserError, match="dtype 'half': use float16, bfloat16 or none"):
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
    assert text.startswith(f"the pose backend {backend} needs {missing}: ")
    assert "`python tools/dev.py pose`" in text
    assert ".venv-pose/bin/python" in text
    assert "\n" not in text


def test_arguments_reach_the_backend(monkeypatch):
    class Fake(PoseEstimator):
        def __init__(self, **options):
            self.options = options

        def estimate(self, prepared):
            return joined(np.zeros((len(prepared), 17, 2)), np.zeros((len(prepared), 17)))

        def describe(self):
            return {}

    monkeypatch.setitem(BACKENDS, "fake", estimator._Backend("fake_module", "Fake", ()))
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


def test_the_interface_is_abstract():
    with pytest.raises(TypeError):
        PoseEstimator()


def test_joined_clips_scores_only():
    xy = np.arange(2 * 17 * 2, dtype=np.float64).reshape(2, 17, 2) - 30
    scores = np.linspace(-1, 2, 34).reshape(2, 17)
    joints = joined(xy, scores)
    assert (joints.shape, joints.dtype) == ((2, 17, 3), np.float32)
    np.testing.assert_array_equal(joints[..., :2], xy)
    np.testing.assert_allclose(joints[..., 2], np.clip(scores, 0, 1), rtol=1e-6)
    scores[1, 3] = np.nan
    assert np.isnan(joined(xy, scores)[1, 3, 2])  # and is not taken for a joint
    assert joined(xy[:0], scores[:0]).shape == (0, 17, 3)


def test_mixed_precision():
    a = torch.randn(4, 4)
    with mixed_precision(CPU, None):
        assert (a @ a).dtype is torch.float32
    with mixed_precision(CPU, "bfloat16"):
        assert (a @ a).dtype is torch.bfloat16


def test_sha256_of_several_files(tmp_path):
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"second" * 300_000)
    expected = hashlib.sha256(b"first" + b"second" * 300_000).hexdigest()
    assert sha256([tmp_path / "a", tmp_path / "b"]) == expected
