"""Extraction with a stub in place of a network."""

from pathlib import Path

import numpy as np
import pytest

from fastreid_star.pose.extraction import extract_share, finish
from fastreid_star.pose.frames import frames_of_folder

CROPS, BROKEN = 60, {7: "cut", 23: "empty", 59: "text"}


class Stub:
    """Joints that depend on the pixels of a crop and on the other crops of its batch.

    Joint v of a crop: (mean of channel 0, sum of the batch's means, v / 17).

    Args:
        on_batch: called with the number of each batch before it is estimated.
    """

    def __init__(self, on_batch=lambda number: None):
        self.on_batch, self.batches, self.estimated = on_batch, 0, 0

    @staticmethod
    def prepare(image):
        return image.mean(axis=(0, 1))

    def estimate(self, prepared):
        self.on_batch(self.batches)
        self.batches += 1
        self.estimated += len(prepared)
        means = np.stack(prepared)
        joints = np.empty((len(means), 17, 3), np.float32)
        joints[..., 0] = means[:, :1]
        joints[..., 1] = means.sum()
        joints[..., 2] = np.arange(17) / 17
        return joints

    def describe(self):
        return {"backend": "stub", "score": "none", "input_size": (1, 1)}


def extract(images, output, stub=None, **options):
    """The command's work for the crops of a folder, always on the same date."""
    frames = frames_of_folder(images)
    options = {"batch_size": 4, "part": 8, "workers": 0, "progress": False, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        extract_share(frames, output, stub or Stub(), **options)
        return finish(frames, output, overwrite=options.get("overwrite", False))


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
