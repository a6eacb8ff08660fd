"""What a dataset check shows: tables and findings, the list of problems, and the page."""

import csv
import io
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastreid_star.data.check import DatasetCheck, SubsetCounts
from fastreid_star.data.check_frames import Kind, Problem
from fastreid_star.data.datasets import VideoDataset
from fastreid_star.data.skeleton_stats import SkeletonStats
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.report.dataset import (
    choose_tracklets,
    findings,
    format_check,
    write_dataset_page,
)
from fastreid_star.structures import Modality, Tracklet

from .page import Page

PUBLISHED = {"tracklets": 2, "frames": 48}


def stats(frames, found, outside=0):
    return SkeletonStats(frames, found, found, outside, 0.75 * found, 0.7 * 17 * found)


@pytest.fixture
def check():
    return DatasetCheck(
        "HITSZVCM",
        "/data/HITSZ-VCM",
        [
            SubsetCounts("train infrared", 2, 47, 1, 2, 3, PUBLISHED),
            SubsetCounts("train", 2, 48, 1, 2, 3, PUBLISHED),
        ],
        tracklets=2,
        frames=95,
        checked=95,
        sizes=Counter({(288, 144): 90, (256, 128): 3, (300, 100): 1}),
        store="/data/skeletons",
        stored=96,
        skeletons={
            (Modality.INFRARED, 4): stats(40, 39, 10),
            (Modality.INFRARED, 5): stats(10, 10),
            (Modality.VISIBLE, 1): stats(45, 45),
        },
        problems=[
            Problem(Kind.BROKEN_FRAME, "train infrared", "0001/ir/D4/1.jpg", "/data", 'a "b", c'),
            Problem(Kind.NO_SKELETON, "train infrared", "0001/ir/D4/2", "", "not in the store"),
            Problem(Kind.UNUSED, "", "0009/ir/D4/1", "", "its frame exists"),
            *(
                Problem(Kind.MISPLACED, "train visible", f"0001/rgb/D1/{number}", "", reason)
                for number, reason in enumerate(
                    ("9 of 17: x and y swapped?", "8 of 17: x and y swapped?", "8: other frames?")
                )
            ),
        ],
    )


def lines_of(text, name):
    """The cells after a row's name, with single spaces."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return [" ".join(line[len(name) :].split()) for line in lines]


def test_the_text_for_the_terminal(check):
    text = format_check(check)
    assert lines_of(text, "train infrared") == ["2 47 1 2 3 differs"]
    assert lines_of(text, "train") == ["2 48 1 2 3 ok"]
    assert "frames: 94 good, 0 missing, 1 broken" in text
    assert "height 256 to 300, width 100 to 144; 3 different" in text
    # 10 of 39 * 17 joints are outside
    assert lines_of(text, "infrared camera 4") == ["40 97.50 % 1.50 % 0.75 0.70"]
    assert lines_of(text, "infrared")[0].startswith("50 98.00 % 1.20 %")
    order = [text.index(name) for name in ("infrared camera 5", "visible  ", "visible camera 1")]
    assert order == sorted(order)
    assert "see FAULT" in text
    same = format_check(replace(check, sizes=Counter({(288, 144): 94})))
    assert "1 broken; all 288 x 144 (height x width)\n" in same
    assert "94 found, 0 missing" in format_check(replace(check, sizes=Counter(), decoded=False))


def test_findings(check):
    found = [(finding.is_fault, finding.text) for finding in findings(check)]
    expected = [
        (True, ["not as published", "train infrared: frames 47 instead of 48"]),
        (True, ["broken frame: 1, such as /data/0001/ir/D4/1.jpg", "copy"]),
        (True, ["frame without skeleton: 1, such as 0001/ir/D4/2"]),
        (True, ["skeleton off its frame: 3", "mostly: x and y swapped?"]),
        (False, ["skeleton of a frame in no tracklet: 1", "not used"]),
    ]
    assert [is_fault for is_fault, _ in found] == [is_fault for is_fault, _ in expected]
    for (_, text), (_, words) in zip(found, expected, strict=True):
        assert all(word in text for word in words), text
    check.skeletons[Modality.VISIBLE, 1].disordered = 50
    assert "COCO's order" in findings(check)[-1].text


def test_if_all_are_missing_the_folder_is_doubted(check):
    kinds = (Kind.MISSING_FRAME, Kind.NO_SKELETON)
    check.problems = [Problem(kind, "", str(n), "", "") for kind in kinds for n in range(95)]
    texts = [finding.text for finding in findings(check)]
    assert "right folder" in texts[1]
    assert "other data" in texts[2]
    check.problems = check.problems[1:]
    assert "unpack the images again" in findings(check)[1].text


def test_a_sound_dataset_and_shares_that_are_rounded_down(check):
    counts = [SubsetCounts("train", 2, 48, 1, 2, 3)]
    sound = DatasetCheck("SyntheticVCM", "s", counts, 2, 48, 48)
    text = format_check(sound)
    assert text.endswith("all is well")
    assert "FAULT" not in text
    assert "skeletons: not checked (add --skeletons STORE)" in text
    assert lines_of(text, "train") == ["2 48 1 2 3 -"]
    check.skeletons = {(Modality.VISIBLE, 1): stats(1_000_000, 999_999)}
    assert "99.99 %" in format_check(check), "100 % means all"


@pytest.fixture
def dataset(tmp_path):
    """Four identities, two of them in the test set; three tracklets each, one infrared."""
    parts = {"train": [], "query": [], "gallery": []}
    for pid in range(4):
        for modality, number in (
            (Modality.VISIBLE, 0),
            (Modality.VISIBLE, 1),
            (Modality.INFRARED, 0),
        ):
            place = tmp_path / f"人{pid}" / modality.folder / str(number)
            place.mkdir(parents=True)
            for frame in range(5):
                Image.new("RGB", (16, 32), (60 * pid, 50 * frame, 100 * modality)).save(
                    place / f"{frame}.png"
                )
            frames = tuple(f"人{pid}/{modality.folder}/{number}/{frame}.png" for frame in range(5))
            split = "train" if pid < 2 else "query" if modality is Modality.INFRARED else "gallery"
            parts[split].append(Tracklet(pid, 7, modality, str(tmp_path), frames))
    return VideoDataset(**parts, folder=str(tmp_path))


def test_the_choice_is_of_each_modality_and_of_many_identities(dataset):
    for seed in range(5):
        chosen = choose_tracklets(dataset, each=4, seed=seed)
        assert [t.modality for _, t in chosen] == [Modality.VISIBLE] * 4 + [Modality.INFRARED] * 4
        assert {t.pid for _, t in chosen[:4]} == {t.pid for _, t in chosen[4:]} == set(range(4))
        assert all((split == "train") == (t.pid < 2) for split, t in chosen)
        assert choose_tracklets(dataset, each=4, seed=seed) == chosen
    assert choose_tracklets(dataset, each=2, seed=0) != choose_tracklets(dataset, each=2, seed=1)
    assert len(choose_tracklets(dataset, each=99, seed=0)) == 12


def test_the_page_shows_tracklets_from_first_to_last(check, dataset, tmp_path):
    """Names of folders need not be ASCII, and a broken first frame costs the others nothing."""
    chosen = [tracklet for _, tracklet in choose_tracklets(dataset, each=2, seed=3)]
    write_skeleton_store(tmp_path / "skeletons", [chosen[0].key(0)], np.ones((1, 17, 3)))
    (tmp_path / chosen[1].frames[0]).write_bytes(b"")
    store = SkeletonStore.open(tmp_path / "skeletons")
    output = tmp_path / "new" / "check"
    files = write_dataset_page(check, dataset, store, output=output, tracklets=2, seed=3)
    assert [file.name for file in files] == ["check.html", "problems.csv"]
    page = Page(files[0].read_text(encoding="utf-8"))
    page.check()
    text = " ".join(page.text.split())
    for tracklet in chosen:
        folder = tracklet.frames[0].rpartition("/")[0]
        assert "人" in folder
        assert f"identity {tracklet.pid}, camera 7, 5 frames" in text
        assert folder in text
    names = re.findall(r"<span>(\d\.png.*?)</span>", page.source)
    assert names.count("0.png") == 3
    assert names.count("0.png (cannot be read)") == 1
    assert all(names.count(f"{number}.png") == 4 for number in range(1, 5))
    assert text.count("no skeleton") == 19, "of 4 x 5 frames one has a skeleton"
    assert all(finding.text in text for finding in findings(check))
    rows = list(csv.reader(io.StringIO(files[1].read_text(encoding="utf-8"))))
    assert rows[1] == ["broken frame", "train infrared", "/data/0001/ir/D4/1.jpg", 'a "b", c']
    assert len(rows) == 7


def test_the_page_without_skeletons(dataset, tmp_path):
    sound = DatasetCheck("SyntheticVCM", "s", [SubsetCounts("train", 2, 48, 1, 2, 3)], 2, 48, 48)
    path, _ = write_dataset_page(sound, dataset, output=tmp_path / "out", tracklets=1)
    page = Page(path.read_text(encoding="utf-8"))
    page.check()
    assert "skeleton" not in page.text
    assert len(page.all("img")) == 2
