"""A store of silhouettes and body shapes: one gray PNG file for each frame, in the frame's size.

255 is the person, 0 the background, and a value between is a probability times 255. The file of a
frame has the frame's key for a path: ``0001/ir/D4/1.png`` in the store's folder for
``0001/ir/D4/1.jpg``, see :meth:`fastreid_star.structures.Tracklet.key`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastreid_star.coco import BONES
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet

RADIUS = 0.04  # half of a limb's thickness, as a share of the frame's height
LIMBS = (*BONES, (5, 12), (6, 11))  # with the diagonals of the trunk, whose middle no bone passes


def shape_path(folder: str | os.PathLike, key: str) -> str:
    """The file of a frame."""
    return os.path.join(folder, f"{key}.png")


def write_shape(folder: str | os.PathLike, key: str, shape: np.ndarray) -> None:
    """Store the body shape of a frame.

    Args:
        folder: of the store; folders are created.
        key: of the frame.
        shape: uint8 [h, w], the probability of the person times 255.
    """
    path = Path(shape_path(folder, key))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(shape).save(path)


def write_silhouette(folder: str | os.PathLike, key: str, mask: np.ndarray) -> None:
    """Store where the person is in a frame: bool [h, w]; see :func:`write_shape`."""
    write_shape(folder, key, mask.astype(np.uint8) * 255)


def read_shape(folder: str | os.PathLike, key: str) -> np.ndarray:
    """The body shape of a frame: uint8 [h, w].

    Raises:
        UserError: the store has no such frame, or its file is damaged.
    """
    path = shape_path(folder, key)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except (OSError, SyntaxError) as error:
        raise UserError(f"the silhouette {path} cannot be read: {error}") from error


def read_silhouette(folder: str | os.PathLike, key: str) -> np.ndarray:
    """Where the person is in a frame: bool [h, w]; see :func:`read_shape`."""
    return read_shape(folder, key) > 127


def require_shapes(folder: str | os.PathLike, tracklets: Sequence[Tracklet]) -> None:
    """Look for the first frames of about a hundred tracklets.

    Raises:
        UserError: the store lacks some of them.
    """
    keys = [tracklet.key(0) for tracklet in tracklets[:: max(1, len(tracklets) // 100)]]
    missing = [key for key in keys if not os.path.isfile(shape_path(folder, key))]
    if missing:
        raise UserError(
            f"DATASETS.SHAPES: {folder} lacks {len(missing)} of {len(keys)} training frames that "
            f"were looked up, first {missing[0]}.png: each training frame needs a body shape, see "
            "docs/sgiel.md"
        )


def on_body(
    joints: torch.Tensor,
    size: tuple[int, int],
    grid: tuple[int, int],
    *,
    found: torch.Tensor | None = None,
) -> torch.Tensor:
    """Whether the center of a patch is nearer than RADIUS to a limb: float ``[N, 1, h, w]``.

    Args:
        joints: ``[N, V, 2]``, x and y in heights of the frame.
        size: height and width of the frame.
        grid: h, w.
        found: bool ``[N, V]``: a limb is drawn if both of its joints were found. None: all were.
    """
    (height, width), (rows, columns) = size, grid
    y = (torch.arange(rows) + 0.5) / rows
    x = (torch.arange(columns) + 0.5) / columns * width / height
    centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).to(joints)  # [h, w, 2]
    starts, ends = (list(side) for side in zip(*LIMBS, strict=True))
    first, last = joints[:, starts], joints[:, ends]
    bone = (last - first)[:, :, None, None]
    to_center = centers - first[:, :, None, None]  # [N, E, h, w, 2]
    share = (to_center * bone).sum(-1) / bone.square().sum(-1).clamp(min=1e-9)
    distance = (to_center - share.clamp(0, 1)[..., None] * bone).norm(dim=-1)
    if found is not None:
        drawn = found[:, starts] & found[:, ends]
        distance = distance.masked_fill(~drawn[:, :, None, None], torch.inf)
    return (distance.amin(1, keepdim=True) < RADIUS).float()


def draw_skeletons(
    tracklets: Sequence[Tracklet], store: SkeletonStore, folder: str | os.PathLike
) -> None:
    """Store drawn limbs as the body shapes of all frames: a crude stand-in for silhouettes.

    A frame without a skeleton gets an empty shape.

    Args:
        tracklets: their frames.
        store: skeletons of these frames.
        folder: of the silhouettes.
    """
    for tracklet in tracklets:
        joints, present = store.read([tracklet.key(index) for index in range(len(tracklet))])
        for index in range(len(tracklet)):
            with Image.open(tracklet.path(index)) as image:
                size = (image.height, image.width)
            places = torch.from_numpy(joints[index : index + 1, :, :2] + 0.5) / size[0]
            found = torch.from_numpy(present[index] & joints[index : index + 1].any(-1))
            limbs = on_body(places, size, size, found=found)[0, 0] > 0
            write_silhouette(folder, tracklet.key(index), limbs.numpy())
