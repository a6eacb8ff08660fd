"""Converted files in the published layout give the features of the program they come from."""

import copy

import pytest
import torch
from torch import nn

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer, load_trained
from fastreid_star.errors import UserError
from fastreid_star.methods.convert import convert, convert_weights

from .. import resnets
from ..resnets import CLASSES, SMALL, WIDTH, Stem, holder, resnet

CONFIG = "HITSZ-VCM/MITML_R50.yml"


def conv_block(inputs, outputs):
    return nn.Sequential(nn.Conv1d(inputs, outputs, 3, 2, 1), nn.BatchNorm1d(outputs), nn.ReLU())


class Classifier(nn.Module):
    """Their classifier of modalities, in training mode."""

    def __init__(self):
        super().__init__()
        self.first_layer = conv_block(WIDTH, 1024)
        self.layers = nn.ModuleList(conv_block(1024 >> i, 512 >> i) for i in range(7))
        self.Liner = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first_layer(x[..., None])
        for layer in self.layers:
            x = layer(x)
        return self.Liner(x[..., 0])


class Program(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.visible_module = holder(visible=Stem())
        self.thermal_module = holder(thermal=Stem())
        self.base_resnet = holder(base=resnet())
        self.base_resnet["layer4"] = copy.deepcopy(self.base_resnet["base"].layer4)
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2)
        self.temporal_feat_learning = resnets.temporal(length)
        for name in ("bottleneck", "bottleneck1"):
            setattr(self, name, nn.BatchNorm1d(WIDTH))
        for name in ("classifier", "classifier1", "classifier2"):
            setattr(self, name, nn.Linear(WIDTH, CLASSES, bias=False))

    def features(self, images, visible):
        count, length = images.shape[:2]
        first = self.visible_module["visible"] if visible else self.thermal_module["thermal"]
        x = resnets.stem(first, resnets.normalized(images).flatten(0, 1))
        x = resnets.low(self.base_resnet["base"], x)
        high, low = (
            layer(x).mean((2, 3)).view(count, length, WIDTH)
            for layer in (self.base_resnet["base"].layer4, self.base_resnet["layer4"])
        )
        context = self.lstm(low.transpose(0, 1))[0][-1]
        factors = resnets.gates(self.temporal_feat_learning, context, low)
        return self.bottleneck((high * factors + high).mean(1))


def published(length):
    """The program, its classifier, and what it saves."""
    torch.manual_seed(4)
    program, classifier = resnets.randomize(Program(length)), resnets.randomize(Classifier())
    resnets.center(program, program.bottleneck, length)
    networks = {"net": resnets.as_saved(program), "net_modal_classifier": classifier.state_dict()}
    return program, classifier, {**networks, "mAP": 0.4, "epoch": 7}


def config(length):
    return load_config(CONFIG, [*SMALL, "INPUT.CLIP.LENGTH", str(length)])


def test_features_agree(tmp_path):
    theirs, target = str(tmp_path / "best.t"), str(tmp_path / "ours.pth")
    program, classifier, content = published(6)
    torch.save(content, theirs)
    conversion = convert_weights(theirs, target, config(6))
    assert conversion.unknown == []
    dropped = {name.split(".")[0] for name in conversion.dropped}
    assert dropped == {
        *("visible_module", "thermal_module", "base_resnet", "bottleneck1", "classifier1"),
        *("classifier2", "temporal_feat_learning"),
    }
    model = load_trained(config(6), target)
    resnets.check_features(model, program, resnets.clips(6))
    assert torch.equal(model.heads.weight, program.classifier.weight)
    x = torch.randn(7, WIDTH)
    with torch.no_grad():
        difference = model.modality.train()(x) - classifier.train()(x)
    assert difference.abs().max() < 1e-5


def test_features_agree_for_another_number_of_frames():
    program, _, content = published(3)
    conversion = convert(content["net"])
    model = Trainer.build_model(config(3)).eval()
    found = model.load_state_dict(conversion.weights, strict=False)
    assert {name.split(".")[0] for name in found.missing_keys} == {"modality"}
    resnets.check_features(model, program, resnets.clips(3))
    with pytest.raises(UserError, match=r"gates\.gates\.3\.context\.weight is missing"):
        conversion.require_fit(config(4))
