"""Detection networks: small ONNX graphs in place of YOLO, and a module in place of torchvision's."""

import types

import numpy as np
import pytest
import torch

from fastreid_star.cli.main import run
from fastreid_star.errors import UserError
from fastreid_star.tracking import networks
from fastreid_star.tracking.detectors import MotionDetector
from fastreid_star.tracking.follow import intersection_over_union as matrix_of_overlaps
from fastreid_star.tracking.networks import (
    TorchvisionDetector,
    YoloDetector,
    detector_builder,
    intersection_over_union,
    without_duplicates,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write_graph(path, boxes, *, classic=True, half=False):
    """A YOLO with an input of 64 x 64 that finds fixed boxes.

    Args:
        boxes: of the classic output: center x, center y, width, height, score of class 1; the score of class 0, people,
            is the red value of the input at its middle. Else: left, top, right, bottom, score, class.
        half: in half precision.
    """
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    image = helper.make_tensor_value_info("images", kind, [1, 3, 64, 64])
    values = np.array(boxes, np.float16 if half else np.float32)
    if classic:
        count = len(values)
        constants = {
            "boxes": values[:, :4].T[None],
            "others": values[:, 4:].T[None],
            "ones": np.ones((1, 1, count), values.dtype),
            "start": np.array([0, 0, 32, 32]),
            "end": np.array([1, 1, 33, 33]),
            "shape": np.array([1, 1, 1]),
        }
        nodes = [
            helper.make_node("Slice", ["images", "start", "end"], ["pixel"]),
            helper.make_node("Reshape", ["pixel", "shape"], ["one"]),
            helper.make_node("Mul", ["one", "ones"], ["people"]),
            helper.make_node("Concat", ["boxes", "people", "others"], ["out"], axis=1),
        ]
        shape = [1, 4 + 1 + values.shape[1] - 4, count]
    else:
        constants = {"boxes": values[None]}
        nodes = [helper.make_node("Identity", ["boxes"], ["out"])]
        shape = [1, *values.shape]
    out = helper.make_tensor_value_info("out", kind, shape)
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "yolo", [image], [out], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("half", [False, True])
def test_yolo_by_hand(tmp_path, half):
    """A frame of 200 x 100 is 64 x 32 in the input, below 16 gray rows; its middle is red."""
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[:, :, 2] = 204  # BGR: red 0.8
    boxes = [[32, 32, 10, 16, 0.1], [32, 33, 10, 16, 0.1], [10, 32, 4, 8, 0.9]]
    detect = YoloDetector(write_graph(tmp_path / "a.onnx", boxes, half=half))
    (person,) = detect(frame)  # the second is a duplicate, the third of class 1
    wanted = [27 / 0.32, 8 / 0.32, 37 / 0.32, 24 / 0.32, 0.8]
    np.testing.assert_allclose(person, wanted, atol=1e-3 if half else 1e-5)
    assert detect(np.zeros_like(frame)).shape == (0, 5), "the score is below the threshold"
    assert len(YoloDetector(detect._path, min_score=0.81)(frame)) == 0
    assert detect.describe()["detector"] == "a.onnx"


def test_yolo_without_duplicates_of_its_own(tmp_path):
    boxes = [[27, 24, 37, 40, 0.9, 0], [0, 20, 5, 30, 0.4, 0], [0, 20, 9, 30, 0.9, 2]]
    detect = YoloDetector(write_graph(tmp_path / "a.onnx", boxes, classic=False))
    (person,) = detect(np.zeros((100, 200, 3), np.uint8))
    np.testing.assert_allclose(person, [27 / 0.32, 8 / 0.32, 37 / 0.32, 24 / 0.32, 0.9], rtol=1e-6)


def test_other_onnx_files_are_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(UserError, match=r"text\.onnx cannot be read"):
        YoloDetector(str(tmp_path / "text.onnx"))
    with pytest.raises(UserError, match="does not exist"):
        detector_builder(str(tmp_path / "none.onnx"))
    of_doubles = write_graph(tmp_path / "d.onnx", [[1, 2, 3, 4]], classic=False)
    model = onnx.load(of_doubles)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, of_doubles)
    with pytest.raises(UserError, match=r"no YOLO: its input .*double"):
        YoloDetector(of_doubles)
    path = write_graph(tmp_path / "b.onnx", [[1, 2, 3, 4]], classic=False)
    with pytest.raises(UserError, match=r"no YOLO: its output is \[1, 4\]"):
        YoloDetector(path)(np.zeros((64, 64, 3), np.uint8))


def test_overlaps_by_hand():
    one, other = np.array([0.0, 0, 10, 10, 0.5]), np.array([5.0, 0, 15, 10, 0.9])
    assert intersection_over_union(one, other) == pytest.approx(50 / 150)
    assert intersection_over_union(one, other + 20) == 0
    boxes = np.stack([one, other])
    assert without_duplicates(boxes, 0.34).tolist() == [other.tolist(), one.tolist()]
    assert without_duplicates(boxes, 0.33).tolist() == [other.tolist()]
    assert without_duplicates(boxes[:0]).shape == (0, 5)


class Finder(torch.nn.Module):
    """Finds a person, a person with a low score, and a car, where the image is red."""

    def forward(self, images):
        (image,) = images
        assert image.shape == (3, 40, 60)
        assert image[:, 0, 0].tolist() == [1, 0, 0]
        boxes = torch.tensor([[1.0, 2, 11, 32], [0, 0, 9, 30], [5, 5, 50, 30]])
        scores, labels = torch.tensor([0.9, 0.3, 0.8]), torch.tensor([1, 1, 3])
        return [{"boxes": boxes, "scores": scores, "labels": labels}]


@pytest.fixture
def operators(monkeypatch):
    """A CUDA build of torchvision has no operators beside a CPU build of torch: here is the one that SSD needs."""
    import torchvision

    def nms(boxes, scores, overlap):
        overlaps = matrix_of_overlaps(boxes.double().numpy(), boxes.double().numpy())
        kept = []
        for row in scores.argsort(descending=True).tolist():
            if (overlaps[row, kept] <= overlap).all():
                kept.append(row)
        return torch.tensor(kept, dtype=torch.long)

    try:
        torchvision.ops.boxes.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    except RuntimeError:
        monkeypatch.setattr(torchvision.ops.boxes, "nms", nms)


def test_torchvision_without_operators(tmp_path, monkeypatch):
    import torchvision

    def nms(*_):
        raise RuntimeError("Couldn't load custom C++ ops")

    monkeypatch.setattr(torchvision.ops.boxes, "nms", nms)
    (tmp_path / "own.pth").touch()
    with pytest.raises(UserError, match="no compiled operators"):
        TorchvisionDetector("ssd300_vgg16", torch.device("cpu"), file=str(tmp_path / "own.pth"))


@pytest.mark.usefixtures("operators")
def test_torchvision(tmp_path, monkeypatch):
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cpu, name = torch.device("cpu"), "fasterrcnn_resnet50_fpn_v2"
    with pytest.raises(
        UserError, match=r"use motion, an \.onnx file, .*fasterrcnn_resnet50_fpn_v2"
    ):
        detector_builder("resnet50", device="cpu")
    with pytest.raises(UserError, match=r"fasterrcnn_resnet50_fpn_v2_coco-\w+\.pth does not exist"):
        TorchvisionDetector(name, cpu)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.touch()
    asked = []
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda *a, **k: asked.append((a, k)) or Finder()
    )
    detect = TorchvisionDetector(name, cpu)
    assert asked == [((name,), {"weights": weights})]
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[..., 2] = 255
    np.testing.assert_allclose(detect(frame), [[1, 2, 11, 32, 0.9]], rtol=1e-6)
    assert len(TorchvisionDetector(name, cpu, min_score=0.2)(frame)) == 2
    assert detect.describe()["weights"] == file.name


@pytest.mark.usefixtures("operators")
def test_torchvision_with_weights_in_a_file(tmp_path):
    """A network with random weights gives what it gives without this project."""
    import torchvision

    name, file = "ssdlite320_mobilenet_v3_large", tmp_path / "own.pth"
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    with torch.no_grad():
        for level in model.head.classification_head.module_list:
            level[1].weight *= 10
            level[1].bias.view(-1, 91)[:, [0, 1, 3]] += torch.tensor([12.0, 9, 9])  # people, cars
    torch.save(model.state_dict(), file)
    frame = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    with torch.no_grad():
        images = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1) / 255
        (wanted,) = model([images])
    assert set(wanted["labels"].tolist()) >= {1, 3}
    least = float(wanted["scores"].median())
    people = (wanted["labels"] == 1) & (wanted["scores"] >= least)
    assert people.any()
    detect = detector_builder(name, weights=str(file), device="cpu", min_score=least)(iter([]))
    found = detect(frame)
    np.testing.assert_allclose(found[:, :4], wanted["boxes"][people], atol=1e-3)
    np.testing.assert_allclose(found[:, 4], wanted["scores"][people], atol=1e-5)
    assert detect.describe()["weights"] == "own.pth"
    torch.save({"conv.weight": torch.zeros(3)}, file)
    with pytest.raises(UserError, match=f"does not fit {name} with COCO's 91 classes"):
        detector_builder(name, weights=str(file), device="cpu")
    with pytest.raises(UserError, match="--weights belongs to a model of torchvision"):
        detector_builder("motion", weights=str(file))


def test_the_command_passes_the_detector_on(tmp_path, monkeypatch):
    seen = {}
    people = types.SimpleNamespace(extract_tracklets=lambda *a, **k: seen.update(k) or [])
    monkeypatch.setitem(__import__("sys").modules, "fastreid_star.tracking.people", people)
    options = ["--modality", "visible", "-o", tmp_path / "o"]
    run("tracklets", "a.mp4", *options)
    assert seen["build_detector"] is MotionDetector
    path = write_graph(tmp_path / "a.onnx", [[1, 2, 3, 4, 5, 6]], classic=False)
    run("tracklets", "a.mp4", *options, "--detector", path, "--min-score", "0.7")
    detector = seen["build_detector"](iter([]))
    assert isinstance(detector, networks.YoloDetector)
    assert detector.describe()["min_score"] == 0.7
