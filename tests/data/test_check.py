import os
import signal
from dataclasses import replace
from pathlib import Path

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
from fastreid_star.data.check_frames import COUNTS_STEP, Kind, percentiles
from fastreid_star.data.datasets import ListedTracklet, VideoDataset
from fastreid_star.data.datasets.base import count_subsets
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.errors import UserError
from fastreid_star.report.dataset import findings
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


def test_existence_only(folder, dataset):
    damage(folder)
    check = check_dataset(dataset, store_of(folder, all_keys(dataset)), decode=False)
    assert [name for *_, name in found(check)] == ["1/ir/1.png", "1/ir/2.png"]
    assert not check.decoded
    assert not check.sizes
    assert check.of_modality(Modality.INFRARED).measured == 0
    assert check.of_modality(Modality.INFRARED).coverage == 1


def test_the_range_of_frames_of_16_bits(folder, dataset):
    """Two tracklets with the counts 1000 to 2999 and 2000 to 3999: percentiles to COUNTS_STEP by hand."""
    assert not check_dataset(dataset).counts16
    for modality, lowest in (("ir", 1000), ("rgb", 2000)):
        counts = np.arange(lowest, lowest + 2000, dtype=np.uint16).reshape(50, 40)
        for frame in range(FRAMES):
            Image.fromarray(counts).save(folder / "images" / "1" / modality / f"{frame}.png")
    check = check_dataset(dataset)
    assert check.good
    assert sum(check.counts16.values()) == 2 * FRAMES * 2000
    found = percentiles(check.counts16, (0.01, 0.5, 0.99))
    np.testing.assert_allclose(found, [1040, 2500, 3960], atol=COUNTS_STEP)
    (note,) = (finding.text for finding in findings(check))
    assert "INPUT.RANGE_16BIT" in note
    assert f"from {found[0]} to {found[2]}" in note


@pytest.mark.parametrize("every", [3, 7, 10, 40, 99])
def test_every_kth_frame(folder, dataset, every):
    looked_at = set(all_keys(dataset)[::every])
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(b"")
    check = check_dataset(dataset, every=every)
    assert check.checked == len(looked_at)
    assert {name.removesuffix(".png") for *_, name in found(check)} == looked_at


def test_a_modality_whose_joints_are_in_another_order(folder, dataset):
    joints = skeletons(40)
    for start in (0, 20):
        joints[start : start + 10] = joints[start : start + 10, ::-1]
    check = check_dataset(dataset, store_of(folder, all_keys(dataset), joints), decode=False)
    assert check.problems == []
    assert check.disordered == [Modality.INFRARED]
    assert not check.good


def test_several_workers_find_the_same(folder, dataset, monkeypatch):
    damage(folder)
    monkeypatch.setattr("fastreid_star.data.check_frames.BATCH", 1)
    store = store_of(folder, all_keys(dataset)[3:-2])
    one = check_dataset(dataset, store)
    assert found(one)[:5] == [
        (Kind.MISSING_FRAME, "train infrared", "1/ir/1.png"),
        *((Kind.BROKEN_FRAME, "train infrared", f"1/ir/{n}.png") for n in range(2, 6)),
    ]
    assert len(one.problems) == 5 + 3 + 2
    assert check_dataset(dataset, store, workers=2) == one


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
    assert [counts.frames for counts in check.counts] == [20, 20, 40] + [10, 10, 20] * 2
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
    assert not DatasetCheck("A", "a", [counts, replace(counts, published={})], 5, 1000).good
    assert DatasetCheck("A", "a", [replace(counts, published={})], 5, 1000).good


def test_identities_of_both_sets_are_named(folder, dataset):
    assert check_dataset(dataset).list_problems == []
    train = [*dataset.train, *(replace(t, pid=2) for t in dataset.train[:2])]
    other = VideoDataset(train, dataset.query, dataset.gallery, folder=str(folder))
    (line,) = check_dataset(other).list_problems
    assert "1 of 1 test identities are in the training set too, such as 2" in line
    assert not check_dataset(other).good


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


def test_evaluation_lists():
    rows = [(1, 1, INFRARED), (1, 2, VISIBLE), (2, 1, INFRARED), (2, 1, VISIBLE)]
    assert evaluation_problems(listed(*rows), camera_filter=True) == []
    same = listed(*((pid, 1, modality) for pid, _, modality in rows))  # one camera for all
    found = evaluation_problems(same, camera_filter=True)
    assert len(found) == 2, "one for each direction"
    assert all("CAMERA_FILTER False" in line for line in found)
    assert evaluation_problems(same, camera_filter=False) == []
    found = evaluation_problems(listed(rows[0], (3, 1, VISIBLE)), camera_filter=False)
    assert len(found) == 2
    assert all("no identity in common" in line for line in found)


def test_evaluation_lists_with_queries_of_their_own():
    """The infrared query has its match at its own camera only, the visible query has none."""
    query = listed((1, 1, INFRARED), (2, 1, VISIBLE), role="query")
    gallery = listed((1, 1, VISIBLE), (1, 1, INFRARED), role="gallery")
    (line,) = evaluation_problems([*query, *gallery], camera_filter=False)
    assert "visible queries" in line
    assert len(evaluation_problems([*query, *gallery], camera_filter=True)) == 2


def test_identities_of_both_lists_are_told():
    one, two, three = ((pid, 1, VISIBLE) for pid in (1, 2, 3))
    assert shared_identities(listed(one, two), listed(three)) == []
    (line,) = shared_identities(listed(one, two), listed(two, three))
    assert "1 of 2 test identities are in the training set too, such as 2" in line
