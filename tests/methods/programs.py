"""SAADG and SDTG in evaluation, in plain torch, with the names of their modules.

The published checkpoints are state dicts of these programs.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCNConv

from .resnets import Stem, normalized, stem

CLASSES, LENGTH, SIZE, WIDTH, JOINTS = 5, 3, (64, 32), 2048, 17


class Unit(nn.Module):
    """A residual unit of ResNet-50: 1x1, 3x3, 1x1."""

    def __init__(self, inputs, middle, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = (
            nn.Conv2d(middle, middle, 3, stride, 1, bias=False),
            nn.BatchNorm2d(middle),
        )
        self.conv3, self.bn3 = (
            nn.Conv2d(middle, 4 * middle, 1, bias=False),
            nn.BatchNorm2d(4 * middle),
        )
        if stride > 1 or inputs != 4 * middle:
            shortcut = nn.Conv2d(inputs, 4 * middle, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * middle))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        return (self.bn3(self.conv3(y)) + shortcut).relu()


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        inputs = 64
        for stage, (units, middle, stride) in enumerate(
            [(3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 1)], start=1
        ):
            layer = [
                Unit(inputs, middle, stride),
                *(Unit(4 * middle, middle, 1) for _ in range(units - 1)),
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*layer))
            inputs = 4 * middle

    def forward(self, x):
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Saadg(nn.Module):
    """SAADG in evaluation: mean over the map, GeM over the frames, BatchNorm, unit length."""

    graphs: tuple[str, ...] = ("intra_gcn", "inter_gcn")

    def __init__(self):
        super().__init__()
        self.visible_module = nn.ModuleDict({"visible": Stem()})
        self.thermal_module = nn.ModuleDict({"thermal": Stem()})
        self.base_resnet = nn.ModuleDict({"base": Stages()})
        for name in ("local", "global", *self.graphs):
            setattr(self, f"{name}_bottleneck", nn.BatchNorm1d(WIDTH))
            setattr(self, f"{name}_classifier", nn.Linear(WIDTH, CLASSES, bias=False))
        for name in self.graphs:
            setattr(self, f"{name}_conv", GCNConv(WIDTH, WIDTH))

    def frames(self, images, visible):
        """Normalized images ``[B, T, 3, H, W]`` to ``[B, T, D]``."""
        net = self.visible_module["visible"] if visible else self.thermal_module["thermal"]
        maps = self.base_resnet["base"](stem(net, images.flatten(0, 1)))
        return maps.mean((2, 3)).view(*images.shape[:2], WIDTH)

    def forward(self, images, poses, visible):
        clip = ((self.frames(images, visible) ** 3).mean(1) + 1e-12) ** (1 / 3)
        return self.out(clip)

    def out(self, clip):
        feature = self.global_bottleneck(clip)
        return feature / feature.pow(2).sum(1, keepdim=True).sqrt()


class Attention(nn.Module):
    """Graph attention over a dense matrix of who listens to whom, under torch-geometric's names."""

    def __init__(self, inputs, outputs, heads):
        super().__init__()
        self.lin = nn.Linear(inputs, heads * outputs, bias=False)
        self.att_src, self.att_dst = (
            nn.Parameter(torch.randn(1, heads, outputs) * 0.3) for _ in range(2)
        )
        self.bias = nn.Parameter(torch.randn(heads * outputs))

    def forward(self, x, listens):
        heads = []
        for h, source, target in zip(
            self.lin(x).chunk(self.att_src.shape[1], -1),
            self.att_src[0],
            self.att_dst[0],
            strict=True,
        ):
            scores = F.leaky_relu((h @ target)[..., :, None] + (h @ source)[..., None, :], 0.2)
            heads.append(scores.masked_fill(~listens, -math.inf).softmax(-1) @ h)
        return torch.cat(heads, -1) + self.bias


SKELETON = [
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
]  # fmt: skip


class Sdtg(Saadg):
    """SDTG in evaluation: its bones are edges of the graph in the first frame only."""

    graphs = ()

    def __init__(self):
        super().__init__()
        self.gat = nn.ModuleDict({"conv1": Attention(3, 16, 2), "conv2": Attention(32, 12, 1)})
        self.bn = nn.BatchNorm1d(12)
        self.lstm_edge = nn.LSTM(64, WIDTH // 2, 1, batch_first=True, bidirectional=True)
        self.time_guide = nn.ModuleDict(
            {
                "cross_attn": nn.MultiheadAttention(WIDTH, 4, batch_first=True),
                "reverse_cross_attn": nn.MultiheadAttention(WIDTH, 4, batch_first=True),
                "bn_enhanced_origin": nn.BatchNorm1d(WIDTH),
                "bn_enhanced_time_guide": nn.BatchNorm1d(WIDTH),
                "ffn": nn.Sequential(
                    nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
                ),
            }
        )
        layers = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(5))
        self.GuidedAggModule = nn.ModuleDict({"fc_layers": layers})
        self.fc1 = nn.Linear(38, 64)
        self.pose_classifier = nn.Linear(2 * WIDTH, CLASSES)
        self.pose_bottleneck = nn.BatchNorm1d(2 * WIDTH)

    def forward(self, images, poses, visible):
        frames, clips = self.frames(images, visible), len(images)
        vectors = torch.stack(
            [poses[:, :, end, :2] - poses[:, :, start, :2] for start, end in SKELETON], 2
        )
        angles = torch.atan2(vectors[..., 1], vectors[..., 0])
        bones = torch.stack([vectors.norm(dim=-1), angles], -1).view(clips, LENGTH, 38)
        guide, _ = self.lstm_edge(self.fc1(bones))

        nodes = LENGTH * JOINTS
        listens = torch.eye(nodes, dtype=torch.bool)
        for a, b in [*SKELETON, *((i, i + JOINTS) for i in range(nodes - JOINTS))]:
            listens[a, b] = listens[b, a] = True
        graph = F.elu(self.gat["conv1"](poses.view(clips, nodes, 3), listens))
        graph = F.elu(self.gat["conv2"](graph, listens)).reshape(clips, -1)
        pose = self.pose_bottleneck(
            torch.cat([guide[:, -1], F.adaptive_avg_pool1d(graph, WIDTH)], -1)
        )

        sight, _ = self.time_guide["cross_attn"](guide, frames, frames)
        time, _ = self.time_guide["reverse_cross_attn"](frames, guide, guide)
        frames = self.time_guide["ffn"](torch.cat([sight, time], -1)) + frames + 1e-3
        pooled = torch.stack(
            [((frames**p).mean(1) + 1e-12) ** (1 / p) for p in (0.7, 1.0, 3.0, 5.0, 7.0)], 1
        )
        weights = torch.stack(
            [layer(pose) for layer in self.GuidedAggModule["fc_layers"]], 1
        ).softmax(1)
        return self.out((pooled * weights).sum(1))


def make(cls):
    """A network of theirs with weights and statistics that no initialization gives."""
    torch.manual_seed(1)
    network = cls().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.data.uniform_(0.4, 1.0)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.num_batches_tracked.fill_(7)
    # As after training, the inputs of the last norms have a mean near 0. So different clips get
    # different features, and the guide is neither flat nor concentrated in one place.
    for name in ("pose_bottleneck", "global_bottleneck"):
        if hasattr(network, name):
            norm, inputs = getattr(network, name), []
            hook = norm.register_forward_pre_hook(
                lambda _, given, inputs=inputs: inputs.append(given[0])
            )
            features_of_theirs(network, clips())
            hook.remove()
            variance, mean = torch.var_mean(torch.cat(inputs), 0)
            norm.running_mean.copy_(mean + 0.1 * norm.running_mean)
            norm.running_var.copy_(variance + variance.mean())
    return network


def as_saved(network):
    """Its state dict as the program saves it: unused weights of three ResNets are scalars."""
    state, nothing = dict(network.state_dict()), torch.zeros(())
    for name in list(state):
        if name.startswith("base_resnet.base.layer"):
            rest = name.removeprefix("base_resnet.base.")
            state[f"visible_module.visible.{rest}"] = state[f"thermal_module.thermal.{rest}"] = (
                nothing
            )
        if name.startswith("visible_module.visible."):
            state[name.replace("visible_module.visible.", "base_resnet.base.")] = nothing
    return state


def clips():
    """Two visible and two infrared clips; one skeleton is zeros, the joints of one coincide."""
    torch.manual_seed(2)
    scale = torch.tensor([SIZE[1], SIZE[0], 1.0])
    skeletons = torch.rand(4, LENGTH, JOINTS, 3) * scale
    skeletons[1, 0] = 0
    skeletons[2, 1, :, :2] = 9
    coarse = torch.rand(4 * LENGTH, 3, 8, 4) * 255
    images = (
        F.interpolate(coarse, SIZE, mode="bilinear")
        .round()
        .to(torch.uint8)
        .view(4, LENGTH, 3, *SIZE)
    )
    return {
        "images": images,
        "modality": torch.tensor([2, 1, 1, 2]),
        "skeletons": skeletons,
        "has_skeleton": torch.ones(4, LENGTH, dtype=torch.bool),
    }


@torch.no_grad()
def features_of_theirs(network, batch):
    images = normalized(batch["images"])
    features = torch.empty(4, WIDTH)
    for visible in (True, False):
        rows = batch["modality"] == (2 if visible else 1)
        features[rows] = network(images[rows], batch["skeletons"][rows], visible)
    return features
