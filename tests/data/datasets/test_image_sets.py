"""SYSU-MM01, RegDB and LLCM: each evaluation against a plain restatement of the published one."""

import os
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from fastreid_star.data.build import build_dataset
from fastreid_star.data.datasets import LLCM, SYSUMM01, RegDB
from fastreid_star.engine.defaults import load_config
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import CrossModalEvaluator, cross_modal_results
from fastreid_star.structures import Modality

from ...image_sets import LLCM_TEST, SYSU_IDS, SYSU_TEST, write_llcm, write_regdb, write_sysu
from .restated import by_loops, measures


class Image(NamedTuple):
    pid: int
    camera: int
    path: str  # below the folder of the dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_sysu(root / "SYSU-MM01")
    write_regdb(root / "RegDB")
    write_llcm(root / "LLCM")
    return root


def features_of(data, seed=0):
    """Random features that know a little about the identity, and a distance of two images."""
    rng = np.random.default_rng(seed)
    tracklets = [*data.query, *data.gallery]
    centers = {t.pid: rng.standard_normal(6) for t in tracklets}
    features = np.array([centers[t.pid] for t in tracklets])
    features += 1.2 * rng.standard_normal(features.shape)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    of_image = {t.frames[0]: row for t, row in zip(tracklets, unit, strict=True)}

    def distance(one, other):
        return -of_image[one.path] @ of_image[other.path]

    return torch.tensor(features, dtype=torch.float32), tracklets, distance


def results_of(data, **options):
    features, tracklets, distance = features_of(data)
    protocol = {"min_frames": 1, "dataset_name": "Made", "trials": data.trials(), **options}
    return cross_modal_results(features, tracklets, **protocol), distance


def listing(root, folder, pid, camera):
    """As the programs list a folder: sorted paths of its files; none if it does not exist."""
    path = os.path.join(root, folder, f"{pid:04d}")
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    return [Image(pid, camera, f"{folder}/{pid:04d}/{name}") for name in names]


# --- SYSU-MM01 ---


def sysu_galleries(folder, cameras, shots, drawn):
    """The galleries of ten trials, by the program of CAJL or by the dataset's own."""
    permutation = loadmat(folder / "exp" / "rand_perm_cam.mat")["rand_perm_cam"]
    for trial in range(10):
        random.seed(trial)
        gallery = []
        for pid in sorted(SYSU_IDS["test"]):
            for camera in cameras:
                images = listing(folder, f"cam{camera}", pid, camera)
                if not images:
                    continue
                if drawn == "official":
                    order = permutation[camera - 1][0].squeeze()[pid - 1][trial]
                    gallery += [images[number - 1] for number in order[:shots]]
                elif shots == 1:
                    gallery.append(random.choice(images))
                else:
                    gallery += random.sample(images, min(shots, len(images)))
        yield gallery


@pytest.mark.parametrize("drawn", ["seeded", "official"])
@pytest.mark.parametrize("shots", [1, 10])
@pytest.mark.parametrize(("search", "cameras"), [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
def test_sysu_is_evaluated_as_published(root, search, cameras, shots, drawn):
    folder = root / "SYSU-MM01"
    data = SYSUMM01(root, search=search, shots=shots, drawn=drawn)
    results, distance = results_of(data)
    queries = [
        image
        for pid in sorted(SYSU_IDS["test"])
        for camera in (3, 6)
        for image in listing(folder, f"cam{camera}", pid, camera)
    ]
    location = [None, 1, 2, 2, 4, 5, 6]  # cameras 2 and 3 are in one room

    def same_room(query, image):
        return location[query.camera] == location[image.camera]

    trials = [
        by_loops(queries, gallery, distance, same_room, by_identity=True)
        for gallery in sysu_galleries(folder, cameras, shots, drawn)
    ]
    assert measures(results.i2v) == pytest.approx(np.mean(trials, axis=0).tolist(), abs=1e-12)
    assert len({tuple(trial) for trial in trials}) > 1, "the trials draw different galleries"
    # identity 12 was filmed by cameras 2 and 3 only
    assert results.i2v.per_query.valid.sum() == len(queries) - SYSU_TEST[12][2]


def test_sysu_has_one_direction_and_says_its_rules(root):
    results, _ = results_of(SYSUMM01(root), protocol_name="all search, single-shot, seeded gallery")
    assert results.v2i is None
    assert list(results.directions()) == ["I2V"]
    metrics = results.metrics()
    assert not [key for key in metrics if key.startswith("V2I")]
    assert metrics["metric"] == metrics["mean/mAP"] == metrics["I2V/mAP"]
    text = results.protocol()
    assert "Made, protocol all search, single-shot, seeded gallery" in text
    assert "mean over 10 trials" in text
    assert "queries of camera 3 skip camera 2" in text
    assert "ranks of the CMC count identities" in text
    assert "I2V: 18 infrared queries x 12 visible gallery tracklets, 4 identities, 16 valid" in text
    assert results.summary()["trials"] == 10


def test_sysu_lists(root, tmp_path):
    data = SYSUMM01(root)
    assert {t.pid for t in data.train} == {1, 2, 4}, "train and val identities"
    assert {t.camid for t in data.train} == set(range(1, 7))
    assert all((t.modality == Modality.INFRARED) == (t.camid in (3, 6)) for t in data.train)
    assert [len(t) for t in data.gallery] == [1] * len(data.gallery)
    assert data.gallery[0].frames == ("cam1/0006/0001.jpg",)
    assert {t.camid for t in SYSUMM01(root, search="indoor").gallery} == {1, 2}
    other = SYSUMM01(write_sysu(tmp_path / "mat", mat=True))
    assert [t.frames for t in other.query] == [t.frames for t in data.query]


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda f: (f / "exp" / "val_id.txt").unlink(), {}, "val_id"),
        (lambda f: (f / "exp" / "test_id.txt").write_text("6,x"), {}, "'x' is not an identity"),
        (lambda f: (f / "exp" / "test_id.txt").write_text("99"), {}, "no infrared test image"),
        (lambda f: (f / "exp" / "rand_perm_cam.mat").unlink(), {"drawn": "official"}, "wuancong"),
        (
            lambda f: (f / "cam1" / "0006" / "0003.jpg").unlink(),
            {"drawn": "official"},
            "no permutations of the 2 images of cam1/0006",
        ),
        (
            lambda f: (f / "exp" / "rand_perm_cam.mat").write_text("no file of MATLAB"),
            {"drawn": "official"},
            "cannot be read",
        ),
        (lambda f: None, {"search": "outdoor"}, r"IMAGE_PROTOCOL\.SEARCH is 'outdoor'"),
        (lambda f: None, {"shots": 5}, r"IMAGE_PROTOCOL\.SHOTS is 5"),
        (lambda f: None, {"min_frames": 12}, "lower DATASETS.MIN_FRAMES"),
    ],
)
def test_what_is_wrong_with_a_sysu_is_one_line(tmp_path, damage, options, message):
    damage(write_sysu(tmp_path / "SYSU-MM01"))
    with pytest.raises(UserError, match=message):
        SYSUMM01(tmp_path, **options).trials()


# --- RegDB ---


def regdb_list(folder, name, camera):
    lines = (folder / "idx" / name).read_text().splitlines()
    return [Image(int(line.split(" ")[1]), camera, line.split(" ")[0]) for line in lines]


@pytest.mark.parametrize("split", [1, 2])
def test_regdb_is_evaluated_as_published(root, split):
    folder = root / "RegDB"
    data = RegDB(root, split=split)
    results, distance = results_of(data)
    visible = regdb_list(folder, f"test_visible_{split}.txt", 1)
    thermal = regdb_list(folder, f"test_thermal_{split}.txt", 2)
    nothing = lambda query, image: False  # noqa: E731
    for found, queries, gallery in (
        (results.i2v, thermal, visible),
        (results.v2i, visible, thermal),
    ):
        expected = by_loops(queries, gallery, distance, nothing, by_identity=False)
        assert measures(found) == pytest.approx(expected, abs=1e-12)
    assert results.modalities == {"I2V": ("infrared", "visible"), "V2I": ("visible", "infrared")}


def test_regdb_numbers_test_identities_after_those_for_training(root):
    data = RegDB(root)
    assert {t.pid for t in data.train} == {0, 1, 2, 3}
    assert {t.pid for t in [*data.query, *data.gallery]} == {4, 5, 6, 7}
    trained, tested = (
        {t.frames[0].split("/")[1] for t in part} for part in (data.train, data.query)
    )
    assert not trained & tested


@pytest.mark.parametrize(("split", "seed", "taken"), [(2, 0, 2), (0, 0, 1), (0, 11, 2)])
def test_the_split_may_follow_the_seed(root, split, seed, taken):
    options = {"DATASETS.IMAGE_PROTOCOL.SPLIT": split, "SEED": seed, "DATASETS.ROOT": root}
    words = [str(word) for pair in options.items() for word in pair]
    cfg = load_config("RegDB/SAD_R50.yml", words)
    data = build_dataset(cfg, "RegDB")
    assert [t.frames for t in data.train] == [t.frames for t in RegDB(root, split=taken).train]
    assert data.protocol_name(cfg) == f"split {taken} of 10"


def test_what_is_wrong_with_a_regdb_is_one_line(root, tmp_path):
    with pytest.raises(UserError, match=r"lacks idx/train_visible_3\.txt"):
        RegDB(root, split=3)
    with pytest.raises(UserError, match=r"IMAGE_PROTOCOL\.SPLIT is 11"):
        RegDB(root, split=11)
    folder = write_regdb(tmp_path / "RegDB")
    (folder / "idx" / "test_thermal_1.txt").write_text("Thermal/1/a.bmp\n")
    with pytest.raises(UserError, match=r"test_thermal_1\.txt line 1: expected an image"):
        RegDB(tmp_path)


# --- LLCM ---


def llcm_images(folder, kind):
    """All test images of a modality, by identity and camera, as the program walks."""
    cameras = (1, 2, 4, 5, 6, 7, 8, 9) if kind == "nir" else range(1, 10)
    return [
        images
        for pid in sorted(LLCM_TEST)
        for camera in cameras
        if (images := listing(folder, f"test_{kind}/cam{camera}", pid, camera))
    ]


@pytest.mark.parametrize("v2i", ["paper", "update"])
def test_llcm_is_evaluated_as_published(root, v2i):
    folder = root / "LLCM"
    results, distance = results_of(LLCM(root, v2i=v2i))
    groups = {kind: llcm_images(folder, kind) for kind in ("vis", "nir")}
    everything = {k: [image for images in found for image in images] for k, found in groups.items()}

    def same(query, image):
        return (query.pid, query.camera) == (image.pid, image.camera)

    found = {"I2V": [], "V2I": []}
    for way, query, gallery in (("I2V", "nir", "vis"), ("V2I", "vis", "nir")):
        for trial in range(10):
            random.seed(trial)
            drawn = [random.choice(images) for images in groups[gallery]]
            sides = [everything[query], drawn]
            if way == "V2I" and v2i == "update":
                sides.reverse()
            found[way].append(by_loops(*sides, distance, same, by_identity=True))
    for way, (result, _, _) in results.directions().items():
        expected = np.mean(found[way], axis=0).tolist()
        assert measures(result) == pytest.approx(expected, abs=1e-12)
    sides = ("visible", "infrared") if v2i == "paper" else ("infrared", "visible")
    assert results.modalities["V2I"] == sides


def test_llcm_takes_identity_and_camera_of_a_training_image_from_its_name(root, tmp_path):
    data = LLCM(root)
    assert {(t.pid, t.camid) for t in data.train} == {(p, c) for p in (1, 2, 7) for c in (1, 2)}
    assert data.train[0].modality == Modality.VISIBLE
    assert data.train[-1].modality == Modality.INFRARED
    folder = write_llcm(tmp_path / "LLCM")
    (folder / "idx" / "train_nir.txt").write_text("nir/0001/one.jpg 0\n")
    with pytest.raises(UserError, match=r"train_nir\.txt: 'nir/0001/one\.jpg' is not named like"):
        LLCM(tmp_path)


# --- all ---


@pytest.mark.parametrize("name", ["SYSU-MM01", "RegDB", "LLCM"])
def test_the_evaluator_knows_the_trials_before_it_extracts(root, name):
    """Through the evaluator of a config: the same numbers, and the name of the protocol."""
    cfg = load_config(f"{name}/SAD_R50.yml", ["DATASETS.ROOT", str(root)])
    (dataset,) = cfg.DATASETS.TESTS
    data = build_dataset(cfg, dataset)
    features, tracklets, _ = features_of(data)
    protocol = {"min_frames": cfg.DATASETS.MIN_FRAMES, "camera_filter": cfg.TEST.CAMERA_FILTER}
    evaluator = CrossModalEvaluator(
        tracklets=tracklets, dataset_name=dataset, trials=data.trials(), **protocol
    )
    evaluator.process({"index": torch.arange(len(tracklets))}, features)
    assert evaluator.evaluate() == results_of(data)[0].metrics()
