"""Weights of other programs become a backbone's own, and nothing is left out without a word."""

import numpy as np
import pytest
import torch
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.backbones import resnet as fast_reid_resnet
from torch import nn
from torchvision import models

from fastreid_star.engine.builders import _plain_pretrained
from fastreid_star.engine.checks import machine
from fastreid_star.engine.checks.run import Run
from fastreid_star.engine.defaults import load_config
from fastreid_star.modeling.backbones.pretrained import download, fit, pretrained_file
from fastreid_star.weights import read_weights

SIZE = (64, 32)


def config(name="build_resnet_backbone", depth="18x", path="", *options):
    node = {"NAME": name, "DEPTH": depth, "PRETRAIN": bool(path), "PRETRAIN_PATH": path}
    pairs = [str(part) for key, v in node.items() for part in (f"MODEL.BACKBONE.{key}", v)]
    return load_config(opts=["INPUT.SIZE_TRAIN", str(list(SIZE)), *pairs, *options])


def scrambled(network):
    """The network with statistics that no other has."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def loaded(cfg, path):
    """The backbone that a file gives."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, str(path)
    with _plain_pretrained(cfg) as cfg:
        return build_backbone(cfg).eval()


@torch.no_grad()
def test_torchvisions_mobilenet_computes_the_same_features(tmp_path):
    theirs = scrambled(models.mobilenet_v2(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    ours = loaded(config("build_mobilenetv2_backbone", "1.0x"), tmp_path / "mobilenet.pth")
    images = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(ours(images), theirs.features(images))


def test_the_last_layer_of_deep_sorts_mobilenet_has_another_name():
    own = build_backbone(config("build_mobilenetv2_backbone", "1.0x")).state_dict()
    theirs = {name.replace("conv.", "features.18.", 1) if name.startswith("conv.") else name: value
              for name, value in own.items()}  # fmt: skip
    found = fit(own, theirs)
    assert not found.missing
    assert not found.dropped
    assert all(torch.equal(found.weights[name], value) for name, value in own.items())


def test_a_resnet_of_torchvision_fits_without_its_classifier():
    own = build_backbone(config()).state_dict()
    found = fit(own, models.resnet18(weights=None).state_dict())
    assert not found.missing
    assert found.dropped == {
        f"fc.{n}": "the classifier of its own training" for n in ("weight", "bias")
    }
    assert "100 of 100 weights\nleft out: fc.* (2): the classifier" in str(found)


def test_what_does_not_fit_is_named_with_its_reason():
    own = build_backbone(config()).state_dict()
    theirs = {**own, "conv1.weight": torch.zeros(3), "stem.weight": torch.zeros(3)}
    del theirs["bn1.bias"]
    text = str(fit(own, theirs))
    assert "98 of 100 weights" in text
    assert "not in the file: conv1.* (1), bn1.* (1)" in text
    assert "left out: conv1.* (1): its shape is [3] instead of [64, 3, 7, 7]" in text
    assert "left out: stem.* (1): the backbone has no such weight" in text


def of_the_early_zoo(backbone):
    """A network of fast-reid's model zoo, as it was saved in 2020 and trained on several GPUs."""
    names = {f"module.backbone.{name}": value for name, value in backbone.items()}
    head = {"module.heads.bnneck.weight": torch.ones(512), "module.pixel_mean": torch.zeros(3)}
    head["module.heads.classifier.weight"] = torch.zeros(751, 512)
    return {"model": {**names, **head}, "epoch": 59, "metric": np.float64(0.93)}


@pytest.mark.parametrize("options", [(), ("MODEL.BACKBONE.WITH_IBN", "True")])
def test_a_whole_network_of_fast_reid_gives_its_backbone(tmp_path, options):
    cfg = config("build_resnet_backbone", "18x", "", *options)
    backbone = scrambled(build_backbone(cfg)).state_dict()
    torch.save(of_the_early_zoo(backbone), tmp_path / "zoo.pth")
    weights = read_weights(str(tmp_path / "zoo.pth"))
    assert {"heads.bottleneck.0.weight", "heads.weight"} <= weights.keys()
    assert set(fit(backbone, weights).dropped.values()) == {"not of the backbone"}
    found = loaded(cfg, tmp_path / "zoo.pth").state_dict()
    assert all(torch.equal(found[name], value) for name, value in backbone.items())


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("build_shufflenetv2_backbone", "1.0x"),
        ("build_effnet_backbone", "b0"),
        pytest.param("build_resnext_backbone", "50x", marks=pytest.mark.long),  # 3 s
    ],
)
def test_builders_that_want_a_layout_of_their_own_get_it(tmp_path, name, depth):
    cfg = config(name, depth)
    state = scrambled(build_backbone(cfg)).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    found = loaded(cfg, tmp_path / "weights.pth").state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_positions_are_left_to_fast_reids_transformer_which_resizes_them():
    own = {"pos_embed": torch.zeros(1, 129, 8), "norm.weight": torch.zeros(8)}
    found = fit(own, {**own, "pos_embed": torch.ones(1, 197, 8), "head.weight": torch.zeros(2, 8)})
    assert found.weights["pos_embed"].shape == (1, 197, 8)
    assert list(found.dropped) == ["head.weight"]


# --- files that lie here already ------------------------------------------------------------------


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """The folders of fast-reid and of torch, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch" / "hub"))
    folders = [tmp_path / "torch" / "checkpoints", tmp_path / "torch" / "hub" / "checkpoints"]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def test_the_check_before_a_run_looks_for_the_weights(caches):
    cfg = config("build_resnet_backbone", "18x", "", "MODEL.BACKBONE.PRETRAIN", "True")
    (problem,) = machine.pretrained(Run(cfg))
    assert not problem.fatal, "they can be downloaded"
    name = models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    for part in (f"models/{name}", str(caches[0] / name), "PRETRAIN_PATH"):
        assert part in problem.text
    torch.save(models.resnet18(weights=None).state_dict(), caches[1] / name)  # torchvision's own
    assert pretrained_file(cfg.MODEL.BACKBONE) == str(caches[1] / name)
    assert not list(machine.pretrained(Run(cfg)))
    torch.save({"conv.weight": torch.ones(1)}, caches[1] / name)
    with pytest.raises(Exception, match="fits only 0 of 100"):
        list(machine.pretrained(Run(cfg)))


def test_files_that_fast_reid_names_otherwise(caches):
    def first(name, depth, *options):
        return download(config(name, depth, "", *options).MODEL.BACKBONE).places[0]

    assert first("build_osnet_backbone", "x1_0") == str(caches[0] / "osnet_x1_0_imagenet.pth")
    ibn = ("MODEL.BACKBONE.WITH_IBN", "True")
    assert first("build_resnet_backbone", "50x", *ibn).endswith("resnet50_ibn_a-d9d0bb7b.pth")
    assert first("build_resnest_backbone", "50x") == str(caches[1] / "resnest50-528c19ca.pth")
    cfg = config("build_mobilenetv2_backbone", "1.0x", "", "MODEL.BACKBONE.PRETRAIN", "True")
    (problem,) = machine.pretrained(Run(cfg))
    assert problem.fatal, "there is none"
    assert "no download" in problem.text


def test_no_file_in_the_oldest_format_is_downloaded():
    assert "resnet50-0676ba61" in fast_reid_resnet.model_urls["50x"]
    assert not any("19c8e357" in url for url in fast_reid_resnet.model_urls.values())


def test_a_method_names_the_files_that_it_needs(tmp_path):
    cfg = load_config("HITSZ-VCM/DinoGRL_R50.yml", ["MODEL.BACKBONE.PRETRAIN", "False"])
    (problem,) = machine.pretrained(Run(cfg))
    assert "MODEL.DINOGRL.DINOV2 dinov2_vits14_pretrain.pth does not exist" in problem.text
    known = load_config(
        "HITSZ-VCM/DinoGRL_R50.yml",
        ["MODEL.BACKBONE.PRETRAIN", "False", "MODEL.DINOGRL.DINOV2", "vits14"],
    )
    assert not list(machine.pretrained(Run(known)))
