"""A file in the published layout gives the features of the program that it comes from."""

import copy

import torch
from torch import nn

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import load_trained
from fastreid_star.methods.convert import convert_weights

from .. import resnets
from ..resnets import CLASSES, SMALL, WIDTH, Stem, holder, resnet

T = 2
OPTIONS = [*SMALL, "INPUT.CLIP.LENGTH", str(T), "DATASETS.SHAPES", ""]


def split(module, name, kinds=("_ir", "_shape")):
    for kind in kinds:
        module.add_module(name + kind, copy.deepcopy(getattr(module, name)))


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        net = resnet()
        layers = {f"layer{i}": getattr(net, f"layer{i}") for i in (1, 2, 3, 4)}
        for block in [unit for layer in layers.values() for unit in layer]:
            split(block, "bn1"), split(block, "bn2")
            if block.downsample is not None:
                for kind in ("_ir", "_shape"):
                    block.add_module(f"dsbn{kind}", copy.deepcopy(block.downsample[1]))
        self.base_resnet = holder(base=holder(**layers))
        self.visible_module, self.thermal_module = holder(visible=Stem()), holder(thermal=Stem())
        for stem in (self.visible_module["visible"], self.thermal_module["thermal"]):
            split(stem, "bn1", ("_shape",))
        self.bottleneck = nn.BatchNorm1d(WIDTH)
        split(self, "bottleneck")
        self.classifier = nn.Linear(WIDTH, CLASSES, bias=False)
        self.classifier_shape = nn.Linear(WIDTH // 4, CLASSES, bias=False)
        self.classifier_ir = nn.Linear(WIDTH // 4, CLASSES, bias=False)  # never run
        self.projs = nn.ParameterList([torch.randn(WIDTH, WIDTH // 4) for _ in range(2)])

    def features(self, images, visible):
        kind = "" if visible else "_ir"
        stem = self.visible_module["visible"] if visible else self.thermal_module["thermal"]
        x = resnets.stem(stem, resnets.normalized(images.flatten(0, 1)))
        for layer in self.base_resnet["base"].values():
            for block in layer:
                y = getattr(block, f"bn1{kind}")(block.conv1(x)).relu()
                y = getattr(block, f"bn2{kind}")(block.conv2(y))
                if block.downsample is not None:
                    norm = block.downsample[1] if visible else block.dsbn_ir
                    x = norm(block.downsample[0](x))
                x = (x + y).relu()
        pooled = ((x**3).mean((2, 3)) + 1e-12) ** (1 / 3)
        return getattr(self, f"bottleneck{kind}")(pooled).view(len(images), T, -1).mean(1)


def test_features_agree(tmp_path):
    torch.manual_seed(4)
    program = resnets.randomize(Program())
    for neck in (program.bottleneck, program.bottleneck_ir):
        neck.running_mean.uniform_(0, 1)
    unused = ["base_resnet.base.conv1.weight", "base_resnet.base.bn1_ir.weight",
              "visible_module.visible.layer1.0.bn1_shape.bias"]  # fmt: skip
    state = {**program.state_dict(), **dict.fromkeys(unused, torch.zeros(()))}
    theirs, ours = str(tmp_path / "best.t"), str(tmp_path / "ours.pth")
    torch.save({"net": state, "mAP": 0.4}, theirs)
    cfg = load_config("HITSZ-VCM/SGIEL_R50.yml", OPTIONS)
    conversion = convert_weights(theirs, ours, cfg)
    assert conversion.unknown == []
    assert set(conversion.dropped) == {*unused, "classifier_ir.weight"}
    resnets.check_features(load_trained(cfg, ours), program, resnets.clips(T))
    assert torch.equal(conversion.weights["shape_head.shape"], state["projs.1"])
    name = "backbone.stages.1.0.downsample.1.sets.2.weight"
    assert torch.equal(
        conversion.weights[name], state["base_resnet.base.layer2.0.dsbn_shape.weight"]
    )
