"""The fingerprint of a model: features may be compared if their fingerprints are equal."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from fastreid.config import CfgNode

from fastreid_star.engine.config_changes import changes_features, flatten


def fingerprint(model: torch.nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """The SHA-256 of the weights, and the config keys that matter for the features.

    The weights of the losses (``losses.*``) are left out: no feature depends on them, and
    they are not read from a checkpoint for inference.

    Returns:
        ``{"weights_sha256": str, "config": {key: value}}``, as JSON can store it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("losses."):
            continue
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    config = {key: value for key, value in flatten(cfg).items() if changes_features(key)}
    return {"weights_sha256": digest.hexdigest(), "config": config}


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """How two fingerprints differ. Keys that only one of them has are ignored."""
    found = ["other weights"] if theirs["weights_sha256"] != ours["weights_sha256"] else []
    for key in sorted(theirs["config"].keys() & ours["config"].keys()):
        there, here = theirs["config"][key], ours["config"][key]
        if there != here:
            found.append(f"{key} {there!r} there, {here!r} here")
    return found
