"""An exported graph gives the model's own features; a graph that does not is not kept."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.backbones.vision_transformer import VisionTransformer
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.inference import export, onnx_graph
from fastreid_star.inference.fingerprint import fingerprint
from fastreid_star.structures import Modality

from ..tiny import REPOSITORY
from .exported import CLOSE, LENGTH, SAD, STAR, TINY, build, clips, config

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
ort = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]"
)
RESNET = ("INPUT.SIZE_TRAIN", "[64,32]", "INPUT.SIZE_TEST", "[64,32]")
INPUTS = ["images", "is_visible", "skeletons", "has_skeleton", "crop_sizes"]


def opened(path):
    """A function from a batch to the file's features, whose inputs are taken by the names in the file."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def features(batch):
        known = {**batch, "is_visible": batch["modality"] == 2}
        return session.run(
            ["features"], {i.name: known[i.name].float().numpy() for i in session.get_inputs()}
        )[0]

    return features


@torch.no_grad()
def difference(graph, model, batch):
    graph = graph if callable(graph) else opened(graph)
    return float(np.abs(graph(batch) - model(batch).numpy()).max())


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    """A small STAR, its config and its export."""
    cfg = config(STAR, *TINY)
    model, path = build(cfg), tmp_path_factory.mktemp("star") / "star.onnx"
    return model, cfg, path, export.export_onnx(model, cfg, path)


# --- the features ---------------------------------------------------------------------------------


def test_the_features_are_the_models(tmp_path):
    cfg = config("HITSZ-VCM/STAR_R50", "MODEL.BACKBONE.DEPTH", "18x", *RESNET)
    model = build(cfg)
    done = export.export_onnx(model, cfg, tmp_path / "model.onnx")
    assert done.difference < CLOSE
    assert list(done.inputs) == INPUTS
    graph, batch = opened(tmp_path / "model.onnx"), clips(5, cfg.INPUT.SIZE_TEST)
    assert difference(graph, model, batch) < CLOSE
    features = graph(batch)

    def moved(**changes):
        return np.linalg.norm(graph({**batch, **changes}) - features, axis=1)

    distances = F.pdist(torch.from_numpy(features))
    assert distances.min() > 0.05, "different clips have different features"
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert moved(modality=3 - batch["modality"]).min() > 0, "each modality has a stem of its own"
    by_skeletons = moved(skeletons=batch["skeletons"].flip(2))
    assert by_skeletons[0] > 0.005
    assert by_skeletons[1] == 0, "the second clip has no skeleton"


OPTIONS = {
    "sequence level": (f"{STAR}_sequence",),
    "neither": (
        f"{STAR}_frame",
        *("MODEL.FRAME_CORRECTOR.NAME", "", "MODEL.LOSSES.NAME", "CrossEntropyLoss"),
    ),
    "sigmoid": (STAR, "MODEL.STAR.GUIDE", "sigmoid", "MODEL.STAR.GRAPH", "normalized"),
    "release": (
        STAR,
        *(
            "MODEL.STAR.BONES",
            "release",
            "MODEL.STAR.CORRECTOR",
            "release",
            "MODEL.STAR.GUIDE",
            "release",
        ),
        *("MODEL.STAR.GRAPH", "release"),
    ),
    "joints in the resized images": (STAR, "MODEL.STAR.GEOMETRY", "image"),
    "embedding": (SAD, "MODEL.HEADS.EMBEDDING_DIM", "64"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_reading_of_star_is_exported(tmp_path, options):
    cfg = config(*options, *TINY)
    model = build(cfg)
    done = export.export_onnx(model, cfg, tmp_path / "model.onnx")
    assert difference(tmp_path / "model.onnx", model, clips(3, cfg.INPUT.SIZE_TEST)) < CLOSE
    reads_skeletons = options[0] != SAD and "MODEL.FRAME_CORRECTOR.NAME" not in options
    assert ("skeletons" in done.inputs) == reads_skeletons
    in_crops = reads_skeletons and "MODEL.STAR.GEOMETRY" not in options
    assert ("crop_sizes" in done.inputs) == in_crops


def test_tokens_pass_as_maps_do(tmp_path, monkeypatch):
    monkeypatch.setitem(
        BACKBONE_REGISTRY._obj_map,
        "tiny_vit",
        lambda cfg: VisionTransformer(
            img_size=(64, 32), stride_size=16, embed_dim=33, depth=4, num_heads=3
        ),
    )
    cfg = config(SAD, *RESNET, "MODEL.BACKBONE.NAME", "tiny_vit")
    model = build(cfg)
    export.export_onnx(model, cfg, tmp_path / "vit.onnx")
    assert difference(tmp_path / "vit.onnx", model, clips(3, cfg.INPUT.SIZE_TEST)) < CLOSE


def test_a_graph_of_one_modality_has_one_stem(star, tmp_path):
    model, cfg, both, _ = star
    modality = Modality.INFRARED
    done = export.export_onnx(model, cfg, tmp_path / "one.onnx", modality=modality)
    assert list(done.inputs) == ["images", "skeletons", "has_skeleton", "crop_sizes"]
    assert done.metadata["modality"] == modality.name.lower()
    batch = clips(4, cfg.INPUT.SIZE_TEST)
    batch["modality"][:] = modality
    assert difference(tmp_path / "one.onnx", model, batch) < CLOSE
    convolutions = [
        sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)
        for path in (both, tmp_path / "one.onnx")
    ]
    assert convolutions[0] - convolutions[1] == 1, "the stem of the small ResNet is one convolution"


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("without", [False, True])
def test_any_number_of_clips(star, number, without):
    model, cfg, path, _ = star
    batch = clips(number, cfg.INPUT.SIZE_TEST)
    batch["has_skeleton"][:] &= not without
    assert difference(path, model, batch) < CLOSE


def test_other_numbers_of_frames_and_opsets(star, tmp_path):
    model, cfg, _, _ = star
    done = export.export_onnx(model, cfg, tmp_path / "model.onnx", length=2, opset=17)
    assert done.inputs["images"] == (2, 3, 32, 16)
    assert done.metadata["frames"] == "2"
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 17
    batch = {
        key: value if key == "modality" else value[:, :2]
        for key, value in clips(3, cfg.INPUT.SIZE_TEST).items()
    }
    assert difference(tmp_path / "model.onnx", model, batch) < CLOSE


# --- the file ---


def test_the_file_describes_itself(star):
    model, cfg, path, done = star
    proto = onnx.load(path)
    values = [*proto.graph.input, *proto.graph.output]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }
    assert shapes == {
        "images": ["batch", LENGTH, 3, 32, 16],
        "is_visible": ["batch"],
        "skeletons": ["batch", LENGTH, 17, 3],
        "has_skeleton": ["batch", LENGTH],
        "crop_sizes": ["batch", LENGTH, 2],
        "features": ["batch", 128],
    }
    assert {value.type.tensor_type.elem_type for value in values} == {onnx.TensorProto.FLOAT}
    assert all(value.doc_string for value in values)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 13)]

    about = {prop.key: prop.value for prop in proto.metadata_props}
    assert about == done.metadata
    assert (about["model"], about["modality"], about["frames"]) == ("STAR", "both", str(LENGTH))
    assert (about["image_size"], about["feature_width"]) == ("32x16", "128")
    identity = fingerprint(model, cfg)
    assert about["weights_sha256"] == identity["weights_sha256"]
    assert json.loads(about["config"]) == identity["config"]
    for part in (str(path), "opset 13", "skeletons [batch, 3, 17, 3]", "features [batch, 128]"):
        assert part in str(done)


def test_no_operator_that_ascends_compiler_lacks(star):
    operators = {node.op_type for node in onnx.load(star[2]).graph.node}
    assert not operators & {
        "Einsum",
        "LayerNormalization",
        "Loop",
        "If",
        "Scan",
        "NonZero",
        "SequenceAt",
    }
    assert {"LSTM", "Softmax", "Where"} <= operators


# --- refusals -------------------------------------------------------------------------------------


def refused(model, cfg, folder, **arguments):
    """The one line that the refusal says; what was in the folder is still there, as it was."""
    (folder / "model.onnx").write_text("earlier")
    with pytest.raises(UserError) as caught:
        export.export_onnx(model, cfg, folder / "model.onnx", **arguments)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [
        ("model.onnx", "earlier")
    ]
    return str(caught.value)


def test_a_model_that_cannot_be_exported_is_named(star, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: {}["Reshape"])
    assert re.search("Reshape.*build_small_resnet", refused(*star[:2], tmp_path))


def test_a_graph_that_computes_something_else_is_not_kept(star, tmp_path, monkeypatch):
    model, cfg, _, _ = star
    original = type(model.heads).pool

    def pool(self, frames):
        return original(self, frames) + (torch.nan if torch.jit.is_tracing() else 0)

    monkeypatch.setattr(type(model.heads), "pool", pool)
    assert "differ from the model's by inf" in refused(model, cfg, tmp_path)


@pytest.mark.parametrize(
    ("options", "function"),
    [
        ((f"{STAR}_frame",), torch.atan2),
        (OPTIONS["release"], torch.adaptive_avg_pool1d),
    ],
)
def test_the_comparison_finds_what_the_exporter_gets_wrong(
    tmp_path, monkeypatch, options, function
):
    cfg = config(*options, *TINY)
    monkeypatch.delitem(onnx_graph._REPLACEMENTS, function)
    refused(build(cfg), cfg, tmp_path)


def test_arguments_that_are_not_valid(star, tmp_path):
    model, cfg, _, _ = star
    assert "opset 12" in refused(model, cfg, tmp_path, opset=12)
    assert "0 frames" in refused(model, cfg, tmp_path, length=0)
    (tmp_path / "folder.onnx").mkdir()
    for path in ("model_best.pth", "folder.onnx"):
        with pytest.raises(UserError):
            export.export_onnx(model, cfg, tmp_path / path)
    with pytest.raises(UserError, match="Linear"):
        export.export_onnx(nn.Linear(1, 1), cfg, tmp_path / "model.onnx")


def test_the_example_on_the_page_runs(star, tmp_path, monkeypatch, capsys):
    page = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    (tmp_path / "model.onnx").write_bytes(star[2].read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/export.md", "exec"), {})
    assert "(2, 128)" in capsys.readouterr().out
