"""BUPTCampus: its lists and paths, what is refused, and its protocol, where the queries are a list of their own."""

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.data.build import build_clip_test_loader, build_clip_train_loader, build_dataset
from fastreid_star.data.datasets import BUPTCampus
from fastreid_star.data.datasets import bupt_campus as module
from fastreid_star.data.datasets.bupt_campus import BUPTCampusOptions
from fastreid_star.data.skeletons import write_skeleton_store
from fastreid_star.engine.defaults import argument_parser, load_config
from fastreid_star.engine.trainer import Trainer, train_or_evaluate
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

CONFIGS = Path(__file__).parents[3] / "configs" / "BUPTCampus"
SIZE = (16, 8)  # height, width

# (pid, camera, track, frames) of each pair, and (pid, modality, camera, track, frames) of each tracklet
TRAIN = [
    (1, "LS3", 1, 5),
    (1, "TSG2", 1, 4),
    (2, "G25", 1, 3),
    (2, "G25", 2, 6),
    (3, "W4", 1, 2),
    (3, "CQ1", 1, 3),
]
AUXILIARY = [(20, "TSG1", 1, 4), (21, "LS3", 1, 3)]
QUERY = [
    (10, "IR", "LS3", 2, 3),
    (12, "RGB", "G25", 1, 4),
    (11, "RGB", "W4", 1, 2),
    (13, "IR", "CQ1", 1, 1),
]
# identity 10 is in the gallery under its query's own camera too
GALLERY = [
    (pid, modality, camera, 1, frames)
    for pid, camera, frames in (
        (10, "LS3", 4),
        (10, "TSG1", 2),
        (11, "G25", 3),
        (12, "CQ1", 5),
        (13, "W4", 1),
    )
    for modality in ("IR", "RGB")
]
LISTS = {
    "train.txt": [(pid, "RGB/IR", camera, track) for pid, camera, track, _ in TRAIN],
    "train_auxiliary.txt": [(pid, "RGB/IR", camera, track) for pid, camera, track, _ in AUXILIARY],
    "query.txt": [line[:4] for line in QUERY],
    "gallery.txt": [line[:4] for line in GALLERY],
}
FORMS = {
    "DATA": "",
    "root": "DATA/",
    "bare": None,
}  # what stands before "pid/modality/camera/" in data_paths.json


def write_bupt(folder, *, form="DATA", images=False):
    """Write a tiny BUPTCampus in its own layout, FakeIR included; `images`: with the JPEGs, noise around a color."""
    rng = np.random.default_rng(0)
    tracks = [
        (pid, modality, *rest) for pid, *rest in [*TRAIN, *AUXILIARY] for modality in ("IR", "RGB")
    ]
    # a tracklet that no list names, as there are in the real set
    tracks += [*QUERY, *GALLERY, (12, "IR", "G25", 1, 4)]
    paths = {}
    for pid, modality, camera, track, length in tracks:
        place = f"{pid}/{modality}/{camera}"
        names = [
            f"{pid}_{modality}_{camera}_{track}_{8535 + 2 * frame}.jpg" for frame in range(length)
        ]
        listed = names if form == "bare" else [f"{FORMS[form]}{place}/{name}" for name in names]
        paths.setdefault(str(pid), {}).setdefault(modality, {}).setdefault(camera, {})[
            str(track)
        ] = listed
        folders = [place, place.replace("RGB", "FakeIR")] if images else [place]
        for where in dict.fromkeys(folders):
            (folder / "DATA" / where).mkdir(parents=True, exist_ok=True)
            for name in names if images else ():
                color = np.array([12 * pid, 200 if modality == "IR" else 60, 255 - 10 * pid])
                noise = rng.integers(-10, 10, (*SIZE, 3))
                Image.fromarray((color + noise).clip(0, 255).astype(np.uint8)).save(
                    folder / "DATA" / where / name
                )
    (folder / "data_paths.json").write_text(json.dumps(paths))
    for name, lines in LISTS.items():
        (folder / name).write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    return folder


@pytest.fixture
def root(tmp_path):
    """A folder that holds a BUPTCampus without images, to be changed at will."""
    write_bupt(tmp_path / "BUPTCampus")
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", [False, True])
def test_every_form_of_path_gives_the_same(tmp_path, form, inside):
    folder = write_bupt(tmp_path / "BUPTCampus", form=form)
    data = BUPTCampus(str(folder if inside else tmp_path))
    assert (len(data.train), len(data.query), len(data.gallery)) == (12, 4, 10)
    first, second = data.train[:2]
    assert (first.pid, first.camid, first.modality) == (1, 0, Modality.VISIBLE)
    assert (second.pid, second.camid, second.modality) == (1, 0, Modality.INFRARED)
    assert first.frames == tuple(f"1/RGB/LS3/1_RGB_LS3_1_{8535 + 2 * i}.jpg" for i in range(5))
    assert second.frames[-1] == "1/IR/LS3/1_IR_LS3_1_8543.jpg"
    assert first.root == str(folder / "DATA")
    assert first.key(0) == "1/RGB/LS3/1_RGB_LS3_1_8535"


def test_lists_keep_their_order_and_say_who_may_be_found(root):
    data = BUPTCampus(root)
    numbers = {"RGB": 2, "IR": 1}
    cameras = {"LS3": 0, "G25": 1, "CQ1": 2, "W4": 3, "TSG1": 4, "TSG2": 5}
    for tracklets, lines, role in (
        (data.query, QUERY, "query"),
        (data.gallery, GALLERY, "gallery"),
    ):
        assert [(t.pid, int(t.modality), t.camid, len(t), t.role) for t in tracklets] == [
            (pid, numbers[modality], cameras[camera], length, role)
            for pid, modality, camera, _, length in lines
        ]
    assert [(t.pid, t.camid) for t in data.train[::2]] == [
        (pid, cameras[camera]) for pid, camera, _, _ in TRAIN
    ]


def test_no_frame_is_looked_for(root, monkeypatch):
    """A start on the real set must not ask the file system about 1.7 million frames."""
    asked = []
    for name in ("exists", "isfile", "isdir"):
        real = getattr(module.os.path, name)
        monkeypatch.setattr(
            module.os.path, name, lambda path, real=real: asked.append(str(path)) or real(path)
        )
    BUPTCampus(root)
    assert asked
    assert not any(path.endswith(".jpg") for path in asked)


def test_bom_crlf_blanks_and_empty_lines(root):
    expected = BUPTCampus(root)
    for name in LISTS:
        file = root / "BUPTCampus" / name
        lines = file.read_text().splitlines()
        text = "\r\n" + "".join(f"  {line} \t\r\n \r\n" for line in lines)
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    file = root / "BUPTCampus" / "data_paths.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b"\r\n")
    data = BUPTCampus(root)
    assert (data.train, data.query, data.gallery) == (
        expected.train,
        expected.query,
        expected.gallery,
    )


def test_minimum_length_holds_in_all_lists(root):
    data = BUPTCampus(root, min_frames=3)
    assert min(len(t) for t in [*data.train, *data.query, *data.gallery]) == 3
    assert (len(data.train), len(data.query), len(data.gallery)) == (10, 2, 6)
    assert data.dropped == {
        ("train", Modality.INFRARED): 1,
        ("train", Modality.VISIBLE): 1,
        ("query", Modality.INFRARED): 1,
        ("query", Modality.VISIBLE): 1,
        ("gallery", Modality.INFRARED): 2,
        ("gallery", Modality.VISIBLE): 2,
    }
    with pytest.raises(
        UserError, match=r"query\.txt: no tracklet has 5 frames or more: lower DATASETS\.MIN_FRAMES"
    ):
        BUPTCampus(root, min_frames=5)


def test_tables(root, caplog):
    data = BUPTCampus(root, min_frames=2)
    with caplog.at_level(logging.INFO):
        data.show_train()
        data.show_test()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in caplog.text.splitlines()
        if line[0] == "|"
    ]
    assert ["train visible", "6", "23", "3", "5", "0"] in rows
    assert ["query infrared", "1", "3", "1", "1", "1"] in rows
    assert ["query", "3", "9", "3", "3", "1"] in rows
    assert ["gallery", "8", "28", "3", "4", "2"] in rows


def test_auxiliary_pairs_are_training_identities_where_they_are_asked_for(root):
    cfg = config(root, "SAD_R50.yml")
    assert {t.pid for t in build_dataset(cfg, "BUPTCampus").train} == {1, 2, 3}
    cfg = config(root, "SAD_R50.yml", "DATASETS.BUPT_AUXILIARY", "True")
    data = build_dataset(cfg, "BUPTCampus")
    assert [(t.pid, t.modality.name, len(t)) for t in data.train[12:]] == [
        (pid, modality, length)
        for pid, _, _, length in AUXILIARY
        for modality in ("VISIBLE", "INFRARED")
    ]
    assert build_clip_train_loader(cfg, seed=0).dataset.num_classes == 5
    (root / "BUPTCampus" / "train_auxiliary.txt").unlink()
    assert len(BUPTCampus(root).train) == 12, "not read where it is not asked for"
    with pytest.raises(UserError, match=r"lacks train_auxiliary\.txt"):
        BUPTCampus(root, options=BUPTCampusOptions(auxiliary=True))


def test_combineall_keeps_test_identities_apart(root):
    data = BUPTCampus(root, combineall=True)
    assert len(data.train) == 12 + 4 + 10
    assert data.get_num_pids(data.train) == 3 + 4


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "train.txt",
            "1 RGB/IR LS3",
            "line 2: expected an identity's number, modality, camera and track, found '1 RGB",
        ),
        ("train.txt", "1 RGB/IR LS3 1 1", "line 2: expected"),
        ("train.txt", "x RGB/IR LS3 1", "line 2: expected an identity's number"),
        ("train.txt", "-1 RGB/IR LS3 1", "line 2: expected an identity's number"),
        ("train.txt", "² RGB/IR LS3 1", "line 2: expected an identity's number"),
        ("train.txt", "١ RGB/IR LS3 1", "line 2: expected an identity's number"),
        ("train.txt", "1\u2003RGB/IR LS3 1", "line 2: expected an identity's number"),
        ("train.txt", "1 RGB/IR LS3 １", "line 2: expected an identity's number"),
        ("train.txt", "9223372036854775808 RGB/IR LS3 1", "line 2: expected an identity's number"),
        ("train.txt", "9" * 999, "line 2: expected an identity's number.*9'$"),
        ("train.txt", "9" * 2000, "line 2 has 2,000 characters"),
        ("train.txt", "1 RGB/IR LS3 1\0", "line 2 holds the byte 0x00"),
        ("train.txt", "DATA/1/RGB/LS3/1.jpg", "line 2: expected an identity's number"),
        (
            "train.txt",
            "1 RGB/IR LS3 ../1",
            r"line 2: .*lists no frames of tracklet 1/RGB/LS3/\.\./1",
        ),
        ("train.txt", "1 RGB LS3 1", "line 2: modality RGB, expected RGB/IR"),
        (
            "train.txt",
            "1 RGB/IR LS4 1",
            "line 2: there is no camera LS4, only LS3, G25, CQ1, W4, TSG1, TSG2",
        ),
        (
            "train.txt",
            "4 RGB/IR LS3 1",
            r"line 2: .*data_paths\.json lists no frames of tracklet 4/RGB/LS3/1: both",
        ),
        (
            "train.txt",
            "1 RGB/IR CQ1 1",
            r"line 2: .*data_paths\.json lists no frames of tracklet 1/RGB/CQ1/1",
        ),
        (
            "train.txt",
            "1 RGB/IR LS3 9",
            r"line 2: .*data_paths\.json lists no frames of tracklet 1/RGB/LS3/9",
        ),
        ("train.txt", "12 RGB/IR G25 2", r"line 2: .*lists no frames of tracklet 12/RGB/G25/2"),
        ("query.txt", "10 RGB/IR LS3 1", "line 2: modality RGB/IR, expected RGB or IR"),
        ("query.txt", "10 FakeIR LS3 1", "line 2: modality FakeIR, expected RGB or IR"),
        ("gallery.txt", "10 IR ls3 1", "line 2: there is no camera ls3"),
        ("gallery.txt", "10 IR LS3 2 # note", "line 2: expected"),
    ],
)
def test_bad_lines(root, file, text, message):
    path = root / "BUPTCampus" / file
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], text, *lines[2:]]), encoding="utf-8")
    assert_refused(root, f"{file} {message}")


def assert_refused(root, message, **options):
    with pytest.raises(UserError, match=message) as error:
        BUPTCampus(root, **options)
    assert "\n" not in str(error.value)
    assert str(root) in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        "../secret.jpg",
        "1/RGB/LS3/../../../../secret.jpg",
        "DATA/1/RGB/LS3/../secret.jpg",
        "DATA/../1/RGB/LS3/1.jpg",
        "/etc/secret.jpg",
        "/DATA/1/RGB/LS3/1.jpg",
        "C:\\secret.jpg",
        "..\\secret.jpg",
        "C:secret.jpg",
        "..",
        "1/RGB/LS3/",
        "1/RGB/LS3/no_extension",
        "1/RGB/LS3/a\n.jpg",
        "1/IR/LS3/1_IR_LS3_1_8535.jpg",  # of the other modality
        "1/FakeIR/LS3/1_RGB_LS3_1_8535.jpg",
        "2/RGB/LS3/2_RGB_LS3_1_8535.jpg",
        "1/RGB/TSG2/1_RGB_TSG2_1_8535.jpg",
        "DATA/1_RGB_LS3_1_8535.jpg",
        "DATA/DATA/1/RGB/LS3/1_RGB_LS3_1_8535.jpg",
        "",
        7,
        1.5,
        None,
        ["1/RGB/LS3/1_RGB_LS3_1_8535.jpg"],
        "1/RGB/LS3/a\0.jpg",
        "1/RGB/LS3/\ud800.jpg",
        "1/RGB/LS3/٣.jpg",
        {"a": [["b"] * 1000] * 1000},
        "x" * 10**6,
    ],
    ids=lambda entry: repr(entry)[:40],
)
def test_paths_that_lead_elsewhere(root, entry):
    path = root / "BUPTCampus" / "data_paths.json"
    paths = json.loads(path.read_text())
    paths["1"]["RGB"]["LS3"]["1"][3] = entry
    path.write_text(json.dumps(paths))
    assert_refused(
        root,
        r"data_paths\.json: .* is not a frame of tracklet 1/RGB/LS3/1 \(.*train\.txt line 1\): expected 1/RGB/LS3/",
    )


@pytest.mark.parametrize("value", [[], "1_RGB_LS3_1_8535.jpg", {"0": "a.jpg"}, None])
def test_a_tracklet_without_a_list_of_frames(root, value):
    path = root / "BUPTCampus" / "data_paths.json"
    paths = json.loads(path.read_text())
    paths["1"]["RGB"]["LS3"]["1"] = value
    path.write_text(json.dumps(paths))
    assert_refused(
        root, r"train\.txt line 1: .*data_paths\.json lists no frames of tracklet 1/RGB/LS3/1"
    )


@pytest.mark.parametrize("content", [b'{"1": {', b"\xff\xfe\x00", b"", b"[" * 100_000])
def test_paths_that_are_no_json(root, content):
    (root / "BUPTCampus" / "data_paths.json").write_bytes(content)
    assert_refused(root, r"data_paths\.json cannot be read")


def test_the_same_name_twice_in_the_paths(root):
    """JSON would keep the second one and say nothing."""
    path = root / "BUPTCampus" / "data_paths.json"
    path.write_text(path.read_text().replace('"2":', '"1":', 1))
    assert_refused(root, r"data_paths\.json cannot be read: '1' is there twice")


def test_a_line_twice_counts_twice_and_is_said(root, caplog):
    path = root / "BUPTCampus" / "gallery.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[2], lines[0]]))
    data = BUPTCampus(root)
    assert len(data.gallery) == 12
    assert data.gallery[-2:] == [data.gallery[2], data.gallery[0]]
    assert "gallery.txt has 2 lines twice, the first of them" in caplog.text
    assert "gallery.txt line 11: they count twice" in caplog.text


@pytest.mark.parametrize("bom", [b"\xff\xfe", b"\xfe\xff"])
def test_lists_in_utf_16(root, bom):
    for name in ("train.txt", "data_paths.json"):
        path = root / "BUPTCampus" / name
        whole = path.read_bytes()
        path.write_bytes(
            bom + whole.decode().encode("utf-16-le" if bom == b"\xff\xfe" else "utf-16-be")
        )
        assert_refused(
            root, rf"{name} cannot be read: it is UTF-16 or UTF-32 text, save it as UTF-8"
        )
        path.write_bytes(whole)


def test_paths_that_are_no_table(root):
    (root / "BUPTCampus" / "data_paths.json").write_text("[]")
    assert_refused(root, r"data_paths\.json is not a table of identities")


@pytest.mark.parametrize("file", ["train.txt", "query.txt", "gallery.txt"])
def test_a_list_without_lines_or_of_bytes(root, file):
    (root / "BUPTCampus" / file).write_text("\n \n")
    assert_refused(root, f"{file} lists no tracklet")
    (root / "BUPTCampus" / file).write_bytes(b"1 RGB/IR LS3 \xff\n")
    assert_refused(root, f"{file} cannot be read")


def test_missing_files_and_folders(root):
    assert_refused(root / "nowhere", r"no BUPTCampus in .*nowhere: .*DATASETS\.ROOT")
    shutil.rmtree(root / "BUPTCampus" / "DATA" / "13" / "RGB")
    assert_refused(
        root, r"13.RGB.W4 is missing, though gallery\.txt lists a tracklet in it: unpack all images"
    )
    assert len(BUPTCampus(root, check_frames=False).gallery) == 10
    (root / "BUPTCampus" / "query.txt").unlink()
    (root / "BUPTCampus" / "data_paths.json").unlink()
    assert_refused(root, r"BUPTCampus lacks data_paths\.json, query\.txt: copy all lists")


def test_published_counts(root, caplog, monkeypatch):
    """The tiny set stands in for the real one by taking its place in the table."""
    caplog.set_level(logging.INFO)
    everything = BUPTCampusOptions(auxiliary=True)
    BUPTCampus(root, options=everything)
    assert "counts" not in caplog.text, "another set in the same layout"
    ours = {
        (name, modality): (count, frames, identities)
        for name, count, frames, identities in (
            ("train.txt", 6, 23, 3),
            ("train_auxiliary.txt", 2, 7, 2),
            ("gallery.txt", 5, 15, 4),
        )
        for modality in Modality
    }
    ours |= {
        ("query.txt", Modality.INFRARED): (2, 4, 2),
        ("query.txt", Modality.VISIBLE): (2, 6, 2),
    }
    assert ours.keys() == module.PUBLISHED.keys()
    monkeypatch.setattr(module, "PUBLISHED", ours)
    BUPTCampus(root, options=everything)
    assert "counts equal the published ones" in caplog.text
    caplog.clear()
    ours["query.txt", Modality.VISIBLE] = (2, 7, 1)
    BUPTCampus(root)
    assert (
        "query.txt visible frames 6 instead of 7; query.txt visible identities 2 instead of 1"
        in caplog.text
    )
    assert "infrared" not in caplog.text


def test_the_published_counts_add_up():
    def total(name, what):
        return sum(module.PUBLISHED[name, modality][what] for modality in Modality)

    assert (total("train.txt", 0), total("train.txt", 1)) == (2 * 3574, 796138)
    assert (total("train_auxiliary.txt", 0), total("train_auxiliary.txt", 1)) == (2 * 930, 209150)
    assert (total("query.txt", 0), total("query.txt", 1), total("query.txt", 2)) == (
        1076,
        101938,
        1076,
    )
    assert (total("gallery.txt", 0), total("gallery.txt", 1)) == (4844, 597542)


# --- the configs, from training to the numbers -----------------------------------------------------------------------


def config(root, name, *more):
    """A config of the real dataset, made small."""
    options = [
        "DATASETS.ROOT", root, "OUTPUT_DIR", root / "out", "MODEL.DEVICE", "cpu",
        "MODEL.BACKBONE.NAME", "build_small_resnet_backbone", "MODEL.BACKBONE.DEPTH", "tiny",
        "MODEL.BACKBONE.LAST_STRIDE", "2", "MODEL.BACKBONE.PRETRAIN", "False",
        "INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]", "INPUT.CLIP.LENGTH", "3",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_EPOCH", "2", "TEST.IMS_PER_BATCH", "4",
        *more,
    ]  # fmt: skip
    return load_config(str(CONFIGS / name), [str(option) for option in options])


@pytest.fixture(scope="module")
def with_images(tmp_path_factory):
    """A BUPTCampus with frames and a skeleton of each, its keys made from the files' own names."""
    root = tmp_path_factory.mktemp("bupt")
    folder = write_bupt(root / "BUPTCampus", images=True)
    files = [
        path for path in sorted((folder / "DATA").rglob("*.jpg")) if "FakeIR" not in path.parts
    ]
    keys = [path.relative_to(folder / "DATA").with_suffix("").as_posix() for path in files]
    joints = np.random.default_rng(0).uniform(0, 8, (len(keys), 17, 3)).astype(np.float32)
    write_skeleton_store(folder / "skeletons", keys, joints)
    return root


def brute_force(features, modality, *, ranks=(1, 5, 10, 20)):
    """CMC and mAP in percent, straight from the two lists: queries of `modality`, gallery of the other, no camera rule.

    Args:
        features: [N, D], rows in the order of the lines of query.txt, then of gallery.txt.
    """
    lines = [("query", pid, m) for pid, m, *_ in QUERY] + [
        ("gallery", pid, m) for pid, m, *_ in GALLERY
    ]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    gallery = [
        row for row, (which, _, m) in enumerate(lines) if which == "gallery" and m != modality
    ]
    hits, precisions = [], []
    for row, (which, pid, m) in enumerate(lines):
        if which == "query" and m == modality:
            found = [
                lines[g][1] == pid for g in sorted(gallery, key=lambda g: -(unit[row] @ unit[g]))
            ]
            places = np.flatnonzero(found) + 1
            hits.append(places[0])
            precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
    return [100 * np.mean(np.array(hits) <= rank) for rank in ranks], 100 * np.mean(precisions)


def test_star_trains_and_its_numbers_are_the_protocols(with_images, tmp_path):
    cfg = config(with_images, "STAR_R50.yml", "OUTPUT_DIR", tmp_path)
    trainer = Trainer(cfg)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    results = trainer.train()
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)
    )

    loader = build_clip_test_loader(cfg, "BUPTCampus")
    trainer.model.eval()
    with torch.no_grad():
        batches = list(loader)
        features = torch.cat([trainer.model(batch) for batch in batches]).double().numpy()
    assert all(batch["has_skeleton"].all() for batch in batches)
    assert not any("FakeIR" in frame for t in loader.dataset.tracklets for frame in t.frames)
    for direction, modality in (("I2V", "IR"), ("V2I", "RGB")):
        cmc, mean_precision = brute_force(features, modality)
        assert [results[f"{direction}/Rank-{rank}"] for rank in (1, 5, 10, 20)] == pytest.approx(
            cmc
        )
        assert results[f"{direction}/mAP"] == pytest.approx(mean_precision)

    with open(tmp_path / "per_query_BUPTCampus.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["direction"], int(row["tracklet"])) for row in rows] == [
        ("I2V", 0), ("I2V", 3), ("V2I", 1), ("V2I", 2),
    ]  # fmt: skip
    assert [int(row["n_matches"]) for row in rows] == [2, 1, 1, 1], (
        "the query's own camera stays in the gallery"
    )
    assert all(int(row["top1_tracklet"]) >= len(QUERY) for row in rows)

    arguments = ["--config-file", str(tmp_path / "config.yaml"), "--eval-only"]
    again = train_or_evaluate(
        argument_parser("test").parse_args(
            [*arguments, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
        )
    )
    assert again == results


def test_the_baseline_trains_and_logs_the_protocol(with_images, tmp_path, caplog):
    cfg = config(with_images, "SAD_R50.yml", "OUTPUT_DIR", tmp_path, "SOLVER.MAX_EPOCH", "1")
    with caplog.at_level(logging.INFO, logger="fastreid_star"):
        results = Trainer(cfg).train()
    assert results["mean/mAP"] > 0
    for line in (
        "BUPTCampus: tracklets of any length; same identity and camera kept in the gallery",
        "I2V: 2 infrared queries x 5 visible gallery tracklets, 2 identities, 2 valid queries",
        "V2I: 2 visible queries x 5 infrared gallery tracklets, 2 identities, 2 valid queries",
    ):
        assert line in caplog.text
