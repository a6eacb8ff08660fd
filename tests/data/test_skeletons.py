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
    assert present.tolist() == [
        True,
        True,
        False,
        False,
        False,
        True,
        False,
    ]  # absent, not finite, a group
    np.testing.assert_array_equal(read[present], joints[[7, 0, 0]])
    assert not read[~present].any()


def test_read_nothing_missing_and_all_missing(path, joints):
    store = SkeletonStore.open(path)
    read, present = store.read(KEYS[:3])
    assert present.all()
    np.testing.assert_array_equal(read, joints[:3])
    read, present = store.read(["a", "b"])
    assert not present.any()
    assert not read.any()


def test_what_is_read_is_the_callers_own(path):
    store = SkeletonStore.open(path)
    first, _ = store.read(KEYS[:2])
    expected = first.copy()
    first += 1
    np.testing.assert_array_equal(store.read(KEYS[:2])[0], expected)


def test_length_and_membership(path):
    store = SkeletonStore.open(path)
    assert len(store) == len(KEYS)
    assert KEYS[0] in store
    assert "0001/ir" not in store
    assert "0009/ir/D1/1" not in store


def test_keys(path):
    """Those of missing frames too; the flat store keeps its order, the file sorts: here it is the same."""
    store, found = SkeletonStore.open(path), []
    assert store.keys(found.append) == KEYS
    assert sum(found) == len(KEYS)


def test_raw_is_what_is_stored(path, joints):
    raw = SkeletonStore.open(path).raw([KEYS[4], KEYS[0], KEYS[3]])
    assert raw.dtype == np.float32
    np.testing.assert_array_equal(raw, joints[[4, 0, 3]])  # equal in NaN and infinity, too
    with pytest.raises(UserError, match=r"store.* has no frame 0009/ir/D1/1"):
        SkeletonStore.open(path).raw([KEYS[0], "0009/ir/D1/1"])


def test_raw_is_the_callers_own(path, joints):
    store = SkeletonStore.open(path)
    store.raw(KEYS)[:] = 7
    np.testing.assert_array_equal(store.raw(KEYS), joints)


def test_pickle(path):
    store = SkeletonStore.open(path)
    expected, _ = store.read(KEYS)
    sent = pickle.dumps(store)
    assert len(sent) < 500  # the path, not the skeletons
    np.testing.assert_array_equal(pickle.loads(sent).read(KEYS)[0], expected)


def read_sum(store):
    return float(store.read(KEYS)[0].sum())


def test_both_forms_are_equal(paths):
    flat, hdf5 = (
        SkeletonStore.open(paths[name]).read([*KEYS, "none"]) for name in ("flat", "hdf5")
    )
    np.testing.assert_array_equal(flat[0], hdf5[0])
    np.testing.assert_array_equal(flat[1], hdf5[1])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_readable_in_another_process(paths, method):
    stores = [SkeletonStore.open(path) for path in paths.values()]
    expected = [read_sum(store) for store in stores]  # the parent has them open
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(read_sum, stores * 2) == expected * 2
    assert [read_sum(store) for store in stores] == expected


def read_in_child(store, queue):
    total = read_sum(store)
    queue.put((total, getattr(store, "_owner", os.getpid()) == os.getpid()))


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
    with pytest.raises(UserError, match=r"does not exist: make one .*DATASETS.SKELETONS ''"):
        SkeletonStore.open(tmp_path / "none")


def test_not_a_store(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="neither a folder"):
        SkeletonStore.open(tmp_path / "a.txt")
    (tmp_path / "a.h5").write_text("x")
    with pytest.raises(UserError, match="not a readable HDF5"):
        SkeletonStore.open(tmp_path / "a.h5")
    with pytest.raises(UserError, match=r"has no index\.json"):
        SkeletonStore.open(tmp_path)


def test_damaged_flat_store(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    index = json.loads((folder / "index.json").read_text())

    def with_index(**changes):
        (folder / "index.json").write_text(json.dumps({**index, **changes}))

    with_index(keys=KEYS[:-1])
    with pytest.raises(UserError, match="lists 9 frames"):
        SkeletonStore.open(folder)
    with_index(shape=[9, 17, 3])
    with pytest.raises(UserError, match="different runs"):
        SkeletonStore.open(folder)
    with_index(keys=[KEYS[0], *KEYS[:-1]])
    with pytest.raises(UserError, match="twice"):
        SkeletonStore.open(folder)
    with_index(version=2)
    with pytest.raises(UserError, match="version 1"):
        SkeletonStore.open(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        SkeletonStore.open(folder)
    with_index()
    np.save(folder / "skeletons.npy", joints.astype(np.float64))
    with pytest.raises(UserError, match="float64"):
        SkeletonStore.open(folder)
    np.save(folder / "skeletons.npy", joints[:, :16])
    with pytest.raises(UserError, match="shape"):
        SkeletonStore.open(folder)
    (folder / "skeletons.npy").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        SkeletonStore.open(folder)
    (folder / "skeletons.npy").unlink()
    with pytest.raises(UserError, match=r"has no skeletons\.npy"):
        SkeletonStore.open(folder)


def test_an_index_of_wrong_things(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    index = json.loads((folder / "index.json").read_text())
    for changes, message in (
        ({"keys": [*KEYS[:-1], 7]}, r"index\.json names a frame 7: keys are texts"),
        ({"keys": [*KEYS[:-1], ["a"]]}, r"names a frame \['a'\]: keys are texts"),
        ({"keys": [*KEYS[:-1], None]}, "names a frame None"),
        ({"keys": dict.fromkeys(KEYS, 1)}, "not an index of version 1"),
        ({"keys": "abc"}, "not an index of version 1"),
        ({"shape": None}, "different runs"),
        ({"shape": "x"}, "different runs"),
        ({"meta": [1]}, "its meta is no table"),
        ({"version": "1"}, "not an index of version 1"),
    ):
        (folder / "index.json").write_text(json.dumps({**index, **changes}))
        with pytest.raises(UserError, match=message):
            SkeletonStore.open(folder)
    for content, message in (
        (json.dumps(index)[:-1] + ', "keys": []}', "'keys' is there twice"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "not an index of version 1"),
        ("\ufeff", "cannot be read"),
    ):
        (folder / "index.json").write_text(content)
        with pytest.raises(UserError, match=message):
            SkeletonStore.open(folder)


NO_NAMES = ["", "/etc/passwd", "..", "../a", "a/../b", "a/..", "./a", "a//b", "a/", "a\0b", "\0"]


@pytest.mark.parametrize("key", NO_NAMES, ids=repr)
def test_keys_that_lead_elsewhere(tmp_path, joints, key):
    folder = tmp_path / "store"
    with pytest.raises(
        UserError, match=r"the skeletons for .*store names a frame .*: it cannot be a name"
    ):
        write_skeleton_store(folder, ["a", key], joints[:2])
    assert not folder.exists()
    write_skeleton_store(folder, ["a", "b"], joints[:2])
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "keys": ["a", key]}))
    with pytest.raises(UserError, match=r"index\.json names a frame .*: it cannot be a name"):
        SkeletonStore.open(folder)


def test_keys_that_are_odd_names_of_files(tmp_path, joints):
    """A backslash or a colon is no separator where this runs, and three dots are a name."""
    keys = ["a\\b", "C:a", "...", ".a", "a..", "a b", "ü", "\udcff", "a\nb", " "]
    write_skeleton_store(tmp_path / "store", keys, joints)
    store = SkeletonStore.open(tmp_path / "store")
    assert store.keys() == keys
    assert store.read(keys)[1].tolist() == [True] * 3 + [False] * 2 + [True] * 5


@pytest.mark.parametrize("dtype", [">f4", "f8", "f2", "i4", "c8", "O", "U4", "V12"])
def test_an_array_of_another_type(tmp_path, joints, dtype):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    array = np.zeros(joints.shape, dtype)
    np.save(folder / "skeletons.npy", array, allow_pickle=True)
    with pytest.raises(
        UserError, match=r"skeletons\.npy (holds .*, expected float32|cannot be read)"
    ):
        SkeletonStore.open(folder)


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


def test_columns_first_is_read_as_it_is_meant(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    expected = SkeletonStore.open(folder).read(KEYS)
    np.save(folder / "skeletons.npy", np.asfortranarray(joints))
    for read, right in zip(SkeletonStore.open(folder).read(KEYS), expected, strict=True):
        np.testing.assert_array_equal(read, right)


def test_an_array_cut_off_at_any_byte(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    whole = (folder / "skeletons.npy").read_bytes()
    for length in [*range(0, 130, 3), *range(130, len(whole), 97), len(whole) - 1]:
        (folder / "skeletons.npy").write_bytes(whole[:length])
        with pytest.raises(
            UserError, match=r"skeletons\.npy cannot be read .*: make the store again"
        ) as error:
            SkeletonStore.open(folder)
        assert len(str(error.value).splitlines()) == 1


def test_a_header_is_not_repeated_at_length(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    text = b"[" * 9000
    (folder / "skeletons.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    )
    with pytest.raises(UserError, match="cannot be read") as error:
        SkeletonStore.open(folder)
    assert len(str(error.value)) < 600


def test_an_archive_or_a_pipe_in_place_of_the_array(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    with open(folder / "skeletons.npy", "wb") as file:
        np.savez(file, joints)
    whole = (folder / "skeletons.npy").read_bytes()
    with pytest.raises(UserError, match="an archive of arrays"):
        SkeletonStore.open(folder)
    (folder / "skeletons.npy").write_bytes(whole[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        SkeletonStore.open(folder)
    for name in ("skeletons.npy", "index.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=rf"{name}.* cannot be read.* not a file"):
            SkeletonStore.open(folder)
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(UserError, match="it is no file"):
        SkeletonStore.open(tmp_path / "a.h5")


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


def test_any_other_joint_is_taken_as_it_is(path):
    """Negative ones, those of a larger image, scores of any scale: what they mean only the estimator knows."""
    odd = np.array([[-5, -0.0, -1], [1e6, -1e6, 7], [1e-42, 0, 1e3]], np.float32)
    joints = np.tile(odd, (2, 6, 1))[:, :17]
    if path.suffix:
        with h5py.File(path, "w") as file:
            for key, values in zip(KEYS, joints, strict=False):
                file[key] = values
    else:
        write_skeleton_store(path, KEYS[:2], joints)
    read, present = SkeletonStore.open(path).read(KEYS[:2])
    assert present.all()
    np.testing.assert_array_equal(read, joints)


@pytest.mark.parametrize(
    "values", [np.full((1, 17, 3), "1"), np.full((1, 17, 3), None), [[[1, 2]], [[1]]], {"a": 1}]
)
def test_what_is_no_array_of_numbers_is_not_written(tmp_path, values):
    for joints in (values, iter([values])):
        with pytest.raises(UserError, match="skeletons must be numbers in an array"):
            write_skeleton_store(tmp_path / "store", ["a"], joints)
    assert not list(tmp_path.iterdir())


def test_hdf5_of_another_shape(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0001/ir/D4/1"] = np.zeros((16, 3))
    with pytest.raises(UserError, match=r"\(16, 3\)"):
        SkeletonStore.open(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["0001/ir/D4/1"] = np.zeros((17, 3))
        file["0001/ir/D4/2"] = np.zeros((17, 2))
    with pytest.raises(UserError, match=r"0001/ir/D4/2 has the shape \(17, 2\)"):
        SkeletonStore.open(tmp_path / "b.h5").read(["0001/ir/D4/2"])
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_group("0001")
    with pytest.raises(UserError, match="no dataset"):
        SkeletonStore.open(tmp_path / "c.h5")


def test_write_replaces_a_store_and_nothing_else(tmp_path, joints):
    folder = tmp_path / "store"
    write_skeleton_store(folder, KEYS, joints)
    write_skeleton_store(folder, KEYS[:2], joints[:2], meta={"model": "b"})
    store = SkeletonStore.open(folder)
    assert len(store) == 2
    assert store.meta == {"model": "b"}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
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


@pytest.mark.parametrize(
    ("ends", "message"),
    [((4, 9), "10 keys but 9"), ((4, 10, 11), r"after 10 of 10"), ((4,), "10 keys but 4")],
)
def test_blocks_must_add_up(tmp_path, joints, ends, message):
    joints = np.concatenate([joints, joints[:1]])
    with pytest.raises(UserError, match=message):
        write_skeleton_store(
            tmp_path / "store", KEYS, (joints[a:b] for a, b in zip((0, *ends), ends, strict=False))
        )
    assert not list(tmp_path.iterdir())


def test_blocks_of_another_shape(tmp_path):
    with pytest.raises(UserError, match=r"\(10, 16, 3\) after 0 of 10"):
        write_skeleton_store(tmp_path / "store", KEYS, iter([np.zeros((10, 16, 3))]))


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


def test_a_store_is_on_disk_before_it_is_seen(tmp_path, joints, monkeypatch):
    """What it was made of may be deleted then."""
    synced, rename = {}, os.rename

    def sync(handle):
        synced[os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))] = os.fstat(handle).st_size

    def move(source, target):
        sizes.update(
            {file: os.stat(os.path.join(source, file)).st_size for file in os.listdir(source)}
        )
        rename(source, target)

    sizes = {}
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", move)
    write_skeleton_store(tmp_path / "store", KEYS, joints)
    assert synced == sizes
    assert set(sizes) == {"skeletons.npy", "index.json"}


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


@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [
        ([], (0, 17, 3), "no skeletons"),
        (["a"], (1, 16, 3), "shape"),
        (["a", "a"], (2, 17, 3), "twice"),
    ],
)
def test_write_refuses(tmp_path, keys, shape, message):
    with pytest.raises(UserError, match=message):
        write_skeleton_store(tmp_path / "store", keys, np.zeros(shape))
    assert not list(tmp_path.iterdir())
