import os
import signal
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from fastreid_star.data.check import (
    DatasetCheck,
    SubsetCounts,
    check_dataset,
    evaluation_problems,
    open_dataset,
    shared_identities,
    splits,
    training_problems,
)
from fastreid_star.data.check_frames import Kind, Problem
from fastreid_star.data.datasets import ListedTracklet, VideoDataset
from fastreid_star.data.datasets.base import count_subsets
from fastreid_star.data.skeleton_stats import SkeletonStats
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

FRAMES = 10  # of a tracklet
SIZE = (32, 16)


@pytest.fixture
def folder(tmp_path):
    """Four tracklets of ten frames: two for training, one of each modality for the test."""
    for pid in (1, 2):
        for modality in ("ir", "rgb"):
            place = tmp_path / "images" / str(pid) / modality
            place.mkdir(parents=True)
            for frame in range(FRAMES):
                Image.new("RGB", SIZE[::-1], (20 * frame, 100, 0)).save(place / f"{frame}.png")
    return tmp_path


@pytest.fixture
def dataset(folder):
    def tracklet(pid, modality):
        frames = tuple(f"{pid}/{modality.folder}/{frame}.png" for frame in range(FRAMES))
        return Tracklet(pid, 3 + modality, modality, str(folder / "images"), frames)

    infrared, visible = Modality
    train = [tracklet(1, infrared), tracklet(1, visible)]
    train += [replace(t, pid=3) for t in train]  # training needs two identities; the same frames
    return VideoDataset(train, [tracklet(2, infrared)], [tracklet(2, visible)], folder=str(folder))


def all_keys(dataset):
    tracklets = (*dataset.train[:2], *dataset.query, *dataset.gallery)
    return [t.key(i) for t in tracklets for i in range(len(t))]


def skeletons(count):
    y = np.linspace(2, 30, 17)
    one = np.stack([8 + 3 * np.sin(y), y, np.full(17, 0.8)], axis=1)
    return np.tile(one, (count, 1, 1)).astype(np.float32)


def store_of(folder, keys, joints=None):
    write_skeleton_store(
        folder / "skeletons", keys, skeletons(len(keys)) if joints is None else joints
    )
    return SkeletonStore.open(folder / "skeletons")


def found(check):
    return [(problem.kind, problem.subset, problem.name) for problem in check.problems]


def test_a_sound_dataset(folder, dataset):
    store = store_of(folder, all_keys(dataset))
    check = check_dataset(dataset, store)
    assert check.good
    assert check.problems == []
    assert (check.tracklets, check.frames, check.checked, check.stored) == (4, 40, 40, 40)
    assert check.sizes == {SIZE: 40}
    assert list(check.skeletons) == [(Modality.INFRARED, 4), (Modality.VISIBLE, 5)]
    assert [(stats.frames, stats.found, stats.measured) for stats in check.skeletons.values()] == [
        (20, 20, 20)
    ] * 2
    assert check.of_modality(Modality.INFRARED).coverage == 1


def damage(folder):
    """Frames 1 to 5 of the first tracklet are missing, empty, truncated, text and a folder."""
    place = folder / "images" / "1" / "ir"
    (place / "1.png").unlink()
    (place / "2.png").write_bytes(b"")
    (place / "3.png").write_bytes((place / "3.png").read_bytes()[:-30])
    (place / "4.png").write_text("not an image, though not empty")
    (place / "5.png").unlink()
    (place / "5.png").mkdir()
    return [Kind.MISSING_FRAME, *[Kind.BROKEN_FRAME] * 4]


def test_frames_that_are_missing_or_broken(folder, dataset):
    kinds = damage(folder)
    check = check_dataset(dataset)
    assert found(check) == [
        (kind, "train infrared", f"1/ir/{frame}.png") for frame, kind in enumerate(kinds, start=1)
    ]
    assert check.problems[0].path == str(folder / "images/1/ir/1.png")
    reasons = [problem.reason for problem in check.problems]
    assert reasons[:2] == ["the file does not exist", "the file is empty"]
    assert all(reasons)
    assert not any(str(folder) in reason for reason in reasons[:3]), "the path is shown before"
    assert check.sizes == {SIZE: 35}
    assert not check.good


def test_existence_only(folder, dataset):
    damage(folder)
    check = check_dataset(dataset, store_of(folder, all_keys(dataset)), decode=False)
    assert [name for *_, name in found(check)] == ["1/ir/1.png", "1/ir/2.png"]
    assert not check.decoded
    assert not check.sizes
    assert check.of_modality(Modality.INFRARED).measured == 0
    assert check.of_modality(Modality.INFRARED).coverage == 1


@pytest.mark.parametrize("every", [3, 7, 10, 40, 99])
def test_every_kth_frame(folder, dataset, every):
    looked_at = set(all_keys(dataset)[::every])
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(b"")
    check = check_dataset(dataset, every=every)
    assert check.checked == len(looked_at)
    assert {name.removesuffix(".png") for *_, name in found(check)} == looked_at


def test_skeletons_that_are_missing_not_finite_or_elsewhere(folder, dataset):
    keys = all_keys(dataset)
    joints = skeletons(len(keys))
    joints[12, 3, 1] = np.nan
    joints[25] = joints[25][:, [1, 0, 2]]  # swapped
    joints[31, :, :2] += 300
    kept = np.delete(np.arange(40), 5)
    store = store_of(
        folder, [keys[row] for row in kept] + ["9/ir/0"], np.concatenate([joints[kept], joints[:1]])
    )
    check = check_dataset(dataset, store)
    assert found(check) == [
        (Kind.NO_SKELETON, "train infrared", "1/ir/5"),
        (Kind.NOT_FINITE, "train visible", "1/rgb/2"),
        (Kind.MISPLACED, "test infrared", "2/ir/5"),
        (Kind.MISPLACED, "test visible", "2/rgb/1"),
        (Kind.ORPHAN, "", "9/ir/0"),
    ]
    assert "swapped" in check.problems[2].reason
    assert "camera's picture" in check.problems[3].reason
    infrared, visible = check.skeletons.values()
    assert (infrared.found, infrared.misplaced, visible.found, visible.misplaced) == (19, 1, 19, 1)
    assert not check.good


def test_a_skeleton_of_a_file_in_no_tracklet_is_worth_a_note(folder, dataset):
    (folder / "images/1/ir/99.png").write_bytes(b"an image")
    check = check_dataset(dataset, store_of(folder, [*all_keys(dataset), "1/ir/99"]))
    assert found(check) == [(Kind.SPARE, "", "1/ir/99")]
    assert check.good


def test_hdf5_with_a_skeleton_of_a_wrong_shape(folder, dataset):
    with h5py.File(folder / "a.h5", "w") as file:
        for key, joints in zip(all_keys(dataset), skeletons(40), strict=True):
            file[key] = joints if key != "2/ir/4" else joints[:13]
    check = check_dataset(dataset, SkeletonStore.open(folder / "a.h5"))
    assert found(check) == [(Kind.MISSHAPEN, "test infrared", "2/ir/4")]
    assert "(13, 3)" in check.problems[0].reason
    assert check.of_modality(Modality.INFRARED).found == 19


def test_a_modality_whose_skeletons_lie(folder, dataset):
    """Swapped in a frame so wide that no joint leaves it."""
    for path in (folder / "images").rglob("ir/*.png"):
        Image.new("RGB", (40, 40)).save(path)
    joints = skeletons(40)
    for start in (0, 20):
        joints[start : start + 10] = joints[start : start + 10][..., [1, 0, 2]]
    check = check_dataset(dataset, store_of(folder, all_keys(dataset), joints))
    assert check.problems == []
    assert check.lying == [Modality.INFRARED]
    assert check.disordered == [], "said once"
    assert not check.good


def test_a_modality_whose_joints_are_in_another_order(folder, dataset):
    joints = skeletons(40)
    for start in (0, 20):
        joints[start : start + 10] = joints[start : start + 10, ::-1]
    check = check_dataset(dataset, store_of(folder, all_keys(dataset), joints), decode=False)
    assert check.problems == []
    assert check.disordered == [Modality.INFRARED]
    assert not check.good


def without_arrays(check):
    return replace(check, skeletons={key: str(stats) for key, stats in check.skeletons.items()})


def test_several_workers_find_the_same(folder, dataset, monkeypatch):
    damage(folder)
    monkeypatch.setattr("fastreid_star.data.check_frames.BATCH", 1)
    store = store_of(folder, all_keys(dataset)[3:-2])
    one = check_dataset(dataset, store)
    assert len(one.problems) == 3 + 5 + 2
    assert without_arrays(check_dataset(dataset, store, workers=2)) == without_arrays(one)


class Deadly(SkeletonStore):
    """A store that kills the process that reads it."""

    def read(self, keys):
        os.kill(os.getpid(), signal.SIGKILL)

    raw = keys = __contains__ = None


def test_a_worker_that_dies(dataset):
    with pytest.raises(UserError, match=r"worker was killed.*fewer --workers"):
        check_dataset(dataset, Deadly("nowhere"), workers=2)


def test_a_query_that_is_in_the_gallery_too_is_read_once(folder, dataset):
    infrared, visible = dataset.query[0], dataset.gallery[0]
    mixed = VideoDataset(
        list(dataset.train), [infrared, visible], [visible, infrared], folder=str(folder)
    )
    check = check_dataset(mixed)
    assert (check.tracklets, check.checked) == (4, 40)
    assert list(splits(mixed)) == ["train", "query", "gallery"]
    assert [counts.frames for counts in check.counts] == [20, 20, 40, *[10, 10, 20] * 2]
    assert list(splits(dataset)) == ["train", "test"]


# --- counts ---


def test_counts(make_vcm):
    root = make_vcm(images=False, lengths=(12, 13, 5))
    counts = {c.name: c for c in count_subsets(splits(open_dataset("HITSZVCM", str(root))))}
    assert list(counts) == [
        "train infrared",
        "train visible",
        "train",
        "test infrared",
        "test visible",
        "test",
    ]
    assert counts["train visible"] == SubsetCounts("train visible", 9, 90, 3, 6, 3)
    assert counts["test infrared"] == SubsetCounts("test infrared", 6, 60, 2, 4, 3)
    assert counts["test"] == SubsetCounts("test", 12, 120, 2, 8, 3)


def test_differences():
    counts = SubsetCounts(
        "train", 5, 1000, 3, 4, 6, {"tracklets": 5, "frames": 1200, "long": 5, "cameras": 6}
    )
    assert counts.differences == [
        "frames 1,000 instead of 1,200",
        "tracklets of at least 12 frames 4 instead of 5",
    ]
    check = DatasetCheck("A", "a", [counts, replace(counts, published={})], 5, 1000)
    assert check.differences == [f"train {text}" for text in counts.differences]
    assert not check.good
    assert DatasetCheck("A", "a", [replace(counts, published={})], 5, 1000).good


def test_which_problems_are_faults():
    for kind in Kind:
        check = DatasetCheck("A", "a", [], 0, 0, problems=[Problem(kind, "", "a", "", "")])
        assert check.good == (kind is Kind.SPARE)
    assert DatasetCheck("A", "a", [], 0, 0, skeletons={(Modality.VISIBLE, 1): SkeletonStats()}).good


def test_open_dataset(make_vcm, tmp_path, monkeypatch):
    root = make_vcm(images=False, lengths=(12, 1))
    assert len(open_dataset("HITSZVCM", str(root)).train) == 12, (
        "short tracklets too, and no frame is there"
    )
    monkeypatch.setattr("fastreid.data.build._root", str(root))
    assert len(open_dataset("HITSZVCM").train) == 12
    with pytest.raises(UserError, match="no SyntheticVCM in"):
        open_dataset("SyntheticVCM", str(root))
    assert not (Path(root) / "SyntheticVCM").exists(), "nothing is drawn unasked"
    with pytest.raises(UserError, match="Market1501 is a dataset of images"):
        open_dataset("Market1501", str(root))
    with pytest.raises(UserError, match="did you mean HITSZVCM"):
        open_dataset("HITSZ-VCM", str(root))


# --- the lists ---

INFRARED, VISIBLE = Modality


def listed(*rows, role=None):
    """Tracklets of (pid, camera, modality)."""
    frames = ("a.jpg",)
    if role:
        return [ListedTracklet(pid, c, m, "", frames, role) for pid, c, m in rows]
    return [Tracklet(pid, c, m, "", frames) for pid, c, m in rows]


def test_training_lists():
    both = [(1, 1, INFRARED), (1, 2, VISIBLE), (2, 1, INFRARED), (2, 1, VISIBLE)]
    assert training_problems(listed(*both)) == []
    (problem,) = training_problems(listed(*both[:2]))
    assert "has 1" in problem
    (problem,) = training_problems(listed(*both, (3, 1, VISIBLE)))
    assert "1 training identities have tracklets in one modality only, such as 3" in problem
    (problem,) = training_problems(listed((1, 1, INFRARED), (2, 1, VISIBLE)))
    assert "has 0" in problem


def test_identities_of_both_lists_are_told():
    train, test = listed((1, 1, INFRARED), (2, 1, VISIBLE)), listed((3, 1, INFRARED))
    assert shared_identities(train, test) == []
    (line,) = shared_identities(train, listed((2, 1, VISIBLE), (3, 1, VISIBLE)))
    assert "1 of 2 test identities are in the training set too, such as 2" in line


def test_evaluation_lists():
    rows = [(1, 1, INFRARED), (1, 2, VISIBLE), (2, 1, INFRARED), (2, 1, VISIBLE)]
    assert evaluation_problems(listed(*rows)) == []
    # one camera for all
    same = [(pid, 1, modality) for pid, _, modality in rows]
    assert len(evaluation_problems(listed(*same))) == 2, "one for each direction"
    assert all("CAMERA_FILTER False" in line for line in evaluation_problems(listed(*same)))
    assert evaluation_problems(listed(*same), camera_filter=False) == []
    # no identity in both modalities
    (line, other) = evaluation_problems(listed(rows[0], (3, 1, VISIBLE)))
    assert "no identity in common" in line
    assert "no identity in common" in other


def test_evaluation_lists_with_queries_of_their_own():
    """The infrared query has its match at its own camera only, the visible query has none."""
    query = listed((1, 1, INFRARED), (2, 1, VISIBLE), role="query")
    gallery = listed((1, 1, VISIBLE), (1, 1, INFRARED), role="gallery")
    (line,) = evaluation_problems([*query, *gallery])
    assert "visible queries" in line
    assert len(evaluation_problems([*query, *gallery], camera_filter=True)) == 2


def test_check_names_problems_of_the_lists(folder, dataset):
    tracklets = [replace(t, camid=1) for t in [*dataset.query, *dataset.gallery]]
    other = VideoDataset(dataset.train, tracklets[:1], tracklets[1:], folder=str(folder))
    check = check_dataset(other)
    assert len(check.list_problems) == 2
    assert not check.good
