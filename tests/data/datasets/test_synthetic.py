"""The synthetic dataset: the files it writes, and whether its people are what they claim to be."""

import dataclasses
import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.datasets import synthetic, synthetic_body
from fastreid_star.data.datasets import synthetic_people as people
from fastreid_star.data.datasets import synthetic_render as render
from fastreid_star.data.datasets import synthetic_scene as scene
from fastreid_star.data.datasets.hitsz_vcm_files import Track, frame_paths
from fastreid_star.data.datasets.synthetic import (
    SyntheticOptions,
    SyntheticVCM,
    write_info_files_at_true_size,
    write_synthetic_vcm,
)
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

SMALL = SyntheticOptions(train_ids=2, test_ids=2, tracklets=3, frames=4, size=(32, 16))
CLEAN = dataclasses.replace(
    SMALL, frames=24, size=(64, 32), occlusion=0.0, blur=0.0, background=False, joint_noise=0.0
)
SYMMETRIC_BONES = (
    (people.LEFT_SHOULDER, people.LEFT_ELBOW),
    (people.LEFT_ELBOW, people.LEFT_WRIST),
    (people.LEFT_HIP, people.LEFT_KNEE),
    (people.LEFT_KNEE, people.LEFT_ANKLE),
)
LEFT = (people.LEFT_SHOULDER, people.LEFT_HIP)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "SyntheticVCM"
    write_synthetic_vcm(root, SMALL)
    return root


def read_info(folder):
    """The five files, parsed by hand: name lines and tracks by split, and the query's line numbers."""
    names = {
        split: (folder / f"{split}_name.txt").read_text().split("\n") for split in ("train", "test")
    }
    assert all(lines.pop() == "" for lines in names.values())
    tracks = {
        split: [
            tuple(line.split(" "))
            for line in (folder / f"track_{split}_info.txt").read_text().splitlines()
        ]
        for split in names
    }
    return names, tracks, (folder / "query_IDX.txt").read_text()


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
    return synthetic_body.View(
        angle, 0.1, 0.8 * height / who.body.stature, center, who.body.stature
    )


# --- files -------------------------------------------------------------------------------------------------------


def test_the_files_are_in_the_real_layout(small):
    names, tracks, query = read_info(small / "info")
    for split, pids in (("train", ["0001", "0002"]), ("test", ["0003", "0004"])):
        assert [track[3] for track in tracks[split]] == [
            pid for pid in pids for _ in range(2 * SMALL.tracklets)
        ]
        end, listed = 0, set()
        for modality, first, last, pid, camera in tracks[split]:
            assert int(first) == end + 1
            assert int(last) - int(first) + 1 == SMALL.frames
            end = int(last)
            numbers = []
            for name in names[split][int(first) - 1 : int(last)]:
                prefix, frame = name.removesuffix(".jpg").split("F")
                assert prefix.split("T")[0] == f"{pid}M{modality}D{camera}"
                path = f"{pid}/{'ir' if modality == '1' else 'rgb'}/D{camera}/{frame}.jpg"
                with Image.open(small / split.capitalize() / path) as image:
                    assert image.size == SMALL.size[::-1]
                    assert image.mode == "RGB"
                numbers.append(int(frame))
                listed.add(f"{split.capitalize()}/{path}")
            assert numbers == list(range(numbers[0], numbers[0] + SMALL.frames))
        assert end == len(names[split])
        assert listed == {name for name in files_of(small) if name.startswith(split.capitalize())}
    infrared = [str(line) for line, track in enumerate(tracks["test"], start=1) if track[0] == "1"]
    assert query == " ".join(infrared) + " "
    assert len(infrared) == 2 * SMALL.tracklets


def test_frames_count_on_where_tracklets_share_a_folder():
    infrared, visible = Modality.INFRARED, Modality.VISIBLE
    tracks = [
        Track(1, visible, 3, 2),
        Track(1, visible, 3, 1),
        Track(1, infrared, 3, 1),
        Track(2, visible, 3, 1),
    ]
    assert frame_paths(tracks) == [
        ["0001/rgb/D3/1.jpg", "0001/rgb/D3/2.jpg"],
        ["0001/rgb/D3/3.jpg"],
        ["0001/ir/D3/1.jpg"],
        ["0002/rgb/D3/1.jpg"],
    ]


def test_no_camera_films_an_identity_in_both_modalities(small):
    _, tracks, _ = read_info(small / "info")
    cameras = defaultdict(set)
    for modality, _, _, pid, camera in tracks["train"] + tracks["test"]:
        cameras[pid, modality].add(camera)
    assert len(cameras) == 8
    assert all(
        not cameras[pid, "1"] & cameras[pid, "2"] for pid in ("0001", "0002", "0003", "0004")
    )


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
    assert joints.shape == (len(keys), 17, 3)
    assert (joints[..., 2] >= 0.1).all()
    assert (joints[..., 2] <= 0.98).all()


@pytest.mark.parametrize("layout", ["full", "flat_info", "merged", "flat_merged"])
def test_every_layout_loads(tmp_path, layout):
    options = dataclasses.replace(SMALL, test_ids=1, tracklets=2, frames=2)
    write_synthetic_vcm(tmp_path / "SyntheticVCM", options, layout=layout)
    assert (tmp_path / "SyntheticVCM" / "info").exists() == (layout in ("full", "merged"))
    assert (tmp_path / "SyntheticVCM" / "Train").exists() == (layout in ("full", "flat_info"))
    dataset = SyntheticVCM(str(tmp_path), min_frames=2)
    assert [len(part) for part in (dataset.train, dataset.query, dataset.gallery)] == [8, 2, 2]
    for tracklet in [*dataset.train, *dataset.query, *dataset.gallery]:
        with Image.open(tracklet.path(1)) as image:
            assert image.size == (16, 32)


def test_the_same_bytes_whatever_the_number_of_processes(tmp_path, small):
    write_synthetic_vcm(tmp_path / "two", SMALL, processes=2)
    assert files_of(tmp_path / "two") == files_of(small)


def test_another_seed_makes_other_frames(tmp_path, small):
    write_synthetic_vcm(
        tmp_path / "other", dataclasses.replace(SMALL, train_ids=1, test_ids=1, seed=1)
    )
    name = next(name for name in sorted(files_of(tmp_path / "other")) if name.endswith(".jpg"))
    frames = set(files_of(small).values())
    assert (tmp_path / "other" / name).read_bytes() not in frames


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
    with pytest.raises(UserError, match="layout full instead of merged"):
        write_synthetic_vcm(tmp_path / "set", options, layout="merged")


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not a synthetic dataset"):
        write_synthetic_vcm(tmp_path / "set", SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "thesis.tex"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    write_synthetic_vcm(
        tmp_path / "set", dataclasses.replace(SMALL, train_ids=1, test_ids=1, tracklets=1)
    )
    assert (
        json.loads((tmp_path / "set" / "synthetic.json").read_text())["options"]["train_ids"] == 1
    )


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


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match="'flat' is none of full, flat_info"):
        write_synthetic_vcm(tmp_path / "set", SMALL, layout="flat")


# --- the registered dataset --------------------------------------------------------------------------------------


def test_the_registered_dataset_writes_itself_once(tmp_path, caplog):
    options = dataclasses.replace(SMALL, train_ids=2, test_ids=1, tracklets=1)
    with caplog.at_level("INFO"):
        first = DATASET_REGISTRY.get("SyntheticVCM")(
            root=str(tmp_path), options=options, min_frames=4
        )
        again = DATASET_REGISTRY.get("SyntheticVCM")(
            root=str(tmp_path), options=options, min_frames=4
        )
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


# --- options -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_config():
    assert SyntheticOptions.from_config(get_cfg()) == SyntheticOptions()


def test_every_option_comes_from_the_config():
    cfg = get_cfg()
    changed = SyntheticOptions(3, 4, 2, 6, (96, 48), 0.25, 0.5, False, 0.2, 0.03, 7)
    for name, value in changed.to_dict().items():
        setattr(cfg.DATASETS.SYNTHETIC, name.upper(), value)
    assert SyntheticOptions.from_config(cfg) == changed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("train_ids", 0),
            ("test_ids", 9999),
            ("tracklets", 1.5),
            ("frames", -1),
            ("size", [64]),
            ("size", [64, 8]),
        ),
        *(
            ("occlusion", 1.1),
            ("blur", -0.1),
            ("blur", float("nan")),
            ("background", 1),
            ("scale", 0.6),
        ),
        *(("joint_noise", "much"), ("seed", -1)),
    ],
)
def test_bad_options_are_refused_by_their_config_key(name, value):
    with pytest.raises(UserError, match=rf"DATASETS\.SYNTHETIC\.{name.upper()} is .*; it must be"):
        SyntheticOptions(**{name: value})


# --- people ------------------------------------------------------------------------------------------------------


def test_bones_keep_their_length_and_are_symmetric():
    for number in range(8):
        who = person(number)
        points = people.walk(who, np.linspace(0, 2 * np.pi, 24))
        lengths = [who.body.upper_arm, who.body.forearm, who.body.thigh, who.body.shin]
        for (start, end), length in zip(SYMMETRIC_BONES, lengths, strict=True):
            for right in (0, 1):
                bone = np.linalg.norm(points[:, start + right] - points[:, end + right], axis=-1)
                np.testing.assert_allclose(bone, length, rtol=1e-9)
        for left, length in (
            (people.LEFT_SHOULDER, who.body.shoulders),
            (people.LEFT_HIP, who.body.hips),
        ):
            np.testing.assert_allclose(
                np.linalg.norm(points[:, left] - points[:, left + 1], axis=-1), length
            )


def test_half_a_cycle_later_the_body_is_its_mirror_image():
    phase = np.linspace(0, 2 * np.pi, 24)
    points = people.walk(person(0), phase)[:, :NUM_JOINTS]
    later = people.walk(person(0), phase + np.pi)[:, :NUM_JOINTS]
    mirrored = [0, *(joint + 1 if joint % 2 else joint - 1 for joint in range(1, 17))]
    np.testing.assert_allclose(later[:, mirrored] * (-1, 1, 1), points, atol=1e-9)


def test_people_stand_on_the_ground_and_do_walk():
    points = people.walk(person(1), np.linspace(0, 2 * np.pi, 24))
    assert points[..., 1].min() > 0
    lower_ankle = points[:, [people.LEFT_ANKLE, people.RIGHT_ANKLE], 1].min(axis=1)
    assert lower_ankle.max() < 0.25
    ahead = points[:, people.LEFT_ANKLE, 2] - points[:, people.RIGHT_ANKLE, 2]
    assert ahead.max() > 0.3
    assert ahead.min() < -0.3
    assert (points[:, people.NOSE, 2] > points[:, people.HEAD, 2]).all()


def test_identities_differ_in_every_length_and_parameter():
    crowd = [person(number) for number in range(200)]
    for part, mean in (("body", people.Body()), ("gait", people.GAIT_MEAN)):
        values = np.array([dataclasses.astuple(getattr(who, part)) for who in crowd])
        assert values.shape == (200, 10 if part == "body" else 11)
        spread = values.std(axis=0)
        if part == "body":
            assert (spread / dataclasses.astuple(mean) > 0.09).all()
            assert (spread / dataclasses.astuple(mean) < 0.15).all()
        assert (spread > 0).all()
        pairs = np.abs(np.corrcoef(values.T) - np.eye(values.shape[1]))
        assert pairs.max() < 0.35  # each parameter is drawn on its own


def test_clothing_is_shared_and_only_loosely_the_same_in_infrared():
    outfits = [person(number).outfit for number in range(600)]
    combinations = Counter((outfit.upper, outfit.lower, outfit.pattern) for outfit in outfits)
    assert len(combinations) > 100
    assert len(combinations) <= 5 * 4 * 6
    assert combinations.most_common(1)[0][1] < 20
    materials = np.array(
        [outfit.materials[part] for outfit in outfits for part in ("upper", "lower")]
    )
    visible = [people.luminance(material) for material in materials]
    assert 0.45 < np.corrcoef(visible, materials[:, 3])[0, 1] < 0.7


def test_one_identity_walks_and_looks_the_same_in_all_its_tracklets(tmp_path, monkeypatch):
    seen = []

    def film_and_note(who, camera, modality, options, rng):
        seen.append((who, modality))
        return render.film(who, camera, modality, options, rng)

    monkeypatch.setattr(synthetic, "film", film_and_note)
    write_synthetic_vcm(tmp_path / "set", dataclasses.replace(SMALL, frames=1))
    by_identity = [seen[start : start + 6] for start in range(0, 24, 6)]
    for tracklets in by_identity:
        assert Counter(modality for _, modality in tracklets) == {
            Modality.INFRARED: 3,
            Modality.VISIBLE: 3,
        }
        assert all(who == tracklets[0][0] for who, _ in tracklets)
    assert len({tracklets[0][0].body for tracklets in by_identity}) == 4


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", list(Modality))
def test_joints_are_on_the_body(modality):
    on_body, in_frame, rng = [], [], np.random.default_rng(0)
    for number in range(6):
        who = person(number)
        view = render.draw_view(who, scene.camera(0, 1 + number), CLEAN, rng)
        points = people.walk(who, np.linspace(0, 2 * np.pi, CLEAN.frames))
        body = synthetic_body.draw_body(who, points, view, modality, CLEAN.size)[..., 3] > 0.5
        joints, _ = view.project(points[:, :NUM_JOINTS])
        inside = ~render.outside(joints, CLEAN.size)
        in_frame.append(inside.mean())
        on_body.append(render.covered(joints, body)[inside].mean())
        assert 0.1 < body.mean() < 0.5
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


def test_a_red_left_arm_is_drawn_where_the_left_joints_are(monkeypatch):
    left_arm = [
        limb
        for limb in synthetic_body.LIMBS
        if limb[1:3] == (people.LEFT_SHOULDER, people.LEFT_ELBOW)
    ]
    assert len(left_arm) == 1
    monkeypatch.setattr(synthetic_body, "LIMBS", tuple(left_arm))
    red = dict.fromkeys(("upper", "lower", "skin", "hair", "print"), (0.0, 0.0, 0.0, 0.0))
    who = person(0)
    who = dataclasses.replace(
        who, outfit=dataclasses.replace(who.outfit, materials={**red, "upper": (255, 0, 0, 0)})
    )
    monkeypatch.setattr(
        synthetic_body, "torso_materials", lambda _, levels, count: np.full((levels, count), 2)
    )
    points = people.walk(who, np.linspace(0, 2 * np.pi, 8))
    for away in (False, True):
        view = straight_view(who, 8, away=away)
        redness = synthetic_body.draw_body(who, points, view, Modality.VISIBLE, (64, 32))[..., 0]
        x = (redness.sum(axis=1) * (np.arange(32) + 0.5)).sum(axis=-1) / redness.sum(axis=(1, 2))
        joints, _ = view.project(points)
        elbow_and_shoulder = joints[:, [people.LEFT_SHOULDER, people.LEFT_ELBOW], 0].mean(axis=1)
        assert (np.abs(x - elbow_and_shoulder) < 3).all()
        assert ((x < 15) if away else (x > 17)).all()


def test_infrared_is_grey_and_visible_is_not():
    who = person(0)
    infrared = render.film(who, 1, Modality.INFRARED, SMALL, np.random.default_rng(0)).images
    visible = render.film(who, 1, Modality.VISIBLE, SMALL, np.random.default_rng(0)).images
    assert infrared.dtype == visible.dtype == np.uint8
    assert infrared.shape == visible.shape == (SMALL.frames, *SMALL.size, 3)
    assert (infrared == infrared[..., :1]).all()
    assert np.ptp(visible.astype(int), axis=-1).mean() > 5
    assert infrared.std() > 5


def test_hidden_joints_have_low_scores_and_three_times_the_noise():
    joints, rng = np.full((4000, 17, 2), 10.0), np.random.default_rng(0)
    hidden = rng.random((4000, 17)) < 0.5
    found = render.estimate(joints, hidden, 1.5, rng)
    error, score = found[..., :2] - 10, found[..., 2]
    assert error[~hidden].std() == pytest.approx(1.5, rel=0.02)
    assert error[hidden].std() == pytest.approx(4.5, rel=0.02)
    assert score[hidden].max() <= 0.5 < 0.6 <= score[~hidden].min()


def test_what_covers_a_joint_hides_it():
    options = dataclasses.replace(CLEAN, occlusion=1.0)
    covered = Counter()
    for seed in range(12):
        without = render.film(person(0), 2, Modality.VISIBLE, CLEAN, np.random.default_rng(seed))
        with_something = render.film(
            person(0), 2, Modality.VISIBLE, options, np.random.default_rng(seed)
        )
        extra = with_something.hidden & ~without.hidden
        covered[bool(extra.any())] += 1
        assert (with_something.hidden | ~without.hidden).all()
        assert (with_something.joints[..., 2][with_something.hidden] <= 0.5).all()
        assert extra.mean() < 0.7  # a part of the person, not all of it
    assert covered[True] >= 10


def test_the_share_of_occluded_tracklets_is_the_option(monkeypatch):
    options = dataclasses.replace(SMALL, frames=1, occlusion=0.6)
    occluded = []
    monkeypatch.setattr(
        scene,
        "occluders",
        lambda rng, modality, size, frames: occluded.append(1) or np.zeros((frames, *size, 4)),
    )
    rng = np.random.default_rng(0)
    for _ in range(150):
        render.film(person(0), 1, Modality.INFRARED, options, rng)
    assert 0.48 < len(occluded) / 150 < 0.72


def test_stored_joints_count_from_the_middle_of_the_first_pixel():
    who = person(3)
    footage = render.film(who, 1, Modality.VISIBLE, CLEAN, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * who.gait.cadence * np.arange(CLEAN.frames)
    view = render.draw_view(who, scene.camera(CLEAN.seed, 1), CLEAN, rng)
    joints, _ = view.project(people.walk(who, phase)[:, :NUM_JOINTS])
    np.testing.assert_allclose(footage.joints[..., :2], joints - 0.5, atol=1e-4)


def test_drawing_puts_the_person_where_the_projection_says():
    """A ball of ten pixels' radius at a known place: the drawing's center of mass is the projection's."""
    center = np.array([[16.3, 20.7], [12.0, 40.25]])
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outline = center[:, None] + 10 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    part = synthetic_body.Part(
        np.zeros(2), outline[:, None], np.full((2, 1, 3), 200.0), np.ones((2, 1), bool)
    )
    alpha = synthetic_body._paint([part], np.zeros((2, 3, 2)), (64, 32))[..., 3]
    mass = alpha.sum(axis=(1, 2))
    x = (alpha.sum(axis=1) * (np.arange(32) + 0.5)).sum(axis=1) / mass
    y = (alpha.sum(axis=2) * (np.arange(64) + 0.5)).sum(axis=1) / mass
    np.testing.assert_allclose(np.stack([x, y], axis=1), center, atol=0.1)


# --- info files at true size -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def true_size(tmp_path_factory):
    root = tmp_path_factory.mktemp("true_size")
    write_info_files_at_true_size(root)
    return read_info(root / "info")


@pytest.mark.parametrize(
    ("split", "modality", "tracklets", "frames", "identities", "long"),
    [
        ("train", "1", 4919, 102096, 500, 4291),
        ("train", "2", 6142, 130385, 500, 5460),
        ("test", "1", 5159, 109391, 427, 4584),
        ("test", "2", 5643, 121348, 427, 5099),
    ],
)
def test_true_counts_by_modality(true_size, split, modality, tracklets, frames, identities, long):
    chosen = [track for track in true_size[1][split] if track[0] == modality]
    lengths = [int(last) - int(first) + 1 for _, first, last, _, _ in chosen]
    assert len(chosen) == tracklets
    assert sum(lengths) == frames
    assert len({track[3] for track in chosen}) == identities
    assert sum(length >= 12 for length in lengths) == long
    assert (
        len({track[3] for track, length in zip(chosen, lengths, strict=True) if length >= 12})
        == identities
    )


@pytest.mark.parametrize(
    ("split", "tracklets", "frames", "long", "exactly_24", "lines", "cameras"),
    [
        ("train", 11061, 232481, 9751, 8223, 232496, 6),
        ("test", 10802, 230739, 9683, 8379, 230763, 12),
    ],
)
def test_true_counts_by_split(
    true_size, split, tracklets, frames, long, exactly_24, lines, cameras
):
    names, tracks = true_size[0][split], true_size[1][split]
    lengths = Counter(int(last) - int(first) + 1 for _, first, last, _, _ in tracks)
    assert len(tracks) == tracklets
    assert sum(length * count for length, count in lengths.items()) == frames == int(tracks[-1][2])
    assert sum(count for length, count in lengths.items() if length >= 12) == long
    assert lengths[24] == exactly_24
    assert set(lengths) == set(range(1, 49))
    assert len(names) == len(set(names)) == lines
    assert {track[4] for track in tracks} == {str(camera) for camera in range(1, cameras + 1)}
    covered = 0
    for modality, first, last, pid, camera in tracks:
        assert int(first) == covered + 1
        covered = int(last)
        assert all(
            name.startswith(f"{pid}M{modality}D{camera}T")
            for name in names[int(first) - 1 : int(last)]
        )


def test_true_identities_and_query(true_size):
    _, tracks, query = true_size
    pids = {split: {int(track[3]) for track in tracks[split]} for split in tracks}
    assert pids["train"] == set(range(1, 503)) - {399, 404}
    assert pids["test"] < set(range(503, 938))
    assert {min(pids["test"]), max(pids["test"])} == {503, 937}
    assert query.endswith(" ")
    numbers = [int(number) for number in query.split()]
    modalities = [track[0] for track in tracks["test"]]
    assert numbers == [line for line, modality in enumerate(modalities, start=1) if modality == "1"]
    # read as 0-based, 426 become visible and one is out of range
    shifted = [modalities[number] for number in numbers if number < len(modalities)]
    assert (shifted.count("2"), len(numbers) - len(shifted)) == (426, 1)
    by_pid = defaultdict(lambda: defaultdict(set))
    for modality, _, _, pid, camera in tracks["test"]:
        by_pid[pid][modality].add(camera)
    assert all(not cameras["1"] & cameras["2"] for cameras in by_pid.values())
