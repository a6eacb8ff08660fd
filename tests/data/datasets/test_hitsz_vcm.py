import logging
import shutil

import pytest

from fastreid_star.data.datasets import HITSZVCM
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

from ...true_size import write_info_files_at_true_size


def parts(data):
    return data.train, data.query, data.gallery


@pytest.mark.parametrize(
    ("flat", "merged", "inside"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, False)],
)
def test_every_layout(make_vcm, flat, merged, inside):
    root = make_vcm(flat=flat, merged=merged)
    folder = root / "HITSZ-VCM"
    data = HITSZVCM(str(folder if inside else root))
    assert [len(part) for part in parts(data)] == [12, 4, 4]
    first = data.train[0]
    assert (first.pid, first.camid, first.modality) == (1, 1, Modality.VISIBLE)
    # the last frame is inclusive: 12 frames, not 11
    assert first.frames == tuple(f"0001/rgb/D1/{frame}.jpg" for frame in range(1, 13))
    assert first.root == str(folder if merged else folder / "Train")
    assert data.train[1].key(12) == "0001/rgb/D2/13"
    assert data.train[2].frames[0] == "0001/ir/D1/1.jpg"
    assert {t.modality for t in data.query} == {Modality.INFRARED}
    assert {t.modality for t in data.gallery} == {Modality.VISIBLE}
    assert data.query[0].root == str(folder if merged else folder / "Test")
    assert [(t.pid, t.camid, len(t)) for t in data.query[:2]] == [(4, 1, 12), (4, 2, 13)]
    with open(data.query[0].path(0), "rb") as image:
        assert image.read(2) == b"\xff\xd8"


def test_minimum_length_in_both_sets(make_vcm):
    data = HITSZVCM(make_vcm(images=False), min_frames=13, check_frames=False)
    assert {len(t) for part in parts(data) for t in part} == {13}
    assert [len(part) for part in parts(data)] == [6, 2, 2]
    assert data.dropped == 10
    with pytest.raises(UserError, match=r"14 frames or more: lower DATASETS.MIN_FRAMES"):
        HITSZVCM(data.folder, min_frames=14, check_frames=False)


def test_listed_frames_are_left_out_before_they_are_counted(make_vcm, tmp_path, caplog):
    root = make_vcm(images=False)
    whole = HITSZVCM(root, check_frames=False)
    first, last = whole.train[0], whole.gallery[-1]
    listed = tmp_path / "frames.txt"
    listed.write_text("\n".join([first.frames[3], "", *last.frames]) + "\n")
    options = {"without": str(listed), "check_frames": False}
    data = HITSZVCM(root, min_frames=1, **options)
    assert data.train[0].frames == first.frames[:3] + first.frames[4:]
    assert data.train[1:] == whole.train[1:]
    assert data.gallery == whole.gallery[:-1]
    assert "of the test set too" in caplog.text
    assert HITSZVCM(root, min_frames=12, **options).train == whole.train[1:]
    listed.write_text("0001/rgb/D1/77.jpg\n")
    with pytest.raises(UserError, match=r"names '0001/rgb/D1/77.jpg', which is no frame"):
        HITSZVCM(root, **options)
    listed.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        HITSZVCM(root, **options)


def test_combineall_keeps_test_identities_apart(make_vcm):
    data = HITSZVCM(make_vcm(images=False), check_frames=False, combineall=True)
    assert len(data.train) == 12 + 8
    assert [tracklet.pid for tracklet in data.train] == [1] * 4 + [2] * 4 + [3] * 4 + [
        8,
        8,
        9,
        9,
    ] * 2


def replace_line(path, number, text):
    lines = path.read_text().split("\n")
    lines[number - 1] = text
    path.write_text("\n".join(lines))


# file | number of the line to replace | new line | expected in the message
BAD_LINES = """
track_train_info.txt | 2 | 2 13 25 0001         | line 2: expected five numbers
track_train_info.txt | 2 | 2 13 25 x 2          | line 2: expected five numbers
track_train_info.txt | 2 |                      | line 2: expected five numbers
track_train_info.txt | 3 | 3 26 37 0001 1       | line 3: expected five numbers.* 2 visible
track_train_info.txt | 1 | 2 12 1 0001 1        | line 1: lines 12 to 1 of .*train_name.txt
track_train_info.txt | 1 | 2 0 12 0001 1        | line 1: lines 0 to 12 of .* count from 1
track_test_info.txt  | 8 | 1 88 1000 0005 2     | line 8: lines 88 to 1000 of .* has 101
train_name.txt       | 5 |                      | line 5: '' is not a frame name
train_name.txt       | 5 | 0001M2D1T1F../../5.jpg | line 5: .*not a frame name
train_name.txt       | 5 | 0002M2D1T1F5.jpg     | line 5: .*does not belong to .* identity 1
train_name.txt       | 5 | 0001M1D1T1F5.jpg     | line 5: .* modality 2
train_name.txt       | 5 | 0001M2D3T1F5.jpg     | line 5: .* camera 1
query_IDX.txt        | 1 | 3 4 7 80             | '80' is not the number .* from 1 to 8
query_IDX.txt        | 1 | 2 3 6 7              | '2' is not the number of an infrared tracklet
query_IDX.txt        | 1 | 0 3 6 7              | '0' is not
query_IDX.txt        | 1 | 3 4.5                | '4.5' is not
query_IDX.txt        | 1 |                      | query_IDX.txt is empty
"""
CASES = [[cell.strip() for cell in line.split("|")] for line in BAD_LINES.strip().splitlines()]


@pytest.mark.parametrize(("file", "number", "text", "message"), CASES)
def test_bad_info_files(make_vcm, file, number, text, message):
    root = make_vcm(images=False)
    replace_line(root / "HITSZ-VCM" / "info" / file, int(number), text)
    with pytest.raises(UserError, match=message) as error:
        HITSZVCM(root, check_frames=False)
    assert "\n" not in str(error.value)
    assert str(root) in str(error.value)


def test_shifted_track_indices_are_noticed(make_vcm):
    """0-based indices put the last frame of one tracklet into the next one."""
    root = make_vcm(images=False)
    path = root / "HITSZ-VCM" / "info" / "track_train_info.txt"
    rows = [list(map(int, line.split())) for line in path.read_text().splitlines()]
    rows = [[m, max(1, first - 1), last - 1, *rest] for m, first, last, *rest in rows]
    path.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    with pytest.raises(
        UserError, match=r"line 12: .*does not belong .*camera 2: lines count from 1"
    ):
        HITSZVCM(root, check_frames=False)


def test_missing_files(make_vcm, tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: DATASETS.ROOT.*HITSZ-VCM"):
        HITSZVCM(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no HITSZ-VCM in .*empty.*DATASETS.ROOT"):
        HITSZVCM(tmp_path / "empty")
    root = make_vcm(images=False)
    (root / "HITSZ-VCM" / "info" / "query_IDX.txt").unlink()
    with pytest.raises(UserError, match=r"info lacks query_IDX.txt: copy all lists"):
        HITSZVCM(root)


def rename_modality(folder):
    for path in folder.rglob("ir"):
        path.rename(path.with_name("IR"))


def rename_images(folder):
    for path in folder.rglob("*.jpg"):
        path.rename(path.with_suffix(".JPG"))


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (shutil.rmtree, "Train", r"Train does not exist, .*HITSZ-VCM holds Test, info"),
        (lambda folder: shutil.rmtree(folder / "0005"), "Test", "0005 does not .*holds 0004"),
        (rename_modality, "Train", "ir does not exist, .* holds IR, rgb"),
        (rename_images, "Test", r"1.jpg does not exist, .* holds 1.JPG, 10.JPG"),
    ],
    ids=["split", "identity", "modality", "suffix"],
)
def test_images_under_other_names(make_vcm, change, split, message):
    root = make_vcm()
    change(root / "HITSZ-VCM" / split)
    with pytest.raises(UserError, match=message) as error:
        HITSZVCM(root)
    assert f"the {split.lower()} set" in str(error.value)
    HITSZVCM(root, check_frames=False)


def test_a_few_missing_images_are_no_error(make_vcm):
    root = make_vcm()
    for path in (root / "HITSZ-VCM").rglob("1.jpg"):
        path.unlink()
    assert len(HITSZVCM(root).train) == 12


def test_published_counts(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_info_files_at_true_size(tmp_path / "HITSZ-VCM")
    data = HITSZVCM(tmp_path, check_frames=False)
    assert "the counts equal the published ones" in caplog.text
    assert [len(part) for part in parts(data)] == [9751, 4584, 5099]
    caplog.clear()
    data.compare_with_published({"train": data.train[:5000]})  # a part is missing
    assert "train: tracklets 5,000 instead of 11,061" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"
