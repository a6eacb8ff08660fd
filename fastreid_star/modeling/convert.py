"""Shared parts of the converters of published checkpoints: names of weights, and checks."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.errors import UserError


@dataclass
class Conversion:
    """The result of converting a published state dict.

    Args:
        source: the published program.
        settings: config keys and the values that the published program has. No shape reveals them.
        weights: our state dict.
        used: their names whose values are in `weights`.
        dropped: their names that do not affect the features -> the reason.
        unknown: their names that were not recognized.
        beside: config key -> weights that are written to a file of their own, which the key names.
    """

    source: str
    settings: Mapping[str, object]
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    beside: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def report(self) -> str:
        """Which weights were dropped, and why, and which were not recognized."""
        lines = [
            f"{self.source}: {len(self.used)} weights converted to {len(self.weights)} weights"
        ]
        modules = Counter((reason, _module_of(name)) for name, reason in self.dropped.items())
        for (reason, module), count in sorted(modules.items()):
            lines.append(f"dropped: {module}.* ({count} weights): {reason}")
        return "\n".join([*lines, *(f"not recognized: {name}" for name in self.unknown)])

    def rename(
        self,
        state: Mapping[str, torch.Tensor],
        renamed: Sequence[tuple[str, str | Callable[[re.Match], str]]],
        dropped: Sequence[tuple[str, str]],
    ) -> None:
        """Sort every name of `state` by the first rule whose pattern it begins with.

        Args:
            state: their state dict.
            renamed: (pattern, our name or a function of the match).
            dropped: (pattern, reason).

        Raises:
            UserError: two names become the same name.
        """
        for name, value in state.items():
            rule = next(
                ((pattern, new) for pattern, new in renamed if re.match(pattern, name)), None
            )
            reason = next((reason for pattern, reason in dropped if re.match(pattern, name)), None)
            if rule is not None:
                ours = re.sub(*rule, name, count=1)
                if ours in self.weights:
                    raise UserError(f"the checkpoint has {ours} twice, the second time as {name}")
                self.weights[ours] = value
                self.used.append(name)
            elif reason is not None:
                self.dropped[name] = reason
            else:
                self.unknown.append(name)

    def require_fit(self, cfg: CfgNode, files: Mapping[str, str] | None = None) -> None:
        """Check that a config has the program's settings, and its model exactly these weights.

        The number of identities is the checkpoint's.

        Args:
            cfg: the config.
            files: config key -> path of the file of :attr:`beside`.

        Raises:
            UserError: with every key or weight that differs.
        """
        wrong = []
        for key, value in self.settings.items():
            found = functools.reduce(getattr, key.split("."), cfg)
            found = list(found) if isinstance(found, tuple) else found
            if found != value:
                wrong.append(f"{key} is {found}, the published model has {value}")
        if wrong:
            raise UserError(f"with this config the features would differ: {'; '.join(wrong)}")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.PRETRAIN = False
        if "heads.weight" in self.weights:
            cfg.MODEL.HEADS.NUM_CLASSES = len(self.weights["heads.weight"])
        cfg.merge_from_list([part for pair in (files or {}).items() for part in pair])
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).state_dict()
        for name in [*model, *(name for name in self.weights if name not in model)]:
            shapes = [tuple(d[name].shape) if name in d else None for d in (self.weights, model)]
            if shapes[0] is None:
                wrong.append(f"{name} is missing")
            elif shapes[1] is None:
                wrong.append(f"{name} does not exist in the model")
            elif shapes[0] != shapes[1]:
                wrong.append(f"{name} has shape {shapes[0]}, the model needs {shapes[1]}")
        if wrong:
            raise UserError(f"the checkpoint does not fit the config's model: {'; '.join(wrong)}")


# Both published programs hold three whole ResNets: of two only the stem is run, of one everything
# but the stem.
RENAMED: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = (
    (r"visible_module\.visible\.conv1\.", "backbone.visible_stem.0."),
    (r"visible_module\.visible\.bn1\.", "backbone.visible_stem.1."),
    (r"thermal_module\.thermal\.conv1\.", "backbone.infrared_stem.0."),
    (r"thermal_module\.thermal\.bn1\.", "backbone.infrared_stem.1."),
    (r"base_resnet\.base\.layer([1-4])\.", lambda match: f"backbone.stages.{int(match[1]) - 1}."),
    (r"global_bottleneck\.", "heads.bottleneck.0."),
    (r"global_classifier\.weight$", "heads.weight"),
    (r"local_bottleneck\.", "frame_heads.bottleneck.0."),
    (r"local_classifier\.weight$", "frame_heads.weight"),
)
NEVER_RUN = "the published program never runs it"
DROPPED = (
    (
        r"(visible_module\.visible|thermal_module\.thermal)\.(layer[1-4]|fc)\.",
        "only the stem of this ResNet is run",
    ),
    (r"base_resnet\.base\.(conv1|bn1)\.", "each modality has its own stem"),
    (r"base_resnet\.base\.fc\.", NEVER_RUN),
)
SETTINGS: dict[str, object] = {
    "MODEL.BACKBONE.PADDED_POOL": True,
    "MODEL.BACKBONE.LAST_STRIDE": 1,
    "MODEL.HEADS.GEM_P": 3.0,
}


def _module_of(name: str) -> str:
    """The module that a dropped weight is listed under: a stage of a ResNet, or its own module."""
    parts = name.split(".")
    return ".".join(parts[:3] if parts[1] in ("visible", "thermal", "base") else parts[:-1])
