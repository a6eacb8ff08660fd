import os
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastreid_star.data import skeletons_hdf5
from fastreid_star.data.skeletons import FlatStore, SkeletonStore, write_skeleton_store
from fastreid_star.data.skeletons_hdf5 import (
    Conversion,
    Hdf5Store,
    convert_skeletons,
    write_hdf5_store,
)
from fastreid_star.errors import UserError

TOOL = Path(__file__).parent.parent.parent / "tools" / "convert_skeletons.py"
META = {"model": "hrnet", "options": {"flip": True, "sizes": [256, 192]}, "ünï": None}

# neither sorted nor with the frames of a camera in one run
KEYS = [
    f"{pid:04d}/{folder}/{n}"
    for pid in (2, 1)
    for n in range(9, 13)
    for folder in ("rgb/D3", "ir/D1")
]


def bits(values):
    return np.ascontiguousarray(values).view(np.uint32)


@pytest.fixture
def joints():
    values = np.random.default_rng(0).normal(0, 100, (len(KEYS), 17, 3)).astype(np.float32)
    values[3, 5, 0] = np.nan
    values[4, 16, 2] = -np.inf
    values[6, 0] = (-0.0, 1e-42, 1e6)  # a negative zero, a denormal, the largest
    values[9, 0, 0] = 3.4e38  # a number, and beyond all images
    values[7].view(np.uint32)[2, 1] = 0x7FC12345  # a NaN with something in it
    return values


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(skeletons_hdf5, "BLOCK", 3)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_there_and_back_is_equal_bit_for_bit(tmp_path, joints):
    write_skeleton_store(tmp_path / "flat", KEYS, joints, META)
    assert convert_skeletons(tmp_path / "flat", tmp_path / "a.h5") == Conversion(len(KEYS), 4)
    assert convert_skeletons(tmp_path / "a.h5", tmp_path / "again") == Conversion(len(KEYS), 4)
    assert contents(tmp_path / "again") == contents(tmp_path / "flat")


def test_the_authors_program_can_read_it(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.HDF5", KEYS, joints, META)
    with h5py.File(tmp_path / "a.HDF5") as file:
        for key, values in zip(KEYS, joints, strict=True):
            assert file[key].shape == (17, 3)
            np.testing.assert_array_equal(bits(file[key][()]), bits(values))
        found = []
        file.visititems(
            lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
        )
        assert sorted(found) == sorted(KEYS), "and nothing else is in it"


def test_missing_frames_stay_missing(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    convert_skeletons(tmp_path / "a.h5", tmp_path / "flat")
    read = [SkeletonStore.open(tmp_path / name).read(KEYS) for name in ("a.h5", "flat")]
    for values, present in read:
        assert np.flatnonzero(~present).tolist() == [3, 4, 7, 9]
        np.testing.assert_array_equal(bits(values[present]), bits(joints[present]))
        assert not values[~present].any()


def test_keys_are_in_the_order_of_the_rows(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    assert Hdf5Store(tmp_path / "a.h5").keys() == KEYS
    with h5py.File(tmp_path / "a.h5", "r+") as file:  # as somebody may who mends a file
        file["0000/ir/D1/1"] = np.zeros((17, 3))
        file["0009/ir/D1/1"] = np.zeros((17, 3))
        del file[KEYS[2]]
    kept = [key for key in KEYS if key != KEYS[2]]
    store = Hdf5Store(tmp_path / "a.h5")
    assert store.keys() == [*kept, "0000/ir/D1/1", "0009/ir/D1/1"]
    assert len(store) == len(KEYS) + 1


def test_a_file_of_the_authors(tmp_path, joints):
    """No attributes, float64, names sorted by HDF5, a group without anything in it."""
    exact = joints.astype(np.float64) + 1e-9
    exact[8, 0, 0] = 1e300  # beyond float32
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, values in zip(KEYS, exact, strict=True):
            file[key] = values
        file.create_group("0003/ir")
    assert convert_skeletons(tmp_path / "a.h5", tmp_path / "flat") == Conversion(len(KEYS), 5)
    flat = FlatStore(str(tmp_path / "flat"))
    assert flat.keys() == sorted(KEYS)
    assert flat.meta == {}
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(flat.raw(KEYS), exact.astype(np.float32))
    hdf5 = Hdf5Store(tmp_path / "a.h5")
    np.testing.assert_array_equal(hdf5.read(KEYS)[0], flat.read(KEYS)[0])
    np.testing.assert_array_equal(hdf5.read(KEYS)[1], flat.read(KEYS)[1])


def test_meta(tmp_path, joints):
    path = tmp_path / "a.h5"
    write_hdf5_store(path, KEYS, joints, META)
    assert Hdf5Store(path).meta == META
    with h5py.File(path, "r+") as file:
        file.attrs["by"] = np.bytes_(b"somebody")
        file.attrs["size"] = np.array([256, 192])
        file.attrs["share"] = np.float32(0.5)
    others = {"by": "somebody", "size": [256, 192], "share": 0.5}
    assert Hdf5Store(path).meta == {**META, **others}
    convert_skeletons(path, tmp_path / "flat")
    assert SkeletonStore.open(tmp_path / "flat").meta == {**META, **others}
    with h5py.File(path, "r+") as file:
        file.attrs["meta"] = "no JSON"
    assert Hdf5Store(path).meta == {"meta": "no JSON", **others}
    many = {"missing": {f"0001/ir/D4/{frame}": "truncated" for frame in range(10_000)}}
    write_hdf5_store(path, KEYS, joints, many)  # other attributes end at 64 kB
    assert Hdf5Store(path).meta == many


@pytest.mark.parametrize("name", ["a.h5", "flat"])
def test_an_older_store_is_replaced_and_nothing_else(tmp_path, joints, name):
    other = "flat" if name == "a.h5" else "a.h5"
    for path, write in (("flat", write_skeleton_store), ("a.h5", write_hdf5_store)):
        write(tmp_path / path, KEYS[:2], joints[:2], {"old": path})
    convert_skeletons(tmp_path / other, tmp_path / name)
    assert SkeletonStore.open(tmp_path / name).meta == {"old": other}


def test_what_is_no_store_is_not_overwritten(tmp_path, joints):
    write_skeleton_store(tmp_path / "flat", KEYS, joints)
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    (tmp_path / "text.h5").write_text("mine")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["weights"] = np.zeros((3, 4))
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for target in ("text.h5", "weights.h5", "folder.h5"):
        with pytest.raises(UserError, match="something else"):
            convert_skeletons(tmp_path / "flat", tmp_path / target)
    with pytest.raises(UserError, match="something else"):
        convert_skeletons(tmp_path / "a.h5", tmp_path / "folder")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_both_of_one_form(tmp_path, joints):
    write_skeleton_store(tmp_path / "flat", KEYS, joints)
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    with pytest.raises(UserError, match="are both an HDF5 file"):
        convert_skeletons(tmp_path / "a.h5", tmp_path / "b.hdf5")
    with pytest.raises(UserError, match="are both a folder"):
        convert_skeletons(tmp_path / "flat", tmp_path / "flat")
    with pytest.raises(UserError, match=r"ends in \.h5 or \.hdf5"):
        write_hdf5_store(tmp_path / "b", KEYS, joints)
    with pytest.raises(UserError, match="does not exist"):
        convert_skeletons(tmp_path / "none", tmp_path / "b.h5")


@pytest.mark.parametrize("to", ["b.h5", "deep/flat"])
def test_whole_or_not_at_all(tmp_path, joints, monkeypatch, to):
    write_skeleton_store(tmp_path / "flat", KEYS, joints)
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    source = tmp_path / ("flat" if to.endswith(".h5") else "a.h5")
    real, calls = type(SkeletonStore.open(source)).raw, []

    def raw(self, keys):
        calls.append(keys)
        if len(calls) == 3:
            raise OSError("disk")
        return real(self, keys)

    monkeypatch.setattr(type(SkeletonStore.open(source)), "raw", raw)
    with pytest.raises(UserError, match=r"cannot be written, .*: disk"):
        convert_skeletons(source, tmp_path / to)
    assert [len(keys) for keys in calls] == [3, 3, 3], "block by block"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "a.h5",
        "index.json",
        "skeletons.npy",
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "a/b"], "'a' is the folder"),
        (["a/b/c/d", "a/b"], "'a/b' is the folder"),
        (["a//b"], "cannot be a name"),
        (["/a"], "cannot be a name"),
        (["a/./b"], "cannot be a name"),
        (["a/\udcff"], "cannot be a name"),
        ([""], "cannot be a name"),
        (["a", "a"], "twice"),
        ([], "no skeletons"),
    ],
)
def test_keys_that_hdf5_cannot_tell_apart(tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        write_hdf5_store(tmp_path / "a.h5", keys, np.zeros((len(keys), 17, 3)))
    assert not list(tmp_path.iterdir())


def test_a_target_that_cannot_be_written(tmp_path, joints):
    write_skeleton_store(tmp_path / "flat", KEYS, joints)
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    (tmp_path / "file").touch()
    for source, target in (("flat", "file/a.h5"), ("a.h5", "file/flat")):
        with pytest.raises(
            UserError, match=rf"{target} cannot be written, .*: (Not a directory|File exists)$"
        ):
            convert_skeletons(tmp_path / source, tmp_path / target)


def test_a_dataset_of_another_shape_ends_it(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["0009/ir/D1/1"] = np.zeros((13, 3))
    with pytest.raises(UserError, match=r"0009/ir/D1/1 has the shape \(13, 3\)"):
        convert_skeletons(tmp_path / "a.h5", tmp_path / "flat")
    assert not (tmp_path / "flat").exists()


# --- files of somebody else's ------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """A sound file that nobody has named."""
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["secret"] = np.ones((17, 3))
        file["0002/ir/D1/2"] = np.ones((17, 3))
    return tmp_path / "outside.h5"


@pytest.mark.parametrize("kind", ["external", "soft"])
@pytest.mark.parametrize("place", ["0001/ir/D1/2", "0002"])
def test_links_are_not_followed(tmp_path, outside, kind, place):
    target = "/0001/ir/D1/1" if place.count("/") else "/0001"
    link = h5py.SoftLink(target)
    if kind == "external":
        link = h5py.ExternalLink(str(outside), "/secret" if place.count("/") else "/0002")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0001/ir/D1/1"] = np.zeros((17, 3))
        file[place] = link
    store = Hdf5Store(tmp_path / "a.h5")
    asked = [key for key in ("0001/ir/D1/2", "0002/ir/D1/2") if key.startswith(place)]
    for read in (store.read, store.raw, lambda keys: keys[0] in store):
        with pytest.raises(
            UserError, match=rf"a\.h5: {place} is a link, perhaps to another file: none is followed"
        ):
            read(asked)
    assert store.read(["0001/ir/D1/1"])[1].tolist() == [True]
    assert store.keys() == ["0001/ir/D1/1"]
    convert_skeletons(tmp_path / "a.h5", tmp_path / "flat")
    assert SkeletonStore.open(tmp_path / "flat").keys() == ["0001/ir/D1/1"]


def test_a_file_of_nothing_but_links(tmp_path, outside):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0002"] = h5py.ExternalLink(str(outside), "/0002")
    with pytest.raises(UserError, match=r"a\.h5 holds no dataset"):
        Hdf5Store(tmp_path / "a.h5")


def test_groups_in_a_circle(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b"] = file.create_group("a")
    with pytest.raises(UserError, match="holds no dataset"):
        Hdf5Store(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["a/1"] = np.zeros((17, 3))
    store = Hdf5Store(tmp_path / "a.h5")
    assert store.keys() == ["a/1"]
    assert store.read(["a/1", "a/b/b/1"])[1].tolist() == [True, True]  # another name for it


def test_values_in_another_file_are_not_read(tmp_path):
    (tmp_path / "numbers").write_bytes(np.ones((17, 3)).tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/1"] = np.zeros((17, 3))
        file.create_dataset("a/2", (17, 3), "f8", external=[(str(tmp_path / "numbers"), 0, 408)])
        layout = h5py.VirtualLayout((17, 3), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (17, 3))
        file.create_virtual_dataset("a/3", layout)
    store = Hdf5Store(tmp_path / "a.h5")
    for key in ("a/2", "a/3"):
        with pytest.raises(
            UserError, match=rf"the values of {key} lie in another file, which is not read"
        ):
            store.read([key])


def test_groups_in_place_of_frames(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0001/ir/D1/1/x"] = np.zeros((17, 3))
    store = Hdf5Store(tmp_path / "a.h5")
    keys = [
        "0001/ir/D1/1",
        "0001",
        "",
        "/",
        ".",
        "0001/ir/D1/1/x/y",
        "0001/../0001/ir/D1/1/x",
        "0001/ir/D1/1/x\0",
        "\ud800",
    ]
    assert not store.read(keys)[1].any()
    assert not any(key in store for key in keys)
    assert "0001/ir/D1/1/x" in store


@pytest.mark.parametrize(
    ("dtype", "exact"),
    [
        ("f8", True),
        ("f2", True),
        (">f4", True),
        (">f8", True),
        ("i4", True),
        ("u1", True),
        ("g", True),
    ],
)
def test_numbers_of_any_type(tmp_path, dtype, exact):
    values = np.arange(51).reshape(17, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = values.astype(dtype)
    read, present = Hdf5Store(tmp_path / "a.h5").read(["a"])
    assert read.dtype == np.float32
    assert present.all()
    np.testing.assert_array_equal(read[0], values)


def test_what_is_no_number_and_blocks_of_gigabytes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0"] = np.zeros((17, 3))
        file["complex"] = np.zeros((17, 3), np.complex64)
        file["pair"] = np.zeros((17, 3), [("x", "f4"), ("y", "f4")])
        file.create_dataset("text", (17, 3), h5py.string_dtype())
        file.create_dataset(
            "block",
            (17, 3),
            "f4",
            chunks=(1 << 14, 1 << 12),
            maxshape=(None, None),
            compression="gzip",
        )
    store = Hdf5Store(tmp_path / "a.h5")
    for key in ("complex", "pair", "text"):
        with pytest.raises(UserError, match=rf"a\.h5: {key} holds .*, expected numbers"):
            store.read([key])
    with pytest.raises(UserError, match=r"block is stored in blocks of \(16384, 4096\) values"):
        store.read(["block"])


def test_cut_off_at_any_place(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    whole = (tmp_path / "a.h5").read_bytes()
    for length in [0, 7, *range(8, len(whole), 499), len(whole) - 1]:
        (tmp_path / "a.h5").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.h5 is not a readable HDF5 file: ") as error:
            Hdf5Store(tmp_path / "a.h5")
        assert len(str(error.value).splitlines()) == 1


def test_damage_that_is_met_later_names_the_frame(tmp_path, joints, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key in ("a", "b"):
            file.create_dataset(key, data=np.ones((17, 3)), chunks=(17, 3), fletcher32=True)
        place = file["b"].id.get_chunk_info(0).byte_offset
    with open(tmp_path / "a.h5", "r+b") as file:
        file.seek(place + 5)
        file.write(b"\xff\xff")
    store = Hdf5Store(tmp_path / "a.h5")
    assert store.read(["a"])[1].all()
    for read in (store.read, store.raw):
        with pytest.raises(
            UserError, match=r"a\.h5: b cannot be read \(.*\): the file is damaged, or its disk"
        ) as error:
            read(["a", "b"])
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="b cannot be read"):
        convert_skeletons(tmp_path / "a.h5", tmp_path / "flat")
    assert not (tmp_path / "flat").exists()


def test_an_order_that_is_no_number(tmp_path, joints):
    write_hdf5_store(tmp_path / "a.h5", KEYS, joints)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file[KEYS[0]].attrs["flat_row"] = "first"
    with pytest.raises(UserError, match=r"a\.h5: the order of its frames cannot be read"):
        Hdf5Store(tmp_path / "a.h5").keys()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file[KEYS[0]].attrs["flat_row"] = np.arange(10_000 // 2)
    with pytest.raises(UserError, match=r"a\.h5: the order of its frames cannot be read"):
        Hdf5Store(tmp_path / "a.h5").keys()


def test_names_that_are_no_text(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(b"a\xff", data=np.ones((17, 3)))
    store = Hdf5Store(tmp_path / "a.h5")
    assert store.keys() == ["a\udcff"]
    assert store.read(["a\udcff", "a\ufffd"])[1].tolist() == [True, False]


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert_skeletons.py", *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_the_tool(tmp_path, joints, monkeypatch, capsys):
    write_skeleton_store(tmp_path / "flat", KEYS, joints, META)
    run_tool(monkeypatch, tmp_path / "flat", tmp_path / "a.h5")
    assert capsys.readouterr().out == (
        "16 frames converted, 4 of them without a skeleton (values that are not finite, or beyond a million); "
        f"written to {os.path.abspath(tmp_path / 'a.h5')}\n"
    )
    run_tool(monkeypatch, tmp_path / "a.h5", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "flat")
    assert "converting: 100%" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run_tool(monkeypatch, tmp_path / "flat", tmp_path / "again")
    assert ended.value.code == 2
    assert "both a folder" in capsys.readouterr().err
