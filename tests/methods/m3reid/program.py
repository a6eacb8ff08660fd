"""M3-ReID's network and losses in plain torch, with the names of the published program's modules.

Written from its description. It is smaller than the published one, a ResNet-18 with one non-local
block in layer2 and two in layer3: the layout does not depend on the size.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

CLASSES, WIDTH = 5, 512
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class NonLocal3d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        inner = channels // 4
        self.theta, self.phi, self.g = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv3d(inner, channels, 1), nn.BatchNorm3d(channels))

    def forward(self, x):  # [B, C, T, h, w]
        rows = [layer(x).flatten(2) for layer in (self.theta, self.phi, self.g)]
        weights = torch.einsum("bcl,bcm->blm", rows[0], rows[1]).softmax(2)
        y = torch.einsum("blm,bcm->bcl", weights, rows[2])
        return x + self.W(y.unflatten(2, x.shape[2:]))


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        del self.backbone.fc
        self.NL_2 = nn.ModuleList(NonLocal3d(128) for _ in range(1))
        self.NL_3 = nn.ModuleList(NonLocal3d(256) for _ in range(2))
        views = {f"view_attention_{plane}": nn.Conv2d(WIDTH, 2, 1) for plane in ("hw", "tw", "th")}
        self.mvl_attention = nn.ModuleDict(views)
        self.bn_neck = nn.BatchNorm1d(6 * WIDTH)
        self.classifier_frame = nn.Linear(6 * WIDTH, CLASSES, bias=False)
        self.classifier = nn.Linear(6 * WIDTH, CLASSES, bias=False)

    def scrambled(self):
        """All norms with random statistics and scales."""
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(module.weight, 0.4, 1.0)
                nn.init.normal_(module.bias, 0, 0.2)
        nn.init.zeros_(self.bn_neck.bias)
        return self

    def maps(self, clips):
        net, number = self.backbone, clips.shape[:2]
        x = net.maxpool(net.bn1(net.conv1(clips.flatten(0, 1))).relu())
        blocks = [net.layer1, net.layer2, net.layer3, net.layer4]
        follow = [(), self.NL_2, self.NL_3, ()]
        for layer, after in zip(blocks, follow, strict=True):
            for place, block in enumerate(layer):
                x = block(x)
                if (late := place - len(layer) + len(after)) >= 0:
                    x = after[late](x.unflatten(0, number).transpose(1, 2))
                    x = x.transpose(1, 2).flatten(0, 1)
        return x.unflatten(0, number)  # [B, T, D, h, w]

    def views(self, maps):
        """Features ``[B T, 6 D]``, and the masks of each plane as vectors."""
        b, t, d, h, w = maps.shape
        features, masks = [], []
        for plane, order in (
            ("hw", (0, 1, 2, 3, 4)),
            ("tw", (0, 3, 2, 1, 4)),
            ("th", (0, 4, 2, 1, 3)),
        ):
            conv, moved = self.mvl_attention[f"view_attention_{plane}"], maps.permute(*order)
            mask = conv(moved.flatten(0, 1)).sigmoid()  # [B x, 2, y, z]
            masks.append(mask.flatten(2))
            back = [order.index(axis) for axis in range(5)]
            for head in range(2):
                under = (mask[:, head, None] * moved.flatten(0, 1)).view(moved.shape)
                under = under.permute(*back).reshape(b * t, d, h * w)
                features.append(((under**3).mean(2) + 1e-12) ** (1 / 3))
        return torch.cat(features, 1), masks

    def forward(self, clips):
        """Normalized clips ``[B, T, 3, H, W]``."""
        pooled, masks = self.views(self.maps(clips))
        frames = self.bn_neck(pooled).unflatten(0, clips.shape[:2])
        clip = frames.mean(1)
        if self.training:
            return frames, clip, self.classifier_frame(frames), self.classifier(clip), masks
        return clip / clip.square().sum(1, keepdim=True).sqrt()


def normalized(images):
    shape = (3, 1, 1)
    return (images / 255 - MEAN.view(shape).to(images)) / STD.view(shape).to(images)


def cosine(x, y):
    return x @ y / (x.norm() * y.norm())


def alignment(features, ids, visible):
    """MMA, query by query."""
    means = []
    for modality in (True, False):
        losses = []
        for i in (i for i in range(len(ids)) if visible[i] == modality):
            pairs = {True: [], False: []}
            for j in (j for j in range(len(ids)) if visible[j] != modality):
                d = (1 - cosine(features[i], features[j])) / 2
                pairs[bool(ids[i] == ids[j])].append(d)
            if pairs[True] and pairs[False]:
                near, far = (torch.stack(pairs[kind]).mean() for kind in (True, False))
                losses.append(torch.log1p(torch.exp(near - far)))
        if losses:
            means.append(torch.stack(losses).mean())
    return torch.stack(means).mean() if means else 0 * features.sum()


def separation(sets):
    """Mean of cos^2 over the pairs of each set ``[S, K, D]``."""
    pairs = [
        cosine(vectors[i], vectors[j]) ** 2
        for vectors in sets for i in range(len(vectors)) for j in range(len(vectors)) if i != j
    ]  # fmt: skip
    return torch.stack(pairs).mean() if pairs else 0 * sets.sum()


def losses(outputs, ids, visible):
    """All losses of a training step by the names of the log."""
    frames, clip, frame_logits, clip_logits, masks = outputs
    length = frames.shape[1]
    of_frames = [part.repeat_interleave(length) for part in (ids, visible)]
    return {
        "loss_cls": F.cross_entropy(clip_logits, ids),
        "loss_cls_frame": F.cross_entropy(frame_logits.flatten(0, 1), of_frames[0]),
        "loss_align": alignment(clip, ids, visible),
        "loss_align_frame": alignment(frames.flatten(0, 1), *of_frames),
        "loss_orthogonal": separation(frames),
        "loss_masks": sum(separation(plane) for plane in masks),
    }
