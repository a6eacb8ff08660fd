"""HDF5 files: written, read, and converted to the flat store and back."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from fastreid_star.data import skeleton_conversion
from fastreid_star.data.skeleton_conversion import (
    Conversion,
    convert_skeletons,
    write_hdf5_store,
)
from fastreid_star.data.skeletons import FlatStore, Hdf5Store, SkeletonStore, write_skeleton_store
from fastreid_star.errors import UserError

META = {"model": "hrnet", "options": {"flip": True, "sizes": [256, 192]}, "\u00fcn\u00ef": None}
# neither sorted nor with the frames of a camera in sequence
KEYS = [f"{pid:04d}/{m}/{n}" for pid in (2, 1) for n in range(9, 13) for m in ("rgb/D3", "ir/D1")]


def bits(values):
    return np.ascontiguousarray(values).view(np.uint32)


@pytest.fixture
def joints():
    values = np.random.default_rng(0).normal(0, 100, (len(KEYS), 17, 3)).astype(np.float32)
    values[3, 5, 0] = np.nan
    values[4, 16, 2] = -np.inf
    values[6, 0] = (-0.0, 1e-42, 1e6)  # a negative zero, a denormal, the largest
    values[9, 0, 0] = 3.4e38  # finite, but too large
    values[7].view(np.uint32)[2, 1] = 0x7FC12345  # a NaN with a payload
    return values


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(skeleton_conversion, "BLOCK", 3)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_there_and_back_is_equal_bit_for_bit(tmp_path, joints):
    write_skeleton_store(tmp_path / "flat", KEYS, joints, META)
    assert convert_skeletons(tmp_path / "flat", tmp_path / "a.h5") == Conversion(len(KEYS), 4)
    assert convert_skeletons(tmp_path / "a.h5", tmp_path / "again") == Conversion(len(KEYS), 4)
    assert contents(tmp_path / "again") == contents(tmp_path / "flat")


def test_the_authors_program_can_read_it(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints, META)
    found = []
    with h5py.File(tmp_path / "a.h5") as file:
        file.visititems(lambda key, item: found.append(key) if hasattr(item, "shape") else None)
        for key, values in zip(KEYS, joints, strict=True):
            np.testing.assert_array_equal(bits(file[key][()]), bits(values))
    assert sorted(found) == sorted(KEYS)


def test_missing_frames_stay_missing(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    convert_skeletons(tmp_path / "a.h5", tmp_path / "flat")
    for name in ("a.h5", "flat"):
        values, present = SkeletonStore.open(tmp_path / name).read(KEYS)
        assert np.flatnonzero(~present).tolist() == [3, 4, 7, 9]
        np.testing.assert_array_equal(bits(values[present]), bits(joints[present]))
        assert not values[~present].any()


def test_keys_are_in_the_order_of_the_rows(tmp_path, joints):
    path = str(tmp_path / "a.h5")
    write_hdf5_store(path, KEYS, joints)
    assert Hdf5Store(path).keys() == KEYS
    with h5py.File(path, "r+") as file:  # a user adds and removes frames
        file["0000/ir/D1/1"] = np.zeros((17, 3))
        del file[KEYS[2]]
    assert Hdf5Store(path).keys() == [*KEYS[:2], *KEYS[3:], "0000/ir/D1/1"]


def test_a_file_of_the_authors(tmp_path, joints):
    """No attributes, float64, names sorted by HDF5, an empty group."""
    exact = joints.astype(np.float64) + 1e-9
    exact[8, 0, 0] = 1e300  # beyond float32
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, values in zip(KEYS, exact, strict=True):
            file[key] = values
        file.create_group("0003/ir")
    assert convert_skeletons(tmp_path / "a.h5", tmp_path / "flat") == Conversion(len(KEYS), 5)
    flat, hdf5 = FlatStore(str(tmp_path / "flat")), Hdf5Store(str(tmp_path / "a.h5"))
    assert flat.keys() == sorted(KEYS)
    assert flat.meta == {}
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(flat.raw(KEYS), exact.astype(np.float32))
    for one, other in zip(hdf5.read(KEYS), flat.read(KEYS), strict=True):
        np.testing.assert_array_equal(one, other)


def test_meta(tmp_path, joints):
    path = str(tmp_path / "a.h5")
    write_hdf5_store(path, KEYS, joints, META)
    assert Hdf5Store(path).meta == META
    with h5py.File(path, "r+") as file:
        file.attrs["by"] = np.bytes_(b"somebody")
        file.attrs["size"] = np.array([256, 192])
    others = {"by": "somebody", "size": [256, 192]}
    assert Hdf5Store(path).meta == {**META, **others}
    convert_skeletons(path, tmp_path / "flat")
    assert SkeletonStore.open(tmp_path / "flat").meta == {**META, **others}
    with h5py.File(path, "r+") as file:
        file.attrs["meta"] = "no JSON"
    assert Hdf5Store(path).meta == {"meta": "no JSON", **others}


def test_an_older_store_is_replaced_and_nothing_else(tmp_path, joints):
    for name, write in (("flat", write_skeleton_store), ("a.h5", write_hdf5_store)):
        write(tmp_path / name, KEYS[:2], joints[:2], {"old": name})
    convert_skeletons(tmp_path / "flat", tmp_path / "a.h5")
    assert SkeletonStore.open(tmp_path / "a.h5").meta == {"old": "flat"}
    (tmp_path / "text.h5").write_text("mine")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["weights"] = np.zeros((3, 4))
    before = (tmp_path / "weights.h5").read_bytes()
    for target in ("text.h5", "weights.h5"):
        with pytest.raises(UserError, match="is not a file of skeletons"):
            convert_skeletons(tmp_path / "flat", tmp_path / target)
    assert (tmp_path / "text.h5").read_text() == "mine"
    assert (tmp_path / "weights.h5").read_bytes() == before


def test_the_same_format_twice(tmp_path, joints):
    write_skeleton_store(tmp_path / "flat", KEYS, joints)
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    for source, target in (("a.h5", "b.hdf5"), ("flat", "other")):
        with pytest.raises(UserError, match="have the same format"):
            convert_skeletons(tmp_path / source, tmp_path / target)


@pytest.mark.parametrize("to", ["b.h5", "other"])
def test_whole_or_not_at_all(tmp_path, joints, monkeypatch, to):
    write_skeleton_store(tmp_path / "flat", KEYS, joints)
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    source = SkeletonStore.open(tmp_path / ("flat" if to.endswith(".h5") else "a.h5"))
    real, calls = type(source).raw, []

    def raw(self, keys):
        calls.append(keys)
        if len(calls) == 3:
            raise OSError("disk")
        return real(self, keys)

    monkeypatch.setattr(type(source), "raw", raw)
    with pytest.raises(UserError, match=r"cannot be written: disk"):
        convert_skeletons(source.path, tmp_path / to)
    assert [len(keys) for keys in calls] == [3, 3, 3], "block by block"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "flat"]


@pytest.mark.parametrize("keys", [["a", "a/b"], ["a/b/c/d", "a/b"]])
def test_a_key_that_is_a_folder_of_others(tmp_path, keys):
    with pytest.raises(UserError, match=r"'a(/b)?' is also a folder"):
        write_hdf5_store(tmp_path / "a.h5", keys, np.zeros((2, 17, 3)))
    assert not list(tmp_path.iterdir())


def test_a_dataset_of_another_shape_ends_it(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["0009/ir/D1/1"] = np.zeros((13, 3))
    with pytest.raises(UserError, match=r"0009/ir/D1/1 .*shape \(13, 3\)"):
        convert_skeletons(tmp_path / "a.h5", tmp_path / "flat")
    assert not (tmp_path / "flat").exists()
