"""Tracklets of a dataset, as a user gives them to a predictor."""

import numpy as np

from fastreid_star.data.io import read_frame
from fastreid_star.data.tracklets import TrackletInput


def from_files(tracklets, store):
    return [
        TrackletInput(
            [t.path(k) for k in range(len(t))],
            t.modality,
            skeletons=store,
            keys=[t.key(k) for k in range(len(t))],
        )
        for t in tracklets
    ]


def from_memory(tracklets, store, image=np.asarray):
    return [
        TrackletInput(
            [image(read_frame(t.path(k))) for k in range(len(t))],
            t.modality.name.lower(),
            skeletons=store.read([t.key(k) for k in range(len(t))])[0],
        )
        for t in tracklets
    ]
