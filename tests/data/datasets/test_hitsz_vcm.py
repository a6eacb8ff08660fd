import logging
import shutil

import pytest

from fastreid_star.data.datasets import HITSZVCM
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

from ...true_size import write_info_files_at_true_size


def parts(data):
    return data.train, data.query, data.gallery


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("inside", [False, True])
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
    infrared, visible = Modality
    assert data.dropped == {
        ("train", infrared): 3,
        ("train", visible): 3,
        ("test", infrared): 2,
        ("test", visible): 2,
    }
    with pytest.raises(UserError, match=r"14 frames or more: lower DATASETS.MIN_FRAMES"):
        HITSZVCM(data.folder, min_frames=14, check_frames=False)


def test_tables(vcm_root, caplog):
    data = HITSZVCM(vcm_root, min_frames=13)
    with caplog.at_level(logging.INFO):
        data.show_train()
        data.show_test()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in caplog.text.splitlines()
        if line[0] == "|"
    ]
    assert rows[0][:5] == ["subset", "# tracklets", "# frames", "# ids", "# cameras"]
    assert ["train infrared", "3", "39", "3", "1", "3"] in rows
    assert ["train", "6", "78", "3", "1", "6"] in rows
    assert ["test visible", "2", "26", "2", "1", "2"] in rows


def test_combineall_keeps_test_identities_apart(make_vcm):
    data = HITSZVCM(make_vcm(images=False), check_frames=False, combineall=True)
    assert len(data.train) == 12 + 8
    assert data.get_num_pids(data.train) == 5


def replace_line(path, number, text):
    lines = path.read_text().split("\n")
    lines[number - 1] = text
    path.write_text("\n".join(lines))


# file | number of the line to replace | new line | expected in the message
BAD_LINES = """
track_train_info.txt | 2 | 2 13 25 0001         | line 2: expected five integers
track_train_info.txt | 2 | 2 13 25 0001 2 7     | line 2: expected five integers
track_train_info.txt | 2 | 2 13 25 x 2          | line 2: expected five integers
track_train_info.txt | 2 | 2 -13 25 0001 2      | line 2: expected five integers
track_train_info.txt | 2 |                      | line 2: expected five integers
track_train_info.txt | 3 | 3 26 37 0001 1       | line 3: modality 3
track_train_info.txt | 1 | 2 12 1 0001 1        | line 1: the last frame, 1, is before
track_train_info.txt | 1 | 2 0 12 0001 1        | 1-based
track_train_info.txt | 3 | 2 20 25 0001 2       | tracklets 2 and 3 share lines
track_test_info.txt  | 8 | 1 88 1000 0005 2     | 101 names, but tracklet 8 spans 88 to 1000
train_name.txt       | 5 |                      | line 5: '' is not a frame name
train_name.txt       | 5 | ../secret.jpg        | line 5: .*not a frame name
train_name.txt       | 5 | 0001M2D1T1F../../5.jpg | line 5: .*not a frame name
train_name.txt       | 5 | 0002M2D1T1F5.jpg     | line 5: .*does not belong to identity 1
train_name.txt       | 5 | 0001M1D1T1F5.jpg     | line 5: .* modality 2
train_name.txt       | 5 | 0001M2D3T1F5.jpg     | line 5: .* camera 1
query_IDX.txt        | 1 | 3 4 7 80             | index 80, but .* has 8 lines
query_IDX.txt        | 1 | 2 3 6 7              | 2 of 4 indices, first 2, are visible .*0-based
query_IDX.txt        | 1 | 0 3 6 7              | index 0 looks 0-based
query_IDX.txt        | 1 | 3 4 4 7              | twice
query_IDX.txt        | 1 | 3 4.5                | found '4.5'
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
    with pytest.raises(UserError, match=r"line 12: .*camera 2 of tracklet 2: .*1-based"):
        HITSZVCM(root, check_frames=False)


def test_tracklets_in_any_order_keep_their_own_frames(make_vcm):
    root = make_vcm(images=False)
    expected = HITSZVCM(root, check_frames=False)
    info = root / "HITSZ-VCM" / "info"
    for split in ("train", "test"):
        path = info / f"track_{split}_info.txt"
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    (info / "query_IDX.txt").write_text("1 2 5 6")
    for ours, theirs in zip(
        parts(HITSZVCM(root, check_frames=False)), parts(expected), strict=True
    ):
        assert ours == theirs[::-1]


def test_a_frame_listed_twice_is_used_twice_with_a_warning(make_vcm, caplog):
    root = make_vcm(images=False)
    replace_line(root / "HITSZ-VCM" / "info" / "train_name.txt", 5, "0001M2D1T1F4.jpg")
    data = HITSZVCM(root, check_frames=False)
    assert data.train[0].frames[3:5] == ("0001/rgb/D1/4.jpg",) * 2
    assert "1 of its 150 frames twice" in caplog.text


def test_missing_files(make_vcm, tmp_path):
    with pytest.raises(UserError, match=r"no HITSZ-VCM in .*nowhere.*DATASETS.ROOT"):
        HITSZVCM(tmp_path / "nowhere")
    root = make_vcm(images=False)
    (root / "HITSZ-VCM" / "info" / "query_IDX.txt").unlink()
    with pytest.raises(UserError, match=r"info lacks query_IDX.txt: copy all five"):
        HITSZVCM(root)


def rename_modality(folder):
    for path in folder.rglob("ir"):
        path.rename(path.with_name("IR"))
    for path in folder.rglob("rgb"):
        path.rename(path.with_name("RGB"))


def rename_images(name):
    def rename(folder):
        for path in folder.rglob("*.jpg"):
            path.rename(path.with_name(name.format(int(path.stem))))

    return rename


@pytest.mark.parametrize("split", ["Train", "Test"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, r"{split} does not exist, .*HITSZ-VCM holds (Test|Train), info"),
        (lambda folder: shutil.rmtree(folder / "0005"), "0005 does not exist, .*holds 0004"),
        (rename_modality, "rgb does not exist, .* holds IR, RGB"),
        (rename_images("{}.JPG"), r"1.jpg does not exist, .* holds 1.JPG, 10.JPG"),
        (rename_images("{:04d}.jpg"), r"1.jpg does not exist, .* holds 0001.jpg, 0002.jpg"),
    ],
    ids=["split", "identity", "modality", "suffix", "zeros"],
)
def test_images_under_other_names(make_vcm, split, change, message):
    root = make_vcm()
    if "0005" in message and split == "Train":
        pytest.skip("an identity of the test set")
    change(root / "HITSZ-VCM" / split)
    with pytest.raises(UserError, match=message.replace("{split}", split)) as error:
        HITSZVCM(root)
    assert f"the {split.lower()} set" in str(error.value)
    HITSZVCM(root, check_frames=False)


def test_a_few_missing_images_are_no_error(make_vcm):
    root = make_vcm()
    for path in (root / "HITSZ-VCM").rglob("1.jpg"):
        path.unlink()
    assert len(HITSZVCM(root).train) == 12


def test_unlisted_query_is_reported(make_vcm, caplog):
    root = make_vcm(images=False)
    replace_line(root / "HITSZ-VCM" / "info" / "query_IDX.txt", 1, "3 4 7 ")
    assert len(HITSZVCM(root, check_frames=False).query) == 3
    assert "leaves out 1 infrared" in caplog.text


def test_published_counts(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_info_files_at_true_size(tmp_path / "HITSZ-VCM")
    data = HITSZVCM(tmp_path, check_frames=False)
    assert "the counts equal the published ones" in caplog.text
    assert [len(part) for part in parts(data)] == [9751, 4584, 5099]
    # half of the training lists
    path = tmp_path / "HITSZ-VCM" / "info" / "track_train_info.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: len(lines) // 2]))
    caplog.clear()
    HITSZVCM(tmp_path, check_frames=False)
    assert "train: tracklets 5,530 instead of 11,061" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"
    assert "test" not in caplog.text
