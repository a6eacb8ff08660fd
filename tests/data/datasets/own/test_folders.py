"""Folders: modality words, numbers, the drawn and the given split, and identities left out."""

from collections import defaultdict

import numpy as np
import pytest

from fastreid_star.data.build import build_dataset, open_store
from fastreid_star.data.datasets import Folders
from fastreid_star.data.datasets.own.labels import numbered
from fastreid_star.data.datasets.own.split import draw_test
from fastreid_star.data.skeletons import write_skeleton_store
from fastreid_star.engine.configs import load_config
from fastreid_star.errors import UserError
from fastreid_star.pose.frames import frames_of_dataset, frames_of_folder
from fastreid_star.structures import Modality

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED


def make(root, *folders, frames=2):
    """Folders of tracklets with empty images; a path with a suffix is a file."""
    for folder in folders:
        names = [folder] if "." in folder else [f"{folder}/{k}.jpg" for k in range(frames)]
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"")
    return str(root)


def people(count, cameras=(1, 2)):
    return [f"p{i}/{m}/{c}/t" for i in range(count) for m in ("ir", "rgb") for c in cameras]


def names(data, tracklets):
    by_number = {number: name for name, number in data.identities.items()}
    return {by_number[tracklet.pid] for tracklet in tracklets}


def test_a_drawn_split_by_identity(tmp_path):
    data = Folders(make(tmp_path, *people(10)), test_share=0.4)
    test = [*data.query, *data.gallery]
    assert len(names(data, test)) == 4
    assert names(data, test) | names(data, data.train) == {f"p{i}" for i in range(10)}
    assert not names(data, test) & names(data, data.train)
    assert {t.modality for t in data.query} == {INFRARED}
    assert {t.modality for t in data.gallery} == {VISIBLE}
    assert (len(data.train), len(data.query), len(data.gallery)) == (24, 8, 8)
    assert {t.camid for t in data.train} == {1, 2}
    assert data.train[0].frames == tuple(f"{data.train[0].key(0)[:-2]}/{k}.jpg" for k in (0, 1))
    assert data.train[0].root == data.folder == str(tmp_path)
    assert "split drawn by identity, 40% for testing, seed 0" in data.about
    assert "40 tracklets, 0 of one frame; ir is infrared; rgb is visible; 2 cameras" in data.about
    assert data.warnings == ()
    # the shortest tracklet does not change who is tested
    make(tmp_path, *people(5, cameras=(3,)), frames=7)
    longer = Folders(str(tmp_path), test_share=0.4, min_frames=7)
    assert names(longer, longer.query) <= names(data, data.query)
    assert names(longer, longer.train) <= names(data, data.train)


def test_the_draw_depends_on_names_and_seed_alone():
    everybody = [f"p{i}" for i in range(100)]
    test = draw_test(everybody, 0.3, 0)
    assert len(test) == 30
    assert draw_test(reversed(everybody), 0.3, 0) == test
    assert len(draw_test(everybody, 0.3, 1) & test) < 20
    more = draw_test([*everybody, *(f"q{i}" for i in range(10))], 0.3, 0)
    assert len(test - more) <= 10, "few change sides"
    assert draw_test(everybody, 1.0, 0) == set(everybody)
    for share in (0.01, 0.9):
        assert len(draw_test(everybody[:4], share, 0)) == 2
    for share in (0, -1, 1.01):
        with pytest.raises(UserError, match="TEST_SHARE"):
            draw_test(everybody, share, 0)
    with pytest.raises(UserError, match="3 identities have tracklets in both modalities"):
        draw_test(everybody[:3], 0.5, 0)


def test_identities_in_one_modality_are_left_out_and_named(tmp_path):
    data = Folders(make(tmp_path, *people(4), "Ann/ir/1/t", "Bob/rgb/1/t"))
    everybody = names(data, [*data.train, *data.query, *data.gallery])
    assert everybody == {"p0", "p1", "p2", "p3"}
    assert data.warnings == (
        "2 identities have tracklets in one modality only and are left out: Ann (only infrared), "
        "Bob (only visible)",
    )


def test_training_identities_that_lose_a_modality_to_the_shortest_length(tmp_path):
    make(tmp_path, *(f"train/p{i}/{m}/t" for i in range(3) for m in ("ir", "rgb")), frames=5)
    make(tmp_path, "train/short/ir/t", "test/q/ir/t", "test/q/rgb/t", "test/r/rgb/t", frames=3)
    make(tmp_path, "train/short/rgb/t", frames=5)
    pattern = "{split}/{identity}/{modality}/{tracklet}"
    data = Folders(str(tmp_path), pattern=pattern, min_frames=3)
    assert data.warnings == ()
    assert names(data, data.gallery) == {"q", "r"}, "one without a match is still found"
    make(tmp_path, "test/q/ir/t", "test/q/rgb/t", frames=5)
    data = Folders(str(tmp_path), pattern=pattern, min_frames=4)
    assert names(data, data.train) == {"p0", "p1", "p2"}
    assert data.warnings[0].endswith("are left out of training: short (only visible)")
    assert "no cameras, so the camera rule has no effect; split as given" in data.about


def test_without_cameras_each_modality_is_a_camera(tmp_path):
    root = make(tmp_path, *(f"{m}/p{i}" for i in range(4) for m in ("thermal", "vis")))
    data = Folders(root, pattern="{modality}/{identity}")
    cameras = defaultdict(set)
    for tracklet in (*data.train, *data.query, *data.gallery):
        cameras[tracklet.modality].add(tracklet.camid)
    assert all(len(of) == 1 for of in cameras.values())
    assert cameras[VISIBLE] != cameras[INFRARED]


def write_list(tmp_path, *rows, columns="path,identity,modality,split"):
    for row in rows:
        make(tmp_path, row.partition(",")[0])
    (tmp_path / "list.csv").write_text("\n".join([columns, *rows]))
    return str(tmp_path / "list.csv")


PAIRS = [f"{p}{m}.jpg,{p},{m}" for p in "abcd" for m in ("1", "2")]


def test_a_given_split_with_numbers_for_modalities(tmp_path):
    rows = [f"{row},{'train' if row[0] in 'ab' else 'Test'}" for row in PAIRS]
    data = Folders(write_list(tmp_path, *rows))
    assert names(data, data.train) == {"a", "b"}
    assert [t.frames for t in data.query] == [("c1.jpg",), ("d1.jpg",)], "1 is infrared"
    assert [t.frames for t in data.gallery] == [("c2.jpg",), ("d2.jpg",)]
    assert {t.modality for t in data.gallery} == {VISIBLE}


def test_queries_and_gallery_of_their_own(tmp_path):
    rows = [f"{row},{'train' if row[0] in 'ab' else 'query'}" for row in PAIRS]
    rows += [f"g{row},gallery" for row in PAIRS if row[0] in "cd"]
    data = Folders(write_list(tmp_path, *rows))
    assert {t.role for t in data.query} == {"query"}
    assert {t.role for t in data.gallery} == {"gallery"}
    assert (len(data.query), len(data.gallery)) == (4, 4)


def test_visible_queries_and_an_infrared_gallery_are_both_directions(tmp_path):
    roles = {"1": "gallery", "2": "query"}
    rows = [f"{row},{'train' if row[0] in 'ab' else roles[row[1]]}" for row in PAIRS]
    data = Folders(write_list(tmp_path, *rows))
    assert not hasattr(data.query[0], "role")
    assert {t.modality for t in data.query} == {INFRARED}
    assert {t.modality for t in data.gallery} == {VISIBLE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "a1.jpg,a,1,test"}, r"1 identities are in the training set and .* such as a \(.*line"),
        ({0: "a1.jpg,a,1,"}, r"line 2 has no split, but others have"),
        ({0: "a1.jpg,a,1,val"}, r"line 2: the split 'val' is none of train, test, query, gallery"),
        ({7: "d2.jpg,d,2,gallery"}, r"have the split test, others query or gallery"),
        ({0: "a1.jpg,a,depth,train"}, r"line 2: 'depth' is no modality: write one of rgb, visible"),
    ],
)
def test_a_split_or_modality_that_cannot_be(tmp_path, change, message):
    rows = [f"{row},{'train' if row[0] in 'ab' else 'test'}" for row in PAIRS]
    for place, row in change.items():
        rows[place] = row
    with pytest.raises(UserError, match=message):
        Folders(write_list(tmp_path, *rows))


def test_levels_in_another_order_are_one_line(tmp_path):
    root = make(tmp_path, *(f"{m}/p{i}/1/t" for i in range(4) for m in ("ir", "rgb")))
    with pytest.raises(UserError, match=r"ir/p0/1/t: 'p0' is no modality.*PATTERN to the order"):
        Folders(root)


def test_cameras_in_the_place_of_modalities_are_one_line(tmp_path):
    """1 and 2 are words for a modality too."""
    places = ("1/visible", "2/infrared")
    root = make(tmp_path, *(f"p{i}/{place}/t" for i in range(4) for place in places))
    message = r"p0/1/visible/t: the modality '1' is infrared, but the camera is 'visible'.*PATTERN"
    with pytest.raises(UserError, match=message):
        Folders(root)
    assert len(Folders(root, pattern="{identity}/{camera}/{modality}/{tracklet}").train) == 4


def test_numbers_are_kept_where_they_name_all():
    assert numbered(["0010", "0002"]) == {"0002": 2, "0010": 10}
    assert numbered(["1", "01"]) == {"01": 0, "1": 1}
    assert numbered(["p10", "p9", "p9"]) == {"p9": 0, "p10": 1}
    assert numbered(["2", str(2**31)]) == {"2": 0, str(2**31): 1}
    assert numbered(["²", "3"]) == {"3": 0, "²": 1}


def test_skeletons_have_the_names_that_their_extraction_gives(tmp_path):
    """`skeletons --images` for a tree, `skeletons --dataset Folders` for a tree and a list."""
    root = make(tmp_path, *people(4))
    data = Folders(root)
    tracklets = [*data.train, *data.query, *data.gallery]
    keys = sorted(t.key(k) for t in tracklets for k in range(len(t)))
    assert sorted(frames_of_folder(root).keys) == keys
    assert sorted(frames_of_dataset("Folders", root).keys) == keys
    rows = [f"{t},{t[:2]},{t.split('/')[1]}" for t in people(4)]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["path,identity,modality", *rows]))
    frames = frames_of_dataset("Folders", str(listed))
    assert sorted(frames.keys) == keys
    assert frames.path(0) == str(tmp_path / f"{frames.keys[0]}.jpg")
    assert len(frames.tracklets()) == len(tracklets)
    write_skeleton_store(tmp_path / "skeletons", keys, np.zeros((len(keys), 17, 3)))
    cfg = load_config(
        opts=[
            "DATASETS.ROOT",
            str(listed),
            "DATASETS.SKELETONS",
            "skeletons",
            "DATASETS.MIN_FRAMES",
            "1",
        ]
    )
    store = open_store(cfg, build_dataset(cfg, "Folders"))
    assert all(key in store for key in keys)


def test_where_the_data_are(tmp_path):
    make(tmp_path / "Folders", *people(4))
    assert Folders(str(tmp_path)).folder == str(tmp_path / "Folders")
    make(tmp_path, "a.jpg")
    (tmp_path / "Folders.csv").write_text(
        "path,identity,modality\n"
        + "".join(f"Folders/{p},{p[:2]},{p[3:5]}\n" for p in people(4)).replace(",rg", ",rgb")
    )
    data = Folders(str(tmp_path))
    assert data.folder == str(tmp_path)
    assert data.query[0].frames[0].startswith("Folders/p")
    with pytest.raises(UserError, match=r"nowhere does not exist: set DATASETS\.ROOT"):
        Folders(str(tmp_path / "nowhere"))
