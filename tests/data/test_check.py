import os
from collections import Counter
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
    count_subsets,
    open_dataset,
    published_counts,
    splits,
)
from fastreid_star.data.check_frames import Kind, Problem
from fastreid_star.data.datasets import HITSZVCM, SyntheticVCM, VideoDataset
from fastreid_star.data.datasets.synthetic import write_info_files_at_true_size
from fastreid_star.data.skeleton_stats import SkeletonStats
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

FRAMES = 10  # of a tracklet
SIZE = (32, 16)


@pytest.fixture
def folder(tmp_path):
    """Four tracklets of ten frames: two to train on, one of each modality to test."""
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
    return VideoDataset(train, [tracklet(2, infrared)], [tracklet(2, visible)], folder=str(folder))


def all_keys(dataset):
    return [
        t.key(i) for t in (*dataset.train, *dataset.query, *dataset.gallery) for i in range(len(t))
    ]


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


def test_without_skeletons(dataset):
    check = check_dataset(dataset)
    assert check.good
    assert check.store == ""
    assert check.skeletons == {}


def damage(folder):
    """Missing, empty, truncated, no image, a folder instead of a file: frames 1 to 5 of the first tracklet."""
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
    assert reasons[:2] == ["there is no such file", "the file is empty"]
    assert all(reasons)
    assert not any(str(folder) in reason for reason in reasons[:3]), "the path is said already"
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


def test_a_missing_folder_is_missing_frames(folder, dataset):
    for path in (folder / "images" / "2" / "rgb").iterdir():
        path.unlink()
    (folder / "images" / "2" / "rgb").rmdir()
    assert Counter(kind for kind, *_ in found(check_dataset(dataset))) == {Kind.MISSING_FRAME: 10}


@pytest.mark.parametrize("every", [3, 7, 10, 40, 99])
def test_every_kth_frame(folder, dataset, every):
    looked_at = set(all_keys(dataset)[::every])
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(b"")
    check = check_dataset(dataset, every=every)
    assert check.checked == len(looked_at)
    assert {name.removesuffix(".png") for *_, name in found(check)} == looked_at


def test_sizes(folder, dataset):
    Image.new("RGB", (40, 80)).save(folder / "images/1/rgb/3.png")
    Image.new("L", (41, 80)).save(folder / "images/2/rgb/3.png")
    assert check_dataset(dataset).sizes == {SIZE: 38, (80, 40): 1, (80, 41): 1}


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
    assert "whole picture" in check.problems[3].reason
    infrared, visible = check.skeletons.values()
    assert (infrared.found, infrared.misplaced, visible.found, visible.misplaced) == (19, 1, 19, 1)
    assert not check.good


def test_a_skeleton_of_a_frame_that_cannot_be_read_is_found_but_not_measured(folder, dataset):
    (folder / "images/1/ir/0.png").write_bytes(b"")
    check = check_dataset(dataset, store_of(folder, all_keys(dataset)))
    assert check.skeletons[Modality.INFRARED, 4].found == 20
    assert check.skeletons[Modality.INFRARED, 4].measured == 19


def test_a_skeleton_of_a_file_in_no_tracklet_is_worth_a_note(folder, dataset):
    (folder / "images/1/ir/99.png").write_bytes(b"an image")
    check = check_dataset(dataset, store_of(folder, [*all_keys(dataset), "1/ir/99"]))
    assert found(check) == [(Kind.SPARE, "", "1/ir/99")]
    assert check.good


def test_orphans_are_looked_for_among_all_frames_even_of_a_sample(folder, dataset):
    check = check_dataset(dataset, store_of(folder, [*all_keys(dataset), "9/ir/0"]), every=9)
    assert found(check) == [(Kind.ORPHAN, "", "9/ir/0")]


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
    monkeypatch.setattr("fastreid_star.data.check_frames.CHUNK", 5)
    store = store_of(
        folder, all_keys(dataset)[3:-2]
    )  # problems in the first tracklet and in the last
    one = check_dataset(dataset, store)
    assert len(one.problems) == 3 + 5 + 2
    assert without_arrays(check_dataset(dataset, store, workers=2)) == without_arrays(one)


class Deadly(SkeletonStore):
    """A store that kills the process that opens it."""

    def __reduce__(self):
        return os._exit, (9,)

    read = raw = keys = __len__ = __contains__ = None


def test_a_worker_that_dies(dataset):
    with pytest.raises(UserError, match="fewer --workers"):
        check_dataset(dataset, Deadly("nowhere"), workers=2)


def test_a_query_that_is_in_the_gallery_too_is_read_once(folder, dataset):
    infrared, visible = dataset.query[0], dataset.gallery[0]
    mixed = VideoDataset(
        list(dataset.train), [infrared, visible], [visible, infrared], folder=str(folder)
    )
    check = check_dataset(mixed)
    assert (check.tracklets, check.checked) == (4, 40)
    assert list(splits(mixed)) == ["train", "query", "gallery"]
    assert [counts.frames for counts in check.counts] == [10, 10, 20] * 3
    assert list(splits(dataset)) == ["train", "test"]


# --- counts ------------------------------------------------------------------------------------------------------


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


def test_the_published_counts(tmp_path):
    """As the dataset's own annotation files have them."""
    write_info_files_at_true_size(tmp_path / "HITSZ-VCM")
    dataset = open_dataset("HITSZVCM", str(tmp_path))
    counts = count_subsets(splits(dataset), published_counts(dataset))
    assert {(c.name, c.tracklets, c.frames, c.identities, c.long) for c in counts} == {
        ("train infrared", 4919, 102096, 500, 4291),
        ("train visible", 6142, 130385, 500, 5460),
        ("train", 11061, 232481, 500, 9751),
        ("test infrared", 5159, 109391, 427, 4584),
        ("test visible", 5643, 121348, 427, 5099),
        ("test", 10802, 230739, 427, 9683),
    }
    assert {c.name: c.cameras for c in counts if "cameras" in c.published} == {
        "train": 6,
        "test": 12,
    }
    assert all(len(c.published) >= 4 and c.differences == [] for c in counts)


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


def test_nothing_is_published_of_other_datasets(dataset):
    assert published_counts(dataset) == {}
    assert published_counts(object.__new__(SyntheticVCM)) == {}
    assert len(published_counts(object.__new__(HITSZVCM))) == 6


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
