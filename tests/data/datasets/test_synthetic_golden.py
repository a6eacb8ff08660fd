"""The lists, frames and joints of SyntheticVCM never change, bit for bit."""

import hashlib

import numpy as np
import pytest

from fastreid_star.data.datasets.synthetic import SyntheticOptions, render, write_synthetic_vcm

CASES = {
    "small": SyntheticOptions(2, 1, 2, 12, (64, 32), occlusion=1.0),
    "plain": SyntheticOptions(1, 1, 1, 3, (48, 40), 0.0, 0.0, False, 0.0, seed=7),
}


def digests(root, options) -> dict[str, str]:
    write_synthetic_vcm(root, options)
    lists, images = hashlib.sha256(), hashlib.sha256()
    for path in sorted((root / "info").glob("*.txt")):
        lists.update(path.name.encode() + path.read_bytes())
    for path in sorted(root.rglob("*.jpg")):
        images.update(str(path.relative_to(root)).encode() + path.read_bytes())
    joints = np.load(root / "skeletons" / "skeletons.npy")
    return {
        "lists": lists.hexdigest()[:16],
        "images": images.hexdigest()[:16],
        "joints": hashlib.sha256(joints.tobytes()).hexdigest()[:16],
    }


EXPECTED = {
    "small": {
        "lists": "828900390cf70a3e",
        "images": "5cacb169447e7202",
        "joints": "0a563b858799779f",
    },
    "plain": {
        "lists": "7c6a86739d6b6cbb",
        "images": "801eb01cfc9c6091",
        "joints": "4225903d5ad9d860",
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_bytes_as_ever(name, tmp_path, monkeypatch):
    if name == "plain":
        monkeypatch.setattr(render, "SCALE", 0.0)
    assert digests(tmp_path / "SyntheticVCM", CASES[name]) == EXPECTED[name]
