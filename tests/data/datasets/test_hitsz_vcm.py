import logging
import shutil

import pytest

from fastreid_star.data.datasets import HITSZVCM
from fastreid_star.data.datasets import hitsz_vcm as module
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_every_layout(make_vcm, flat, merged, inside):
    root = make_vcm(flat=flat, merged=merged)
    folder = root / "HITSZ-VCM"
    data = HITSZVCM(str(folder if inside else root))
    assert (len(data.train), len(data.query), len(data.gallery)) == (12, 4, 4)
    first = data.train[0]
    assert (first.pid, first.camid, first.modality) == (1, 1, Modality.VISIBLE)
    assert first.frames == tuple(f"0001/rgb/D1/{frame}.jpg" for frame in range(1, 13))  # inclusive: 12, not 11
    assert first.root == str(folder if merged else folder / "Train")
    assert data.train[1].frames[0] == "0001/rgb/D2/1.jpg"
    assert data.train[1].key(12) == "0001/rgb/D2/13"
    assert data.train[2].frames[0] == "0001/ir/D1/1.jpg"
    assert {t.modality for t in data.query} == {Modality.INFRARED}
    assert {t.modality for t in data.gallery} == {Modality.VISIBLE}
    assert data.query[0].root == str(folder if merged else folder / "Test")
    assert [(t.pid, t.camid, len(t)) for t in data.query] == [(4, 1, 12), (4, 2, 13), (5, 1, 12), (5, 2, 13)]
    with open(data.query[0].path(0), "rb") as image:
        assert image.read(2) == b"\xff\xd8"


def test_bom_crlf_and_trailing_blanks(make_vcm):
    root = make_vcm(images=False)
    expected = HITSZVCM(root, check_frames=False)
    for file in (root / "HITSZ-VCM" / "info").iterdir():
        lines = file.read_text().splitlines()
        file.write_bytes(b"\xef\xbb\xbf" + "".join(f"{line}  \r\n" for line in lines).encode() + b"\r\n \r\n")
    data = HITSZVCM(root, check_frames=False)
    assert (data.train, data.query, data.gallery) == (expected.train, expected.query, expected.gallery)


def test_minimum_length_holds_in_both_sets(make_vcm):
    data = HITSZVCM(make_vcm(images=False), min_frames=13, check_frames=False)
    assert {len(t) for t in [*data.train, *data.query, *data.gallery]} == {13}
    assert (len(data.train), len(data.query), len(data.gallery)) == (6, 2, 2)
    assert data.dropped == {
        ("train", Modality.INFRARED): 3,
        ("train", Modality.VISIBLE): 3,
        ("test", Modality.INFRARED): 2,
        ("test", Modality.VISIBLE): 2,
    }


def test_tables(vcm_root, caplog):
    data = HITSZVCM(vcm_root, min_frames=13)
    with caplog.at_level(logging.INFO):
        data.show_train()
        data.show_test()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in caplog.text.splitlines() if line[0] == "|"
    ]
    assert rows[0][:5] == ["subset", "# tracklets", "# frames", "# ids", "# cameras"]
    assert ["train infrared", "3", "39", "3", "1", "3"] in rows
    assert ["train", "6", "78", "3", "1", "6"] in rows
    assert ["test visible", "2", "26", "2", "1", "2"] in rows


def test_combineall_keeps_test_identities_apart(make_vcm):
    data = HITSZVCM(make_vcm(images=False), check_frames=False, combineall=True)
    assert len(data.train) == 12 + 8
    assert data.get_num_pids(data.train) == 5
    assert data.get_num_pids(data.query) == 2


def replace_line(path, number, text):
    lines = path.read_text().split("\n")
    lines[number - 1] = text
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("file", "number", "text", "message"),
    [
        ("track_train_info.txt", 2, "2 13 25 0001", "line 2: expected five integers"),
        ("track_train_info.txt", 2, "2 13 25 x 2", "line 2: expected five integers"),
        ("track_train_info.txt", 2, "", "line 2: expected five integers"),
        ("track_train_info.txt", 3, "3 26 37 0001 1", "line 3: modality 3"),
        ("track_train_info.txt", 1, "2 12 1 0001 1", "line 1: the last frame, 1, comes before the first, 12"),
        ("track_train_info.txt", 1, "2 0 12 0001 1", "1-based"),
        ("track_test_info.txt", 8, "1 88 1000 0005 2", "has 101 names, but tracklet 8 spans 88 to 1000"),
        ("train_name.txt", 5, "0002M2D1T1F5.jpg", "line 5: 0002M2D1T1F5.jpg is not of identity 1"),
        ("train_name.txt", 5, "0001M1D1T1F5.jpg", "line 5: .* modality 2"),
        ("train_name.txt", 5, "0001M2D3T1F5.jpg", "line 5: .* camera 1"),
        ("train_name.txt", 5, "0001M2D1T1F../../5.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "../secret.jpg", "line 5: .*not a frame name"),
        ("query_IDX.txt", 1, "3 4 7 80", "query_IDX.txt line 1: index 80, but track_test_info.txt has 8 lines"),
        ("query_IDX.txt", 1, "2 3 6 7", "2 of 4 indices, the first of them 2, point at visible .*0-based"),
        ("query_IDX.txt", 1, "0 3 6 7", "index 0 looks 0-based"),
        ("query_IDX.txt", 1, "3 4 4 7", "listed twice"),
        ("query_IDX.txt", 1, "3 4.5", "found '4.5'"),
        ("query_IDX.txt", 1, "", "query_IDX.txt is empty"),
    ],
)
def test_bad_info_files(make_vcm, file, number, text, message):
    root = make_vcm(images=False)
    replace_line(root / "HITSZ-VCM" / "info" / file, number, text)
    with pytest.raises(UserError, match=message) as error:
        HITSZVCM(root, check_frames=False)
    assert "\n" not in str(error.value)
    assert str(root) in str(error.value)


def test_shifted_track_indices_are_noticed(make_vcm):
    """Indices that count from 0 put the last frame of one tracklet into the next one."""
    root = make_vcm(images=False)
    path = root / "HITSZ-VCM" / "info" / "track_train_info.txt"
    replace_line(path, 2, "2 12 24 0001 2")
    with pytest.raises(UserError, match=r"line 12: .* is not of identity 1, modality 2, camera 2, as tracklet 2 says"):
        HITSZVCM(root, check_frames=False)


def test_missing_root(tmp_path):
    with pytest.raises(UserError, match=r"no HITSZ-VCM in .*nowhere.*DATASETS.ROOT"):
        HITSZVCM(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no HITSZ-VCM"):
        HITSZVCM(tmp_path)


@pytest.mark.parametrize("flat", [False, True])
def test_half_of_the_info_files(make_vcm, flat):
    root = make_vcm(images=False, flat=flat)
    info = root / "HITSZ-VCM" / ("" if flat else "info")
    (info / "query_IDX.txt").unlink()
    (info / "test_name.txt").unlink()
    with pytest.raises(UserError, match=r"lacks test_name.txt, query_IDX.txt: copy all five"):
        HITSZVCM(root)


@pytest.mark.parametrize("split", ["Train", "Test"])
def test_half_of_the_images(make_vcm, split):
    root = make_vcm()
    shutil.rmtree(root / "HITSZ-VCM" / split)
    with pytest.raises(UserError, match=f"no frames of the {split.lower()} set.*unpack the images"):
        HITSZVCM(root)


def test_missing_identity_folder(make_vcm):
    root = make_vcm()
    shutil.rmtree(root / "HITSZ-VCM" / "Train" / "0003")
    with pytest.raises(UserError, match=r"0003.*is missing"):
        HITSZVCM(root)


def test_identity_in_one_modality_only(make_vcm):
    root = make_vcm(images=False)
    path = root / "HITSZ-VCM" / "info" / "track_train_info.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("1 ") or " 0002 " not in line))
    with pytest.raises(UserError, match=r"1 identities .* in one modality only: 2 \(only visible\)"):
        HITSZVCM(root, check_frames=False)


def test_identity_left_with_one_modality_by_the_minimum_length(make_vcm):
    root = make_vcm(images=False)
    path = root / "HITSZ-VCM" / "info" / "track_train_info.txt"
    replace_line(path, 4, "1 38 45 0001 2")
    replace_line(path, 3, "1 26 30 0001 1")
    HITSZVCM(root, min_frames=5, check_frames=False)
    with pytest.raises(UserError, match=r"1 \(only visible\).*MIN_FRAMES"):
        HITSZVCM(root, check_frames=False)


def test_no_tracklet_left(make_vcm):
    with pytest.raises(UserError, match=r"no tracklet has 14 frames or more: lower DATASETS.MIN_FRAMES"):
        HITSZVCM(make_vcm(images=False), min_frames=14, check_frames=False)


def test_unlisted_query_is_reported(make_vcm, caplog):
    root = make_vcm(images=False)
    replace_line(root / "HITSZ-VCM" / "info" / "query_IDX.txt", 1, "3 4 7 ")
    assert len(HITSZVCM(root, check_frames=False).query) == 3
    assert "leaves out 1 infrared" in caplog.text


def published_lines():
    """Track info lines with exactly the published counts."""
    lines = {"train": [], "test": []}
    for (split, modality), (tracklets, frames, identities, long) in module.PUBLISHED.items():
        lengths = [12] * long + [1] * (tracklets - long)
        lengths[0] += frames - sum(lengths)
        lines[split] += [module._Line(modality, 1, n, i % identities, 1) for i, n in enumerate(lengths)]
    return lines


def test_published_counts(caplog):
    caplog.set_level(logging.INFO)
    lines = published_lines()
    module._compare_with_published(lines)
    assert "counts equal the published ones" in caplog.text
    caplog.clear()
    last = lines["train"][-1]
    lines["train"][-1] = last._replace(last=last.last + 1)
    module._compare_with_published(lines)
    assert "train visible frames 130386 instead of 130385" in caplog.text
    assert "infrared" not in caplog.text
    caplog.clear()
    module._compare_with_published({**lines, "test": lines["test"][1:]})
    assert "test infrared tracklets 5158 instead of 5159" in caplog.text
    caplog.clear()
    module._compare_with_published({**lines, "test": lines["test"][:9000]})
    assert not caplog.text, "another dataset in the same layout"
