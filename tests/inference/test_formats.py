"""ONNX in float16 and programs of torch.export give the model's features, or no file is written."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_star.cli import main as cli
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.inference import export, parity, program
from fastreid_star.inference.float16 import to_float16

from ..tiny import REPOSITORY
from .exported import SAD, TINY, build, config
from .test_export import opened
from .test_half_precision import are_close, first_hits

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def batches(star):
    """The test clips of SyntheticVCM, as the evaluation reads them."""
    loader, _ = Trainer.build_evaluator(star.cfg, "SyntheticVCM")
    return list(loader)


@torch.no_grad()
def features(model, batches):
    return torch.cat([torch.as_tensor(model(batch)) for batch in batches])


def test_onnx_in_float16_ranks_as_the_trained_network(runs, star, data, batches, tmp_path, capsys):
    path = tmp_path / "half.onnx"
    cli.run("export", "--run", runs / "STAR", path, "--dtype", "float16")
    text = capsys.readouterr().out
    assert "float16, opset 13" in text
    assert "cosine distance of" in text
    expected, found = features(star.model, batches), features(opened(path), batches)
    assert are_close(found, expected)
    assert (first_hits(found, data[0]) == first_hits(expected, data[0])).all()
    graph = onnx.load(path).graph
    values = [*graph.input, *graph.output]
    assert {value.type.tensor_type.elem_type for value in values} == {FLOAT}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    half = {weight.name for weight in graph.initializer if weight.data_type == HALF}
    assert all(node.input[1] in half for node in convolutions)


def test_a_file_of_another_kind_is_one_line():
    with pytest.raises(UserError, match=r"model\.bin ends neither in \.onnx nor in \.pt2"):
        cli.run("export", "model.bin", "--run", "nowhere")


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_the_average_with_mirror_images_is_not_exported(runs, tmp_path, name):
    flip = ("--set", "TEST.FLIP.ENABLED", "True")
    with pytest.raises(UserError, match=r"TEST\.FLIP\.ENABLED averages"):
        cli.run("export", str(tmp_path / name), "--run", str(runs / "SAD"), *flip)


def small_graph():
    """images @ W -> Relu -> its cube, beside skeletons @ W, which is no product of the images."""
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("MatMul", ["images", "W"], ["a"]),
        make("Relu", ["a"], ["b"]),
        make("Pow", ["b", "three"], ["cube"]),
        make("MatMul", ["skeletons", "W"], ["joints"]),
        make("Concat", ["cube", "joints"], ["features"], axis=1),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.array([[1.0, 3.0001]], np.float32), "W"),
        onnx.numpy_helper.from_array(np.array(3.0, np.float32), "three"),
    ]
    inputs = [info(name, FLOAT, ["batch", 1]) for name in ("images", "skeletons")]
    graph = onnx.helper.make_graph(
        nodes, "g", inputs, [info("features", FLOAT, ["batch", 4])], weights
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])


def test_only_products_of_the_images_are_in_float16():
    ort = pytest.importorskip("onnxruntime")
    half = onnx.load_from_string(to_float16(small_graph().SerializeToString()))
    onnx.checker.check_model(half, full_check=True)
    assert [node.op_type for node in half.graph.node] == [
        "Cast", "MatMul", "Relu", "Cast", "Pow", "MatMul", "Concat",
    ]  # fmt: skip
    model = half.SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = {name: np.array([[50.0]], np.float32) for name in ("images", "skeletons")}
    # 3.0001 is 3 in float16; the cube of 150 is beyond float16
    np.testing.assert_allclose(
        session.run(None, inputs)[0], [[50**3, 150**3, 50, 150.005]], rtol=1e-6
    )


def test_a_graph_that_float16_breaks_is_not_kept(tmp_path, monkeypatch):
    cfg = config(SAD, *TINY)
    model = build(cfg)

    def broken(graph):
        proto = onnx.load_from_string(to_float16(graph))
        weight = next(
            w for w in proto.graph.initializer if w.data_type == HALF and len(w.dims) == 4
        )
        weight.CopyFrom(
            onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name)
        )
        return proto.SerializeToString()

    monkeypatch.setattr(export, "to_float16", broken)
    with pytest.raises(UserError, match="by a cosine distance of"):
        export.export_onnx(model, cfg, tmp_path / "half.onnx", precision="float16")
    assert not list(tmp_path.iterdir())


def test_float16_is_small_rounding_where_it_is_computed(tmp_path):
    """onnxruntime computes in float32 on CPUs; onnx's own evaluator rounds every result."""
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator
    cfg = config(SAD, *TINY)
    model = build(cfg)
    names, batch = ("images", "is_visible"), parity.prepare(model, cfg, None, None).inputs[1]

    def computed(precision):
        path = tmp_path / f"{precision}.onnx"
        export.export_onnx(model, cfg, path, precision=precision)
        inputs = {name: value.numpy() for name, value in zip(names, batch, strict=True)}
        return torch.from_numpy(reference(onnx.load(path)).run(None, inputs)[0])

    assert are_close(computed("float16"), computed("float32"))


def test_a_network_that_overflows_in_float16_is_not_exported(tmp_path):
    cfg = config(SAD, *TINY)
    model = build(cfg)
    convolution, norm, _ = model.backbone.visible_stem
    with torch.no_grad():  # the same features in float32: the norm divides by what it has seen
        convolution.weight *= 1e7
        norm.running_mean *= 1e7
        norm.running_var *= 1e14
    export.export_onnx(model, cfg, tmp_path / "single.onnx")
    with pytest.raises(UserError, match="cosine distance of inf"):
        export.export_onnx(model, cfg, tmp_path / "half.onnx", precision="float16")
    assert not (tmp_path / "half.onnx").exists()


def test_a_program_of_torch_export(runs, sad, data, batches, tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.pt2"
    cli.run("export", "--run", runs / "SAD", path)
    assert "torch.export, SAD, modality: both" in capsys.readouterr().out
    run = torch.export.load(path).module()

    def computed(batch):
        return run(batch["images"].float(), (batch["modality"] == 2).float())

    expected, found = features(sad.model, batches), features(computed, batches)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    page = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", page, re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/export.md", "exec"), {})
    assert "(2, 128)" in capsys.readouterr().out


def test_a_model_that_torch_export_cannot_read_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(torch.export, "export", refuse)
    cfg = config(SAD, *TINY)
    (tmp_path / "model.pt2").write_text("earlier")
    with pytest.raises(UserError, match=r"data-dependent.*build_small_resnet_backbone"):
        program.export_program(build(cfg), cfg, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "earlier"


def test_options_of_onnx_are_refused_for_a_program(runs, tmp_path):
    for option in (("--dtype", "float16"), ("--opset", "13")):
        with pytest.raises(UserError, match=r"\.onnx files"):
            cli.run("export", "--run", runs / "SAD", tmp_path / "model.pt2", *option)


def test_the_distance_of_parts():
    parts = F.normalize(torch.randn(2, 3, 8), dim=-1)
    assert parity.difference_of(parts, parts, "float16") < 1e-6
    turned = torch.stack([parts[0], -parts[1]])
    assert parity.difference_of(turned, parts, "float16") == pytest.approx(2)
    assert parity.difference_of(parts * torch.nan, parts, "float16") == torch.inf
