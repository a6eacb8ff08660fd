"""MoveNet for one person, Thunder and Lightning, by PyTorch, or by onnxruntime on a CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch

from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import (
    PoseEstimator,
    description_of,
    join_joints,
    mixed_precision,
)
from fastreid_star.pose.movenet_network import MoveNet
from fastreid_star.pose.movenet_weights import MODELS, load_movenet

OPSET = 17
RULE = "the highest center, weighted by MoveNet's own prior for the middle of the crop"


class PreparedCrop(NamedTuple):
    """A crop in the network's input.

    Attributes:
        image: uint8 ``[3, S, S]``, RGB.
        corner: x and y of the crop's first pixel in the input.
        pixel: width and height of a pixel of the input, in pixels of the crop.
    """

    image: np.ndarray
    corner: np.ndarray
    pixel: np.ndarray


@dataclass(frozen=True)
class PrepareCrop:
    """Scale the whole crop into the middle of a black square.

    Args:
        size: S, the side of the square.
    """

    size: int

    def __call__(self, crop: np.ndarray) -> PreparedCrop:
        own = np.array(crop.shape[1::-1])
        scaled = np.maximum(1, np.rint(own * (self.size / own.max())).astype(int))
        shrinks = own.max() > self.size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = np.zeros((self.size, self.size, 3), np.uint8)
        x, y = corner = (self.size - scaled) // 2
        image[y : y + scaled[1], x : x + scaled[0]] = cv2.resize(
            np.ascontiguousarray(crop), scaled.tolist(), interpolation=method
        )
        return PreparedCrop(np.ascontiguousarray(image.transpose(2, 0, 1)), corner, own / scaled)


class MoveNetEstimator(PoseEstimator):
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
        model = model or "thunder"
        if model not in MODELS:
            raise UserError(f"movenet has no --model {model}: use {' or '.join(MODELS)}")
        network, files = load_movenet(model, checkpoint, flip_test=flip_test)
        runtime = ["onnxruntime"] if device.type == "cpu" and dtype is None and has_onnx() else []
        if runtime:
            self._run = in_onnxruntime(network)
        else:
            self._run = in_torch(network, device, dtype)
        self.prepare = PrepareCrop(network.size)
        self.description = description_of(
            files,
            runtime,
            flip_test=flip_test,
            dtype=dtype,
            several_people=RULE,
            backend="movenet",
            model=f"movenet-{model}",
            input_size=[network.size, network.size],
            score="heatmap maximum",
        )

    def estimate(self, prepared: Sequence[PreparedCrop]) -> np.ndarray:
        joints = self._run(np.stack([crop.image for crop in prepared]))
        corners = np.stack([crop.corner for crop in prepared])[:, None]
        pixels = np.stack([crop.pixel for crop in prepared])[:, None]
        # the edges of crop and input meet, so both are counted from the edge of the first pixel
        return join_joints((joints[..., :2] - corners + 0.5) * pixels - 0.5, joints[..., 2])


def has_onnx() -> bool:
    """Whether the network can be exported and run by onnxruntime."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def in_torch(
    network: MoveNet, device: torch.device, dtype: str | None
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to joints that runs the network in PyTorch."""
    network.to(device)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), mixed_precision(device, dtype):
            return network(torch.from_numpy(images).to(device)).cpu().numpy()

    return run


def in_onnxruntime(network: MoveNet) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to joints that runs the network in onnxruntime on this CPU."""
    import onnxruntime

    file = io.BytesIO()
    images = torch.zeros(2, 3, network.size, network.size, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter and about traced Python numbers
        torch.onnx.export(
            network,
            (images,),
            file,  # type: ignore[arg-type] # with dynamo=False a file object is accepted
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["joints"],
            dynamic_axes={"images": {0: "batch"}, "joints": {0: "batch"}},
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})[0]
