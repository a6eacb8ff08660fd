"""The fingerprint of a model: features may be compared if their fingerprints are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from fastreid.config import CfgNode

# The config that decides how frames become features, and keys in it that do not change features.
_SECTIONS = ("MODEL.", "INPUT.SIZE_TEST", "INPUT.CLIP.LENGTH", "INPUT.BLANK")
_IGNORED = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN", "MODEL.LOSSES",
            "MODEL.HEADS.NUM_CLASSES")  # fmt: skip


def fingerprint(model: torch.nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """The SHA-256 of the weights, and the config keys that matter for the features.

    Returns:
        ``{"weights_sha256": str, "config": {key: value}}``, as JSON can store it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    config = {
        key: value
        for key, value in _leaves(cfg)
        if key.startswith(_SECTIONS) and not key.startswith(_IGNORED)
    }
    return {"weights_sha256": digest.hexdigest(), "config": json.loads(json.dumps(config))}


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """How two fingerprints differ. Keys that only one of them has are ignored."""
    found = ["other weights"] if theirs["weights_sha256"] != ours["weights_sha256"] else []
    for key in sorted(theirs["config"].keys() & ours["config"].keys()):
        if theirs["config"][key] != ours["config"][key]:
            found.append(f"{key} {theirs['config'][key]} there, {ours['config'][key]} here")
    return found


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
