"""The features of a predictor are those of the evaluation; errors name the tracklet."""

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
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation import cross_modal
from fastreid_star.evaluation.similarity import similarity
from fastreid_star.inference import StarPredictor
from fastreid_star.inference.fingerprint import differences, fingerprint
from fastreid_star.inference.predictor import find_weights, load_predictor


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


@pytest.fixture(scope="module")
def compared(star):
    """The features that the evaluator compares, of all test tracklets in the dataset's order."""
    seen = []

    def spy(query, gallery):
        seen.append((query, gallery))
        return similarity(query, gallery)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_modal, "similarity", spy)
        inference_on_dataset(star.model, *Trainer.build_evaluator(star.cfg, "SyntheticVCM"))
    return torch.cat(seen[0])  # I2V: the infrared queries, the visible gallery


@pytest.mark.parametrize(
    "make", [from_files, from_memory, lambda *data: from_memory(*data, image=Image.fromarray)]
)
def test_features_are_the_evaluators_to_the_bit(star, compared, data, make):
    features = star.features(make(*data))
    assert (features.dtype, features.device.type) == (torch.float32, "cpu")
    assert torch.equal(features, compared)
    assert len(torch.unique(features, dim=0)) == len(compared)  # and not all the same
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))


def test_batches_and_workers_change_nothing(star, compared, data):
    done = []
    inputs = from_files(*data)
    torch.testing.assert_close(
        star.features(inputs, batch_size=3, progress=done.append), compared, atol=1e-6, rtol=0
    )
    assert done == [3] * (len(inputs) // 3) + [len(inputs) % 3] * (len(inputs) % 3 > 0)
    assert torch.equal(star.features(inputs, num_workers=2), compared)
    backwards = star.features(inputs[::-1]).flip(0)
    torch.testing.assert_close(backwards, compared, atol=1e-6, rtol=0)


def test_a_video_is_its_frames(star, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 64))
    for frame in np.random.default_rng(0).integers(0, 255, (9, 64, 32, 3), np.uint8):
        writer.write(cv2.blur(frame, (9, 9)))
    writer.release()
    frames, n = read_video(tmp_path / "a.avi")
    assert n == 9
    joints = np.random.default_rng(1).uniform(1, 30, (9, 17, 3)).astype(np.float32)
    video, images = star.features(
        [
            TrackletInput(tmp_path / "a.avi", "infrared", joints),
            TrackletInput(frames, "infrared", joints),
        ]
    )
    torch.testing.assert_close(video, images, atol=1e-6, rtol=0)


def test_broken_frames_are_replaced_and_counted(predictor, data, caplog, tmp_path):
    good = from_memory(*data)[0]
    assert len(good.frames) == 12  # of which a clip of 3 shows 0, 4 and 8
    broken = [tmp_path / f"{k}.png" for k in range(12)]
    for path, frame in zip(broken, good.frames, strict=True):
        Image.fromarray(frame).save(path)
    broken[4].write_bytes(b"")
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
        ({"modality": "radar"}, r"unknown modality 'radar'"),
        ({"frames": [None, None]}, r"frame 0 is a NoneType"),
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


def test_features_that_are_not_finite_are_refused(runs):
    sad = StarPredictor.from_run(runs / "SAD", device="cpu")
    with torch.no_grad():
        sad.model.heads.bottleneck[0].running_var.fill_(float("nan"))
    with pytest.raises(UserError, match="the tracklets' features: 1 of 1 tracklets have NaN"):
        sad.features([TrackletInput(**GOOD)])


def test_the_users_process_is_left_as_it_is(star, data):
    """Random numbers, threads of torch and of OpenCV, with worker processes too."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(3)
    torch.manual_seed(3)
    state = torch.get_rng_state(), torch.get_num_threads()
    try:
        StarPredictor(star.cfg, star.cfg.OUTPUT_DIR + "/model_best.pth", "cpu")
        star.features(from_files(*data)[:3], num_workers=1)
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(threads)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert torch.get_num_threads() == state[1]
    assert not star.model.training


@pytest.mark.parametrize("newer_names", [False, True])
def test_the_switches_of_a_gpu_are_the_models_only_while_it_computes(
    star, data, monkeypatch, newer_names
):
    def as_on_a_gpu(device, **switches):
        configure(torch.device("cuda", 0), **switches)

    def read():
        owners = (matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None))
        legacy = [] if newer_names else [matmul.allow_tf32, cudnn.allow_tf32]
        return [cudnn.benchmark, *legacy, *(getattr(o, "fp32_precision", None) for o in owners)]

    cudnn, matmul, configure = torch.backends.cudnn, torch.backends.cuda.matmul, devices.configure
    if newer_names and not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has the older names only")
    monkeypatch.setattr(devices, "configure", as_on_a_gpu)
    cudnn.benchmark = True
    if newer_names:
        matmul.fp32_precision = "tf32"
    else:
        matmul.allow_tf32 = True
    before, seen = read(), []
    try:
        predictor = StarPredictor(star.cfg, star.cfg.OUTPUT_DIR + "/model_best.pth", "cpu")
        assert read() == before
        predictor.model.register_forward_pre_hook(lambda *_: seen.append(matmul.allow_tf32))
        predictor.features(from_files(*data)[:1])
        assert seen == [False], "SOLVER.FAST_FLOAT32 is off"
        assert read() == before
    finally:
        cudnn.benchmark = matmul.allow_tf32 = False
        cudnn.allow_tf32 = True


# --- warnings ---


def test_star_without_skeletons_warns_once(runs, sad, data, caplog):
    star = StarPredictor.from_run(runs / "STAR", device="cpu")
    inputs = from_memory(data[0][:4], data[1])
    bare = [TrackletInput(tracklet.frames, tracklet.modality) for tracklet in inputs]
    missing = [
        TrackletInput(i.frames, i.modality, np.full_like(i.skeletons, np.nan)) for i in inputs
    ]
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        sad.features(bare)
        star.features(inputs)
        assert not caplog.records
        without = star.features([inputs[0], bare[1], *missing[2:]])
        star.features(bare)
    (record,) = caplog.records
    assert "3 of 4 tracklets have no skeletons" in record.getMessage()
    assert "no better" in record.getMessage()
    torch.testing.assert_close(star.features(missing)[1:], without[1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(star.features(inputs)[:1], without[:1], atol=1e-6, rtol=0)
    assert not torch.allclose(star.features(inputs)[1:], without[1:], atol=1e-4)


def test_infrared_frames_with_colors_are_warned_of(runs, caplog):
    sad = StarPredictor.from_run(runs / "SAD", device="cpu")
    gray = np.repeat(np.random.default_rng(0).integers(0, 256, (32, 16, 1), np.uint8), 3, axis=2)
    color = gray * np.array([1, 0, 1], np.uint8)
    sad.features([TrackletInput([gray] * 3, "infrared"), TrackletInput([color] * 3, "visible")])
    assert "colors" not in caplog.text
    ben = TrackletInput([color] * 3, "infrared", name="ben")
    sad.features([TrackletInput([gray] * 3, "infrared"), ben])
    assert "1 of 2 tracklets are infrared, but their frames have colors" in caplog.text
    assert "(ben)" in caplog.text


@pytest.mark.parametrize(
    ("scale", "warned"), [((1, 1, 1), False), ((1 / 16, 1 / 32, 1), True), ((1, 1, 100), True)]
)
def test_skeletons_that_are_not_in_pixels_are_warned_of(runs, caplog, scale, warned):
    star = StarPredictor.from_run(runs / "STAR", device="cpu")
    corner, far = np.array([1, 1, 0.5]), np.array([14, 30, 1])
    joints = np.random.default_rng(0).uniform(corner, far, (3, 17, 3)) * np.array(scale)
    gray = np.zeros((32, 16, 3), np.uint8)
    star.features([TrackletInput([gray] * 3, "infrared", joints.astype(np.float32))])
    assert ("give x and y in pixels" in caplog.text) == warned


def test_whole_scenes_are_warned_of(runs, caplog):
    sad = StarPredictor.from_run(runs / "SAD", device="cpu")
    crop, scene = np.zeros((40, 20, 3), np.uint8), np.zeros((90, 160, 3), np.uint8)
    with caplog.at_level(logging.WARNING, logger="fastreid_star"):
        sad.features([TrackletInput([crop, crop], "visible")])
        assert not caplog.records
        sad.features([TrackletInput([crop], "visible"), TrackletInput([scene, scene], "visible")])
    assert "1 of 2 tracklets have frames that are wider than high" in caplog.text


def test_frames_of_16_bits_are_warned_of_unless_their_range_is_fixed(runs, caplog):
    counts = np.arange(7250, 7250 + 32 * 16, dtype=np.uint16).reshape(32, 16)
    gray = ((counts - 7250.0) / 511 * 255).round().astype(np.uint8)[..., None].repeat(3, 2)
    tracklets = [TrackletInput([image] * 3, "infrared") for image in (counts, gray)]
    options = ["INPUT.RANGE_16BIT", [7250, 7250 + 511]]
    fixed = StarPredictor.from_run(runs / "SAD", device="cpu", opts=options)
    features = fixed.features(tracklets)
    assert "16 bits" not in caplog.text
    torch.testing.assert_close(features[0], features[1], atol=1e-6, rtol=0)
    StarPredictor.from_run(runs / "SAD", device="cpu").features(tracklets)
    assert caplog.text.count("1 of 2 tracklets have frames of 16 bits") == 1


# --- where the model comes from ---


def test_weights_are_the_best_then_the_last(tmp_path):
    for name in ("model_last.pth", "model_final.pth", "model_best.pth"):
        (tmp_path / name).write_text("")
        assert find_weights(tmp_path) == str(tmp_path / name)


def test_which_weights_and_config_of_a_run_are_used(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "SAD", folder)
    shutil.copy(folder / "model_final.pth", folder / "model_best.pth")
    other = torch.load(folder / "model_final.pth", weights_only=True)
    other["model"]["heads.bottleneck.0.running_mean"] += 1
    torch.save(other, folder / "model_final.pth")

    def mean(predictor):
        return predictor.model.heads.bottleneck[0].running_mean

    best = StarPredictor.from_run(folder, "cpu")
    final = StarPredictor.from_run(folder, "cpu", weights="model_final.pth")
    torch.testing.assert_close(mean(final), mean(best) + 1)
    (folder / "model_best.pth").unlink()
    assert torch.equal(mean(StarPredictor.from_run(folder, "cpu")), mean(final))
    by_hand = load_predictor(
        config_file=str(folder / "config.yaml"),
        weights=str(folder / "model_final.pth"),
        device="cpu",
    )
    assert by_hand.fingerprint == final.fingerprint != best.fingerprint

    # A later run that was refused may have left its config: the checkpoint's counts.
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("LENGTH: 3", "LENGTH: 6"))
    assert StarPredictor.from_run(folder, "cpu").cfg.INPUT.CLIP.LENGTH == 3
    changed = StarPredictor.from_run(folder, "cpu", opts=["INPUT.CLIP.LENGTH", "2"])
    assert changed.cfg.INPUT.CLIP.LENGTH == 2
    torch.save({"model": other["model"]}, folder / "model_final.pth")
    assert StarPredictor.from_run(folder, "cpu").cfg.INPUT.CLIP.LENGTH == 6
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match="contains a config"):
        StarPredictor.from_run(folder, "cpu")
    with pytest.raises(UserError, match=r"model_7\.pth: choose one of model_final\.pth"):
        StarPredictor.from_run(folder, "cpu", weights="model_7.pth")
    with pytest.raises(UserError, match="does not exist"):
        StarPredictor.from_run(tmp_path / "none", "cpu")


def test_models_that_do_not_fit_are_refused(runs):
    config, weights = str(runs / "SAD" / "config.yaml"), runs / "SAD" / "model_best.pth"
    for options, message in (
        (["MODEL.META_ARCHITECTURE", "Baseline"], "does not read clips"),
        (["MODEL.META_ARCHITECTURE", "STAR"], "META_ARCHITECTURE"),
        (["INPUT.CLIP.LENGTH", "0"], r"CLIP\.LENGTH is 0"),
    ):
        with pytest.raises(UserError, match=message):
            StarPredictor(load_config(config, options), weights, "cpu")
    for arguments in ({}, {"config_file": config}, {"run": "x", "config_file": config}):
        with pytest.raises(UserError, match="--run"):
            load_predictor(**arguments)


# --- fingerprints ---


def test_fingerprints_differ_where_features_do(runs, star):
    def of(*options):
        cfg = load_config(str(runs / "STAR" / "config.yaml"), list(options))
        return fingerprint(star.model, cfg)

    own = star.fingerprint
    for harmless in (
        ("MODEL.DEVICE", "npu", "DATASETS.ROOT", "elsewhere"),
        ("MODEL.LOSSES.TRI.MARGIN", "9.0", "SOLVER.BASE_LR", "7.0"),
    ):
        assert differences(own, of(*harmless)) == []
    for key, value in (
        ("INPUT.CLIP.LENGTH", "5"),
        ("INPUT.SIZE_TEST", "[64,32]"),
        ("INPUT.BLANK", "True"),
        ("MODEL.HEADS.GEM_P", "1.0"),
        ("MODEL.PIXEL_MEAN", "[0,0,0]"),
    ):
        (found,) = differences(own, of(key, value))
        assert found.startswith(key)


def test_any_weight_or_buffer_but_the_losses_changes_the_fingerprint(runs, star):
    other = StarPredictor.from_run(runs / "STAR", "cpu")
    assert other.fingerprint == star.fingerprint
    state = other.model.state_dict()
    assert any(name.startswith("losses.") for name in state)
    for name, value in state.items():
        before = value.clone()
        value.view(-1)[-1] += 1
        found = differences(fingerprint(other.model, other.cfg), star.fingerprint)
        assert found == ([] if name.startswith("losses.") else ["other weights"]), name
        value.copy_(before)
