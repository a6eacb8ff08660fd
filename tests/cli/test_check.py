"""fastreid-star check: on a sound dataset, and on one with a fault of every kind."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastreid_star.cli.main import main
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm
from fastreid_star.data.skeleton_conversion import convert_skeletons
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store

OPTIONS = SyntheticOptions(train_ids=2, test_ids=2, tracklets=1, frames=12)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_synthetic_vcm(root / "SyntheticVCM", OPTIONS)
    return root


@pytest.fixture
def root(sound, tmp_path):
    """A copy to plant faults in."""
    return Path(shutil.copytree(sound, tmp_path / "datasets"))


@pytest.fixture
def call(capsys):
    """Run the command: its exit status, and what it wrote to either stream."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["check", *map(str, arguments)])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


def problems(folder):
    with open(folder / "problems.csv", encoding="utf-8", newline="") as file:
        return {(row["problem"], row["frame or skeleton"]): row for row in csv.DictReader(file)}


def test_a_sound_dataset(sound, tmp_path, call):
    before = sorted(path.stat().st_mtime_ns for path in sound.rglob("*"))
    status, out, err = call(
        "SyntheticVCM", "--root", sound, "--skeletons", "skeletons", "--output", tmp_path / "out"
    )
    assert status == 0
    assert "96 of 96 frames read" in out
    assert "all is well" in out
    assert "FAULT" not in out
    assert "100%" in err, "a progress bar"
    assert problems(tmp_path / "out") == {}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "check.html",
        "problems.csv",
    }
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    assert page.count("<img") == 6, "three tracklets of each modality"
    assert sorted(path.stat().st_mtime_ns for path in sound.rglob("*")) == before, (
        "nothing in it is touched"
    )


def test_every_planted_fault_is_found_and_named(root, tmp_path, call):
    folder = root / "SyntheticVCM"
    store = SkeletonStore.open(folder / "skeletons")
    keys = store.keys()
    joints = store.raw(keys)
    frames = {
        path.relative_to(folder / split).as_posix()[:-4]: path
        for split in ("Train", "Test")
        for path in (folder / split).rglob("*.jpg")
    }
    truncated, empty, missing = (frames[keys[row]] for row in (3, 17, 40))
    truncated.write_bytes(truncated.read_bytes()[:-200])
    empty.write_bytes(b"")
    missing.unlink()
    joints[60, 4, 0] = np.inf
    joints[70] = joints[70][..., [1, 0, 2]]
    kept = np.delete(np.arange(len(keys)), 50)
    write_skeleton_store(
        folder / "skeletons",
        [*(keys[row] for row in kept), "0009/ir/D1/1"],
        np.concatenate([joints[kept], joints[:1]]),
    )

    status, out, _ = call(
        "SyntheticVCM", "--root", root, "--skeletons", "skeletons", "--output", tmp_path / "out"
    )
    assert status == 1
    found = problems(tmp_path / "out")
    assert set(found) == {
        ("broken frame", str(truncated)),
        ("broken frame", str(empty)),
        ("missing frame", str(missing)),
        ("frame without skeleton", keys[50]),
        ("frame without skeleton", keys[60]),
        ("skeleton of a frame in no tracklet", "0009/ir/D1/1"),
        ("skeleton off its frame", keys[70]),
    }
    assert "truncated" in found["broken frame", str(truncated)]["reason"]
    assert found["broken frame", str(truncated)]["subset"] == "train visible"
    assert "not finite" in found["frame without skeleton", keys[60]]["reason"]
    assert "are x and y swapped?" in found["skeleton off its frame", keys[70]]["reason"]
    report = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    for line in (
        f"missing frame: 1, such as {missing}",
        "broken frame: 2, such as",
        "frame without skeleton: 2, such as",
        "skeleton off its frame: 1",
    ):
        assert f"FAULT  {line}" in out
        assert line in report
    assert "93 good, 1 missing, 2 broken" in out


def test_hdf5_existence_only_and_a_sample(root, tmp_path, call, monkeypatch):
    convert_skeletons(root / "SyntheticVCM" / "skeletons", tmp_path / "skeletons.h5")
    for path in (root / "SyntheticVCM").rglob("*.jpg"):
        path.write_text("no image, but there")
    monkeypatch.chdir(tmp_path)
    arguments = ("SyntheticVCM", "--root", root, "--skeletons", "skeletons.h5")
    status, out, _ = call(*arguments, "--no-decode")
    assert (status, "96 of 96 frames found" in out) == (0, True)
    assert re.search(r"^infrared +48  100.00 % +- +- ", out, re.MULTILINE), "sizes are not known"
    status, out, _ = call(*arguments, "--sample", 10)
    assert (status, "0 good, 0 missing, 10 broken" in out) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datasets", "skeletons.h5"], (
        "no --output, no files"
    )


def test_skeletons_are_those_that_training_takes(root, tmp_path, call, monkeypatch):
    write_skeleton_store(tmp_path / "skeletons", ["9/ir/1"], np.zeros((1, 17, 3)))
    monkeypatch.chdir(tmp_path)
    assert call("SyntheticVCM", "--root", root, "--skeletons", "skeletons")[0] == 0


def test_the_counts_of_hitsz_vcm(root, call):
    (root / "SyntheticVCM").rename(root / "HITSZ-VCM")
    status, out, _ = call("HITSZVCM", "--root", root)
    assert status == 1
    assert re.search(r"^train infrared .* differs$", out, re.MULTILINE)
    assert (
        "FAULT  not as published: test: tracklets 4 instead of 10,802, frames 48 instead of 230,739"
        in out
    )
    assert "96 good, 0 missing, 0 broken" in out
    assert "skeletons: not checked" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("SyntheticVCN",), "did you mean SyntheticVCM?"),
        (("HITSZVCM",), "no HITSZ-VCM in"),
        (("Market1501",), "dataset of images"),
        (("SyntheticVCM", "--skeletons", "nowhere"), "does not exist"),
        (("SyntheticVCM", "--sample", 0), "--sample 0: at least 1"),
        (("SyntheticVCM", "--output", "file/out"), "Not a directory"),
    ],
)
def test_user_errors(sound, tmp_path, call, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    status, out, err = call(*arguments, "--root", sound)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
