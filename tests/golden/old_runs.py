"""Checkpoints in the layout of release 0.1.0, made of seeded numbers, and the features they gave.

`old_runs.json` holds the config, the names and the shapes of each; `old_runs.npz` the features of
one fixed batch, computed by release 0.1.0.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
LAYOUTS, FEATURES = HERE / "old_runs.json", HERE / "old_runs.npz"


def weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Seeded numbers under these names; variances are positive."""
    made = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            made[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            made[name] = 0.1 * torch.randn(shape, generator=generator)
    return made


def batch(clips: int = 4, length: int = 3) -> dict[str, torch.Tensor]:
    """A fixed batch of clips with skeletons, one of them without."""
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([16.0, 32.0, 1.0])
    skeletons = torch.rand(clips, length, 17, 3, generator=generator) * size
    has_skeleton = torch.ones(clips, length, dtype=torch.bool)
    has_skeleton[-1] = False
    return {
        "images": torch.randint(
            256, (clips, length, 3, 32, 16), dtype=torch.uint8, generator=generator
        ),
        "modality": torch.tensor([2, 2, 1, 1]),
        "skeletons": skeletons,
        "has_skeleton": has_skeleton,
    }


def layouts() -> dict[str, dict]:
    return json.loads(LAYOUTS.read_text(encoding="utf-8"))


def features() -> dict[str, np.ndarray]:
    with np.load(FEATURES) as file:
        return {name: file[name] for name in file.files}
