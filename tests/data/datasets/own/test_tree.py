"""Which files of a folder tree are which tracklet, and what is said about the others."""

import pytest

from fastreid_star.data.datasets.own.labels import Labeled
from fastreid_star.data.datasets.own.tree import PATTERN, compile_pattern, read_tree
from fastreid_star.errors import UserError


def make(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return str(root)


def test_the_default_pattern(tmp_path):
    root = make(
        tmp_path, *(f"Zoë B/ir/D 2/walk/{k}" for k in ("10.PNG", "9.jpg", "x.txt", ".1.jpg"))
    )
    make(tmp_path, "Zoë B/ir/D 2/.cache/1.jpg", "anna/rgb/1/a/1.tif", "anna/rgb/1/b/1.webp")
    assert read_tree(root, PATTERN) == (
        [
            Labeled(
                "Zoë B/ir/D 2/walk",
                ("Zoë B/ir/D 2/walk/9.jpg", "Zoë B/ir/D 2/walk/10.PNG"),
                *("Zoë B", "ir", "D 2"),
            ),
            Labeled("anna/rgb/1/a", ("anna/rgb/1/a/1.tif",), "anna", "rgb", "1"),
            Labeled("anna/rgb/1/b", ("anna/rgb/1/b/1.webp",), "anna", "rgb", "1"),
        ],
        [],
    )


# pattern | path below the root | identity, modality, camera, split | images are the tracklet
@pytest.mark.parametrize(
    ("pattern", "folder", "labels"),
    [
        ("{modality}/{identity}/{camera}/{tracklet}", "rgb/a/1/t", ("a", "rgb", "1", "")),
        ("{modality}/{identity}", "rgb/a", ("a", "rgb", "", "")),
        ("/{identity}/{modality}/{camera}/", "a/ir/c", ("a", "ir", "c", "")),
        ("{split}/{identity}/{modality}/cam{camera}", "Train/a/ir/cam7", ("a", "ir", "7", "Train")),
        ("data (1)/{identity}/*/{modality}", "data (1)/a/2024/ir", ("a", "ir", "", "")),
        ("{modality}/{identity}_{camera}_{tracklet}", "ir/7_c2_5_x", ("7", "ir", "c2", "")),
    ],
)
def test_other_patterns(tmp_path, pattern, folder, labels):
    root = make(tmp_path, f"{folder}/1.jpg", f"{folder}/2.jpg")
    (one,), warnings = read_tree(root, pattern)
    assert (one.identity, one.modality, one.camera, one.split) == labels
    assert one.frames == (f"{folder}/1.jpg", f"{folder}/2.jpg")
    assert warnings == []


def test_an_image_in_place_of_a_tracklets_folder_is_a_tracklet_of_one_frame(tmp_path):
    root = make(tmp_path, "a/ir/1/x.jpg", "a/ir/1/y.jpg", "a/ir/1/t/1.jpg", "a/ir/1/t/2.jpg")
    found, warnings = read_tree(root, PATTERN)
    assert [one.frames for one in found] == [
        ("a/ir/1/t/1.jpg", "a/ir/1/t/2.jpg"),
        ("a/ir/1/x.jpg",),
        ("a/ir/1/y.jpg",),
    ]
    assert {(one.identity, one.camera) for one in found} == {("a", "1")}
    assert warnings == []
    # without the level {tracklet}, the images of the folder are one tracklet
    (one,), warnings = read_tree(root, "{identity}/{modality}/{camera}")
    assert one.frames == ("a/ir/1/x.jpg", "a/ir/1/y.jpg")
    assert warnings == [
        root + ": 2 images are not where DATASETS.FOLDERS.PATTERN {identity}/{modality}/{camera} "
        "expects them, such as a/ir/1/t/1.jpg"
    ]


def test_an_image_above_the_folders_of_tracklets_is_not_read(tmp_path):
    root = make(tmp_path, "rgb/a/1.jpg", "rgb/b.jpg")
    (one,), (warning,) = read_tree(root, "{modality}/{identity}")
    assert one.frames == ("rgb/a/1.jpg",)
    assert warning.endswith("such as rgb/b.jpg")


def test_what_is_not_read_is_one_line_each(tmp_path):
    root = make(tmp_path, "a/ir/1/t/1.jpg", "logo.png", "a/x.jpg", "a/ir/1/v.mp4")
    (tmp_path / "b" / "rgb" / "1" / "nothing").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    found, warnings = read_tree(root, PATTERN)
    assert [one.where for one in found] == ["a/ir/1/t"]
    assert [line.removeprefix(f"{root}: ")[0] for line in warnings] == ["2", "1", "1"]
    assert warnings[0].endswith("expects them, such as a/x.jpg")
    assert warnings[1].endswith("folders of tracklets hold no image, such as b/rgb/1/nothing")
    assert warnings[2].endswith("save their frames as images, such as a/ir/1/v.mp4")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/1.jpg", "a/2.jpg"], r"has 2 images, but none is where .*one is a/1\.jpg: set the key"),
        (["a/ir/1/v.mp4"], r"has videos, but no images: .* such as a/ir/1/v\.mp4"),
        (["people.csv"], r"no images in .*set DATASETS.ROOT to .*people\.csv"),
        (["a/ir/1/t/notes.txt"], r"no images in"),
    ],
)
def test_nothing_to_read(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        read_tree(make(tmp_path, *files), PATTERN)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{identity}/{camera}", r"\{modality\} is missing"),
        ("{modality}", r"\{identity\} is missing"),
        ("{identity}/{modality}/{cam}", r"\{cam\} is none of identity, modality"),
        ("{identity}/{modality}/{identity}", r"\{identity\} appears twice"),
        ("{identity/{modality}", "PATTERN"),
        ("{}/{identity}/{modality}", r"\{\} is none of"),
    ],
)
def test_a_wrong_pattern(pattern, message):
    with pytest.raises(UserError, match=message):
        compile_pattern(pattern)
