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
    """The same skeletons in both forms."""
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
    assert read.dtype == np.float32
    assert read.shape == (7, 17, 3)
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
    assert KEYS[0] in store
    assert "0001/ir" not in store
    assert "0009/ir/D1/1" not in store
    raw = store.raw([KEYS[4], KEYS[0], KEYS[3]])
    assert raw.dtype == np.float32
    np.testing.assert_array_equal(raw, joints[[4, 0, 3]])  # equal in NaN and infinity, too
    with pytest.raises(UserError, match=r"store.* has no frame 0009/ir/D1/1"):
        store.raw([KEYS[0], "0009/ir/D1/1"])


def test_pickle(path):
    store = SkeletonStore.open(path)
    expected, _ = store.read(KEYS)
    sent = pickle.dumps(store)
    assert len(sent) < 500  # the path, not the skeletons
    np.testing.assert_array_equal(pickle.loads(sent).read(KEYS)[0], expected)


def read_sum(store):
    return float(store.read(KEYS)[0].sum())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_readable_in_another_process(paths, method):
    stores = [SkeletonStore.open(path) for path in paths.values()]
    expected = [read_sum(store) for store in stores]  # the parent has them open
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(read_sum, stores * 2) == expected * 2
    assert [read_sum(store) for store in stores] == expected


def read_in_child(store, queue):
    total = read_sum(store)
    queue.put((total, getattr(getattr(store, "_file", None), "_owner", os.getpid()) == os.getpid()))


def test_inherited_through_fork_without_pickling(path):
    store = SkeletonStore.open(path)
    expected = read_sum(store)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=read_in_child, args=(store, queue)) for _ in range(3)]
    for child in children:
        child.start()
    assert [queue.get(timeout=20) for _ in children] == [
        (expected, True)
    ] * 3  # with handles of their own
    for child in children:
        child.join()


def test_missing_path_names_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*DATASETS.SKELETONS ''"):
        SkeletonStore.open(tmp_path / "none")


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


INDEX = {"version": 1, "keys": KEYS, "meta": {}}
DAMAGED = [
    ("index.json", {**INDEX, "keys": KEYS[:-1]}, "lists 9 frames, .* has 10"),
    ("index.json", {**INDEX, "keys": [KEYS[0], *KEYS[:-1]]}, "twice"),
    ("index.json", {**INDEX, "keys": [*KEYS[:-1], 7]}, "7 is not a key"),
    ("index.json", {**INDEX, "keys": [*KEYS[:-1], "../a"]}, "'../a' is not a key"),
    ("index.json", {**INDEX, "keys": "abc"}, "not an index of version 1"),
    ("index.json", {**INDEX, "version": 2}, "not an index of version 1"),
    ("index.json", [], "not an index of version 1"),
    ("index.json", None, "index.json cannot be read"),
    ("index.json", b"{", "index.json cannot be read"),
    ("skeletons.npy", np.zeros((10, 17, 3)), "expected float32"),
    ("skeletons.npy", np.zeros((10, 16, 3), np.float32), r"shape \(10, 16, 3\)"),
    ("skeletons.npy", np.zeros((0, 17, 3), np.float32), r"shape \(0, 17, 3\)"),
    ("skeletons.npy", None, "skeletons.npy cannot be read"),
    ("skeletons.npy", b"", "skeletons.npy cannot be read"),
    ("skeletons.npy", b"text", "skeletons.npy cannot be read"),
]


@pytest.mark.parametrize(("file", "content", "message"), DAMAGED)
def test_damaged_flat_store(tmp_path, joints, file, content, message):
    write_skeleton_store(tmp_path / "store", KEYS, joints)
    path = tmp_path / "store" / file
    path.unlink()
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        SkeletonStore.open(tmp_path / "store")
    assert "\n" not in str(error.value)


def test_truncated_stores(paths):
    for name in ("flat/skeletons.npy", "hdf5"):
        path = paths["flat"] / "skeletons.npy" if "/" in name else paths["hdf5"]
        whole = path.read_bytes()
        for length in range(1, len(whole), len(whole) // 20):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match="cannot be read"):
                SkeletonStore.open(paths[name.split("/")[0]]).read(KEYS)


def test_not_a_store(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.h5").write_text("x")
    for name, message in (("a.txt", "neither a folder"), ("a.h5", "not an HDF5 file")):
        with pytest.raises(UserError, match=message):
            SkeletonStore.open(tmp_path / name)


def test_hdf5_of_another_shape(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0001/ir/D4/1"] = np.zeros((16, 3))
    with pytest.raises(UserError, match=r"\(16, 3\)"):
        SkeletonStore.open(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["0001/ir/D4/1"] = np.zeros((17, 3))
        file["0001/ir/D4/2"] = np.zeros((17, 2))
    with pytest.raises(UserError, match=r"0001/ir/D4/2 .*shape \(17, 2\)"):
        SkeletonStore.open(tmp_path / "b.h5").read(["0001/ir/D4/2"])
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_group("0001")
    with pytest.raises(UserError, match="no dataset"):
        SkeletonStore.open(tmp_path / "c.h5")


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 1e300, -1e300, 3e38, -1e20, 1.1e6, -1.1e6]
)
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


def test_write_replaces_a_store_and_nothing_else(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    write_skeleton_store(folder, KEYS[:2], joints[:2], meta={"model": "b"})
    store = SkeletonStore.open(folder)
    assert len(store) == 2
    assert store.meta == {"model": "b"}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        write_skeleton_store(folder, KEYS, joints)
    assert (folder / "notes.txt").read_text() == "mine"


def test_write_in_blocks(tmp_path, joints):
    write_skeleton_store(tmp_path / "whole", KEYS, joints)
    write_skeleton_store(
        tmp_path / "blocks", KEYS, iter([joints[:4], joints[4:5].tolist(), joints[5:]])
    )
    for name in ("skeletons.npy", "index.json"):
        assert (tmp_path / "blocks" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    np.save(tmp_path / "plain.npy", joints)
    assert (tmp_path / "whole" / "skeletons.npy").read_bytes() == (
        tmp_path / "plain.npy"
    ).read_bytes()


def test_write_is_whole_or_not_at_all(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS[:2], joints[:2])
    with pytest.raises(TypeError):
        write_skeleton_store(folder, KEYS, joints, meta={"cannot be written": object()})
    assert len(SkeletonStore.open(folder)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("there", [False, True])
def test_a_link_stays_and_its_folder_is_written(tmp_path, joints, there):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/store")
    if there:
        write_skeleton_store(tmp_path / "link", KEYS[:2], joints[:2])
    write_skeleton_store(tmp_path / "link", KEYS, joints)
    assert len(SkeletonStore.open(tmp_path / "disk" / "store")) == len(KEYS)
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    assert os.readlink(tmp_path / "link") == "disk/store"


def test_the_old_store_stays_where_the_new_one_cannot_be_put_in_place(
    tmp_path, joints, monkeypatch
):
    folder, rename = tmp_path / "store", os.rename
    write_skeleton_store(folder, KEYS[:2], joints[:2])

    def failing(source, target):
        if ".tmp" in source:
            raise OSError("disk")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="disk"):
        write_skeleton_store(folder, KEYS, joints)
    assert len(SkeletonStore.open(folder)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


JOINTS = np.zeros((10, 17, 3))
REFUSED = [
    ([], JOINTS[:0], "no skeletons"),
    (KEYS, JOINTS[:, :16], r"shape .*\(10, 16, 3\)"),
    (KEYS, JOINTS.astype(str), "must be numbers"),
    (["a", "a"], JOINTS[:2], "twice"),
    (["a", "/b"], JOINTS[:2], "not a key"),
    (KEYS, JOINTS[:9], "10 keys but 9"),
    (KEYS, iter([JOINTS[:4], JOINTS[:4]]), "10 keys but 8"),
    (KEYS, iter([JOINTS, JOINTS[:1]]), "10 keys but 11"),
    (KEYS, iter([JOINTS[:, :16]]), r"shape .*\(10, 16, 3\)"),
]


@pytest.mark.parametrize(("keys", "joints", "message"), REFUSED)
def test_write_refuses(tmp_path, keys, joints, message):
    with pytest.raises(UserError, match=message):
        write_skeleton_store(tmp_path / "store", keys, joints)
    assert not list(tmp_path.iterdir())
