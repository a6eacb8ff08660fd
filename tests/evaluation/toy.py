"""Random tracklets with features that know a little about the identity."""

import csv

import numpy as np
import torch

from fastreid_star.data.datasets import ListedTracklet
from fastreid_star.structures import Modality, Tracklet

PROTOCOL = {"min_frames": 2, "dataset_name": "Toy"}


def make_tracklet(pid, camid, modality, number=0, frames=2, role=None):
    folder = f"{pid:04d}/{modality.folder}/D{camid}"
    names = tuple(f"{folder}/{number}_{frame}.jpg" for frame in range(frames))
    if role is None:
        return Tracklet(pid, camid, modality, "/data", names)
    return ListedTracklet(pid, camid, modality, "/data", names, role)


def with_roles(tracklets, roles):
    pairs = zip(tracklets, roles, strict=True)
    return [make_tracklet(t.pid, t.camid, t.modality, role=str(role)) for t, role in pairs]


def toy(seed=0, infrared=30, visible=40, pids=8, width=12):
    """Random tracklets, queries first, and features that know a little about the identity."""
    random = np.random.default_rng(seed)
    tracklets = [
        make_tracklet(int(random.integers(pids)), int(random.integers(1, 4)), modality, number)
        for modality, count in ((Modality.INFRARED, infrared), (Modality.VISIBLE, visible))
        for number in range(count)
    ]
    centers = random.standard_normal((pids, width))
    features = np.array([centers[t.pid] for t in tracklets]) + 1.5 * random.standard_normal(
        (len(tracklets), width)
    )
    return torch.tensor(features, dtype=torch.float32), tracklets


def feed(evaluator, features, indexes, batch=7):
    for start in range(0, len(indexes), batch):
        index = torch.as_tensor(indexes[start : start + batch])
        evaluator.process({"index": index}, features[index])


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
