"""Parts of published programs: small ResNets under torchvision's names, and random weights."""

import re

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
WIDTH, CLASSES, SIZE = 512, 5, (64, 32)
SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.PRETRAIN", "False"),
    *("MODEL.HEADS.NUM_CLASSES", str(CLASSES)),
    *("INPUT.SIZE_TRAIN", str(list(SIZE)), "INPUT.SIZE_TEST", str(list(SIZE))),
)


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)


def resnet():
    """A ResNet-18 whose last stride is 1."""
    net = torchvision.models.resnet18()
    net.layer4[0].conv1.stride = net.layer4[0].downsample[0].stride = (1, 1)
    return net


def holder(**modules):
    return nn.ModuleDict(modules)


def stem(net, images):
    return F.max_pool2d(net.bn1(net.conv1(images)).relu(), 3, 2, 1)


def low(net, x):
    return net.layer3(net.layer2(net.layer1(x)))


class Gate(nn.Module):
    """Their SELayer: a layer `l` that is never run, and two linear ones."""

    def __init__(self):
        super().__init__()
        first, second = nn.Linear(WIDTH, WIDTH // 16, bias=False), nn.Linear(WIDTH // 16, WIDTH)
        second.bias = None
        self.fc = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())
        self.l = nn.Conv2d(WIDTH, WIDTH, 1)


def temporal(length):
    layers = {letter: nn.Linear(WIDTH, WIDTH) for letter in "abcdef"[:length]}
    gates = {f"se_{i + 1}": Gate() for i in range(length)}
    return nn.ModuleDict({**layers, **gates})


def gates(module, context, frames):
    """Factors of each frame ``[B, T, D]``."""
    factors = []
    for i in range(frames.shape[1]):
        mixed = module["abcdef"[i]](context) + frames[:, i]
        factors.append(module[f"se_{i + 1}"].fc(mixed / 2))
    return torch.stack(factors, 1)


def randomize(network):
    """Weights and statistics that no initialization gives."""
    for module in network.eval().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.4, 1.0)
            nn.init.normal_(module.bias, 0, 0.2)
    return network


def center(program, neck, length):
    """As after training, the inputs of the last norm have a mean near 0: clips differ."""
    seen, batch = [], clips(length)
    hook = neck.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for visible in (True, False):
            program.features(batch["images"], visible)
        hook.remove()
        variance, mean = torch.var_mean(torch.cat(seen), 0)
        neck.running_mean.copy_(mean)
        neck.running_var.copy_(variance + variance.mean())


def as_saved(program):
    """The state dict, with layers of ResNets that are never run, as scalars."""
    state, nothing = program.state_dict(), torch.zeros(())
    whole = [n.partition(".base.")[2] for n in state if n.startswith("base_resnet.base.layer")]
    stems = {n.rpartition(".conv1.weight")[0] for n in state if re.match(r"\w+_module\w*\.", n)}
    unused = [f"{stem}.{name}" for stem in stems - {""} for name in [*whole, "fc.weight"]]
    return {**state, **dict.fromkeys(unused, nothing)}


def clips(length):
    """Two visible and two infrared clips."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(4 * length, 3, 8, 4, generator=generator) * 255
    images = F.interpolate(coarse, SIZE, mode="bilinear").round()
    modality = torch.tensor([2, 1, 1, 2])
    return {"images": images.view(4, length, 3, *SIZE), "modality": modality}


def normalized(images):
    return (images / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


@torch.no_grad()
def check_features(model, program, batch):
    """A model's features are the program's, of both modalities, and clips differ."""
    found = model(batch)
    for visible in (True, False):
        rows = batch["modality"] == (2 if visible else 1)
        expected = F.normalize(program.features(batch["images"][rows], visible))
        assert (found[rows] - expected).abs().max() < 1e-5
        assert (expected[0] - expected[1]).norm() > 0.01, "clips differ"
