"""Crops, and the store that an undisturbed extraction makes of them."""

import numpy as np
import pytest
from PIL import Image

from .extracting import BROKEN, CROPS, content, extract


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    for number in range(CROPS):
        size = (int(rng.integers(20, 40)), int(rng.integers(8, 20)), 3)
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / f"{number}.png")
    for number, kind in BROKEN.items():
        file = folder / f"{number}.png"
        content = {"cut": file.read_bytes()[:80], "empty": b"", "text": b"this is no picture"}[kind]
        file.write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def whole(images, tmp_path_factory):
    """The store of an undisturbed extraction."""
    output = tmp_path_factory.mktemp("whole") / "store"
    assert extract(images, output)
    return content(output)
