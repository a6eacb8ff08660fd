"""HDF5 files: written, read, and converted to the flat store and back."""

import h5py
import numpy as np
import pytest

from fastreid_star.data import skeleton_conversion
from fastreid_star.data.skeleton_conversion import convert_skeletons, write_hdf5_store
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.errors import UserError

META = {"model": "hrnet", "options": {"flip": True, "sizes": [256, 192]}, "\u00fcn\u00ef": None}
# neither sorted nor with the frames of a camera in sequence
KEYS = [f"{pid:04d}/{m}/{n}" for pid in (2, 1) for n in range(9, 13) for m in ("rgb/D3", "ir/D1")]


@pytest.fixture
def joints():
    values = np.random.default_rng(0).normal(0, 100, (len(KEYS), 17, 3)).astype(np.float32)
    values[3, 5, 0] = np.nan
    values[4, 16, 2] = -np.inf
    values[6, 0] = (-0.0, 1e-42, 1e6)  # a negative zero, a denormal, the largest
    values[9, 0, 0] = 3.4e38  # finite, but too large
    return values


def test_there_and_back_is_equal_bit_for_bit(tmp_path, joints, monkeypatch):
    monkeypatch.setattr(skeleton_conversion, "BLOCK", 3)
    write_skeleton_store(tmp_path / "flat", KEYS, joints, META)
    assert convert_skeletons(tmp_path / "flat", tmp_path / "a.h5") == (len(KEYS), 3)
    assert convert_skeletons(tmp_path / "a.h5", tmp_path / "again") == (len(KEYS), 3)
    for name in ("a.h5", "again"):
        store = SkeletonStore.open(tmp_path / name)
        assert store.keys() == sorted(KEYS)
        assert store.meta == META
        assert store.raw(KEYS).tobytes() == joints.tobytes()


def test_a_file_of_the_authors(tmp_path, joints):
    """No attributes, float64, an empty group; and their program can read ours."""
    exact = joints.astype(np.float64) + 1e-9
    exact[8, 0, 0] = 1e300  # beyond float32
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, values in zip(KEYS, exact, strict=True):
            file[key] = values
        file.create_group("0003/ir")
    assert convert_skeletons(tmp_path / "a.h5", tmp_path / "flat") == (len(KEYS), 4)
    store = SkeletonStore.open(tmp_path / "flat")
    assert store.meta == {}
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(store.raw(KEYS), exact.astype(np.float32))
    convert_skeletons(tmp_path / "flat", tmp_path / "ours.h5")
    found = {}
    with h5py.File(tmp_path / "ours.h5") as file:
        file.visititems(lambda k, v: found.update({k: v.shape}) if hasattr(v, "shape") else None)
    assert found == dict.fromkeys(KEYS, (17, 3))


def test_an_older_store_is_replaced_and_nothing_else(tmp_path, joints):
    write_skeleton_store(tmp_path / "flat", KEYS[:2], joints[:2], {"old": "flat"})
    write_hdf5_store(tmp_path / "a.h5", KEYS[:2], joints[:2], {"old": "a.h5"})
    convert_skeletons(tmp_path / "flat", tmp_path / "a.h5")
    assert SkeletonStore.open(tmp_path / "a.h5").meta == {"old": "flat"}
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["weights"] = np.zeros((3, 4))
    before = (tmp_path / "weights.h5").read_bytes()
    with pytest.raises(UserError, match="is not a file of skeletons"):
        convert_skeletons(tmp_path / "flat", tmp_path / "weights.h5")
    assert (tmp_path / "weights.h5").read_bytes() == before
    for source, target in (("a.h5", "b.hdf5"), ("flat", "other")):
        with pytest.raises(UserError, match="have the same format"):
            convert_skeletons(tmp_path / source, tmp_path / target)


@pytest.mark.parametrize("keys", [["a", "a/b"], ["a/b", "a"], ["a", "./a"]])
def test_keys_that_hdf5_cannot_hold_together(tmp_path, joints, keys):
    write_skeleton_store(tmp_path / "flat", keys, joints[:2])
    with pytest.raises(UserError, match=f"cannot hold the key '{keys[1]}'"):
        convert_skeletons(tmp_path / "flat", tmp_path / "a.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]


def test_whole_or_not_at_all(tmp_path, joints, monkeypatch):
    write_skeleton_store(tmp_path / "flat", KEYS, joints)

    def failing(self, name, data):
        raise OSError("disk")

    monkeypatch.setattr(h5py.Group, "create_dataset", failing)
    with pytest.raises(UserError, match=r"cannot be written: disk"):
        convert_skeletons(tmp_path / "flat", tmp_path / "a.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]
