"""Skeleton stores of both formats: reading, other processes, damaged files, writing."""

import json
import multiprocessing
import os
import pickle

import h5py
import numpy as np
import pytest

from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.errors import UserError

KEYS = [f"{pid:04d}/ir/D4/{frame}" for pid in (1, 2) for frame in range(1, 6)]


@pytest.fixture
def joints():
    values = np.random.default_rng(0).uniform(0, 100, (len(KEYS), 17, 3)).astype(np.float32)
    values[3, 5, 0] = np.nan
    values[4, 16, 2] = np.inf
    return values


@pytest.fixture
def paths(tmp_path, joints):
    """The same skeletons in both formats."""
    write_skeleton_store(tmp_path / "store", KEYS, joints, meta={"model": "none"})
    with h5py.File(tmp_path / "store.h5", "w") as file:
        for key, value in zip(KEYS, joints, strict=True):
            file[key] = value.astype(np.float64)
    return {"flat": tmp_path / "store", "hdf5": tmp_path / "store.h5"}


@pytest.fixture(params=["flat", "hdf5"])
def path(request, paths):
    return paths[request.param]


def test_read(path, joints):
    store = SkeletonStore.open(path)
    keys = [KEYS[7], KEYS[0], "0009/ir/D1/1", KEYS[3], KEYS[4], KEYS[0], "0001/ir"]
    read, present = store.read(keys)
    assert (read.dtype, read.shape) == (np.float32, (7, 17, 3))
    # absent, not finite, infinite, a group
    assert present.tolist() == [True, True, False, False, False, True, False]
    np.testing.assert_array_equal(read[present], joints[[7, 0, 0]])
    assert not read[~present].any()
    read += 1  # the arrays are copies
    np.testing.assert_array_equal(store.read(KEYS[:3])[0], joints[:3])
    assert not store.read(["a", "b"])[1].any()


def test_keys_and_raw_values(path, joints):
    """Including frames without a valid skeleton."""
    store = SkeletonStore.open(path)
    assert store.keys() == KEYS
    assert len(store) == len(KEYS)
    assert KEYS[4] in store
    assert "0001/ir" not in store
    assert "0009/ir/D1/1" not in store
    raw = store.raw([KEYS[4], KEYS[0], "0009/ir/D1/1"])
    np.testing.assert_array_equal(raw[:2], joints[[4, 0]])
    assert np.isnan(raw[2]).all()


def read_sum(store):
    return float(store.read(KEYS)[0].sum())


def put_sum(store, queue):
    queue.put(read_sum(store))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_readable_in_another_process(paths, method):
    """Pickled into a pool, and inherited through a fork; the parent has the files open."""
    stores = [SkeletonStore.open(path) for path in paths.values()]
    assert all(len(pickle.dumps(store)) < 500 for store in stores)  # not the skeletons
    expected = [read_sum(store) for store in stores]
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        assert pool.map(read_sum, stores * 2) == expected * 2
    queue = context.Queue()
    for store, total in zip(stores, expected, strict=True):
        child = context.Process(target=put_sum, args=(store, queue))
        child.start()
        assert queue.get(timeout=20) == total
        child.join()
    assert [read_sum(store) for store in stores] == expected


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300, 1.1e6, -1.1e6])
def test_a_joint_that_is_not_finite_or_beyond_all_images_makes_its_frame_a_missing_one(
    tmp_path, value
):
    joints = np.ones((3, 17, 3))
    joints[1, 16, 2] = value
    write_skeleton_store(tmp_path / "flat", ["a", "b", "c"], joints)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, values in zip("abc", joints, strict=True):
            file[key] = values
    for path in ("flat", "a.h5"):
        read, present = SkeletonStore.open(tmp_path / path).read(["a", "b", "c"])
        assert present.tolist() == [True, False, True]
        assert (read == np.array([1, 0, 1])[:, None, None]).all()


# --- damaged stores ---


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_code_in_a_store_is_run(tmp_path, joints, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    array = np.empty(joints.shape, object)
    array[:] = Bomb()
    np.save(folder / "skeletons.npy", array, allow_pickle=True)
    for content in ((folder / "skeletons.npy").read_bytes(), pickle.dumps(Bomb())):
        (folder / "skeletons.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"skeletons\.npy cannot be read"):
            SkeletonStore.open(folder)
    assert not (tmp_path / "exploded").exists()


def index(keys, version=1):
    return json.dumps({"version": version, "keys": keys}).encode()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("index.json", index(KEYS[:-1]), "lists 9 frames, .*10, 17, 3"),
        ("index.json", index([KEYS[0], *KEYS[:-1]]), "lists 9 frames"),
        ("index.json", index(KEYS, version=2), "version 2 .* expected are version 1"),
        ("index.json", index([[key] for key in KEYS]), "lists 0 frames"),
        ("index.json", index("abcdefghij"), "lists 0 frames"),
        ("index.json", index(10), "lists 0 frames"),
        ("index.json", b"[]", "lists 0 frames"),
        ("index.json", b"{", "index.json cannot be read"),
        ("index.json", None, "index.json cannot be read"),
        ("skeletons.npy", np.zeros((10, 17, 3)), "holds float64"),
        ("skeletons.npy", np.zeros((10, 16, 3), np.float32), r"shape \(10, 16, 3\)"),
        ("skeletons.npy", b"text", "skeletons.npy cannot be read"),
        ("skeletons.npy", None, "skeletons.npy cannot be read"),
    ],
)
def test_damaged_flat_store(tmp_path, joints, file, content, message):
    write_skeleton_store(tmp_path / "store", KEYS, joints)
    path = tmp_path / "store" / file
    path.unlink()
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        SkeletonStore.open(tmp_path / "store")
    assert "\n" not in str(error.value)


def test_truncated_stores(paths):
    for name, path in (("flat", paths["flat"] / "skeletons.npy"), ("hdf5", paths["hdf5"])):
        whole = path.read_bytes()
        for length in range(0, len(whole), len(whole) // 10):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match="cannot be read"):
                SkeletonStore.open(paths[name]).read(KEYS)


def test_not_a_store(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*DATASETS.SKELETONS ''"):
        SkeletonStore.open(tmp_path / "none")
    for name, message in (("a.txt", "neither a folder"), ("a.h5", "not an HDF5 file")):
        (tmp_path / name).write_text("x")
        with pytest.raises(UserError, match=message):
            SkeletonStore.open(tmp_path / name)


def test_a_skeleton_of_another_shape_in_hdf5_is_a_missing_one(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["1"] = np.zeros((17, 3))
        file["2"] = np.zeros((17, 1))
    _, present = SkeletonStore.open(tmp_path / "a.h5").read(["1", "2"])
    assert present.tolist() == [True, False]
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["1"]
    with pytest.raises(UserError, match=r"a dataset of the shape \(17, 1\)"):
        SkeletonStore.open(tmp_path / "a.h5")


@pytest.mark.parametrize("value", ["text", "[1]", np.arange(3)])
def test_an_attribute_of_another_program_is_ignored(paths, value):
    with h5py.File(paths["hdf5"], "r+") as file:
        file.attrs["meta"] = value
    assert SkeletonStore.open(paths["hdf5"]).meta == {}


# --- writing ---


def test_write_replaces_a_store_and_nothing_else(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    write_skeleton_store(folder, KEYS[:2], joints[:2], meta={"model": "b"})
    store = SkeletonStore.open(folder)
    assert (len(store), store.meta) == (2, {"model": "b"})
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        write_skeleton_store(folder, KEYS, joints)
    assert (folder / "notes.txt").read_text() == "mine"


def test_write_is_whole_or_not_at_all(tmp_path, joints, monkeypatch):
    folder, rename = tmp_path / "store", os.rename
    write_skeleton_store(folder, KEYS[:2], joints[:2])

    def failing(source, target):
        if ".tmp" in source:
            raise OSError("disk")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="disk"):
        write_skeleton_store(folder, KEYS, joints)
    with pytest.raises(TypeError):
        write_skeleton_store(folder, KEYS, joints, meta={"cannot be written": object()})
    assert len(SkeletonStore.open(folder)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_link_stays_and_its_folder_is_written(tmp_path, joints):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/store")
    for count in (2, len(KEYS)):
        write_skeleton_store(tmp_path / "link", KEYS[:count], joints[:count])
        assert len(SkeletonStore.open(tmp_path / "disk" / "store")) == count
    assert os.readlink(tmp_path / "link") == "disk/store"


JOINTS = np.zeros((10, 17, 3))


@pytest.mark.parametrize(
    ("keys", "joints", "message"),
    [
        ([], JOINTS[:0], "0 keys"),
        (KEYS, JOINTS[:, :16], r"shape .*\(10, 16, 3\)"),
        (KEYS, [None] * 10, "must be numbers"),
        (["a", "a"], JOINTS[:2], "1 of them different"),
        (KEYS, JOINTS[:9], "10 keys, .* and 9 skeletons"),
    ],
)
def test_write_refuses(tmp_path, keys, joints, message):
    with pytest.raises(UserError, match=message):
        write_skeleton_store(tmp_path / "store", keys, joints)
    assert not list(tmp_path.iterdir())
