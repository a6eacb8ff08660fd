"""Which config keys decide a model's features, and in what two configs differ."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fastreid.config import CfgNode

from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)

# Sections and keys that decide how a trained model turns frames into features ...
_WITH_EFFECT = (
    "MODEL",
    "INPUT.SIZE_TEST",
    "INPUT.CLIP.LENGTH",
    "INPUT.BLANK",
    "SOLVER.FAST_FLOAT32",
)
# ... without those that only training reads, or that change speed and not numbers.
_WITHOUT_EFFECT = (
    "MODEL.CHANNELS_LAST",
    "MODEL.CPU",
    "MODEL.DEVICE",
    "MODEL.NPU",
    "MODEL.WEIGHTS",
    "MODEL.BACKBONE.PRETRAIN",
    "MODEL.BACKBONE.PRETRAIN_PATH",
    "MODEL.FREEZE_LAYERS",
    "MODEL.HEADS.NUM_CLASSES",  # read from the weights
    "MODEL.LOSSES",
    "MODEL.QUEUE_SIZE",
    "MODEL.SAD.AUGMENT",
    "MODEL.SAD.AUGMENT_RANGE",
    "MODEL.SAD.STD",
    "MODEL.STAR.ATTENTION_DROPOUT",
    "MODEL.STAR.GAT_DROPOUT",
    "MODEL.STAR.SKELETON_DROPOUT",
    "MODEL.STAR.SPLIT_LSTM",
)


@dataclass(frozen=True)
class Fingerprint:
    """A model's weights and the config keys that decide its features.

    Features of two models may be compared if their fingerprints are equal.

    Args:
        weights: SHA-256 of all weights and buffers, in hexadecimal.
        config: key -> value, as JSON represents them.
    """

    weights: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, model: torch.nn.Module, cfg: CfgNode) -> Fingerprint:
        """The fingerprint of a model and the config it was built from."""
        config = {key: value for key, value in flatten(cfg).items() if changes_features(key)}
        return cls(weights_digest(model), config)

    def differences(self, other: Fingerprint) -> list[str]:
        """What differs, each in a few words; empty if features may be compared."""
        found = [] if self.weights == other.weights else ["other weights"]
        for key in sorted({*self.config, *other.config}):
            mine, theirs = self.config.get(key), other.config.get(key)
            if mine != theirs:
                found.append(f"{key} {mine} there, {theirs} here")
        return found

    def to_dict(self) -> dict:
        """As JSON can hold it."""
        return {"weights_sha256": self.weights, "config": dict(self.config)}

    @classmethod
    def from_dict(cls, data: Any) -> Fingerprint:
        """From :meth:`to_dict`.

        Raises:
            ValueError: `data` is something else.
        """
        if not isinstance(data, dict) or not isinstance(data.get("weights_sha256"), str):
            raise ValueError("no fingerprint of weights")
        if not isinstance(data.get("config"), dict):
            raise ValueError("no fingerprint of a config")
        return cls(data["weights_sha256"], data["config"])


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights and buffers: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def flatten(cfg: Mapping, prefix: str = "") -> dict[str, Any]:
    """``{"SOLVER.BASE_LR": 0.1, ...}``, with values as JSON has them (tuples are lists)."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def differences(saved: Mapping, cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Keys that both configs have with other values: key -> (saved, now), in alphabetical order."""
    before, now = flatten(saved), flatten(cfg)
    return {
        key: (before[key], now[key])
        for key in sorted(before.keys() & now.keys())
        if before[key] != now[key]
    }


def changes_features(key: str) -> bool:
    """Whether this key decides the features of a trained model."""
    return in_sections(key, _WITH_EFFECT) and not in_sections(key, _WITHOUT_EFFECT)


def in_sections(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is one of `names` or in a section of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


# What a resumed run may change without any effect on its course ...
_FREE_TO_CHANGE = (
    "OUTPUT_DIR",
    "SEED",  # the run keeps its own
    "CUDNN_BENCHMARK",
    "MODEL.CPU",
    "MODEL.DEVICE",
    "MODEL.NPU",
    "MODEL.WEIGHTS",
    "MODEL.BACKBONE.PRETRAIN",
    "MODEL.BACKBONE.PRETRAIN_PATH",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.TESTS",
    "DATASETS.SKELETONS_TEST",
    "SOLVER.LOG_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_KEEP",
    "SOLVER.AMP.MAX_SKIPPED",
    "TEST",
)
# ... and what changes the course in a way that a user may want: it is listed.
_CHANGES_COURSE = (
    "DATASETS.ROOT",
    "SOLVER.AMP",
    "SOLVER.FAST_FLOAT32",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_EPOCH",
)
_LISTED = 6


def check_resumed(saved: Mapping, cfg: CfgNode, *, allow: bool) -> list[str]:
    """Compare a run's config with that of the checkpoint it resumes from.

    Args:
        saved: the checkpoint's config.
        cfg: the run's.
        allow: a change that cannot be continued exactly is listed, not refused.

    Returns:
        the changed keys that have an effect.

    Raises:
        UserError: the run cannot be continued exactly.
    """
    changed = differences(saved, cfg)
    changed = {k: v for k, v in changed.items() if not in_sections(k, _FREE_TO_CHANGE)}
    cosine = cfg.SOLVER.SCHED == "CosineAnnealingLR"
    refused = {
        key: values
        for key, values in changed.items()
        if not in_sections(key, _CHANGES_COURSE) or (cosine and key == "SOLVER.MAX_EPOCH")
    }
    _refuse_or_warn("--resume", refused, changed, allow)
    return list(changed)


def check_evaluated(saved: Mapping, cfg: CfgNode, *, allow: bool) -> None:
    """Compare a config with that of the weights it evaluates, as far as features depend on it.

    Other input (``INPUT``) is listed. Another network (``MODEL``) is refused unless `allow` is set.

    Raises:
        UserError: the network would compute other features than the trained one.
    """
    changed = {k: v for k, v in differences(saved, cfg).items() if changes_features(k)}
    refused = {key: values for key, values in changed.items() if key.startswith("MODEL.")}
    _refuse_or_warn("these weights", refused, changed, allow)


def _refuse_or_warn(what: str, refused: dict, changed: dict, allow: bool) -> None:
    if not changed:
        return
    if refused and not allow:
        raise UserError(
            f"{what}: the config differs from the checkpoint's in {_listed(refused)}; use the "
            "checkpoint's values, or add --allow-changed to apply the new ones"
        )
    logger.warning(f"The config differs from the checkpoint's in {_listed(changed)}")


def _listed(changed: dict[str, tuple[Any, Any]]) -> str:
    shown = [f"{key} ({old!r} -> {new!r})" for key, (old, new) in changed.items()]
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return ", ".join(shown[:_LISTED]) + more
