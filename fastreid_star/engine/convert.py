"""Checkpoints of two published programs as ours: SAADG (ACM MM 2023) and SDTG, the program of STAR's authors.

Both are ``torch.save({"net": state_dict, "mAP": ..., "epoch": ...})`` of a network ``embed_net`` that holds three whole
ResNets: two of which only the stem is run, and one of which everything but the stem is. A converted checkpoint gives
the features of theirs under a config with their settings, see :data:`SETTINGS`; every name of theirs is used, listed as
known to be without effect on the features, or listed as unknown.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from fastreid_star.engine.checkpoint import load_plain
from fastreid_star.errors import UserError


@dataclass
class Conversion:
    """What became of a published checkpoint.

    Attributes:
        kind: ``saadg`` or ``sdtg``.
        weights: our state dict.
        used: their names whose values are in `weights`.
        dropped: their names that are known to have no effect on the features, and why.
        unknown: their names that this module does not know, and whose values are in no use.

    Their names are without the ``module.`` of data-parallel training.
    """

    kind: str
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def report(self) -> str:
        """All names in a few lines: dropped ones by module, unknown ones one by one."""
        lines = [f"{self.kind}: {len(self.used)} names became {len(self.weights)} weights of ours"]
        modules: dict[tuple[str, str], int] = {}
        for name, reason in self.dropped.items():
            module = ".".join(
                name.split(".")[:3] if name.startswith(_RESNETS) else name.split(".")[:-1]
            )
            modules[reason, module] = modules.get((reason, module), 0) + 1
        lines += [
            f"dropped {module}.* ({count} names): {reason}"
            for (reason, module), count in sorted(modules.items())
        ]
        lines += [f"unknown, not used: {name}" for name in self.unknown]
        return "\n".join(lines)


_RESNETS = ("visible_module.visible.", "thermal_module.thermal.", "base_resnet.base.")
_STEM_ONLY = "only the stem of this ResNet is run"
_STAGES_ONLY = "each modality has a stem of its own, the one of the shared ResNet is not run"
_TRAINING_ONLY = "the graph interaction takes part in training only"
_NEVER_RUN = "the program makes it and never runs it"

# (the beginning of their name, or all of it; what it becomes with us)
_RENAMED: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = (
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
_RENAMED_SDTG = (
    *_RENAMED,
    (r"fc1\.", "corrector.encoder.fc."),
    (r"lstm_edge\.", "corrector.encoder.lstm."),
    (r"time_guide\.cross_attn\.", "corrector.attend_visual."),  # queries are the bones' states
    (r"time_guide\.reverse_cross_attn\.", "corrector.attend_time."),
    (r"time_guide\.ffn\.([02])\.", r"corrector.ffn.\1."),
    (r"gat\.conv([12])\.(att_src|att_dst|bias|lin\.weight)$", r"heads.gat.conv\1.\2"),
    (
        r"gat\.conv([12])\.lin_src\.weight$",
        r"heads.gat.conv\1.lin.weight",
    ),  # torch-geometric before 2.5
    (r"pose_bottleneck\.", "heads.guide_norm."),
    (r"pose_classifier\.", "heads.pose_classifier."),
    (r"GuidedAggModule\.fc_layers\.(\d+)\.", r"heads.guide_layer.\1."),  # joined in convert_sdtg
)
# (the beginning of their name, why it is left out)
_DROPPED = (
    (r"(visible_module\.visible|thermal_module\.thermal)\.(layer[1-4]|fc)\.", _STEM_ONLY),
    (r"base_resnet\.base\.(conv1|bn1)\.", _STAGES_ONLY),
    (r"base_resnet\.base\.fc\.", _NEVER_RUN),
)
_DROPPED_SAADG = (*_DROPPED, (r"(intra|inter)_gcn_(conv|bottleneck|classifier)\.", _TRAINING_ONLY))
_DROPPED_SDTG = (
    *_DROPPED,
    (r"bn\.", _NEVER_RUN),
    (r"time_guide\.bn_enhanced_(origin|time_guide)\.", _NEVER_RUN),
)

_BASELINE_SETTINGS: dict[str, object] = {
    "MODEL.BACKBONE.PADDED_POOL": True,
    "MODEL.BACKBONE.LAST_STRIDE": 1,
    "MODEL.HEADS.GEM_P": 3.0,
}
# What a config must say for the converted weights to give the features of theirs: settings that no shape gives away.
SETTINGS: dict[str, dict[str, object]] = {
    "saadg": _BASELINE_SETTINGS,
    "sdtg": {
        **_BASELINE_SETTINGS,
        "MODEL.STAR.BONES": "release",
        "MODEL.STAR.CORRECTOR": "release",
        "MODEL.STAR.GUIDE": "release",
        "MODEL.STAR.GRAPH": "release",
        "MODEL.STAR.EXPONENTS": [0.7, 1.0, 3.0, 5.0, 7.0],
    },
}


def detect(state: Mapping[str, torch.Tensor]) -> str:
    """Whose state dict it is: ``saadg`` or ``sdtg``.

    Raises:
        UserError: neither program's.
    """
    modules = {name.split(".")[0] for name in _without_prefix(state)}
    if {"base_resnet", "global_bottleneck", "time_guide", "GuidedAggModule"} <= modules:
        return "sdtg"
    if {"base_resnet", "global_bottleneck"} <= modules and not modules & {
        "time_guide",
        "GuidedAggModule",
    }:
        return "saadg"
    raise UserError(
        "the checkpoint is neither SAADG's nor SDTG's: expected weights of base_resnet and global_bottleneck (and of "
        f"time_guide and GuidedAggModule), found those of {', '.join(sorted(modules)[:8]) or 'nothing'}"
    )


def convert(state: Mapping[str, torch.Tensor]) -> Conversion:
    """Convert either program's state dict; see :func:`detect`."""
    return {"saadg": convert_saadg, "sdtg": convert_sdtg}[detect(state)](state)


def convert_saadg(state: Mapping[str, torch.Tensor]) -> Conversion:
    """SAADG's state dict to that of our :class:`~fastreid_star.modeling.SAD`."""
    return _rename(Conversion("saadg"), _without_prefix(state), _RENAMED, _DROPPED_SAADG)


def convert_sdtg(state: Mapping[str, torch.Tensor]) -> Conversion:
    """SDTG's state dict to that of our :class:`~fastreid_star.modeling.STAR` in `release` reading.

    Raises:
        UserError: its graph attention has different matrices for sources and targets, or the linear layers of its
            pooling are not numbered through.
    """
    state = _without_prefix(state)
    conversion = Conversion("sdtg")
    rest = dict(state)
    for name in state:
        twin = name.replace(".lin_dst.", ".lin_src.")
        if re.match(r"gat\.conv[12]\.lin_dst\.weight$", name) and twin in state:
            if not torch.equal(state[name], state[twin]):
                raise UserError(
                    f"{name} differs from {twin}: this is not the graph attention of the SDTG program"
                )
            conversion.dropped[name] = "the same matrix as lin_src, saved twice"
            del rest[name]
    _rename(conversion, rest, _RENAMED_SDTG, _DROPPED_SDTG)
    for kind in ("weight", "bias"):
        layers = {}
        for name in list(conversion.weights):
            if match := re.match(rf"heads\.guide_layer\.(\d+)\.{kind}$", name):
                layers[int(match[1])] = conversion.weights.pop(name)
        if sorted(layers) != list(range(len(layers))):
            raise UserError(
                f"GuidedAggModule.fc_layers has the layers {sorted(layers)}, one of them is missing"
            )
        if layers:
            conversion.weights[f"heads.guide_layer.{kind}"] = torch.cat(
                [layers[k] for k in sorted(layers)]
            )
    return conversion


def require_fit(conversion: Conversion, cfg: CfgNode) -> None:
    """See that the config's model has these weights, all of them and in these shapes, and the program's settings.

    The number of identities is the checkpoint's.

    Raises:
        UserError: it does not, with every name or key that differs.
    """
    wrong = []
    for key, value in SETTINGS[conversion.kind].items():
        found = functools.reduce(getattr, key.split("."), cfg)
        found = list(found) if isinstance(found, tuple) else found
        if found != value:
            wrong.append(f"{key} is {found}, theirs {value}")
    if wrong:
        raise UserError(
            f"with this config the weights would give other features than theirs: {'; '.join(wrong)}"
        )

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    if "heads.weight" in conversion.weights:
        cfg.MODEL.HEADS.NUM_CLASSES = len(conversion.weights["heads.weight"])
    cfg.freeze()
    own = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).state_dict()
    theirs = conversion.weights
    wrong = [f"{name} is missing" for name in own if name not in theirs]
    wrong += [f"{name} has no place in the model" for name in theirs if name not in own]
    wrong += [
        f"{name} is {tuple(theirs[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in theirs and own[name].shape != theirs[name].shape
    ]
    if wrong:
        raise UserError(f"the checkpoint does not fit the config's model: {'; '.join(wrong)}")


def read_published(path: str) -> dict[str, torch.Tensor]:
    """The state dict in a published checkpoint, on the CPU; no code in the file is run.

    Raises:
        UserError: there is no such file, it is damaged, it holds more than tensors and plain values, or no state dict.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with _numpy_numbers():
            data = load_plain(path)
    except Exception as error:  # a damaged file can raise anything from EOFError to UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"checkpoint {path} cannot be read ({reason}): it is damaged, or holds more than tensors and numbers"
        ) from error
    state = data.get("net", data) if isinstance(data, dict) else None
    if (
        not isinstance(state, dict)
        or not state
        or not all(torch.is_tensor(value) for value in state.values())
    ):
        raise UserError(
            f"checkpoint {path} holds no state dict under 'net': it was not written by SAADG or SDTG"
        )
    return {name: value.detach() for name, value in state.items()}


def _without_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict without the ``module.`` that (Distributed)DataParallel puts before every name."""
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _rename(
    conversion: Conversion, state: Mapping[str, torch.Tensor], renamed, dropped
) -> Conversion:
    """Sort every name of `state` into `conversion`, by the first rule that it begins with."""
    for name, value in state.items():
        reason = next((reason for pattern, reason in dropped if re.match(pattern, name)), None)
        rule = next(((pattern, ours) for pattern, ours in renamed if re.match(pattern, name)), None)
        if rule is not None:
            ours = re.sub(*rule, name, count=1)
            if ours in conversion.weights:
                raise UserError(f"the checkpoint has {ours} twice, the second time as {name}")
            conversion.weights[ours] = value
            conversion.used.append(name)
        elif reason is not None:
            conversion.dropped[name] = reason
        else:
            conversion.unknown.append(name)
    return conversion


def _numpy_numbers() -> contextlib.AbstractContextManager:
    """Let numbers of numpy pass ``weights_only``: their ``mAP`` is one. Under the module names of numpy 1 and 2."""
    if not hasattr(torch.serialization, "safe_globals"):
        return contextlib.nullcontext()
    makers = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):

        def scalar(dtype, value):
            if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
                raise TypeError("a numpy value that is no number")
            return np.frombuffer(value, dtype, count=1)[0]

        scalar.__module__, scalar.__qualname__ = module, "scalar"
        makers.append(scalar)
    types = {
        type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
    }
    return torch.serialization.safe_globals([np.dtype, *types, *makers])
