"""Detection networks: torchvision's with weights in a file, and YOLO as an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fastreid_star.engine.device import choose_device
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import sha256
from fastreid_star.tracking.detectors import Detector, MotionDetector
from fastreid_star.weights import misfits, read_weights

LEAST_SCORE = 0.5
OVERLAP = 0.5  # of two boxes of YOLO that show the same person, intersection over union
GRAY = 114  # YOLO's padding
INPUTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def detector_builder(
    name: str = "motion",
    *,
    weights: str = "",
    device: str = "auto",
    min_score: float = LEAST_SCORE,
) -> Callable[[Iterator[np.ndarray]], Detector]:
    """A function that builds the detector of a video from its frames.

    Args:
        name: ``motion``; or an ``.onnx`` file, see :class:`YoloDetector`; or a detection model of
            torchvision, see :class:`TorchvisionDetector`.
        weights: of a torchvision model.
        device: of a torchvision model, as ``MODEL.DEVICE``.
        min_score: of the people that a network finds.

    Raises:
        UserError: the detector is unknown, or its weights or packages are missing.
    """
    is_file = name.endswith(".onnx")
    if weights and (is_file or name == "motion"):
        raise UserError(f"--weights belongs to a model of torchvision, not to --detector {name}")
    if name == "motion":
        return MotionDetector
    network: Detector
    if is_file:
        network = YoloDetector(name, min_score)
    else:
        network = TorchvisionDetector(name, choose_device(device), min_score, weights)
    return lambda frames: network


class TorchvisionDetector:
    """A detection model of torchvision, such as fasterrcnn_resnet50_fpn_v2.

    Nothing is downloaded.

    Args:
        name: of the model.
        device: where it runs.
        min_score: of the people that are kept.
        file: the weights, for COCO's classes as torchvision numbers them; empty: torchvision's own,
            which must be in torch's folder of checkpoints. Batch norms of a file have torchvision's
            default epsilon, 1e-5. It is 0 for torchvision's own weights of some older models.

    Raises:
        UserError: there is no such model, or its weights are missing, damaged or of another model.
    """

    def __init__(
        self, name: str, device: torch.device, min_score: float = LEAST_SCORE, file: str = ""
    ):
        import torchvision

        models = torchvision.models
        names = models.list_models(module=models.detection)
        if name not in names:
            raise UserError(
                f"--detector {name}: use motion, an .onnx file, or a model of torchvision "
                f"({', '.join(names)})"
            )
        weights = models.get_model_weights(name).DEFAULT
        published = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
        self._file = Path(file) if file else published
        if not self._file.is_file():
            raise UserError(
                f"{self._file} does not exist: put torchvision's weights of {name} there, or give "
                "a file by --weights"
            )
        _require_operators(torchvision)
        if file:
            model = models.get_model(name, weights=None, weights_backbone=None)
            state = read_weights(file)
            if wrong := misfits(model, state):
                raise UserError(
                    f"{file} does not fit {name} with COCO's {len(weights.meta['categories'])} "
                    f"classes: {len(wrong)} weights differ, such as {wrong[0]}"
                )
            model.load_state_dict(state)
        else:
            model = models.get_model(name, weights=weights)
        self._model = model.to(device).eval()
        self._name, self._min_score, self._device = name, min_score, device
        self._person = weights.meta["categories"].index("person")

    def describe(self) -> dict[str, Any]:
        return {
            "detector": self._name,
            "weights": self._file.name,
            "sha256": sha256([self._file]),
            "min_score": self._min_score,
        }

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1)))
        with torch.inference_mode():
            (found,) = self._model([image.to(self._device).float() / 255])
        boxes, labels, scores = (found[key].cpu() for key in ("boxes", "labels", "scores"))
        people = (labels == self._person) & (scores >= self._min_score)
        return torch.cat([boxes, scores[:, None]], dim=1)[people].double().numpy()


def _require_operators(torchvision: Any) -> None:
    """Raise a :class:`UserError` if torchvision cannot run its detection models."""
    try:
        torchvision.ops.boxes.nms(torch.zeros(0, 4), torch.zeros(0), OVERLAP)
    except RuntimeError as error:
        raise UserError(
            f"torchvision {torchvision.__version__} has no compiled operators for torch "
            f"{torch.__version__}: install the build of torchvision that belongs to this torch, or "
            "give an .onnx file by --detector"
        ) from error


class YoloDetector:
    """A YOLO network that was exported to ONNX, for COCO's classes, of which 0 is a person.

    The input is ``[1, 3, H, W]``, RGB from 0 to 1, in single or half precision. The output is
    ``[1, 4 + C, M]`` with center, width, height and the scores of C classes (YOLOv8, 11 and
    others), or ``[1, M, 6]`` with left, top, right, bottom, score and class of boxes without
    duplicates (YOLOv10, 26 and others).

    Args:
        path: the file.
        min_score: of the people that are kept.

    Raises:
        UserError: onnxruntime is missing, or the file is no such network.
    """

    def __init__(self, path: str, min_score: float = LEAST_SCORE):
        if not os.path.isfile(path):
            raise UserError(f"--detector {path} does not exist")
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{path} needs onnxruntime: pip install onnxruntime") from error
        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library has many kinds of its own
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        (first, *_), outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = [side if isinstance(side, int) else 640 for side in first.shape]
        if len(outputs) != 1 or len(shape) != 4 or shape[1] != 3 or first.type not in INPUTS:
            raise UserError(
                f"{path} is no YOLO: its input is {first.shape}, {first.type}, and it has "
                f"{len(outputs)} outputs; expected images [1, 3, H, W], float or float16, and one "
                "output"
            )
        self._dtype = INPUTS[first.type]
        self._input, self._height, self._width = first.name, shape[2], shape[3]
        self._path, self._min_score = path, min_score

    def describe(self) -> dict[str, Any]:
        return {
            "detector": os.path.basename(self._path),
            "sha256": sha256([Path(self._path)]),
            "min_score": self._min_score,
        }

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        scale = min(self._height / height, self._width / width)
        size = (round(width * scale), round(height * scale))
        left, top = (self._width - size[0]) // 2, (self._height - size[1]) // 2
        canvas = np.full((self._height, self._width, 3), GRAY, np.uint8)
        canvas[top : top + size[1], left : left + size[0]] = cv2.resize(frame, size)
        images = canvas[..., ::-1].transpose(2, 0, 1)[None].astype(self._dtype) / self._dtype(255)
        (output,) = self._session.run(None, {self._input: images})
        boxes = self._people(output[0].astype(np.float64))
        scales = np.array([width / size[0], height / size[1]] * 2)
        boxes[:, :4] = (boxes[:, :4] - [left, top, left, top]) * scales
        return boxes

    def _people(self, output: np.ndarray) -> np.ndarray:
        """``[n, 5]``, in pixels of the input."""
        if output.ndim == 2 and output.shape[1] == 6:
            return output[(output[:, 5] == 0) & (output[:, 4] >= self._min_score), :5]
        if output.ndim != 2 or output.shape[0] < 5:
            raise UserError(f"{self._path} is no YOLO: its output is {list(output.shape)}")
        people = output[:, (output[4] >= self._min_score) & (output[4] == output[4:].max(0))].T
        half = people[:, 2:4] / 2
        boxes = np.column_stack([people[:, :2] - half, people[:, :2] + half, people[:, 4]])
        return without_duplicates(boxes)


def without_duplicates(boxes: np.ndarray, overlap: float = OVERLAP) -> np.ndarray:
    """Boxes in the order of their scores, without those that overlap a better one.

    Args:
        boxes: ``[n, 5]``: left, top, right, bottom, score.
        overlap: the largest intersection over union that is kept.
    """
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    kept: list[np.ndarray] = []
    for box in boxes:
        if all(intersection_over_union(box, other) <= overlap for other in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 5)


def intersection_over_union(one: np.ndarray, other: np.ndarray) -> float:
    """Of two boxes left, top, right, bottom, ..."""
    sides = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    areas = sum(float(np.prod(box[2:4] - box[:2])) for box in (one, other))
    return both / (areas - both) if both else 0.0
