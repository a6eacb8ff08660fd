"""mmpose's networks behind the interface: where they find joints, and what checkpoints they take."""

import io
import os
import types
import zipfile

import cv2
import numpy as np
import torch
from markers import SIZES, odd_crops, plant, refused
from mmengine.logging import HistoryBuffer
from mmpose_networks import (
    CPU,
    DARK,
    FLIPPED,
    HRNET,
    RTMPOSE,
    UDP,
    UDP_OFFSETS,
    Perfect,
    build,
    checkpoint,
    network,
    published,
)

from fastreid_star.coco import LEFT_RIGHT, NUM_JOINTS
from fastreid_star.pose import mmpose as backend
from fastreid_star.pose import mmpose_weights
from fastreid_star.pose.estimator import build_estimator


def check_the_networks_end_to_end(folder):
    for name, singles in ((HRNET, (0, 9)), (RTMPOSE, range(16))):
        estimator = build(folder, name)
        assert not estimator._model.training
        prepared = [estimator.prepare(crop) for crop in odd_crops(16)]
        joints = estimator.estimate(prepared)
        assert joints.shape == (16, NUM_JOINTS, 3)
        assert joints.dtype == np.float32
        assert np.isfinite(joints).all()
        assert joints[..., 2].min() >= 0
        assert joints[..., 2].max() <= 1
        # joints and crops differ clearly, so the equal joints below are not trivial
        assert (joints[..., :2].std(axis=1) > 3).all()
        assert (joints[..., :2].std(axis=0) > 3).all()
        for index in singles:
            alone = estimator.estimate([prepared[index]])
            assert np.abs(alone - joints[index]).max() < 1e-3


def check_mixed_precision(folder):
    prepared = [build(folder, RTMPOSE).prepare(crop) for crop in odd_crops(4)]
    full = build(folder, RTMPOSE).estimate(prepared)
    for dtype, most in (("bfloat16", 0.5), ("float16", 0.1)):
        half = build(folder, RTMPOSE, dtype=dtype)
        assert half.describe()["dtype"] == dtype
        joints = half.estimate(prepared)
        assert np.isfinite(joints).all()
        assert not np.array_equal(joints, full)
        assert np.median(np.abs(joints - full)) < most


def check_description(folder):
    said = build(folder, RTMPOSE, flip_test=True).describe()
    assert (said["model"], said["checkpoint"]) == (RTMPOSE, f"{RTMPOSE}.pth")
    assert (said["input_size"], said["score"]) == ([192, 256], "SimCC maximum")
    assert (said["flip_test"], said["versions"]["mmpose"]) == (True, "1.3.2")
    assert build(folder, HRNET).describe()["score"] == "heatmap maximum"
    default = build_estimator("mmpose", checkpoint=checkpoint(folder, HRNET), device=CPU)
    assert default.describe() == build(folder, HRNET).describe()


def check_blobs_are_found_where_they_are(folder):
    """Colors, places and sides all come through: any mistake of them is larger than what is allowed here."""
    for name in (HRNET, DARK, UDP, UDP_OFFSETS, RTMPOSE):
        for flip_test in (False, True) if name in FLIPPED else (False,):
            estimator = build(folder, name, flip_test)
            planted = [plant(*size, seed) for seed, size in enumerate(SIZES)]
            prepared = [estimator.prepare(image) for image, _ in planted]
            with Perfect(estimator) as stand_in:
                joints = estimator.estimate(prepared)
            assert len(stand_in.seen) == 1 + flip_test
            if flip_test:
                assert torch.equal(stand_in.seen[0], stand_in.seen[1].flip(-1))
            off = joints[..., :2] - np.stack([points for _, points in planted])
            # pixels of the crop to a cell of the heatmap, 64 of which are 1.25 boxes high
            cells = np.array([1.25 * max(height, width / 0.75) / 64 for width, height in SIZES])
            # Without DARK's refinement a heatmap says a quarter of a cell. Where the codec is MSRA's, mmpose lays what
            # the mirrored crop gave a quarter of a cell beside the other; for SimCC it is half a pixel of the input.
            quantum = cells / 4 if name == HRNET else 0.2
            shift = flip_test * (cells / 8 if name in (HRNET, DARK) else 0.3)
            furthest = np.abs(off).max(axis=(1, 2))
            assert (furthest < quantum + shift + 0.15).all(), (name, flip_test, furthest)
            # which hides nothing: over many joints it is 0 on average
            mean = np.abs((off / cells[:, None, None]).mean(axis=(0, 1)))
            assert mean.max() < (0.13 if name in (HRNET, DARK) and flip_test else 0.05), (
                name,
                flip_test,
                mean,
            )
            if name != UDP_OFFSETS:  # whose decoder blurs the map of scores first
                assert np.abs(joints[..., 2] - 1).max() < 0.15, (name, flip_test)


def check_one_person_is_as_mmpose_says(folder):
    """To the last digit, by mmpose's own function for images, which gets them as it loads them: blue first."""
    from mmpose.apis import inference_topdown

    for name in (HRNET, DARK, UDP, UDP_OFFSETS, RTMPOSE):
        estimator = build(folder, name, name in FLIPPED)
        images = [plant(*size)[0] for size in SIZES]
        with Perfect(estimator):
            ours = estimator.estimate([estimator.prepare(image) for image in images])
            central = estimator._head.decode
            del estimator._head.decode
            theirs = [
                inference_topdown(estimator._model, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
                for image in images
            ]
            estimator._head.decode = central
        for joints, (sample,) in zip(ours, theirs, strict=True):
            assert np.array_equal(joints[:, :2], np.float32(sample.pred_instances.keypoints[0]))
            assert np.array_equal(joints[:, 2], sample.pred_instances.keypoint_scores[0].clip(0, 1))


def check_the_central_person_is_taken(folder):
    crop = np.zeros(
        (192, 90, 3), np.uint8
    )  # the input shows 180 x 240 pixels: two thirds of its width are outside
    rng = np.random.default_rng(0)
    central = rng.uniform([92, 60], [104, 200], (NUM_JOINTS, 2))
    at_the_edge = central * [0, 1] + [[56, 0]]
    for name in (HRNET, DARK, UDP, UDP_OFFSETS, RTMPOSE):
        estimator = build(folder, name)
        stand_in = Perfect(estimator)
        prepared = [estimator.prepare(crop)]
        for heights, expected in (((0.7, 0.8), central), ((0.4, 0.9), at_the_edge)):
            people = zip((central, at_the_edge), heights, strict=True)
            outputs = [stand_in.encode([points], height) for points, height in people]
            if name == RTMPOSE:
                both = tuple(map(torch.maximum, *outputs))
            else:
                # a cell belongs to whom it says more of, and its offsets with it
                channels = 3 if name == UDP_OFFSETS else 1
                whose = (outputs[0] > outputs[1])[:, ::channels].repeat_interleave(channels, dim=1)
                both = torch.where(whose, *outputs)
            alone = outputs[0] if expected is central else outputs[1]
            found = []
            with Perfect(estimator):
                for output in (both, alone):
                    estimator._model.head.forward = lambda inputs, output=output: output
                    found.append(estimator.estimate(prepared))
            off = np.abs(found[0] - found[1])
            assert off[..., :2].max() < 0.2, (name, off.max(axis=1))
            # RTMPose's score is the lower one of x and y, and y is left as it is; UDP_OFFSETS' is blurred over both
            if name not in (RTMPOSE, UDP_OFFSETS):
                assert off[..., 2].max() == 0


def check_layouts_of_checkpoints(folder):
    model, _ = network(RTMPOSE)
    weights = model.state_dict()
    data = published(RTMPOSE)
    whole = io.BytesIO()
    torch.save(data, whole)
    as_numpy_1 = io.BytesIO()
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(as_numpy_1, "w", zipfile.ZIP_STORED) as target,
    ):
        for entry in source.infolist():
            target.writestr(
                entry,
                source.read(entry).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"),
            )
    assert as_numpy_1.getvalue() != whole.getvalue()
    (folder / "numpy_1.pth").write_bytes(as_numpy_1.getvalue())
    old = {
        key.replace("head.", "keypoint_head.") if key.startswith("head.") else key: weights[key]
        for key in weights
    }
    mean = {"data_preprocessor.mean": torch.zeros(3, 1, 1)}
    torch.save({"state_dict": {**old, **mean}, "meta": {"cfg": "x = ("}}, folder / "old.pth")
    torch.save({f"module.{key}": value for key, value in weights.items()}, folder / "parallel.pth")
    torch.save(dict(weights), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("numpy_1", "old", "parallel", "legacy"):
        path = str(folder / f"{name}.pth")
        estimator = build_estimator("mmpose", model=RTMPOSE, checkpoint=path, device=CPU)
        for key, value in estimator._model.state_dict().items():
            assert torch.equal(value, weights[key]), (name, key)


def check_nothing_in_a_checkpoint_is_run(folder):
    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {folder}/ran",)

    class Reached:
        """getattr is let in, for names of statistics: it must not get anything that could be called."""

        def __reduce__(self):
            return getattr, (HistoryBuffer, "__init__")

    for number, thing in enumerate((Touch(), print, types.SimpleNamespace(a=1))):
        path = str(folder / f"bad{number}.pth")
        torch.save({**published(RTMPOSE), "more": thing}, path)
        refused(
            lambda path=path: build_estimator("mmpose", model=RTMPOSE, checkpoint=path, device=CPU),
            path,
            "may run code",
            ("system", "print", "SimpleNamespace")[number],
        )
    assert not (folder / "ran").exists()
    before = torch.serialization.get_safe_globals()
    path = str(folder / "reached.pth")
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": {"cfg": Reached()}}, path)
    assert mmpose_weights.read_checkpoint(path)[1] == ""
    assert set(torch.serialization.get_safe_globals()) == set(before)


def check_checkpoints_that_are_refused(folder):
    weights = dict(network(RTMPOSE)[0].state_dict())

    def refuses(content, *words):
        path = str(folder / "refused.pth")
        if isinstance(content, bytes):
            (folder / "refused.pth").write_bytes(content)
        else:
            torch.save(content, path)
        refused(
            lambda: build_estimator("mmpose", model=RTMPOSE, checkpoint=path, device=CPU),
            path,
            *words,
        )

    fewer = {name: value for name, value in weights.items() if name != "head.cls_x.weight"}
    refuses({"state_dict": fewer}, "Missing", "head.cls_x.weight")
    more = {**weights, "head.more": torch.ones(1)}
    refuses({"state_dict": more}, "Unexpected", "head.more")
    narrow = {**weights, "head.cls_x.weight": weights["head.cls_x.weight"][:-2]}
    refuses({"state_dict": narrow}, "size mismatch", "head.cls_x.weight")
    refuses([1, 2], "no weights by name")
    refuses(b"no checkpoint at all", "damaged or no checkpoint")
    with open(checkpoint(folder, RTMPOSE), "rb") as file:
        refuses(file.read(100_000), "damaged", "download it again")
    other = published(RTMPOSE)
    other["meta"]["cfg"] = other["meta"]["cfg"].replace("192,", "288,").replace("256,", "384,")
    refuses(other, "trained with input_size 288 x 384", "--model")
    file = "td-hm_hrnet-w32_8xb64-210e_coco-256x192-81c58e40_20220909.pth"
    refused(lambda: build_estimator("mmpose", device=CPU), file, "model zoo", "--checkpoint")


def check_configs_that_are_refused(folder):
    def refuses(name, *words):
        any_file = checkpoint(folder, RTMPOSE)
        refused(
            lambda: build_estimator("mmpose", model=name, checkpoint=any_file, device=CPU), *words
        )

    refuses("rtmpose-t_8xb256-420e_coco-256x193", f"did you mean {RTMPOSE}?")
    refuses(
        "dekr_hrnet-w32_8xb10-140e_coco-512x512", "no top-down network but a BottomupPoseEstimator"
    )
    refuses("td-hm_hrnet-w32_8xb64-210e_mpii-256x256", "finds 16 joints", "not COCO's 17")
    refuses("td-reg_res50_8xb64-210e_coco-256x192", "neither heatmaps nor SimCC")
    refuses("td-hm_ViTPose-base_8xb64-210e_coco-256x192", "cannot build", "mmpretrain")
    (folder / "broken.py").write_text("model = dict(type='TopdownPoseEstimator'\n")
    refuses(str(folder / "broken.py"), "broken.py cannot be read")


def check_a_config_file_of_ones_own(folder):
    path = folder / "mine.py"
    path.write_text(f"_base_ = [{str(backend.config_path(RTMPOSE))!r}]\n")

    def own():
        trained = checkpoint(folder, RTMPOSE)
        return build_estimator("mmpose", model=str(path), checkpoint=trained, device=CPU)

    estimator, crop = own(), odd_crops(1)[0]
    ours = estimator.estimate([estimator.prepare(crop)])
    assert np.array_equal(ours, build(folder, RTMPOSE).estimate([estimator.prepare(crop)]))
    before = estimator.describe()
    path.write_text(path.read_text() + "more = 1\n")
    after = own().describe()
    assert {key for key in before if before[key] != after[key]} == {"config_sha256"}
    assert tuple(estimator._model.dataset_meta["flip_indices"]) == LEFT_RIGHT
