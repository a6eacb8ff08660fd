import logging
import shutil
import time

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
    assert first.frames == tuple(
        f"0001/rgb/D1/{frame}.jpg" for frame in range(1, 13)
    )  # inclusive: 12, not 11
    assert first.root == str(folder if merged else folder / "Train")
    assert data.train[1].frames[0] == "0001/rgb/D2/1.jpg"
    assert data.train[1].key(12) == "0001/rgb/D2/13"
    assert data.train[2].frames[0] == "0001/ir/D1/1.jpg"
    assert {t.modality for t in data.query} == {Modality.INFRARED}
    assert {t.modality for t in data.gallery} == {Modality.VISIBLE}
    assert data.query[0].root == str(folder if merged else folder / "Test")
    assert [(t.pid, t.camid, len(t)) for t in data.query] == [
        (4, 1, 12),
        (4, 2, 13),
        (5, 1, 12),
        (5, 2, 13),
    ]
    with open(data.query[0].path(0), "rb") as image:
        assert image.read(2) == b"\xff\xd8"


def test_bom_crlf_and_trailing_blanks(make_vcm):
    root = make_vcm(images=False)
    expected = HITSZVCM(root, check_frames=False)
    for file in (root / "HITSZ-VCM" / "info").iterdir():
        lines = file.read_text().splitlines()
        file.write_bytes(
            b"\xef\xbb\xbf" + "".join(f"{line}  \r\n" for line in lines).encode() + b"\r\n \r\n"
        )
    data = HITSZVCM(root, check_frames=False)
    assert (data.train, data.query, data.gallery) == (
        expected.train,
        expected.query,
        expected.gallery,
    )


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
        (
            "track_train_info.txt",
            1,
            "2 12 1 0001 1",
            "line 1: the last frame, 1, comes before the first, 12",
        ),
        ("track_train_info.txt", 1, "2 0 12 0001 1", "1-based"),
        (
            "track_test_info.txt",
            8,
            "1 88 1000 0005 2",
            "has 101 names, but tracklet 8 spans 88 to 1000",
        ),
        ("track_train_info.txt", 2, "2 13 25 0001 2 7", "line 2: expected five integers"),
        (
            "track_train_info.txt",
            2,
            "2 -13 25 0001 2",
            "line 2: expected five integers .*, found '2 -13 25 0001 2'",
        ),
        ("track_train_info.txt", 2, "+2 13 25 0001 2", "line 2: expected five integers"),
        ("track_train_info.txt", 2, "2 1_3 25 0001 2", "line 2: expected five integers"),
        ("track_train_info.txt", 2, "2 13.0 25 0001 2", "line 2: expected five integers"),
        ("track_train_info.txt", 2, "2 13 25 ٠٠٠١ 2", "line 2: expected five integers"),
        ("track_train_info.txt", 2, "２ 13 25 0001 2", "line 2: expected five integers"),
        (
            "track_train_info.txt",
            2,
            "2 13 9223372036854775808 0001 2",
            "line 2: expected five integers of at most nine",
        ),
        (
            "track_train_info.txt",
            2,
            "2 13 25 " + "1" * 900 + " 2",
            "line 2: expected five integers .*1 2'$",
        ),
        ("track_train_info.txt", 2, "x" * 2000, "line 2 has 2,000 characters, more than 1,000"),
        ("track_train_info.txt", 2, "2 13 25 0001\x002", "line 2 holds the byte 0x00"),
        ("track_train_info.txt", 2, "2 13 25 0001\x1c2", "line 2 holds the byte 0x1c"),
        ("track_train_info.txt", 2, "0001M2D1T1F5.jpg", "line 2: expected five integers"),
        (
            "track_train_info.txt",
            2,
            "2 1 12 0001 1",
            "tracklets 1 and 2 share lines of .*train_name.txt",
        ),
        (
            "track_train_info.txt",
            3,
            "2 13 25 0001 2",
            "tracklets 2 and 3 share lines of .*train_name.txt",
        ),
        (
            "track_train_info.txt",
            3,
            "2 20 25 0001 2",
            "tracklets 2 and 3 share lines of .*train_name.txt",
        ),
        ("train_name.txt", 5, "", "line 5: '' is not a frame name"),
        ("train_name.txt", 5, "7", "line 5: '7' is not a frame name"),
        ("train_name.txt", 5, "/0001M2D1T1F5.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "C:0001M2D1T1F5.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "..\\0001M2D1T1F5.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "0001M2D1T1F5.jpg/../6.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "٠٠٠١M2D1T1F5.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "0001M2D1T1F٥.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "9" * 30 + "M2D1T1F5.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "0001M2D1T1F5.jpg\x00", "line 5 holds the byte 0x00"),
        ("train_name.txt", 5, "0002M2D1T1F5.jpg", "line 5: 0002M2D1T1F5.jpg is not of identity 1"),
        ("train_name.txt", 5, "0001M1D1T1F5.jpg", "line 5: .* modality 2"),
        ("train_name.txt", 5, "0001M2D3T1F5.jpg", "line 5: .* camera 1"),
        ("train_name.txt", 5, "0001M2D1T1F../../5.jpg", "line 5: .*not a frame name"),
        ("train_name.txt", 5, "../secret.jpg", "line 5: .*not a frame name"),
        (
            "query_IDX.txt",
            1,
            "3 4 7 80",
            "query_IDX.txt line 1: index 80, but track_test_info.txt has 8 lines",
        ),
        (
            "query_IDX.txt",
            1,
            "2 3 6 7",
            "2 of 4 indices, the first of them 2, point at visible .*0-based",
        ),
        ("query_IDX.txt", 1, "0 3 6 7", "index 0 looks 0-based"),
        ("query_IDX.txt", 1, "3 4 4 7", "listed twice"),
        ("query_IDX.txt", 1, "3 4.5", "found '4.5'"),
        ("query_IDX.txt", 1, "3 -4", "found '-4'"),
        ("query_IDX.txt", 1, "3 ٤", "found '٤'"),
        ("query_IDX.txt", 1, "3 ²", "found '²'"),
        ("query_IDX.txt", 1, "3 " + "9" * 5000, "found '9+[.]+9+'"),
        (
            "query_IDX.txt",
            1,
            "3 4\n7\n2",
            "line 3: 1 of 4 indices, the first of them 2, point at visible",
        ),
        ("query_IDX.txt", 1, "3 4\n7\n7", "line 3: index 7 is listed twice"),
        ("query_IDX.txt", 1, "3 4 7 track", "found 'track'"),
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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_line_ends_tabs_and_a_bom(make_vcm, end, bom):
    root = make_vcm(images=False)
    expected = HITSZVCM(root, check_frames=False)
    for file in (root / "HITSZ-VCM" / "info").iterdir():
        lines = [f"\t{line} \t".replace(" ", "\t") for line in file.read_text().splitlines()]
        file.write_bytes((bom + end.join(lines) + end * 3).encode())
    data = HITSZVCM(root, check_frames=False)
    assert (data.train, data.query, data.gallery) == (
        expected.train,
        expected.query,
        expected.gallery,
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
def test_other_encodings_are_named(make_vcm, encoding):
    root = make_vcm(images=False)
    file = root / "HITSZ-VCM" / "info" / "track_test_info.txt"
    text = (
        file.read_text().replace(" 2\n", " 2\u00a0\n")
        if encoding == "latin-1"
        else "\ufeff" + file.read_text()
    )
    file.write_bytes(text.encode(encoding))
    expected = (
        "line 2 holds the byte 0xa0"
        if encoding == "latin-1"
        else "is UTF-16 or UTF-32 text, save it as UTF-8"
    )
    with pytest.raises(UserError, match=rf"track_test_info\.txt cannot be read: .*{expected}"):
        HITSZVCM(root, check_frames=False)


def test_tracklets_in_any_order_keep_their_own_frames(make_vcm):
    """A line names its frames by number, so where it stands says nothing; the query counts lines and goes with them."""
    root = make_vcm(images=False)
    expected = HITSZVCM(root, check_frames=False)
    info = root / "HITSZ-VCM" / "info"
    for split in ("train", "test"):
        path = info / f"track_{split}_info.txt"
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    (info / "query_IDX.txt").write_text("1 2 5 6")
    data = HITSZVCM(root, check_frames=False)
    for ours, theirs in (
        (data.train, expected.train),
        (data.query, expected.query),
        (data.gallery, expected.gallery),
    ):
        assert ours == theirs[::-1]


def test_a_frame_named_twice_is_shown_twice_and_said(make_vcm, caplog):
    root = make_vcm(images=False)
    replace_line(root / "HITSZ-VCM" / "info" / "train_name.txt", 5, "0001M2D1T1F4.jpg")
    data = HITSZVCM(root, check_frames=False)
    assert data.train[0].frames[3:5] == ("0001/rgb/D1/4.jpg",) * 2
    assert "train_name.txt names 1 of its 150 frames twice" in caplog.text


def test_tracklets_of_one_frame(make_vcm):
    data = HITSZVCM(make_vcm(lengths=(1,)), min_frames=1)
    assert [len(tracklet) for tracklet in data.train] == [1] * 6
    assert data.train[0].frames == ("0001/rgb/D1/1.jpg",)


def test_a_million_tracklets_of_all_frames_take_no_time(make_vcm):
    """Each of them alone is fine; together they would be 10^11 frames."""
    root = make_vcm(images=False)
    info = root / "HITSZ-VCM" / "info"
    (info / "train_name.txt").write_text("0001M2D1T1F1.jpg\n" * 100_000)
    (info / "track_train_info.txt").write_text("2 1 100000 0001 1\n" * 100_000)
    begun = time.process_time()
    with pytest.raises(UserError, match="share lines"):
        HITSZVCM(root, check_frames=False)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("size", [100 << 20, 10 << 20])
def test_megabytes_of_junk_on_one_line(make_vcm, size):
    root = make_vcm(images=False)
    for name in ("train_name.txt", "query_IDX.txt"):
        file = root / "HITSZ-VCM" / "info" / name
        whole = file.read_bytes()
        file.write_bytes(b"7 " * (size // 2))
        begun = time.process_time()
        with pytest.raises(UserError, match=rf"{name}.* (bytes|characters), more than") as error:
            HITSZVCM(root, check_frames=False)
        assert time.process_time() - begun < 2
        assert len(str(error.value)) < 500
        file.write_bytes(whole)


def test_shifted_track_indices_are_noticed(make_vcm):
    """Indices that count from 0 put the last frame of one tracklet into the next one."""
    root = make_vcm(images=False)
    path = root / "HITSZ-VCM" / "info" / "track_train_info.txt"
    replace_line(path, 2, "2 12 24 0001 2")
    with pytest.raises(
        UserError,
        match=r"line 12: .* is not of identity 1, modality 2, camera 2, as tracklet 2 says",
    ):
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
    path.write_text(
        "\n".join(line for line in lines if not line.startswith("1 ") or " 0002 " not in line)
    )
    with pytest.raises(
        UserError, match=r"1 identities .* in one modality only: 2 \(only visible\)"
    ):
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
    with pytest.raises(
        UserError, match=r"no tracklet has 14 frames or more: lower DATASETS.MIN_FRAMES"
    ):
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
        lines[split] += [
            module._Line(modality, 1, n, i % identities, 1) for i, n in enumerate(lengths)
        ]
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
