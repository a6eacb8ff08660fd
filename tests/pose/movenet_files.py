"""MoveNet's files in the published format, with random weights; and whether the trained ones are here."""

import json

import pytest
import torch

from fastreid_star.pose import movenet_weights
from fastreid_star.pose.estimator import sha256
from fastreid_star.pose.movenet_network import MoveNet
from fastreid_star.pose.movenet_weights import FILES_SHA256, cache_folder, published_names

TINY = {"size": 64, "width": 0.25}
needs_weights = pytest.mark.skipif(
    not all(
        (cache_folder() / name).is_file() and sha256([cache_folder() / name]) == digest
        for name, digest in FILES_SHA256.items()
    ),
    reason="needs MoveNet's weights: run `fastreid-star skeletons --fetch` once",
)


def random_network(seed=0, **options):
    """A small network whose maps differ from place to place."""
    torch.manual_seed(seed)
    network = MoveNet(**TINY, **options)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 4:
                weight *= 3 if weight.shape[1] == 1 else 2
        network.prior.uniform_(0.5, 1)
    return network.half().float().eval()  # the files have half the precision


def write_files(network, path):
    """Write a network as the ``.json`` and ``.bin`` files of TensorFlow.js."""
    entries, content = [], b""
    state = network.state_dict()
    for own, name in reversed(published_names(len(network.blocks)).items()):
        values = state[own]
        if own.endswith("weight"):
            depthwise = "depthwise" in own
            values = values.permute(2, 3, 0, 1) if depthwise else values.permute(2, 3, 1, 0)
        if own == "prior":
            values = values[..., None]
        quantization = {"dtype": "float16", "original_dtype": "float32"}
        entry = {"name": name, "shape": [*values.shape], "dtype": "float32"}
        entries.append({**entry, "quantization": quantization})
        content += values.numpy().astype("<f2").tobytes()
    entries.append({"name": "axis", "shape": [], "dtype": "int32"})
    content += b"\1\0\0\0"
    text = {"weightsManifest": [{"paths": [path.with_suffix(".bin").name], "weights": entries}]}
    path.write_text(json.dumps(text))
    path.with_suffix(".bin").write_bytes(content)


@pytest.fixture
def tiny_files(tmp_path, monkeypatch):
    """A folder with the files of a small random network in place of Thunder."""
    monkeypatch.setitem(movenet_weights.MODELS, "thunder", TINY)
    folder = tmp_path / "movenet"
    folder.mkdir()
    write_files(random_network(), folder / "movenet-thunder.json")
    return folder
