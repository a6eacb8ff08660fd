"""A store of silhouettes: one PNG file for each frame, black and white, in the size of the frame.

The file of a frame has the frame's key for a path: ``0001/ir/D4/1.png`` in the store's folder for
``0001/ir/D4/1.jpg``, see :meth:`fastreid_star.structures.Tracklet.key`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from fastreid_star.errors import UserError


def write_silhouette(folder: str | os.PathLike, key: str, mask: np.ndarray) -> None:
    """Store where the person is in a frame.

    Args:
        folder: of the store; folders are created.
        key: of the frame.
        mask: bool [h, w].
    """
    path = Path(folder) / f"{key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def read_silhouette(folder: str | os.PathLike, key: str) -> np.ndarray:
    """Where the person is in a frame: bool [h, w].

    Raises:
        UserError: the store has no such frame, or its file is damaged.
    """
    path = Path(folder) / f"{key}.png"
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) > 127
    except (OSError, SyntaxError) as error:
        raise UserError(f"the silhouette {path} cannot be read: {error}") from error
