"""The options of the synthetic dataset: ``cfg.DATASETS.SYNTHETIC`` as a checked record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from fastreid.config import CfgNode

from fastreid_star.errors import UserError

# The smallest and the largest value of each option. A pid has four digits in the file names.
RANGES = {
    "train_ids": (1, 4999),
    "test_ids": (1, 4999),
    "tracklets": (1, 1000),
    "frames": (1, 1000),
    "size": (16, 2048),
    "occlusion": (0, 1),
    "blur": (0, 100),
    "joint_noise": (0, 1),
    "swapped": (0, 1),
    "missing": (0, 1),
    "seed": (0, 2**32),
}


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """The fields of ``cfg.DATASETS.SYNTHETIC``, with the same names and defaults.

    Args:
        train_ids: identities in the training set.
        test_ids: identities in the test set, none of them in training.
        tracklets: tracklets of each identity in each modality.
        frames: frames of a tracklet.
        size: height and width of a frame in pixels.
        occlusion: share of tracklets in which something hides a part of the person, 0 to 1.
        blur: largest standard deviation of the blur, in pixels of a 64-pixel-high frame.
        background: clutter behind the person; False: one gray.
        joint_noise: standard deviation of the joints' noise, as a share of the frame's height.
        detections: frames are crops as a detector gives them: their size and their aspect vary
            within a tracklet, and some cut off a part of the body. A person is about as tall as
            `size`; its width is not used.
        swapped: share of infrared frames in which left and right joints are swapped, 0 to 1.
        missing: share of infrared joints that are missing, 0 to 1.
        seed: the same seed and options give the same bytes.

    Raises:
        UserError: a value is outside its range; the message names the config key.
    """

    train_ids: int = 96
    test_ids: int = 32
    tracklets: int = 5
    frames: int = 24
    size: tuple[int, int] = (64, 32)
    occlusion: float = 0.6
    blur: float = 0.6
    background: bool = True
    joint_noise: float = 0.015
    seed: int = 0
    detections: bool = False
    swapped: float = 0.0
    missing: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "size", tuple(self.size))
        if len(self.size) != 2 or not all(isinstance(side, int) for side in self.size):
            raise UserError(
                f"DATASETS.SYNTHETIC.SIZE is {list(self.size)}; it must be height and width in "
                "whole pixels, such as [64, 32]"
            )
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not all(least <= number <= most for number in np.atleast_1d(value)):
                raise UserError(
                    f"DATASETS.SYNTHETIC.{name.upper()} is {value}; it must be {least} to {most}"
                )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SyntheticOptions:
        """The options in ``cfg.DATASETS.SYNTHETIC``."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(cfg.DATASETS.SYNTHETIC, name.upper()) for name in names})

    def to_dict(self) -> dict:
        """The options as plain JSON values."""
        return {**dataclasses.asdict(self), "size": list(self.size)}
