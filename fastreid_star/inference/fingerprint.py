"""What features were made with: two sets of features may be compared where these are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fastreid.config import CfgNode

# Sections and keys that decide how a trained model turns frames into features ...
_WITH_EFFECT = (
    "MODEL",
    "INPUT.SIZE_TEST",
    "INPUT.CLIP.LENGTH",
    "INPUT.BLANK",
    "SOLVER.FAST_FLOAT32",
)
# ... without those of them that only training reads, or that say how to compute and not what.
_WITHOUT_EFFECT = (
    "MODEL.CHANNELS_LAST",
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
    """A model and the config keys that matter for its features.

    Args:
        weights: SHA-256 of all weights and buffers, in hexadecimal.
        config: key -> value, as JSON has them.
    """

    weights: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, model: torch.nn.Module, cfg: CfgNode) -> Fingerprint:
        """The fingerprint of a model built from a config."""
        config = {
            key: value
            for key, value in _leaves(cfg)
            if _any(key, _WITH_EFFECT) and not _any(key, _WITHOUT_EFFECT)
        }
        return cls(weights_digest(model), json.loads(json.dumps(config)))

    def differences(self, other: Fingerprint) -> list[str]:
        """In what another one differs, each in a few words; empty where features may be compared."""
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
            ValueError: it is something else.
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


def _leaves(node: CfgNode, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _any(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is one of these or in a section of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
