"""Converted files in the published layout give the features of the program they come from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer, load_trained
from fastreid_star.errors import UserError
from fastreid_star.methods.convert import convert, convert_weights

from .. import resnets
from ..resnets import CLASSES, SMALL, WIDTH, Stem, holder, resnet

CONFIG = "HITSZ-VCM/IBAN_R50_authors.yml"
MIDDLE = WIDTH // 2


def attention(width):
    conv, pool = nn.Conv3d, nn.MaxPool3d((1, 2, 2))
    layers = holder(
        g=nn.Sequential(conv(width, width // 2, 1), pool), theta=conv(width, width // 2, 1),
        phi=nn.Sequential(conv(width, width // 2, 1), pool),
        W=nn.Sequential(conv(width // 2, width, 1), nn.BatchNorm3d(width)),
    )  # fmt: skip
    return holder(cross_atten=layers)


def conv(width, kernel):
    layers = [nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)]
    return holder(conv=nn.Sequential(*layers))


class Program(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.length = length
        for suffix in ("", "_f"):
            self.add_module(f"visible_module{suffix}", holder(visible=Stem()))
            self.add_module(f"thermal_module{suffix}", holder(thermal=Stem()))
            net = resnet()
            rest = {f"layer{i}": getattr(net, f"layer{i}") for i in (1, 2, 3)}
            self.add_module(f"base_resnet_fir{suffix}", holder(base=holder(**rest)))
            self.add_module(f"base_resnet_sec{suffix}", holder(base=holder(layer4=net.layer4)))
        for way in ("v2t", "t2v"):
            self.add_module(f"chonggou_{way}_fir", conv(MIDDLE, 3))
            self.add_module(f"chonggou_{way}_sec", conv(WIDTH, 1))
        self.cross_atten_fir, self.cross_atten_sec = attention(MIDDLE), attention(WIDTH)
        self.lstm_o, self.lstm_r = nn.LSTM(WIDTH, WIDTH, 2), nn.LSTM(WIDTH, WIDTH, 2)
        self.temporal_feat_learning = resnets.temporal(length)
        self.bottleneck, self.bottleneck_f = nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES, bias=False)

    def attend(self, module, x, f):
        layers, clips = module["cross_atten"], len(x) // self.length
        shape = (clips, x.shape[1], self.length, *x.shape[2:])
        one, two = x.reshape(shape), f.reshape(shape)
        value = layers["g"](one).flatten(2).transpose(1, 2)
        scores = layers["theta"](two).flatten(2).transpose(1, 2) @ layers["phi"](one).flatten(2)
        mixture = (scores.softmax(-1) @ value).transpose(1, 2).reshape(clips, -1, *shape[2:])
        return (layers["W"](mixture) + one).reshape(x.shape)

    def features(self, images, visible):
        count = len(images)
        images = images.flatten(0, 1)
        gray = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        kernel = torch.tensor([[-1.0, 0], [0, 1]])[None, None]
        relief = F.pad((F.conv2d(gray, kernel) + 128).clamp(0, 255), (0, 1, 0, 1))
        streams = []
        for suffix, pixels in (("", images), ("_f", relief.repeat(1, 3, 1, 1))):
            name = f"{'visible' if visible else 'thermal'}_module{suffix}"
            stem = next(iter(getattr(self, name).values()))
            base = getattr(self, f"base_resnet_fir{suffix}")["base"]
            x = resnets.stem(stem, resnets.normalized(pixels))
            streams.append(base["layer3"](base["layer2"](base["layer1"](x))))
        x, f = streams
        x = self.base_resnet_sec["base"]["layer4"](self.attend(self.cross_atten_fir, x, f))
        f = self.base_resnet_sec_f["base"]["layer4"](f)
        x = self.attend(self.cross_atten_sec, x, f).mean((2, 3)).view(count, self.length, WIDTH)
        forth = self.lstm_o(x.transpose(0, 1))[0][-1]
        back = self.lstm_r(x.transpose(0, 1).flip(0))[0][-1]
        y = x + x * resnets.gates(self.temporal_feat_learning, forth, x)
        cosines = [F.cosine_similarity(x, end[:, None], dim=2) for end in (forth, back)]
        weights = (cosines[0] + cosines[1])[..., None] / 2
        return self.bottleneck((y * weights + y).mean(1))


def published(length):
    """The program, and the state dict that it saves."""
    torch.manual_seed(4)
    program = resnets.randomize(Program(length))
    resnets.center(program, program.bottleneck, length)
    state, nothing = program.state_dict(), torch.zeros(())
    unused = ["base_resnet.base.layer1.0.conv1.weight", "base_resnet.layer4.0.bn1.weight"]
    for suffix in ("", "_f"):
        unused += [
            f"base_resnet_fir{suffix}.base.{n}" for n in ("conv1.weight", "layer4.0.bn1.bias")
        ]
        unused += [f"base_resnet_sec{suffix}.base.{n}" for n in ("fc.bias", "layer3.0.bn1.bias")]
        unused += [f"visible_module{suffix}.visible.layer1.0.conv1.weight"]
    return program, {**state, **dict.fromkeys(unused, nothing)}, set(unused)


def config(length, *more):
    return load_config(CONFIG, [*SMALL, "INPUT.CLIP.LENGTH", str(length), *more])


def test_features_agree(tmp_path):
    program, state, unused = published(6)
    theirs, target = str(tmp_path / "best.t"), str(tmp_path / "ours.pth")
    torch.save({"net": state, "mAP": 0.4, "epoch": 7}, theirs)
    conversion = convert_weights(theirs, target, config(6))
    assert conversion.unknown == []
    never_run = {n for n in state if ".l." in n}
    assert set(conversion.dropped) == unused | never_run
    model = load_trained(config(6), target)
    resnets.check_features(model, program, resnets.clips(6))
    weights = conversion.weights
    for ours, name in (
        ("reconstruction.visible.0.weight", "chonggou_v2t_fir.conv.0.weight"),
        ("reconstruction.infrared.1.weight", "chonggou_t2v_sec.conv.0.weight"),
        ("anaglyph_neck.0.running_var", "bottleneck_f.running_var"),
    ):
        assert torch.equal(weights[ours], state[name])


def test_features_agree_for_another_number_of_frames_and_depend_on_the_reading():
    program, state, _ = published(3)
    conversion = convert(state)
    model = Trainer.build_model(config(3)).eval()
    model.load_state_dict(conversion.weights)
    resnets.check_features(model, program, resnets.clips(3))
    with torch.no_grad():
        before = model(resnets.clips(3))
        for attention in model.attention:
            attention.mixed = False
        assert (model(resnets.clips(3)) - before).norm(dim=1).min() > 0.01
    with pytest.raises(UserError, match="READING is default"):
        conversion.require_fit(config(3, "MODEL.IBAN.READING", "default"))
