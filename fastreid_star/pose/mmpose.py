"""Top-down networks of mmpose 1.3.2: HRNet, RTMPose and others with heatmaps or SimCC vectors.

The crop, the mirrored crop and the decoding are mmpose's own, from the config. The box is the whole
crop. With several people in a crop, see :func:`fastreid_star.pose.estimator.keep_central_peaks`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from fastreid_star.coco import JOINT_NAMES
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import (
    PoseEstimator,
    description_of,
    join_joints,
    keep_central_peaks,
    mixed_precision,
)
from fastreid_star.pose.mmpose_weights import load_weights


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Within this context mmpose is importable without mmdet and mmcv's compiled operators.

    No recent torch has these operators, so mmcv-lite replaces mmcv, and mmdet does not work with
    it. mmpose imports names from both that no top-down network uses: EDPose takes one from
    ``mmcv.ops``, RTMO two from ``mmdet.utils``.
    """
    members: dict[str, dict[str, Any]] = {}
    if importlib.util.find_spec("mmcv._ext") is None:
        members["mmcv.ops"] = {"MultiScaleDeformableAttention": type("Missing", (), {})}
    if importlib.util.find_spec("mmdet") is None:
        members |= {"mmdet": {}, "mmdet.utils": {"ConfigType": dict, "reduce_mean": None}}
    for name, values in members.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
        vars(module).update(values)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in members:
            del sys.modules[name]


# mmpose's warnings about its own configs and code
for message in ("Fail to import ``MultiScale", "The metainfo config file .* does not exist"):
    warnings.filterwarnings("ignore", message, UserWarning)
warnings.filterwarnings("ignore", category=FutureWarning, module="mmpose")

with importable():
    import mmpose
    from mmengine.config import Config
    from mmengine.dataset import Compose, pseudo_collate
    from mmengine.registry import init_default_scope
    from mmpose.apis import init_model
    from mmpose.codecs import MegviiHeatmap, MSRAHeatmap, SimCCLabel, UDPHeatmap
    from mmpose.models.pose_estimators import TopdownPoseEstimator

DEFAULT_MODEL = "td-hm_hrnet-w32_8xb64-210e_coco-256x192"
CONFIGS = Path(mmpose.__file__).parent / ".mim" / "configs"
_SCORES = {
    **dict.fromkeys((MSRAHeatmap, UDPHeatmap, MegviiHeatmap), "heatmap maximum"),
    SimCCLabel: "SimCC maximum",
}


class MMPoseEstimator(PoseEstimator):
    """See :func:`fastreid_star.pose.estimator.build_estimator`."""

    def __init__(
        self,
        *,
        model: str,
        checkpoint: str,
        device: torch.device,
        flip_test: bool,
        dtype: str | None,
    ):
        path = config_path(model or DEFAULT_MODEL)
        if not checkpoint:
            raise UserError(
                f"{path.stem} needs trained weights: download {published_file(path)} of mmpose's "
                "model zoo, and give the file by --checkpoint"
            )
        if not os.path.isfile(checkpoint):
            raise UserError(f"checkpoint {checkpoint} does not exist: download it first")
        config = read_config(path)
        text = json.dumps(
            config.to_dict(),
            sort_keys=True,
            default=lambda x: getattr(x, "__qualname__", type(x).__name__),
        )
        self._model = _build(config, path, device, flip_test)
        self._head = self._model.head
        decoder: Any = getattr(self._head, "decoder", None)
        if type(decoder) not in _SCORES:
            raise UserError(
                f"{path.name} gives neither heatmaps nor SimCC vectors: choose another config"
            )
        _require_coco(self._model, path)
        codec = {"type": type(decoder).__name__, "input_size": decoder.input_size}
        load_weights(self._model, checkpoint, path.stem, codec)
        self._widths = torch.empty(0)  # of the crops in the current batch
        self._head.decode = self._decode_central(self._head.decode)
        self._device, self._dtype = device, dtype
        init_default_scope("mmpose")
        pipeline = Compose(config.test_dataloader.dataset.pipeline)
        self.prepare = functools.partial(prepare_crop, pipeline, self._model.dataset_meta)
        self.description = description_of(
            [Path(checkpoint)],
            ["mmpose", "mmengine", "mmcv-lite"],
            flip_test=flip_test,
            dtype=dtype,
            backend="mmpose",
            model=path.stem,
            config=path.name,
            config_sha256=hashlib.sha256(text.encode()).hexdigest(),
            input_size=[int(side) for side in decoder.input_size],
            score=_SCORES[type(decoder)],
        )

    def estimate(self, prepared: Sequence[Any]) -> np.ndarray:
        samples = [item["data_samples"] for item in prepared]
        widths = [sample.gt_instances.bboxes[0, 2] / sample.input_scale[0] for sample in samples]
        self._widths = torch.tensor(widths, dtype=torch.float32, device=self._device)
        with torch.inference_mode(), mixed_precision(self._device, self._dtype):
            results = self._model.test_step(pseudo_collate(prepared))
        found = [sample.pred_instances for sample in results]
        return join_joints(
            np.concatenate([instances.keypoints for instances in found]),
            np.concatenate([instances.keypoint_scores for instances in found]),
        )

    def _decode_central(self, decode: Callable) -> Callable:
        """mmpose's decoder on maps in which the central peaks are the highest."""
        with_offsets = getattr(self._head.decoder, "heatmap_type", None) == "combined"

        def decode_central(outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> Any:
            if isinstance(outputs, tuple):  # SimCC: which peak of y belongs to x is unknown
                along_x, along_y = (vectors.float() for vectors in outputs)
                along_x = keep_central_peaks(along_x[:, :, None], self._widths)[:, :, 0]
                return decode((along_x, along_y))
            maps = outputs.float().clone()
            channels = 3 if with_offsets else 1  # of a joint: score, and offsets along x and y
            maps[:, ::channels] = keep_central_peaks(maps[:, ::channels], self._widths)
            return decode(maps)

        return decode_central


def prepare_crop(pipeline: Compose, meta: dict[str, Any], crop: np.ndarray) -> dict[str, Any]:
    """The input of the network, by the config's own steps.

    Args:
        pipeline: the test pipeline of the config; its first step accepts loaded images.
        meta: what the dataset says about the joints.
        crop: uint8 ``[H, W, 3]``, RGB.
    """
    height, width = crop.shape[:2]
    return pipeline(
        {
            **meta,
            "img": np.ascontiguousarray(crop[..., ::-1]),  # mmpose's images are BGR
            "bbox": np.array([[0, 0, width, height]], np.float32),
            "bbox_score": np.ones(1, np.float32),
        }
    )


def config_path(model: str) -> Path:
    """The file of a config: a path, or the name of one of mmpose's configs.

    Raises:
        UserError: there is no such config; the message has the nearest name.
    """
    if os.path.isfile(model):
        return Path(model)
    files = {file.stem: file for file in CONFIGS.rglob("*.py")}
    if model not in files:
        near = difflib.get_close_matches(model, files, n=1, cutoff=0)
        raise UserError(f"mmpose has no config or file {model}; did you mean {' '.join(near)}?")
    return files[model]


def published_file(path: Path) -> str:
    """The name of the checkpoint that mmpose's model zoo lists for a config."""
    for listing in path.parent.glob("*.yml"):
        for model in yaml.safe_load(listing.read_text(encoding="utf-8"))["Models"]:
            if model["Name"] == path.stem:
                return model["Weights"].rpartition("/")[2]
    return "the checkpoint of this config"


def read_config(path: Path) -> Config:
    """A config of a top-down network.

    Raises:
        UserError: it cannot be read, or describes another kind of network.
    """
    try:
        config = Config.fromfile(path)
        kind = config.model.type
        config.test_dataloader.dataset.pipeline  # noqa: B018 - raises if it is missing
    except Exception as error:  # a config is a program: it can raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"mmpose config {path} cannot be read: {reason}") from error
    name = kind if isinstance(kind, str) else kind.__name__
    if name.rpartition(".")[2] != TopdownPoseEstimator.__name__:
        raise UserError(
            f"mmpose config {path.name} is no top-down network but a {kind}: choose one of "
            "body_2d_keypoint's topdown_heatmap or rtmpose"
        )
    if importlib.util.find_spec("mmdet") is None:
        _drop_detector_scope(config.model)
    return config


def _drop_detector_scope(config: Any) -> None:
    """Remove ``_scope_='mmdet'``, which makes a warning per layer; mmpose has the same CSPNeXt."""
    if isinstance(config, dict):
        if config.get("_scope_") == "mmdet":
            del config["_scope_"]
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            _drop_detector_scope(value)


def _build(
    config: Config, path: Path, device: torch.device, flip_test: bool
) -> TopdownPoseEstimator:
    settings = {"flip_test": flip_test, "output_heatmaps": False}
    config.model.test_cfg = {**(config.model.get("test_cfg") or {}), **settings}
    try:
        return init_model(config, None, device=device)  # None: without any weights
    except Exception as error:  # for example a layer of a package that is not installed
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise UserError(f"mmpose cannot build {path.name}: {reason}") from error


def _require_coco(model: TopdownPoseEstimator, path: Path) -> None:
    names = model.dataset_meta["keypoint_id2name"]
    chosen = model.test_cfg.get("output_keypoint_indices") or range(len(names))
    found = tuple(names[index] for index in chosen)
    if found != JOINT_NAMES:
        raise UserError(
            f"{path.name} finds {len(found)} joints ({', '.join(found[:3])}, ...), not COCO's 17: "
            "choose another config"
        )
