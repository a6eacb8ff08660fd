"""Converted checkpoints give the features of the programs they come from."""

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import load_trained
from fastreid_star.errors import UserError
from fastreid_star.methods.convert import convert, convert_weights, read_published

from ..tiny import REPOSITORY
from .programs import CLASSES, LENGTH, SIZE, Saadg, Sdtg, as_saved, clips, features_of_theirs, make

CONFIGS = {
    "saadg": str(REPOSITORY / "configs" / "HITSZ-VCM" / "SAADG_R50.yml"),
    "sdtg": str(REPOSITORY / "configs" / "HITSZ-VCM" / "STAR_R50_release.yml"),
}
SMALL = [
    "MODEL.BACKBONE.PRETRAIN", "False", "MODEL.DEVICE", "cpu", "INPUT.SIZE_TRAIN", str(list(SIZE)),
]  # fmt: skip


@pytest.fixture(scope="module")
def saadg():
    return make(Saadg)


@pytest.fixture(scope="module")
def sdtg():
    return make(Sdtg)


def config(kind, *options):
    return load_config(CONFIGS[kind], [*SMALL, "MODEL.HEADS.NUM_CLASSES", str(CLASSES), *options])


def ours(kind, weights, *options):
    cfg = config(kind, *options)
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


@pytest.mark.parametrize("kind", ["saadg", "sdtg"])
def test_features_agree(kind, request):
    theirs, batch = request.getfixturevalue(kind), clips()
    conversion = convert(as_saved(theirs))
    assert conversion.source == kind.upper()
    model = ours(kind, conversion.weights)
    expected = features_of_theirs(theirs, batch)
    with torch.no_grad():
        found = model(batch)
    assert (expected - expected[0])[1:].norm(dim=1).min() > 0.5, (
        "different clips have different features"
    )
    assert (found - expected).abs().max() < 1e-5
    torch.testing.assert_close((found * expected).sum(1), torch.ones(4), atol=1e-4, rtol=0)

    with torch.no_grad():
        moved = (model({**batch, "skeletons": batch["skeletons"].roll(1, 0)}) - found).norm(dim=1)
        for stem in (model.backbone.visible_stem, model.backbone.infrared_stem):
            stem[3] = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        assert (model(batch) - expected).norm(dim=1).min() > 0.05, (
            "fast-reid's own pool gives other features"
        )
    assert moved.min() > 0.05 if kind == "sdtg" else moved.max() == 0


@pytest.mark.parametrize("size", [(256, 128), (128, 64), (192, 80), (288, 144)])
def test_sdtg_reads_joints_in_pixels_of_the_crop(size, sdtg):
    batch = clips()
    scale = torch.tensor([size[1] / SIZE[1], size[0] / SIZE[0]])
    raw = batch["skeletons"].clone()  # as a pose network found them in crops of this size
    raw[..., :2] = (raw[..., :2] + 0.5) * scale - 0.5
    raw[1, 0] = 0
    expected = features_of_theirs(sdtg, {**batch, "skeletons": raw})
    model = ours("sdtg", convert(as_saved(sdtg)).weights)
    sizes = torch.tensor(size).expand(4, LENGTH, 2)
    with torch.no_grad():
        found = model({**batch, "crop_sizes": sizes})
    assert (found - expected).abs().max() < 1e-5


# --- the names ---


@pytest.mark.parametrize("kind", ["saadg", "sdtg"])
def test_every_name_is_used_dropped_or_not_recognized(kind, request):
    state = as_saved(request.getfixturevalue(kind))
    extra = {"visible_module.gate.weight": torch.zeros(1), "attention.bias": torch.zeros(1)}
    conversion = convert({f"module.{name}": value for name, value in {**state, **extra}.items()})
    assert conversion.unknown == list(extra)
    assert sorted([*conversion.used, *conversion.dropped, *extra]) == sorted([*state, *extra])
    for ours, theirs in (("heads", "global"), ("frame_heads", "local")):
        weights = conversion.weights
        assert torch.equal(weights[f"{ours}.weight"], state[f"{theirs}_classifier.weight"])
        norm = weights[f"{ours}.bottleneck.0.weight"]
        assert torch.equal(norm, state[f"{theirs}_bottleneck.weight"])
    report = conversion.report()
    assert all(f"not recognized: {name}" in report for name in extra)
    assert "dropped: visible_module.visible.layer4.* (60 weights): only the stem" in report
    if kind == "saadg":
        kept = conversion.weights["losses.GraphInteractionLoss.inter.conv.lin.weight"]
        assert torch.equal(kept, state["inter_gcn_conv.lin.weight"])
        assert not [name for name in conversion.dropped if "gcn" in name]
    else:
        assert {"bn.weight", "time_guide.bn_enhanced_origin.bias"} <= set(conversion.dropped)


def test_a_missing_or_misshapen_weight_is_refused_by_name(sdtg):
    state = as_saved(sdtg)
    del state["time_guide.ffn.2.bias"]
    state["fc1.bias"] = torch.zeros(63)
    state["lstm_edge.weight_ih_l1"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        convert(state).require_fit(config("sdtg"))
    message = str(caught.value)
    assert "corrector.ffn.2.bias is missing" in message
    assert "corrector.encoder.fc.bias has shape (63,), the model needs (64,)" in message
    assert "corrector.encoder.lstm.weight_ih_l1 does not exist" in message
    assert message.count(";") == 2
    assert "\n" not in message


def test_an_older_torch_geometric_is_read(sdtg):
    state = sdtg.state_dict()
    older = {
        re.sub(r"(gat.conv\d\.)lin\.", r"\1lin_src.", name): value for name, value in state.items()
    }
    older |= {
        name.replace("lin_src", "lin_dst"): value
        for name, value in older.items()
        if "lin_src" in name
    }
    conversion = convert(older)
    assert torch.equal(
        conversion.weights["heads.gat.conv2.lin.weight"], sdtg.gat["conv2"].lin.weight
    )
    assert set(conversion.dropped) >= {"gat.conv1.lin_dst.weight", "gat.conv2.lin_dst.weight"}
    assert not conversion.unknown
    older["gat.conv1.lin_dst.weight"] = torch.zeros(32, 3)
    with pytest.raises(UserError, match=r"gat\.conv1\.lin_dst\.weight differs"):
        convert(older)


def test_settings_that_no_shape_reveals_are_checked(sdtg):
    conversion = convert(as_saved(sdtg))
    changed = ("MODEL.STAR.GRAPH", "normalized", "MODEL.STAR.EXPONENTS", "[1.0,0.7,3.0,5.0,7.0]")
    with pytest.raises(
        UserError, match=r"GEM_P is 2.0.*GRAPH is normalized.*EXPONENTS is \[1.0, 0.7"
    ):
        conversion.require_fit(config("sdtg", *changed, "MODEL.HEADS.GEM_P", "2.0"))


def test_what_is_not_converted(sdtg):
    for foreign in ({}, {"conv1.weight": torch.zeros(1)}, {"heads.weight": torch.zeros(1)}):
        with pytest.raises(UserError, match="no converter"):
            convert(foreign)
    state = dict(sdtg.state_dict())
    del state["GuidedAggModule.fc_layers.2.bias"]
    with pytest.raises(UserError, match=r"layers \[0, 1, 3, 4\]"):
        convert(state)


# --- the files ---


@pytest.mark.parametrize("numpy_1", [False, True])
def test_a_number_of_numpy_is_no_obstacle(tmp_path, numpy_1):
    path = tmp_path / "best.t"
    torch.save(
        {"net": {"a.b": torch.ones(2)}, "mAP": np.float64(0.5), "top": np.float32(0.1), "epoch": 3},
        path,
    )
    if numpy_1:
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(
                    name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                )
    assert torch.equal(read_published(str(path))["a.b"], torch.ones(2))


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize(
    "extra", [Payload(), np.str_("text"), np.zeros(3)], ids=["code", "text", "array"]
)
def test_a_file_that_holds_more_than_numbers_is_refused(tmp_path, monkeypatch, extra):
    monkeypatch.chdir(tmp_path)
    torch.save({"net": {"a": torch.ones(1)}, "mAP": extra}, "evil.t", pickle_module=pickle)
    with pytest.raises(UserError, match=r"evil\.t cannot be read") as caught:
        read_published("evil.t")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["evil.t"]


@pytest.mark.parametrize("content", [[1], {"net": {}}, {"net": {"a": 1}}, {"mAP": 0.5}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.t")
    with pytest.raises(UserError, match=r"no state dict|no weights"):
        read_published(str(tmp_path / "x.t"))


def test_a_converted_file_is_loaded_as_a_checkpoint(tmp_path, saadg):
    theirs, ours = str(tmp_path / "best.t"), str(tmp_path / "ours.pth")
    torch.save({"net": as_saved(saadg), "mAP": np.float64(0.5), "epoch": 7}, theirs)
    conversion = convert_weights(theirs, ours, load_config(CONFIGS["saadg"], SMALL))
    loaded = load_trained(load_config(CONFIGS["saadg"], SMALL), ours).state_dict()
    assert loaded.keys() == conversion.weights.keys()
    evaluated = {n: v for n, v in conversion.weights.items() if not n.startswith("losses.")}
    assert all(torch.equal(loaded[name], value) for name, value in evaluated.items())
    assert len(conversion.weights) == len(evaluated) + 16
    for source, target, reason in (
        (theirs, theirs, "published checkpoint itself"),
        (theirs, str(tmp_path / "none" / "x.pth"), "folder .* does not exist"),
        (str(tmp_path / "none.t"), ours, "does not exist"),
    ):
        with pytest.raises(UserError, match=reason):
            convert_weights(source, target, config("saadg"))
