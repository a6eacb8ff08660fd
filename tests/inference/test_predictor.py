"""The features of a predictor are those of the evaluation; errors name the tracklet."""

import logging
import shutil

import cv2
import numpy as np
import pytest
import torch
from fastreid.evaluation import inference_on_dataset
from PIL import Image

from fastreid_star.data.io import read_video
from fastreid_star.data.tracklets import TrackletInput
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation import cross_modal
from fastreid_star.evaluation.similarity import similarity
from fastreid_star.inference import StarPredictor
from fastreid_star.inference.fingerprint import differences
from fastreid_star.inference.predictor import find_weights, load_predictor
from fastreid_star.report.ranking import rank_run

from .tracklets import from_files, from_memory


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


def test_with_the_mirror_images_features_are_the_evaluators_too(runs, star, compared, data):
    """Of the evaluation and of the report; the file and the protocol name what was done."""
    options = ["TEST.FLIP.ENABLED", "True"]
    both = StarPredictor.from_run(runs / "STAR", "cpu", opts=options)
    features = both.features(from_files(*data))
    assert (features - compared).abs().max() > 1e-4
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    changed = differences(star.fingerprint, both.fingerprint)
    assert changed == ["TEST.FLIP.ENABLED False there, True here"]
    ranking = rank_run(both.cfg, "SyntheticVCM", both.model)
    assert torch.equal(ranking.features, features)
    assert ranking.results.protocol_name == "mean of each clip and its mirror image"
    assert Trainer.test(both.cfg, both.model)["metric"] == ranking.results.metrics()["metric"]


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
