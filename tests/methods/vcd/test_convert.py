"""A file in the published layout gives the features of the program that it comes from."""

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import load_trained
from fastreid_star.methods.convert import convert_weights

from .. import resnets
from ..resnets import CLASSES, SIZE, SMALL, WIDTH, holder, resnet

T = 2
# a ResNet-18 has half and a quarter of the widths by which the program names its attentions
ATTENTIONS = {"layer2": "256", "layer3": "512", "layer4": "1024"}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self._cam_module = nn.Module()
        self._cam_module.gamma = nn.Parameter(torch.rand(1))


class Baseline(nn.Module):
    def __init__(self):
        super().__init__()
        for width in ATTENTIONS.values():
            self.add_module(f"cam_{width}", Attention())
        self.base = resnet()
        self.bottleneck = nn.BatchNorm1d(WIDTH)
        self.classifier = nn.Sequential(nn.Linear(WIDTH, CLASSES))

    def forward(self, x):
        x = resnets.stem(self.base, x)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            if name in ATTENTIONS:
                flat = x.flatten(2)
                energy = flat @ flat.transpose(1, 2)
                weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
                gamma = getattr(self, f"cam_{ATTENTIONS[name]}")._cam_module.gamma
                x = x + gamma * (weights @ flat).view_as(x)
            x = getattr(self.base, name)(x)
        return self.bottleneck(x.mean((2, 3)))


def bottleneck():
    layers = [nn.Linear(WIDTH, 1000), nn.BatchNorm1d(1000), nn.ReLU(), nn.Linear(1000, 500)]
    layers += [nn.BatchNorm1d(500), nn.ReLU(), nn.Linear(500, 512)]
    classifier = [nn.Linear(512, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.1), nn.Dropout(0.5)]
    classifier = nn.Sequential(*classifier, nn.Linear(256, CLASSES))
    return holder(bottleneck=holder(model=nn.Sequential(*layers)), classifier=classifier)


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("IR", "RGB", "shared"):
            self.add_module(f"{name}_backbone", Baseline())
            self.add_module(f"{name}_Bottleneck", bottleneck())

    def features(self, images, visible):
        x = resnets.normalized(images.flatten(0, 1))
        luma = (x * torch.tensor([0.2989, 0.5870, 0.1140]).view(3, 1, 1)).sum(1, keepdim=True)
        g = luma.repeat(1, 3, 1, 1)
        seen = [self.RGB_backbone(x), self.IR_backbone(g)]
        seen += [self.shared_backbone(x), self.shared_backbone(g)]
        return torch.cat(seen, 1).view(len(images), T, -1).mean(1)


def test_features_agree(tmp_path):
    torch.manual_seed(4)
    program = resnets.randomize(Program())
    images = resnets.clips(T)["images"]
    with torch.no_grad():  # as after training: clips differ
        program.train().features(images, True)
    state = program.eval().state_dict()
    theirs, ours = str(tmp_path / "best.t"), str(tmp_path / "ours.pth")
    torch.save({"net": state}, theirs)
    options = [*SMALL, "INPUT.CLIP.LENGTH", str(T), "INPUT.SIZE_TRAIN", str(list(SIZE))]
    cfg = load_config("HITSZ-VCM/VCD_R50.yml", options)
    conversion = convert_weights(theirs, ours, cfg)
    assert conversion.unknown == []
    assert {name.split(".")[2] for name in conversion.dropped} == {"fc"}
    resnets.check_features(load_trained(cfg, ours), program, resnets.clips(T))
    weights = conversion.weights
    name = "IR_Bottleneck.classifier.4.bias"
    assert torch.equal(weights["infrared_head.classify_compressed.4.bias"], state[name])
    assert torch.equal(weights["heads.compress.3.weight"],
                       state["shared_Bottleneck.bottleneck.model.3.weight"])  # fmt: skip
    assert F.mse_loss(weights["visible_head.bias"], state["RGB_backbone.classifier.0.bias"]) == 0
