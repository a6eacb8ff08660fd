"""BUPTCampus: its lists and paths, errors in them, and its protocol, which lists the queries."""

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.data.build import build_clip_test_loader, build_dataset
from fastreid_star.data.datasets import BUPTCampus, ListedTracklet, bupt_campus
from fastreid_star.data.skeletons import write_skeleton_store
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import cross_modal_results
from fastreid_star.structures import Modality

CONFIGS = Path(__file__).parents[3] / "configs" / "BUPTCampus"
SIZE = (16, 8)  # height, width
CAMERAS = ("LS3", "G25", "CQ1", "W4", "TSG1", "TSG2")

# The lines of the lists and the number of frames of each tracklet. Identity 10 is in the gallery
# under its query's own camera too.
PAIRS = "1 RGB/IR LS3 1 5, 1 RGB/IR TSG2 1 4, 2 RGB/IR G25 1 3, 2 RGB/IR G25 2 6, 3 RGB/IR CQ1 1 2"
LISTS = {
    "train": PAIRS,
    "train_auxiliary": "20 RGB/IR TSG1 1 4, 21 RGB/IR LS3 1 3",
    "query": "10 IR LS3 2 3, 12 RGB G25 1 4, 11 RGB W4 1 2, 13 IR CQ1 1 1",
    "gallery": "10 IR LS3 1 4, 10 RGB LS3 1 4, 10 IR TSG1 1 2, 10 RGB TSG1 1 2, 11 IR G25 1 3, "
    "11 RGB G25 1 3, 12 IR CQ1 1 5, 12 RGB CQ1 1 5, 13 IR W4 1 1, 13 RGB W4 1 1",
}


def lines(name):
    """(pid, modality, camera, track, frames) of a list."""
    found = [line.split() for line in LISTS[name].split(", ")]
    return [(int(pid), m, camera, track, int(n)) for pid, m, camera, track, n in found]


def write_bupt(folder, *, prefix="", images=False):
    """Write a tiny BUPTCampus; the images are noise around a color, or empty files.

    Args:
        prefix: what stands before "pid/modality/camera/" in data_paths.json; None: file names only.
    """
    rng = np.random.default_rng(0)
    # a tracklet that no list names, as there are in the real set
    tracks = {(12, "IR", "G25", "1", 4)}
    for name in LISTS:
        text = "".join(f"{p} {m} {c} {t}\n" for p, m, c, t, _ in lines(name))
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text(text)
        tracks |= {(p, one, c, t, n) for p, m, c, t, n in lines(name) for one in m.split("/")}
    paths = {}
    for pid, modality, camera, track, length in sorted(tracks):
        place = f"{pid}/{modality}/{camera}"
        names = [f"{pid}_{modality}_{camera}_{track}_{8535 + 2 * n}.jpg" for n in range(length)]
        cameras = paths.setdefault(str(pid), {}).setdefault(modality, {})
        listed = names if prefix is None else [f"{prefix}{place}/{name}" for name in names]
        cameras.setdefault(camera, {})[track] = listed
        (folder / "DATA" / place).mkdir(parents=True, exist_ok=True)
        for name in names:
            if images:
                color = np.array([12 * pid, 200 if modality == "IR" else 60, 255 - 10 * pid])
                pixels = (color + rng.integers(-10, 10, (*SIZE, 3))).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "DATA" / place / name)
            else:
                (folder / "DATA" / place / name).touch()
    (folder / "data_paths.json").write_text(json.dumps(paths))
    return folder


@pytest.fixture
def root(tmp_path):
    """A folder that holds a BUPTCampus without images, to be changed at will."""
    write_bupt(tmp_path / "BUPTCampus")
    return tmp_path


@pytest.mark.parametrize(("prefix", "inside"), [("", True), ("DATA/", False), (None, False)])
def test_every_form_of_path_gives_the_same(tmp_path, prefix, inside):
    folder = write_bupt(tmp_path / "BUPTCampus", prefix=prefix)
    data = BUPTCampus(str(folder if inside else tmp_path))
    assert (len(data.train), len(data.query), len(data.gallery)) == (10, 4, 10)
    first, second = data.train[:2]
    assert (first.pid, first.camid, first.modality) == (1, 0, Modality.VISIBLE)
    assert (second.pid, second.camid, second.modality) == (1, 0, Modality.INFRARED)
    assert first.frames == tuple(f"1/RGB/LS3/1_RGB_LS3_1_{8535 + 2 * i}.jpg" for i in range(5))
    assert second.frames[-1] == "1/IR/LS3/1_IR_LS3_1_8543.jpg"
    assert first.root == str(folder / "DATA")
    assert first.key(0) == "1/RGB/LS3/1_RGB_LS3_1_8535"


def test_lists_keep_their_order_and_say_who_may_be_found(root):
    data = BUPTCampus(root)
    for role, tracklets in (("query", data.query), ("gallery", data.gallery)):
        assert [(t.pid, int(t.modality), t.camid, len(t), t.role) for t in tracklets] == [
            (pid, {"RGB": 2, "IR": 1}[modality], CAMERAS.index(camera), length, role)
            for pid, modality, camera, _, length in lines(role)
        ]
    assert [(t.pid, t.camid) for t in data.train[::2]] == [
        (pid, CAMERAS.index(camera)) for pid, _, camera, _, _ in lines("train")
    ]


def test_minimum_length_holds_in_all_lists(root):
    data = BUPTCampus(root, min_frames=3)
    assert min(len(t) for t in [*data.train, *data.query, *data.gallery]) == 3
    assert (len(data.train), len(data.query), len(data.gallery)) == (8, 2, 6)
    assert data.dropped == 8
    with pytest.raises(UserError, match=r"no query tracklet has 5 frames or more: lower"):
        BUPTCampus(root, min_frames=5)


def test_auxiliary_pairs_are_training_identities_where_they_are_asked_for(root):
    cfg = config(root, "SAD_R50.yml")
    assert {t.pid for t in build_dataset(cfg, "BUPTCampus").train} == {1, 2, 3}
    cfg = config(root, "SAD_R50.yml", "DATASETS.BUPT_AUXILIARY", "True")
    added = build_dataset(cfg, "BUPTCampus").train[10:]
    assert [(t.pid, t.modality.name, len(t)) for t in added] == [
        (20, "VISIBLE", 4), (20, "INFRARED", 4), (21, "VISIBLE", 3), (21, "INFRARED", 3),
    ]  # fmt: skip
    (root / "BUPTCampus" / "train_auxiliary.txt").unlink()
    assert len(BUPTCampus(root).train) == 10, "not read where it is not asked for"
    with pytest.raises(UserError, match=r"lacks train_auxiliary\.txt"):
        BUPTCampus(root, auxiliary=True)


def assert_refused(root, message, **options):
    with pytest.raises(UserError, match=message) as error:
        BUPTCampus(root, **options)
    assert "\n" not in str(error.value)


# file | second line | expected in the message
BAD_LINES = r"""
train.txt   | 1 RGB/IR LS3       | line 2: expected an identity, RGB/IR, a camera .* found '1 RGB
train.txt   | x RGB/IR LS3 1     | line 2: expected an identity
train.txt   | 1 RGB LS3 1        | line 2: expected an identity
train.txt   | 1 RGB/IR LS4 1     | line 2: expected .*LS3, G25, CQ1, W4, TSG1, TSG2
train.txt   | 4 RGB/IR LS3 1     | line 2: .*no frames of tracklet 4/RGB/LS3/1
train.txt   | 1 RGB/IR LS3 9     | line 2: .*no frames of tracklet 1/RGB/LS3/9
query.txt   | 10 FakeIR LS3 1    | line 2: expected an identity, RGB or IR
"""
CASES = [[cell.strip() for cell in line.split("|")] for line in BAD_LINES.strip().splitlines()]


@pytest.mark.parametrize(("file", "text", "message"), CASES)
def test_bad_lines(root, file, text, message):
    path = root / "BUPTCampus" / file
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], text, *lines[2:]]))
    assert_refused(root, f"{file} {message}")


def test_bad_paths(root):
    path = root / "BUPTCampus" / "data_paths.json"
    paths = json.loads(path.read_text())
    paths["1"]["RGB"]["LS3"]["1"] = ["../../secret.jpg"]
    path.write_text(json.dumps(paths))
    assert BUPTCampus(root, check_frames=False).train[0].frames == ("1/RGB/LS3/secret.jpg",)
    assert_refused(root, r"train set are missing: .*secret\.jpg does not exist")
    path.write_text("[]")
    assert_refused(root, r"train\.txt line 1: .*no frames of tracklet 1/RGB/LS3/1")


def test_missing_files_and_images(root):
    assert_refused(root / "nowhere", r"nowhere does not exist: DATASETS.ROOT.*BUPTCampus")
    shutil.rmtree(root / "BUPTCampus" / "DATA" / "13" / "RGB")
    assert_refused(root, r"gallery set are missing: .*13.RGB does not exist, .*holds IR")
    assert len(BUPTCampus(root, check_frames=False).gallery) == 10
    (root / "BUPTCampus" / "query.txt").unlink()
    (root / "BUPTCampus" / "data_paths.json").unlink()
    assert_refused(root, r"BUPTCampus lacks data_paths\.json, query\.txt: copy all lists")


def test_published_counts(root, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    BUPTCampus(root)
    assert "train infrared: tracklets 5 instead of 3,574, frames 20 instead of" in caplog.text
    assert "train_auxiliary" not in caplog.text
    published = {
        "train infrared": {"tracklets": 5, "frames": 20, "identities": 3},
        "query visible": {"tracklets": 2, "frames": 6, "identities": 2},
    }
    monkeypatch.setattr(BUPTCampus, "published", published)
    caplog.clear()
    BUPTCampus(root)
    assert "the counts equal the published ones" in caplog.text


def test_the_authors_protocol_drops_the_last_incomplete_batch_of_visible_tracklets(
    root, monkeypatch
):
    def visible(number):
        return ListedTracklet(number, 0, Modality.VISIBLE, "", ("1.jpg",), "query")

    infrared = ListedTracklet(600, 0, Modality.INFRARED, "", ("1.jpg",), "query")
    listed = [*map(visible, range(520)), infrared, *map(visible, range(520, 540))]
    kept = bupt_campus._whole_batches(listed)
    assert [t.pid for t in kept] == [*range(512), 600], "28 of 540, as in the publication"
    assert len(bupt_campus._whole_batches([visible(n) for n in range(2422)])) == 2422 - 54
    assert len(bupt_campus._whole_batches([visible(n) for n in range(128)])) == 128

    monkeypatch.setattr(bupt_campus, "BATCH", 2)
    everything, tested = BUPTCampus(root), BUPTCampus(root, test="authors")
    assert tested.train == everything.train
    assert tested.query == everything.query
    assert tested.gallery == everything.gallery[:-1], "the fifth visible entry is the last"
    monkeypatch.undo()
    with pytest.raises(UserError, match="only 2: set it to all"):
        BUPTCampus(root, test="authors")
    with pytest.raises(UserError, match="BUPT_TEST is 'none'"):
        BUPTCampus(root, test="none")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((), "all"),
        (("TEST.CAMERA_FILTER", "True"), "camera"),
        (("DATASETS.BUPT_TEST", "authors"), "authors"),
        (
            ("DATASETS.BUPT_TEST", "authors", "TEST.CAMERA_FILTER", "True"),
            "authors with the camera filter (not in use)",
        ),
    ],
)
def test_a_protocol_has_a_name(tmp_path, monkeypatch, options, name):
    monkeypatch.setattr(bupt_campus, "BATCH", 2)
    write_bupt(tmp_path / "BUPTCampus")
    _, evaluator = Trainer.build_evaluator(config(tmp_path, "SAD_R50.yml", *options), "BUPTCampus")
    protocol = evaluator.protocol
    n = len(evaluator.tracklets)
    assert (protocol["protocol_name"], n) == (name, 13 if "authors" in name else 14)
    results = cross_modal_results(torch.rand(n, 4), evaluator.tracklets, **protocol)
    assert results.protocol().startswith(f"BUPTCampus, protocol {name}: tracklets of any length")


def config(root, name, *more):
    """A config of the real dataset, made small."""
    options = [
        "DATASETS.ROOT", root, "OUTPUT_DIR", root / "out", "MODEL.DEVICE", "cpu",
        "MODEL.BACKBONE.NAME", "build_small_resnet_backbone", "MODEL.BACKBONE.DEPTH", "tiny",
        "MODEL.BACKBONE.LAST_STRIDE", "2", "MODEL.BACKBONE.PRETRAIN", "False",
        "INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]", "INPUT.CLIP.LENGTH", "3",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_EPOCH", "2",
        "TEST.IMS_PER_BATCH", "4",
        *more,
    ]  # fmt: skip
    return load_config(str(CONFIGS / name), [str(option) for option in options])


def brute_force(features, modality, *, ranks=(1, 5, 10, 20)):
    """CMC and mAP in percent for queries of `modality`, without a camera filter.

    Args:
        features: [N, D], rows in the order of the lines of query.txt, then of gallery.txt.
    """
    queries, gallery = lines("query"), lines("gallery")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    hits, precisions = [], []
    for row, (pid, m, *_) in enumerate(queries):
        if m == modality:
            other = [g for g, (_, entry, *_) in enumerate(gallery) if entry != modality]
            order = sorted(other, key=lambda g: -(unit[row] @ unit[len(queries) + g]))
            places = np.flatnonzero([gallery[g][0] == pid for g in order]) + 1
            hits.append(places[0])
            precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
    return [100 * np.mean(np.array(hits) <= rank) for rank in ranks], 100 * np.mean(precisions)


def test_star_trains_and_its_numbers_are_the_protocols(tmp_path):
    folder = write_bupt(tmp_path / "BUPTCampus", images=True)
    files = [path.relative_to(folder / "DATA") for path in sorted(folder.rglob("*.jpg"))]
    keys = [path.with_suffix("").as_posix() for path in files]
    joints = np.random.default_rng(0).uniform(0, 8, (len(keys), 17, 3))
    write_skeleton_store(folder / "skeletons", keys, joints)
    cfg = config(tmp_path, "STAR_R50.yml")
    trainer = Trainer(cfg)
    results = trainer.train()

    loader = build_clip_test_loader(cfg, "BUPTCampus")
    trainer.model.eval()
    with torch.no_grad():
        batches = list(loader)
        features = torch.cat([trainer.model(batch) for batch in batches]).double().numpy()
    assert all(batch["has_skeleton"].all() for batch in batches)
    for direction, modality in (("I2V", "IR"), ("V2I", "RGB")):
        cmc, mean_precision = brute_force(features, modality)
        found = [results[f"{direction}/Rank-{rank}"] for rank in (1, 5, 10, 20)]
        assert found == pytest.approx(cmc)
        assert results[f"{direction}/mAP"] == pytest.approx(mean_precision)

    with open(tmp_path / "out" / "per_query_BUPTCampus.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["direction"], int(row["tracklet"])) for row in rows] == [
        ("I2V", 0), ("I2V", 3), ("V2I", 1), ("V2I", 2),
    ]  # fmt: skip
    matches = [int(row["n_matches"]) for row in rows]
    assert matches == [2, 1, 1, 1], "the query's own camera stays in the gallery"
    assert all(int(row["top1_tracklet"]) >= 4 for row in rows), "the queries are not found"
