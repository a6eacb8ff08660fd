"""The synthetic dataset: its files, and the joints and pictures of its people."""

import dataclasses
import json
from collections import defaultdict

import numpy as np
import pytest
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image

from fastreid_star.coco import LEFT_RIGHT, NUM_JOINTS
from fastreid_star.data.datasets import synthetic
from fastreid_star.data.datasets.synthetic import (
    SyntheticOptions,
    SyntheticVCM,
    body,
    people,
    render,
    scene,
    write_synthetic_vcm,
)
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

SMALL = SyntheticOptions(train_ids=2, test_ids=2, tracklets=3, frames=4, size=(32, 16))
CLEAN = dataclasses.replace(
    SMALL, frames=24, size=(64, 32), occlusion=0.0, blur=0.0, background=False, joint_noise=0.0
)
LEFT = (people.LEFT_SHOULDER, people.LEFT_HIP)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "SyntheticVCM"
    write_synthetic_vcm(root, SMALL)
    return root


def files_of(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def person(number):
    return people.draw_person(np.random.default_rng([0, 0, number]))


def straight_view(who, frames, *, away=False, yaw=0.0, size=(64, 32)):
    height, width = size
    center = np.tile([width / 2, height / 2], (frames, 1))
    angle = np.full(frames, yaw + (np.pi if away else 0.0))
    return body.View(angle, 0.1, 0.8 * height / who.body.stature, center, who.body.stature)


def test_the_dataset(small):
    data = SyntheticVCM(str(small.parent), min_frames=SMALL.frames)
    assert [len(part) for part in (data.train, data.query, data.gallery)] == [12, 6, 6]
    cameras = defaultdict(set)
    for tracklet in [*data.train, *data.query, *data.gallery]:
        cameras[tracklet.pid, tracklet.modality].add(tracklet.camid)
        with Image.open(tracklet.path(0)) as image:
            assert (image.size, image.mode) == (SMALL.size[::-1], "RGB")
    for pid in (1, 2, 3, 4):  # as in HITSZ-VCM
        assert not cameras[pid, Modality.INFRARED] & cameras[pid, Modality.VISIBLE]


def test_every_frame_has_its_skeleton(small):
    store = SkeletonStore.open(small / "skeletons")
    keys = [
        name.split("/", 1)[1].removesuffix(".jpg")
        for name in files_of(small)
        if name.endswith(".jpg")
    ]
    joints, present = store.read(keys)
    assert len(store) == len(keys) == 4 * 2 * SMALL.tracklets * SMALL.frames
    assert present.all()
    assert joints[..., 2].min() >= 0.1
    assert joints[..., 2].max() <= 0.98


def test_identities_do_not_depend_on_how_many_there_are(tmp_path, small):
    write_synthetic_vcm(tmp_path / "fewer", dataclasses.replace(SMALL, train_ids=1, test_ids=1))
    fewer, more = files_of(tmp_path / "fewer"), files_of(small)
    frames = [name for name in fewer if name.startswith("Train")]
    assert len(frames) == 2 * SMALL.tracklets * SMALL.frames
    assert all(fewer[name] == more[name] for name in frames)


def test_a_finished_dataset_is_kept(tmp_path):
    options = dataclasses.replace(SMALL, train_ids=1, test_ids=1, tracklets=1)
    write_synthetic_vcm(tmp_path / "set", options)
    frame = next((tmp_path / "set").rglob("*.jpg"))
    frame.write_bytes(b"touched")
    write_synthetic_vcm(tmp_path / "set", options)
    assert frame.read_bytes() == b"touched"
    with pytest.raises(
        UserError,
        match=r"set holds .*blur 0\.6 instead of 0\.1.*delete the folder or choose another",
    ):
        write_synthetic_vcm(tmp_path / "set", dataclasses.replace(options, blur=0.1))


def test_a_dataset_of_an_earlier_version_is_kept_if_its_people_had_todays_size(tmp_path):
    options = dataclasses.replace(SMALL, train_ids=1, test_ids=1, tracklets=1)
    write_synthetic_vcm(tmp_path / "set", options)
    path = tmp_path / "set" / "synthetic.json"
    record = json.loads(path.read_text())
    record["options"]["scale"] = 0.1
    path.write_text(json.dumps(record))
    write_synthetic_vcm(tmp_path / "set", options)
    assert json.loads(path.read_text()) == record, "nothing was written"
    record["options"]["scale"] = 0.2
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"other options \(scale 0\.2 instead of 0\.1\)"):
        write_synthetic_vcm(tmp_path / "set", options)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not a synthetic dataset"):
        write_synthetic_vcm(tmp_path / "set", SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "thesis.tex"]


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    filmed = []

    def film_twice(*args):
        filmed.append(1)
        if len(filmed) > 2:
            raise KeyboardInterrupt
        return render.film(*args)

    monkeypatch.setattr(synthetic, "film", film_twice)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_vcm(tmp_path / "set", SMALL)
    assert len(filmed) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_registered_dataset_writes_itself_once(tmp_path, caplog):
    options = dataclasses.replace(SMALL, train_ids=2, test_ids=1, tracklets=1)
    dataset = DATASET_REGISTRY.get("SyntheticVCM")
    with pytest.raises(UserError, match="no SyntheticVCM in"):
        dataset(root=str(tmp_path))  # nothing is drawn unasked
    with caplog.at_level("INFO"):
        first = dataset(root=str(tmp_path), options=options, min_frames=4)
        again = dataset(root=str(tmp_path), min_frames=4)
    assert caplog.text.count("writing SyntheticVCM") == 1
    assert first.train == again.train
    assert [len(part) for part in (first.train, first.query, first.gallery)] == [4, 1, 1]
    assert {tracklet.modality for tracklet in first.query} == {Modality.INFRARED}
    assert {tracklet.modality for tracklet in first.gallery} == {Modality.VISIBLE}


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic.comm, "is_main_process", lambda: False)
    waited = []

    def first_process_writes():
        waited.append(sorted(path.name for path in tmp_path.iterdir()))
        write_synthetic_vcm(tmp_path / "SyntheticVCM", SMALL)

    monkeypatch.setattr(synthetic.comm, "synchronize", first_process_writes)
    dataset = SyntheticVCM(str(tmp_path), options=SMALL, min_frames=4)
    assert waited == [[]]
    assert len(dataset.train) == 12


def test_too_short_tracklets_are_said_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"SYNTHETIC\.FRAMES is 4, below DATASETS\.MIN_FRAMES, 12"):
        SyntheticVCM(str(tmp_path), options=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_options_come_from_the_config():
    cfg = get_cfg()
    assert SyntheticOptions.from_config(cfg) == SyntheticOptions()
    changed = SyntheticOptions(3, 4, 2, 6, (96, 48), 0.25, 0.5, False, 0.03, 7, True, 0.1, 0.02)
    for name, value in changed.to_dict().items():
        setattr(cfg.DATASETS.SYNTHETIC, name.upper(), value)
    assert SyntheticOptions.from_config(cfg) == changed


BAD = [
    ("train_ids", 0),
    ("test_ids", 9999),
    ("size", [64, 8]),
    ("size", [64]),
    ("size", [64, 32, 32]),
    ("size", [64.5, 32]),
    ("occlusion", 1.1),
    ("blur", float("nan")),
    ("seed", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_options_are_refused_by_their_config_key(name, value):
    with pytest.raises(UserError, match=rf"DATASETS\.SYNTHETIC\.{name.upper()} is .*; it must be"):
        SyntheticOptions(**{name: value})


@pytest.mark.parametrize("modality", list(Modality))
def test_joints_are_on_the_body(modality):
    on_body, in_frame, rng = [], [], np.random.default_rng(0)
    for number in range(6):
        who = person(number)
        view = render.draw_view(who, scene.camera(0, 1 + number), CLEAN, rng)
        points = people.walk(who, np.linspace(0, 2 * np.pi, CLEAN.frames))
        drawn = body.draw_body(who, points, view, modality, CLEAN.size)[..., 3] > 0.5
        joints, _ = view.project(points[:, :NUM_JOINTS])
        inside = ~render.outside(joints, CLEAN.size)
        in_frame.append(inside.mean())
        on_body.append(render.covered(joints, drawn)[inside].mean())
        assert 0.1 < drawn.mean() < 0.5
    assert np.mean(in_frame) > 0.97
    assert np.mean(on_body) > 0.98


def test_left_is_left_in_front_and_back_views():
    for number, yaw in enumerate(np.radians([-50, -20, 0, 20, 50])):
        who = person(number)
        points = people.walk(who, np.linspace(0, 2 * np.pi, 24))
        for away in (False, True):
            view = straight_view(who, 24, away=away, yaw=yaw)
            joints, _ = view.project(points)
            to_the_left = joints[:, LEFT] - joints[:, np.add(LEFT, 1)]
            assert (to_the_left[..., 0] < 0 if away else to_the_left[..., 0] > 0).all()
            face_hidden = render.looks_away(points, view)
            assert face_hidden[:, people.NOSE].all() == away
            assert not face_hidden[:, people.LEFT_EAR :].any()


def test_stored_joints_count_from_the_middle_of_the_first_pixel():
    who = person(3)
    footage = render.film(who, 1, Modality.VISIBLE, CLEAN, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * who.gait.cadence * np.arange(CLEAN.frames)
    view = render.draw_view(who, scene.camera(CLEAN.seed, 1), CLEAN, rng)
    joints, _ = view.project(people.walk(who, phase)[:, :NUM_JOINTS])
    np.testing.assert_allclose(footage.joints[..., :2], joints - 0.5, atol=1e-4)


def test_detections_vary_in_size_and_aspect_and_the_joints_stay_on_the_body():
    options = dataclasses.replace(CLEAN, detections=True, frames=12)
    heights, aspects, on_body = [], [], []
    for number in range(40):
        who = person(number)
        # a white person before a gray wall, filmed by a visible camera without noise
        footage = render.film(who, 1, Modality.VISIBLE, options, np.random.default_rng(number))
        for image, joints, hidden in zip(
            footage.images, footage.joints, footage.hidden, strict=True
        ):
            heights.append(image.shape[0])
            aspects.append(image.shape[0] / image.shape[1])
            x, y = np.rint(joints[:, :2]).astype(int).T
            wall = image[0, 0].astype(int)  # an upper corner
            differs = np.abs(image[y, x].astype(int) - wall).max(1) > 20
            on_body.append(differs[~hidden & (np.arange(NUM_JOINTS) > 4)])
    assert np.mean(np.concatenate(on_body)) > 0.9
    low, middle, high = np.percentile(aspects, (5, 50, 95))
    assert 1.25 < low < 1.55
    assert 1.85 < middle < 2.25
    assert 2.45 < high < 2.95
    assert 2.0 < np.percentile(heights, 97.5) / np.percentile(heights, 2.5) < 3.5


def test_infrared_joints_are_swapped_and_missing_as_often_as_asked():
    joints = np.random.default_rng(0).uniform(1, 9, (4000, NUM_JOINTS, 3))
    spoiled = joints.copy()
    render.spoil(spoiled, 0.1, 0.03, np.random.default_rng(1))
    missing = ~spoiled.any(-1)
    assert missing.mean() == pytest.approx(0.03, abs=0.003)
    turned = ((spoiled == joints[:, LEFT_RIGHT]).all(-1) | missing).all(-1)
    kept = ((spoiled == joints).all(-1) | missing).all(-1)
    assert (turned | kept).all()
    assert turned.mean() == pytest.approx(0.1, abs=0.015)
