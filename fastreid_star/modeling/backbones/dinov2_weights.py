"""Weights of DINOv2 in the layout of the original and in that of transformers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from fastreid_star.errors import UserError
from fastreid_star.weights import is_state, read_file, without_prefix

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")

# names of transformers' Dinov2Model, versions 4 and 5 -> names of the original
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"blocks.\1.\2."),
        (r"^encoder\.layer\.(\d+)\.attention\.(output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
        (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
        (r"^layernorm\.", "norm."),
    )
)
_PROJECTION = re.compile(
    r"^encoder\.layer\.(\d+)\.attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(weight|bias)$"
)
_MASK_TOKENS = ("mask_token", "embeddings.mask_token")  # only DINOv2's own training uses it


def read_dinov2(path: str) -> dict[str, torch.Tensor]:
    """Read DINOv2's weights under the original names, in float32; no code in a file is run.

    Args:
        path: the original ``.pth``, a file with transformers' names, or a folder that transformers
            has saved.

    Raises:
        UserError: the path does not exist or holds no weights, or safetensors is needed and not
            installed.
    """
    if os.path.isdir(path):
        found = [os.path.join(path, name) for name in FOLDER_FILES]
        found = [file for file in found if os.path.isfile(file)]
        if not found:
            raise UserError(f"{path} contains neither {' nor '.join(FOLDER_FILES)}")
        path = found[0]
    data = read_file(path)
    state = data.get("model", data)
    if not is_state(state):
        raise UserError(f"{path} holds no weights of DINOv2")
    names = original_names(without_prefix(state))
    return {name: value.float() for name, value in names.items()}


def original_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of transformers' Dinov2Model, or the original one, with the original names.

    The projections of query, key and value are joined to one matrix. The mask token, which only
    DINOv2's own training reads, is left out. Other names are kept.
    """
    state = {name.removeprefix("dinov2."): value for name, value in state.items()}
    found: dict[str, torch.Tensor] = {}
    joined: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        if name in _MASK_TOKENS:
            continue
        if match := _PROJECTION.match(name):
            layer, which, kind = match.groups()
            joined.setdefault(f"blocks.{layer}.attn.qkv.{kind}", {})[which[0]] = value
            continue
        for pattern, ours in _RENAMED:
            name = pattern.sub(ours, name)
        found[name] = value
    for name, parts in joined.items():
        found[name] = torch.cat([parts[letter] for letter in "qkv" if letter in parts])
    return found
