"""The top-down networks of mmpose 1.3.2: HRNet, RTMPose and whatever else gives heatmaps or SimCC vectors of COCO-17.

The crop, the mirroring and the decoding are mmpose's own, from the config: a network sees what it was trained and
published with. The box is the whole crop. Several people in a crop: see :mod:`fastreid_star.pose.central`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastreid_star.coco import JOINT_NAMES, NUM_JOINTS
from fastreid_star.errors import UserError
from fastreid_star.pose import mmpose_shims
from fastreid_star.pose.central import RULE, keep_central_peaks
from fastreid_star.pose.estimator import PoseEstimator, joined, mixed_precision, sha256, versions
from fastreid_star.pose.mmpose_weights import load_weights

with mmpose_shims.importable():
    import mmpose
    from mmengine.config import Config
    from mmengine.dataset import Compose, pseudo_collate
    from mmengine.registry import init_default_scope
    from mmpose.apis import init_model
    from mmpose.codecs import MegviiHeatmap, MSRAHeatmap, SimCCLabel, UDPHeatmap
    from mmpose.models.heads.base_head import BaseHead
    from mmpose.models.pose_estimators import TopdownPoseEstimator

DEFAULT_MODEL = "td-hm_hrnet-w32_8xb64-210e_coco-256x192"
CONFIGS = Path(mmpose.__file__).parent / ".mim" / "configs"
_SCORES = {
    MSRAHeatmap: "heatmap maximum",
    UDPHeatmap: "heatmap maximum",
    MegviiHeatmap: "heatmap maximum",
    SimCCLabel: "SimCC maximum",
}


class MMPoseEstimator(PoseEstimator):
    """See :func:`fastreid_star.pose.estimator.build_estimator`."""

    def __init__(
        self,
        *,
        model: str | None,
        checkpoint: str | None,
        device: torch.device,
        flip_test: bool,
        dtype: str | None,
    ):
        path = config_path(model or DEFAULT_MODEL)
        if checkpoint is None:
            raise UserError(
                f"{path.stem} needs its trained weights: download the checkpoint that mmpose's model zoo has for this "
                "config, and name the file with --checkpoint"
            )
        if not os.path.isfile(checkpoint):
            raise UserError(
                f"checkpoint {checkpoint} does not exist: name the downloaded file with --checkpoint"
            )
        config = read_config(path)
        config_sha256 = _digest(config)
        self._model = _build(config, path, device, flip_test)
        self._head = _head_that_decodes(self._model, path)
        _require_coco(self._model, path)
        codec = {
            "type": type(self._head.decoder).__name__,
            "input_size": self._head.decoder.input_size,
        }
        load_weights(self._model, checkpoint, path.stem, codec)
        self._widths = torch.empty(0)  # of the crops that are being estimated
        self._head.decode = self._decode_central(self._head.decode)
        self._device, self._dtype = device, dtype
        init_default_scope("mmpose")
        self.prepare = PrepareCrop(
            Compose(config.test_dataloader.dataset.pipeline), self._model.dataset_meta
        )
        self._description = {
            "backend": "mmpose",
            "model": path.stem,
            "config": path.name,
            "config_sha256": config_sha256,
            "checkpoint": os.path.basename(checkpoint),
            "sha256": sha256([checkpoint]),
            "input_size": [int(side) for side in self._head.decoder.input_size],
            "score": _SCORES[type(self._head.decoder)],
            "several_people": RULE,
            "flip_test": flip_test,
            "dtype": dtype or "float32",
            "versions": versions("mmpose", "mmengine", "mmcv-lite"),
        }

    def describe(self) -> dict[str, Any]:
        return dict(self._description)

    def estimate(self, prepared: Sequence[Any]) -> np.ndarray:
        if not prepared:
            return joined(np.empty((0, NUM_JOINTS, 2)), np.empty((0, NUM_JOINTS)))
        samples = [item["data_samples"] for item in prepared]
        widths = [sample.gt_instances.bboxes[0, 2] / sample.input_scale[0] for sample in samples]
        self._widths = torch.tensor(widths, dtype=torch.float32, device=self._device)
        with (
            torch.inference_mode(),
            mixed_precision(self._device, self._dtype),
            mmpose_shims.quiet(),
        ):
            found = [
                sample.pred_instances for sample in self._model.test_step(pseudo_collate(prepared))
            ]
        return joined(
            np.concatenate([instances.keypoints for instances in found]),
            np.concatenate([instances.keypoint_scores for instances in found]),
        )

    def _decode_central(self, decode: Callable) -> Callable:
        """mmpose's decoder, which finds of several peaks the central confident one."""

        def decode_central(outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> Any:
            if isinstance(outputs, tuple):
                along_x, along_y = (vectors.float() for vectors in outputs)
                along_x = keep_central_peaks(along_x[:, :, None], self._widths)[:, :, 0]
                return decode((along_x, along_y))
            maps = outputs.float().clone()
            channels = 3 if _with_offsets(self._head.decoder) else 1
            maps[:, ::channels] = keep_central_peaks(maps[:, ::channels], self._widths)
            return decode(maps)

        return decode_central


class PrepareCrop:
    """A config's own way from an image to the network's input.

    Args:
        pipeline: the config's test pipeline; its first step takes images that are loaded already.
        meta: what the dataset says of the joints.
    """

    def __init__(self, pipeline: Compose, meta: dict[str, Any]):
        self._pipeline = pipeline
        self._meta = meta

    def __call__(self, crop: np.ndarray) -> dict[str, Any]:
        height, width = crop.shape[:2]
        return self._pipeline(
            {
                **self._meta,
                "img": np.ascontiguousarray(crop[..., ::-1]),  # mmpose loads images as BGR
                "bbox": np.array([[0, 0, width, height]], np.float32),
                "bbox_score": np.ones(1, np.float32),
            }
        )


def config_path(model: str) -> Path:
    """The file of a config: a path as it is, the name of one of mmpose's looked up.

    Raises:
        UserError: there is none, with the nearest that exists.
    """
    if os.path.isfile(model):
        return Path(model)
    if os.sep in model or model.endswith(".py"):
        raise UserError(
            f"mmpose config {model} does not exist: give the path of a file, or a name without .py"
        )
    files = {file.stem: file for file in CONFIGS.rglob("*.py")}
    if model not in files:
        near = difflib.get_close_matches(model, files, n=1, cutoff=0)
        raise UserError(f"mmpose has no config {model}; did you mean {' '.join(near)}?")
    return files[model]


def read_config(path: Path) -> Config:
    """A top-down config.

    Raises:
        UserError: it cannot be read, or is for another kind of network.
    """
    try:
        config = Config.fromfile(path)
        kind = config.model.type
        config.test_dataloader.dataset.pipeline  # noqa: B018 - without it nothing can be prepared
    except Exception as error:  # a config is a program: it can raise anything
        raise UserError(
            f"mmpose config {path} cannot be read: {' '.join(str(error).split())}"
        ) from error
    if (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[
        2
    ] != TopdownPoseEstimator.__name__:
        raise UserError(
            f"mmpose config {path.name} is no top-down network but a {kind}: choose one of body_2d_keypoint's "
            "topdown_heatmap or rtmpose"
        )
    mmpose_shims.drop_detector_scope(config.model)
    return config


def _digest(config: Config) -> str:
    """Of all that a config says, what it has from its bases included."""
    text = json.dumps(
        config.to_dict(),
        sort_keys=True,
        default=lambda x: getattr(x, "__qualname__", type(x).__name__),
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _build(
    config: Config, path: Path, device: torch.device, flip_test: bool
) -> TopdownPoseEstimator:
    config.model.test_cfg = {
        **(config.model.get("test_cfg") or {}),
        "flip_test": flip_test,
        "output_heatmaps": False,
    }
    try:
        with mmpose_shims.quiet():
            return init_model(
                config, None, device=device
            )  # without weights, and without those of its backbone
    except (
        Exception
    ) as error:  # anything, from a layer that needs another package to a wrong number
        reason = " ".join(str(error).split()).partition(". ")[0]  # mmengine goes on for long
        raise UserError(f"mmpose cannot build {path.name}: {reason}") from error


def _head_that_decodes(model: TopdownPoseEstimator, path: Path) -> BaseHead:
    if type(getattr(model.head, "decoder", None)) not in _SCORES:
        raise UserError(
            f"{path.name} gives neither heatmaps nor SimCC vectors alone: choose another config"
        )
    return model.head


def _with_offsets(decoder: Any) -> bool:
    """Whether each joint has three maps: scores, and offsets along x and y."""
    return getattr(decoder, "heatmap_type", None) == "combined"


def _require_coco(model: TopdownPoseEstimator, path: Path) -> None:
    names = model.dataset_meta["keypoint_id2name"]
    chosen = model.test_cfg.get("output_keypoint_indices") or range(len(names))
    found = tuple(names[index] for index in chosen)
    if found != JOINT_NAMES:
        raise UserError(
            f"{path.name} finds {len(found)} joints ({', '.join(found[:3])}, ...), not COCO's 17: choose another config"
        )
