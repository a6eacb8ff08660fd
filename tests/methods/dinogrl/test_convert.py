"""Converted files in the published layout give the features of the program they come from.

The program's evaluation is written down here once more, with the names of its modules and with
smaller networks: the layout does not depend on their size.
"""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import load_trained
from fastreid_star.errors import UserError
from fastreid_star.methods.convert import convert_weights
from fastreid_star.modeling.backbones.dinov2 import Dinov2

from ...tiny import REPOSITORY

CONFIG = str(REPOSITORY / "configs" / "HITSZ-VCM" / "DinoGRL_R50_authors.yml")
GRID, SIZE, LENGTH, WIDTH, CLASSES = (8, 4), (64, 32), 3, 8, 5
BINS = (1, 2, 4)
PARTS = sum(BINS)
OPTIONS = (
    "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.PRETRAIN", "False",
    "MODEL.HEADS.EMBEDDING_DIM", str(WIDTH), "MODEL.DINOGRL.GRID", str(list(GRID)),
    "MODEL.DINOGRL.BINS", str(list(BINS)), "INPUT.SIZE_TRAIN", str(list(SIZE)),
    "INPUT.SIZE_TEST", str(list(SIZE)),
)  # fmt: skip
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def resnet():
    net = torchvision.models.resnet18()
    net.layer4[0].conv1.stride = net.layer4[0].downsample[0].stride = (1, 1)
    return net


def stages(net):
    return nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)


def holder(**modules):
    return nn.ModuleDict(modules)


class Bin(nn.Module):
    """Weights under the name fc_bin, of FCs or of BNNecks."""

    def __init__(self, *shape, norm=False):
        super().__init__()
        self.fc_bin = nn.Parameter(torch.randn(*shape) * 0.1)
        if norm:
            self.bn1d = nn.BatchNorm1d(shape[0] * shape[1])


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 64, 3, padding=1, bias=False)


def stem():
    block = torchvision.models.resnet.BasicBlock(64, 64)
    layers = holder(conv1=Conv(), bn1=nn.BatchNorm2d(64), layer1=nn.Sequential(block))
    return holder(forward_block=layers)


def branch(width, target, hidden):
    down = nn.Linear(width, target)
    if hidden:
        norm = nn.BatchNorm1d(width // 2, affine=False)
        down = nn.Sequential(nn.Linear(width, width // 2), norm, nn.GELU())
        down.append(nn.Linear(width // 2, target))
    norms = [nn.BatchNorm1d(c, affine=False) for c in (width, target)]
    return holder(bn_s=norms[0], bn_t=norms[1], down_sampling=down)


def non_local():
    layers = {"g": nn.Sequential(nn.Conv1d(1, WIDTH, 1)), "theta": nn.Conv1d(1, WIDTH, 1)}
    layers["phi"] = nn.Conv1d(1, WIDTH, 1)
    for name in ("W1", "W2"):
        layers[name] = nn.Sequential(nn.Conv1d(WIDTH, 1, 1), nn.BatchNorm1d(1))
    return nn.ModuleDict(layers)


class Program:
    """The three networks of the program, and its features."""

    def __init__(self):
        image, infrared, shared = resnet(), resnet(), resnet()
        self.model = holder(
            image_encoder1=holder(resnet_conv=nn.Sequential(image.conv1, image.bn1)),
            image_encoder2=holder(resnet_conv=nn.Sequential(infrared.conv1, infrared.bn1)),
            share_encoder=holder(resnet_conv=stages(shared), GAP=Bin(1)),
            FCs=Bin(PARTS, 512, WIDTH),
            BNNecks=Bin(PARTS + 2, WIDTH, CLASSES, norm=True),
        )
        self.model2 = holder(enhance_app_net_3=non_local(), enhance_shape_net_3=non_local())
        conv = nn.Sequential(
            nn.Conv2d(128, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 128, 1, bias=False),
        )  # fmt: skip
        self.dino = Dinov2(width=64, depth=4, patch=4, side=5, grid=GRID)
        mask = branch(64, 2, hidden=False)
        mask["up_sampling"] = nn.Linear(2, 64)
        self.shape = holder(dinov2=holder(
            dinov2=self.dino, Mask_Branch=mask,
            Denoising_Branch=branch(256, 16, hidden=True),
            Appearance_Branch=branch(256, 16, hidden=False),
            gait_net=holder(
                pre_part=stem(), pre_rgb=stem(), gcn_s=Bin(2), gcn_a=Bin(2),
                fusion=holder(conv=holder(forward_block=conv)),
                post_backbone=holder(resnet_conv=stages(resnet())),
                FCs=Bin(PARTS, 512, WIDTH), BNNecks=Bin(PARTS + 2, WIDTH, CLASSES, norm=True),
            ),
        ))  # fmt: skip
        for net in (self.model, self.model2, self.shape):
            for module in net.eval().modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2.0)
                    if module.affine:
                        nn.init.uniform_(module.weight, 0.4, 1.0)
                        nn.init.normal_(module.bias, 0, 0.2)
        self.mask = mask

    def gait_maps(self, images):
        parts = self.shape["dinov2"]
        x = F.interpolate(images, [4 * side for side in GRID], mode="bilinear")
        outputs = []
        for block in self.dino.blocks:
            hook = block.register_forward_hook(lambda *args: outputs.append(args[2]))
            outputs.append(hook)
        last = self.dino(x)
        for hook in outputs[:4]:
            hook.remove()
        middle = torch.cat(outputs[4:], -1)[:, 1:]
        middle = F.layer_norm(middle, (256,), eps=1e-6).transpose(1, 2).unflatten(2, GRID)
        height, width = 2 * GRID[0], 2 * GRID[1]
        last, middle = (
            F.interpolate(t, (height, width), mode="bilinear").flatten(2).transpose(1, 2)
            for t in (last, middle)
        )
        foreground = self.mask["down_sampling"](self.mask["bn_s"](last.flatten(0, 1))).softmax(1)
        foreground = foreground.view(len(images), height, width, 2)
        for frame in foreground:  # the edge check: 1 row of 16 at the top and at the bottom
            edge = frame[[0, -1], :, 0].round().sum()
            if edge > width:
                frame[..., 0] = frame[..., 1].clone()
        support = F.max_pool2d(foreground[None, ..., 0].round(), 3, 1, 1)[0].flatten(1) != 0
        found = []
        for name in ("Denoising_Branch", "Appearance_Branch"):
            rows = parts[name]["down_sampling"](parts[name]["bn_s"](middle[support]))
            if name == "Denoising_Branch":
                rows = rows.softmax(1)
            else:
                rows = parts[name]["bn_t"](rows).sigmoid()
            maps = torch.zeros(*support.shape, 16)
            maps[support] = rows
            found.append(maps.transpose(1, 2).unflatten(2, (height, width)))
        net, stems = parts["gait_net"], []
        for name, maps in zip(("pre_part", "pre_rgb"), found, strict=True):
            layers = net[name]["forward_block"]
            stems.append(layers["layer1"](layers["bn1"](layers["conv1"].conv(maps)).relu()))
        score = net["fusion"]["conv"]["forward_block"](torch.cat(stems, 1))
        score = score.unflatten(1, (64, 2)).softmax(2)
        return stems[0] * score[:, :, 0] + stems[1] * score[:, :, 1], support

    def pooled(self, maps, weight):
        maps = maps.unflatten(0, (-1, LENGTH)).amax(1)
        parts = []
        for count in BINS:
            strips = maps.view(*maps.shape[:2], count, -1)
            parts.append(strips.mean(-1) + strips.amax(-1))
        parts = torch.cat(parts, -1)  # [n, c, p]
        return (parts.permute(2, 0, 1) @ weight).permute(1, 2, 0)

    def enhance(self, net, query, key):
        query, key = query[:, None], key[:, None]
        affinity = net["theta"](query).transpose(1, 2) @ net["phi"](key) / query.shape[-1]
        g = net["g"](key).transpose(1, 2)
        plus = net["W1"]((affinity.relu() @ g).transpose(1, 2))
        minus = net["W2"](((-affinity).relu() @ g).transpose(1, 2))
        return (query + plus - minus)[:, 0]

    def features(self, images, visible):
        """Of clips of one modality: images ``[n T, 3, H, W]``, normalized."""
        stem = self.model["image_encoder1" if visible else "image_encoder2"]["resnet_conv"]
        maps = F.max_pool2d(stem(images), 3, 2, 1)
        maps = self.model["share_encoder"]["resnet_conv"](maps)
        app = self.pooled(maps, self.model["FCs"].fc_bin)
        fused, self.support = self.gait_maps(images)
        net = self.shape["dinov2"]["gait_net"]
        trunk = net["post_backbone"]["resnet_conv"](fused)
        gait = self.pooled(trunk, net["FCs"].fc_bin)
        walked, first = ([gait], [app]), 1
        for count in BINS[1:]:
            u, v = gait[:, :, 0], app[:, :, 0]
            for i in range(first, first + count):
                u = self.enhance(self.model2["enhance_shape_net_3"], u, app[:, :, i])
                v = self.enhance(self.model2["enhance_app_net_3"], v, gait[:, :, i])
            walked[0].append(u[..., None])
            walked[1].append(v[..., None])
            first += count
        parts = torch.cat([torch.cat(each, 2) for each in walked], 2)
        return parts.transpose(1, 2)

    def save(self, folder):
        folder.mkdir()
        for name, net in (("best_model", self.model), ("best_model2", self.model2)):
            torch.save(net.state_dict(), folder / f"{name}.pth")
        shape = {**self.shape.state_dict(), "dinov2.dinov2.mask_token": torch.zeros(1, 64)}
        torch.save(shape, folder / "best_shape.pth")


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(5)
    return Program()


def clips():
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(4 * LENGTH, 3, 8, 4, generator=generator) * 255
    images = F.interpolate(coarse, SIZE, mode="bilinear").round()
    return {
        "images": images.view(4, LENGTH, 3, *SIZE),
        "modality": torch.tensor([2, 1, 1, 2]),
    }


@torch.no_grad()
def test_features_agree(program, tmp_path):
    program.save(tmp_path / "theirs")
    lines = []
    target = str(tmp_path / "ours.pth")
    conversion = convert_weights(
        str(tmp_path / "theirs"), target, load_config(CONFIG, list(OPTIONS)), report=lines.append
    )
    assert conversion.unknown == []
    assert {"dinov2.gait_net.gcn_s.fc_bin", "share_encoder.GAP.fc_bin"} <= conversion.dropped.keys()
    dinov2 = str(tmp_path / "ours_dinov2.pth")
    assert dinov2 in lines[-1]
    cfg = load_config(CONFIG, [*OPTIONS, "MODEL.DINOGRL.DINOV2", dinov2])
    model = load_trained(cfg, target)
    batch = clips()
    images = (batch["images"] / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    found = model(batch)
    for visible in (True, False):
        rows = batch["modality"] == (2 if visible else 1)
        expected = program.features(images[rows].flatten(0, 1), visible)
        share = program.support.float().mean()
        assert 0.1 < share < 0.95, "the support is neither empty nor everything"
        assert (found[rows] - expected).abs().max() < 1e-5
        assert (expected[0] - expected[1]).abs().mean() > 1e-3, "clips differ"
    state = program.shape.state_dict()
    neck = torch.cat([
        state["dinov2.gait_net.BNNecks.fc_bin"], program.model.state_dict()["BNNecks.fc_bin"],
    ])  # fmt: skip
    assert torch.equal(model.heads.weight, neck.permute(2, 0, 1))


def test_incomplete_files_and_other_settings_are_refused(program, tmp_path):
    folder = tmp_path / "theirs"
    program.save(folder)
    target, cfg = str(tmp_path / "ours.pth"), load_config(CONFIG, list(OPTIONS))
    other = load_config(CONFIG, [*OPTIONS, "MODEL.DINOGRL.READING", "default"])
    with pytest.raises(UserError, match="READING is default"):
        convert_weights(str(folder), target, other)
    with pytest.raises(UserError, match=r"best_model\.pth is missing"):
        convert_weights(str(folder / "best_shape.pth"), target, cfg)
    (folder / "copy.pth").write_bytes((folder / "best_model2.pth").read_bytes())
    with pytest.raises(UserError, match="keep one"):
        convert_weights(str(folder), target, cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"], "nothing is written"
