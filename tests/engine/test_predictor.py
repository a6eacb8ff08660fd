"""A predictor's features are the evaluator's, and what it is given wrong it says of the tracklet that it is of."""

import gc
import logging
import shutil

import cv2
import numpy as np
import pytest
import torch
from fastreid.evaluation import inference_on_dataset
from PIL import Image

from fastreid_star.data.build import build_dataset, open_store
from fastreid_star.data.io import read_frame, read_video
from fastreid_star.data.tracklets import TrackletInput
from fastreid_star.engine.fingerprint import Fingerprint
from fastreid_star.engine.predictor import StarPredictor
from fastreid_star.engine.setup import argument_parser, load_config
from fastreid_star.engine.train import train_or_evaluate
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation import cross_modal

from .conftest import REPOSITORY, tiny_options

NAMES = ("SAD", "STAR")


@pytest.fixture(scope="module")
def runs(tiny_root, tmp_path_factory):
    """A folder with a short run of each network."""
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        config = str(REPOSITORY / "configs" / "Synthetic" / f"{name}_demo.yml")
        more = (
            "SOLVER.MAX_EPOCH",
            1,
            "SOLVER.STEPS",
            "[]",
            "TEST.EVAL_PERIOD",
            1,
            "TEST.IMS_PER_BATCH",
            5,
        )
        arguments = ["--config-file", config, *tiny_options(tiny_root, folder / name, *more)]
        train_or_evaluate(argument_parser("test").parse_args(arguments))
    return folder


@pytest.fixture(scope="module", params=NAMES)
def predictor(request, runs):
    return StarPredictor.from_run(runs / request.param, device="cpu")


@pytest.fixture(scope="module")
def star(runs):
    return StarPredictor.from_run(runs / "STAR", device="cpu")


@pytest.fixture(scope="module")
def data(star):
    """The test tracklets, and the store of their skeletons."""
    dataset = build_dataset(star.cfg, "SyntheticVCM")
    return [*dataset.query, *dataset.gallery], open_store(star.cfg, dataset)


def from_files(tracklets, store):
    return [
        TrackletInput(
            [t.path(k) for k in range(len(t))],
            t.modality,
            skeletons=store,
            keys=[t.key(k) for k in range(len(t))],
        )
        for t in tracklets
    ]


def from_memory(tracklets, store, image=np.asarray):
    return [
        TrackletInput(
            [image(read_frame(t.path(k))) for k in range(len(t))],
            t.modality.name.lower(),
            skeletons=store.read([t.key(k) for k in range(len(t))])[0],
        )
        for t in tracklets
    ]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def compared(predictor):
    """The features that the evaluator compares, of all test tracklets in the dataset's order."""
    seen = []

    def spy(query, gallery, *args, **kwargs):
        seen.append((query, gallery))
        return evaluate(query, gallery, *args, **kwargs)

    evaluate = cross_modal.evaluate_retrieval
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_modal, "evaluate_retrieval", spy)
        inference_on_dataset(
            predictor.model, *Trainer.build_evaluator(predictor.cfg, "SyntheticVCM")
        )
    return torch.cat(seen[0])  # I2V: the infrared queries, the visible gallery


@pytest.mark.parametrize(
    "make", [from_files, from_memory, lambda *data: from_memory(*data, image=Image.fromarray)]
)
def test_features_are_the_evaluators_to_the_bit(predictor, compared, data, make):
    features = predictor.features(make(*data))
    assert (features.dtype, features.device.type) == (torch.float32, "cpu")
    assert torch.equal(features, compared)
    assert len(torch.unique(features, dim=0)) == len(compared)  # and not all the same


def test_batches_and_workers_change_nothing(predictor, compared, data):
    done = []
    inputs = from_files(*data)
    torch.testing.assert_close(
        predictor.features(inputs, batch_size=3, progress=done.append), compared, atol=1e-6, rtol=0
    )
    assert done == [3] * (len(inputs) // 3) + [len(inputs) % 3] * (len(inputs) % 3 > 0)
    assert torch.equal(predictor.features(inputs, num_workers=2), compared)
    backwards = predictor.features(inputs[::-1]).flip(0)
    torch.testing.assert_close(backwards, compared, atol=1e-6, rtol=0)


def test_features_are_of_unit_length_and_leave_the_random_stream_alone(predictor, data):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    features = predictor.features(from_files(*data)[:3])
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert not predictor.model.training


def test_star_without_skeletons_is_a_clip_without_and_says_so_once(runs, data, caplog):
    star = StarPredictor.from_run(runs / "STAR", device="cpu")
    tracklets, store = data
    inputs = from_memory(tracklets[:4], store)
    bare = [TrackletInput(tracklet.frames, tracklet.modality) for tracklet in inputs]
    missing = [
        TrackletInput(i.frames, i.modality, np.full_like(i.skeletons, np.nan)) for i in inputs
    ]
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        without = star.features([inputs[0], *bare[1:]])
        star.features(bare)
    assert warnings(caplog) == [
        "3 of 4 tracklets come without skeletons, which this model reads: they take the baseline's path"
    ]
    torch.testing.assert_close(star.features(missing)[1:], without[1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(star.features(inputs)[:1], without[:1], atol=1e-6, rtol=0)
    assert not torch.allclose(star.features(inputs)[1:], without[1:], atol=1e-4)


def test_sad_without_skeletons_says_nothing(runs, data, caplog):
    sad = StarPredictor.from_run(runs / "SAD", device="cpu")
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        sad.features([TrackletInput([data[0][0].path(0)], "visible")])
    assert not warnings(caplog)


def test_a_video_is_its_frames(star, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 64))
    for frame in np.random.default_rng(0).integers(0, 255, (9, 64, 32, 3), np.uint8):
        writer.write(cv2.blur(frame, (9, 9)))
    writer.release()
    frames, _, n = read_video(tmp_path / "a.avi")
    assert n == 9
    joints = np.random.default_rng(1).uniform(1, 30, (9, 17, 3)).astype(np.float32)
    video, images, spread, every_third = star.features(
        [
            TrackletInput(tmp_path / "a.avi", "infrared", joints),
            TrackletInput(frames, "infrared", joints),
            TrackletInput(str(tmp_path / "a.avi"), "infrared", joints[::3], video_frames=3),
            TrackletInput(frames[::3], "infrared", joints[::3]),
        ]
    )
    torch.testing.assert_close(video, images, atol=1e-6, rtol=0)
    torch.testing.assert_close(spread, every_third, atol=1e-6, rtol=0)


def test_the_modality_chooses_the_stem(predictor, data):
    frames = [data[0][0].path(0)]
    visible, infrared = predictor.features(
        [TrackletInput(frames, "visible"), TrackletInput(frames, "infrared")]
    )
    assert not torch.allclose(visible, infrared, atol=1e-3)


def test_broken_frames_are_replaced_and_counted(predictor, data, caplog):
    good = from_memory(*data)[0]
    assert len(good.frames) == 12  # of which a clip of 3 shows 0, 4 and 8
    broken = [None if k == 4 else frame for k, frame in enumerate(good.frames)]
    joints = good.skeletons.copy()
    joints[4] = np.nan
    same = TrackletInput([good.frames[k if k != 4 else 3] for k in range(12)], good.modality, good.skeletons[
        [0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 10, 11]
    ])  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        feature = predictor.features([TrackletInput(broken, good.modality, joints)])
    assert "1 broken frames were replaced by their nearest good neighbor" in caplog.text
    assert torch.equal(feature, predictor.features([same]))


GOOD = {"frames": [np.zeros((8, 4, 3), np.uint8)] * 2, "modality": "visible"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": []}, r"it has no frames"),
        ({"modality": "thermal"}, r"unknown modality 'thermal'"),
        ({"frames": [None, None]}, r"none of its 2 images can be read"),
        ({"frames": ["nowhere/1.jpg"]}, r"none of the 1 frames .* can be read"),
        ({"frames": "nowhere.mp4"}, r"video nowhere\.mp4 does not exist"),
        ({"skeletons": np.zeros((3, 17, 3))}, r"it has 2 frames and 3 skeletons"),
    ],
)
def test_what_is_wrong_is_said_of_the_tracklet(star, wrong, message):
    wrong = TrackletInput(**{**GOOD, **wrong, "name": "anna"})
    with pytest.raises(UserError, match=rf"^tracklet 1 \(anna\): {message}") as caught:
        star.features([TrackletInput(**GOOD), wrong])
    assert "\n" not in str(caught.value)


def test_what_goes_wrong_in_a_worker_is_one_line_too(star, monkeypatch):
    # how long torch waits for a worker that has failed
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    message = ""
    try:
        star.features([TrackletInput("nowhere.mp4", "visible")], num_workers=1)
    except UserError as error:
        message = str(error)
    gc.collect()  # the loader, and with it the worker
    assert message == "tracklet 0: video nowhere.mp4 does not exist"


def test_nothing_to_do_and_wrong_batches(star):
    with pytest.raises(UserError, match="there are no tracklets"):
        star.features([])
    with pytest.raises(UserError, match="batch size 0"):
        star.features([TrackletInput(**GOOD)], batch_size=0)


def test_features_that_are_not_finite_are_refused(runs):
    sad = StarPredictor.from_run(runs / "SAD", device="cpu")
    with torch.no_grad():
        sad.model.heads.bottleneck[0].running_var.fill_(float("nan"))
    with pytest.raises(UserError, match="the tracklets' features: 1 of 1 tracklets have NaN"):
        sad.features([TrackletInput(**GOOD)])


# --- where the model comes from -------------------------------------------------------------------------------------


def test_the_best_weights_come_before_the_final_ones(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "SAD", folder)
    other = torch.load(folder / "model_final.pth", weights_only=True)
    other["model"]["heads.bottleneck.0.running_mean"] += 1
    torch.save(other, folder / "model_final.pth")
    torch.save(other, folder / "model_last.pth")

    def mean(predictor):
        return predictor.model.heads.bottleneck[0].running_mean

    best = StarPredictor.from_run(folder, "cpu")
    final = StarPredictor.from_run(folder, "cpu", weights="model_final.pth")
    torch.testing.assert_close(mean(final), mean(best) + 1)
    (folder / "model_best.pth").unlink()
    assert torch.equal(mean(StarPredictor.from_run(folder, "cpu")), mean(final))
    by_hand = StarPredictor(
        load_config(str(folder / "config.yaml")), folder / "model_final.pth", "cpu"
    )
    assert by_hand.fingerprint == final.fingerprint != best.fingerprint

    (folder / "model_final.pth").unlink()
    with pytest.raises(
        UserError, match=r"neither model_best\.pth nor model_final\.pth: there is model_last\.pth"
    ):
        StarPredictor.from_run(folder, "cpu")
    assert torch.equal(
        mean(StarPredictor.from_run(folder, "cpu", weights="model_last.pth")), mean(final)
    )
    with pytest.raises(UserError, match=r"holds no model_7\.pth"):
        StarPredictor.from_run(folder, "cpu", weights="model_7.pth")
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"holds no config\.yaml"):
        StarPredictor.from_run(folder, "cpu")
    with pytest.raises(UserError, match="does not exist"):
        StarPredictor.from_run(tmp_path / "none", "cpu")


def test_models_that_do_not_fit_are_refused(runs):
    config, weights = str(runs / "SAD" / "config.yaml"), runs / "SAD" / "model_best.pth"
    for options, message in (
        (["MODEL.META_ARCHITECTURE", "Baseline"], "is no model of clips"),
        (["MODEL.META_ARCHITECTURE", "Nothing"], "is no model of clips"),
        (["INPUT.CLIP.LENGTH", "0"], r"INPUT\.CLIP\.LENGTH is 0"),
        (["MODEL.META_ARCHITECTURE", "STAR"], "is of another model"),
    ):
        with pytest.raises(UserError, match=message):
            StarPredictor(load_config(config, options), weights, "cpu")
    with pytest.raises(UserError, match="is not a device"):
        StarPredictor(load_config(config), weights, "tpu")


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_fingerprints_tell_what_differs(runs, star):
    def fingerprint(*options):
        return Fingerprint.of(
            star.model, load_config(str(runs / "STAR" / "config.yaml"), list(options))
        )

    own = star.fingerprint
    assert own == fingerprint() == Fingerprint.from_dict(own.to_dict())
    for harmless in (
        ("MODEL.DEVICE", "npu"),
        ("DATASETS.ROOT", "elsewhere"),
        ("TEST.IMS_PER_BATCH", "7"),
        ("MODEL.LOSSES.TRI.MARGIN", "9.0"),
        ("MODEL.STAR.SPLIT_LSTM", "True"),
    ):
        assert own.differences(fingerprint(*harmless)) == []
    for options, told in (
        (("INPUT.CLIP.LENGTH", "5"), "INPUT.CLIP.LENGTH 3 there, 5 here"),
        (("INPUT.SIZE_TEST", "[64,32]"), "INPUT.SIZE_TEST [32, 16] there, [64, 32] here"),
        (("INPUT.BLANK", "True"), "INPUT.BLANK False there, True here"),
        (("MODEL.HEADS.GEM_P", "1.0"), "MODEL.HEADS.GEM_P 3.0 there, 1.0 here"),
        (("MODEL.PIXEL_MEAN", "[0,0,0]"), None),
        (("SOLVER.FAST_FLOAT32", "True"), "SOLVER.FAST_FLOAT32 False there, True here"),
    ):
        differences = own.differences(fingerprint(*options))
        assert len(differences) == 1
        assert told is None or differences == [told]


def test_any_weight_or_buffer_changes_the_fingerprint(runs, star):
    other = StarPredictor.from_run(runs / "STAR", "cpu")
    assert other.fingerprint == star.fingerprint
    for name, value in other.model.state_dict().items():
        before = value.clone()
        value.view(-1)[-1] += 1
        assert Fingerprint.of(other.model, other.cfg).differences(star.fingerprint) == [
            "other weights"
        ], name
        value.copy_(before)
    assert Fingerprint.of(other.model, other.cfg) == star.fingerprint


@pytest.mark.parametrize(
    "data", [None, [], {}, {"weights_sha256": 1, "config": {}}, {"weights_sha256": "a"}]
)
def test_what_is_no_fingerprint(data):
    with pytest.raises(ValueError, match="no fingerprint"):
        Fingerprint.from_dict(data)
