import csv
import io
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
from fastreid_star.report import dataset_check
from fastreid_star.report.dataset_check import (
    choose_tracklets,
    findings,
    picture,
    sparkline,
    to_csv,
    to_markdown,
    to_text,
)
from fastreid_star.structures import Modality, Tracklet

PUBLISHED = {"tracklets": 2, "frames": 48}


def stats(frames, found, outside=0, scores=(0, 0, 0, 0, 0, 1, 2, 4, 8, 2, 0, 0)):
    scores = np.array(scores) * found
    return SkeletonStats(
        frames, found, found, outside, 0, 0, 0.75 * found, scores, 0.7 * 17 * found
    )


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
            (Modality.VISIBLE, 1): stats(45, 45, 0, (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16)),
        },
        problems=[
            Problem(
                Kind.BROKEN_FRAME,
                "train infrared",
                "0001/ir/D4/1.jpg",
                "/data/Train",
                'a "comma", and quotes',
            ),
            Problem(
                Kind.NO_SKELETON, "train infrared", "0001/ir/D4/2", "", "the store does not name it"
            ),
            Problem(Kind.SPARE, "", "0009/ir/D4/1", "", "its frame is there"),
            Problem(
                Kind.MISPLACED,
                "train visible",
                "0001/rgb/D1/1",
                "",
                "9 of 17: are x and y swapped?",
            ),
            Problem(
                Kind.MISPLACED,
                "train visible",
                "0001/rgb/D1/2",
                "",
                "8 of 17: are x and y swapped?",
            ),
            Problem(
                Kind.MISPLACED,
                "train visible",
                "0001/rgb/D1/3",
                "",
                "8 of 17: made for other frames?",
            ),
        ],
    )


def lines_of(text, name):
    """What stands behind a row's name, single spaced."""
    return [
        " ".join(line[len(name) :].split())
        for line in text.splitlines()
        if line.startswith(f"{name}  ")
    ]


def test_the_terminal_text(check):
    text = to_text(check)
    assert lines_of(text, "train infrared") == ["2 47 1 2 3 differs"]
    assert lines_of(text, "train") == ["2 48 1 2 3 ok"]
    assert "frames: 94 good, 0 missing, 1 broken" in text
    assert "height 256 to 300, median 288; width 100 to 144, median 144; 3 different sizes" in text
    assert lines_of(text, "infrared camera 4") == [
        "40 97.50 % 1.50 % 0.75 0.70 | ▁▂▄█▂ |"
    ]  # 10 of 39 * 17 outside
    assert lines_of(text, "infrared")[0].startswith("50 98.00 % 1.20 %")
    assert lines_of(text, "visible camera 1")[0].endswith("| | 100.0 % beyond")
    assert (
        text.index("infrared camera 5") < text.index("visible  ") < text.index("visible camera 1")
    )
    assert text.endswith("not all is well: see FAULT above")
    assert max(map(len, text.split("\n\n")[1].splitlines())) < 100


def test_sizes_are_told_where_frames_were_read_and_differ(check):
    text = to_text(replace(check, sizes=Counter({(288, 144): 94})))
    assert "frames: 94 good, 0 missing, 1 broken; all 288 x 144 (height x width)\n" in text
    assert "frames: 94 there, 0 missing, 1 broken\n" in to_text(
        replace(check, sizes=Counter(), decoded=False)
    )


def test_findings(check):
    texts = [(finding.is_fault, finding.text) for finding in findings(check)]
    assert texts[0] == (True, "not as published: train infrared: frames 47 instead of 48")
    assert texts[1][1].startswith("broken frame: 1, such as /data/Train/0001/ir/D4/1.jpg; copy")
    assert texts[2][1].startswith("frame without skeleton: 1, such as 0001/ir/D4/2;")
    assert texts[3] == (
        True,
        "skeleton off its frame: 3, such as 0001/rgb/D1/1; mostly: are x and y swapped?",
    )
    assert texts[4] == (
        False,
        "skeleton of a frame in no tracklet: 1, such as 0009/ir/D4/1; nothing uses these",
    )
    assert len(texts) == 5


def test_when_all_are_missing_the_folder_is_doubted(check):
    problems = [
        Problem(kind, "", str(n), "", "")
        for kind in (Kind.MISSING_FRAME, Kind.NO_SKELETON)
        for n in range(95)
    ]
    check.problems = problems
    texts = [finding.text for finding in findings(check)]
    assert "95, such as 0; not one is there: is this the right folder" in texts[1]
    assert "95, such as 0; not one has any: the store was made for other data" in texts[2]
    check.problems = problems[1:]
    assert "unpack the images again" in findings(check)[1].text


def test_all_is_well():
    check = DatasetCheck(
        "SyntheticVCM",
        "s",
        [SubsetCounts("train", 2, 48, 1, 2, 3)],
        2,
        48,
        48,
        sizes=Counter({(64, 32): 48}),
    )
    text = to_text(check)
    assert text.endswith("all is well")
    assert "FAULT" not in text
    assert "skeletons" not in text
    assert "all 64 x 32 (height x width)" in text
    assert lines_of(text, "train") == ["2 48 1 2 3 -"]
    assert "**All is well.**" in to_markdown(check)


def test_most_lie(check):
    check.skeletons[Modality.VISIBLE, 1].lying = 30
    assert (
        findings(check)[-1].text
        == "most visible skeletons are wider than tall: are x and y swapped?"
    )


def test_most_are_in_another_order(check):
    check.skeletons[Modality.VISIBLE, 1].disordered = 50
    assert findings(check)[-1].text.startswith(
        "most visible skeletons have no shoulders above hips above ankles: "
    )
    assert findings(check)[-1].is_fault


def test_shares_are_rounded_down(check):
    """100 % is all of them."""
    check.skeletons = {(Modality.VISIBLE, 1): stats(1_000_000, 999_999)}
    assert "99.99 %" in to_text(check)


def test_the_report(check):
    check.sizes = Counter({(100 + n, 50): 20 - n for n in range(12)})
    text = to_markdown(check, files=["grid.png", "problems.csv"])
    assert "![grid.png](grid.png)" in text
    assert "\n[problems.csv](problems.csv)" in text
    assert all(f"- **fault**: {f.text}" in text for f in findings(check) if f.is_fault)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["100 x 50", "20"] in rows
    assert ["2 others", "19"] in rows
    shares = ["5.9", "11.8", "23.5", "47.1", "11.8"]  # 1, 2, 4, 8 and 2 of 17
    assert ["infrared camera 4", "0.0", "0.0", "0.0", "0.0", "0.0", *shares, "0.0", "0.0"] in rows
    assert ["visible camera 1", "5.9", *["0.0"] * 10, "94.1"] in rows
    widths = {
        line.count("|") for line in text.split("### Scores")[1].splitlines() if line.startswith("|")
    }
    assert widths == {14}


def test_csv(check):
    rows = list(csv.reader(io.StringIO(to_csv(check))))
    assert rows[0] == ["problem", "subset", "frame or skeleton", "reason"]
    assert rows[1] == [
        "broken frame",
        "train infrared",
        "/data/Train/0001/ir/D4/1.jpg",
        'a "comma", and quotes',
    ]
    assert len(rows) == 7
    assert {row[0] for row in rows[1:]} == {problem.kind.value for problem in check.problems}


def test_sparkline():
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 1, 100_000]) == " ▁█", "one of many is still to be seen"
    assert sparkline([0, 0]) == "  "


# --- the picture -------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    """Four identities, two of them in the test set, with two visible tracklets and an infrared one each."""
    parts = {"train": [], "query": [], "gallery": []}
    for pid in range(4):
        for modality, number in (
            (Modality.VISIBLE, 0),
            (Modality.VISIBLE, 1),
            (Modality.INFRARED, 0),
        ):
            place = tmp_path / str(pid) / modality.folder / str(number)
            place.mkdir(parents=True)
            for frame in range(5):
                Image.new("RGB", (16, 32), (60 * pid, 50 * frame, 100 * modality)).save(
                    place / f"{frame}.png"
                )
            frames = tuple(f"{pid}/{modality.folder}/{number}/{frame}.png" for frame in range(5))
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
    assert (
        len(
            {
                tuple(t.frames[0] for _, t in choose_tracklets(dataset, each=2, seed=seed))
                for seed in range(8)
            }
        )
        > 3
    )
    assert len(choose_tracklets(dataset, each=99, seed=0)) == 12


def test_the_picture_is_of_those_tracklets_from_first_to_last(tmp_path, dataset, monkeypatch):
    drawn = []
    monkeypatch.setattr(dataset_check, "frame_grid", lambda rows, title: drawn.extend(rows))
    chosen = choose_tracklets(dataset, each=2, seed=3)
    keys = [chosen[0][1].key(index) for index in (0, 2)]
    write_skeleton_store(tmp_path / "skeletons", keys, np.ones((2, 17, 3)))
    (tmp_path / chosen[1][1].frames[4]).write_bytes(b"")
    picture(dataset, SkeletonStore.open(tmp_path / "skeletons"), each=2, frames=3, seed=3)
    assert len(drawn) == 4
    split, tracklet = chosen[0]
    assert drawn[0].caption == (
        f"visible, identity {tracklet.pid}, camera 7, 5 frames ({split}: {tracklet.frames[0].rpartition('/')[0]})"
    )
    assert drawn[0].labels == ["0", "2", "4"]
    assert [image[0, 0, 1] for image in drawn[0].images] == [0, 100, 200]
    assert [joints is None for joints in drawn[0].joints] == [False, False, True]
    assert [image is None for image in drawn[1].images] == [False, False, True]


def test_the_picture_without_skeletons(dataset):
    without = picture(dataset, None, each=1, frames=2)
    assert without.dtype == np.uint8
    assert without.ndim == 3
