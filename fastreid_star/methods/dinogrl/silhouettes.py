"""Learned silhouettes of a test set: into a store, and measured against true ones.

Shapes: T frames, H x W positions.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from fastreid_star.data.clips import ClipDataset, collate_clips, frame_indices
from fastreid_star.data.silhouettes import read_silhouette, write_silhouette
from fastreid_star.methods.dinogrl.model import DinoGRL
from fastreid_star.structures import Modality, Tracklet

BATCH = 16  # clips that are encoded at once


def intersection_over_union(found: np.ndarray, true: np.ndarray) -> float:
    """Of two bool arrays; 1 if both are empty."""
    union = (found | true).sum()
    return float((found & true).sum() / union) if union else 1.0


def cut_into_clips(tracklets: Sequence[Tracklet], length: int) -> list[Tracklet]:
    """Tracklets of at most T frames that have each frame once.

    Test clips of them show all frames, so that :func:`store_silhouettes` stores all.

    Args:
        tracklets: of any length.
        length: T.
    """
    return [
        replace(tracklet, frames=tracklet.frames[start : start + length])
        for tracklet in tracklets
        for start in range(0, len(tracklet), length)
    ]


def store_silhouettes(
    model: DinoGRL, dataset: ClipDataset, folder: str | os.PathLike
) -> dict[str, list[str]]:
    """Store the learned silhouettes of the frames of all test clips.

    Args:
        model: with a gait stream.
        dataset: test clips. A tracklet that is shorter than the clip repeats its last frame.
        folder: of the store, see :mod:`fastreid_star.data.silhouettes`. The silhouettes have the
            size of the network's images.

    Returns:
        the keys of the frames by the name of the modality.
    """
    keys: dict[str, list[str]] = defaultdict(list)
    for start in range(0, len(dataset), BATCH):
        items = [dataset[index] for index in range(start, min(start + BATCH, len(dataset)))]
        maps, _ = model.silhouettes(collate_clips(items))
        size = items[0]["images"].shape[2:]
        masks = (F.interpolate(maps, size, mode="bilinear") > 0.5).cpu().numpy()
        for item, clip in zip(items, masks, strict=True):
            tracklet = dataset.tracklets[item["index"]]
            name = Modality(tracklet.modality).name.lower()
            shown = frame_indices(len(tracklet), dataset.length, sampling=dataset.sampling)
            for position, mask in zip(shown.tolist(), clip, strict=True):
                write_silhouette(folder, tracklet.key(position), mask)
                keys[name].append(tracklet.key(position))
    return {name: list(dict.fromkeys(found)) for name, found in keys.items()}


def compare_silhouettes(
    found: str | os.PathLike, true: str | os.PathLike, keys: dict[str, list[str]]
) -> dict[str, float]:
    """Mean IoU of two stores by modality; the found ones are resized to the true ones.

    Args:
        found, true: folders of the stores.
        keys: of the frames, by modality.
    """
    means = {}
    for name, frames in keys.items():
        values = []
        for key in frames:
            mask = read_silhouette(true, key)
            own = torch.from_numpy(read_silhouette(found, key))[None, None].float()
            resized = F.interpolate(own, mask.shape, mode="bilinear")[0, 0].numpy() > 0.5
            values.append(intersection_over_union(resized, mask))
        means[name] = float(np.mean(values))
    return means
