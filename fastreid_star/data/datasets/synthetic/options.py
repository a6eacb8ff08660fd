"""The options of the synthetic dataset: ``cfg.DATASETS.SYNTHETIC`` as a checked record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fastreid.config import CfgNode

from fastreid_star.errors import UserError

MAX_IDENTITIES = 9999  # a pid has four digits in the file names


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
        scale: spread of the person's size in the frame (0.1: 10 % smaller or larger).
        joint_noise: standard deviation of the joints' noise, as a share of the frame's height.
        detections: frames are crops as a detector gives them: their size and their aspect vary
            within a tracklet, and some cut off a part of the body; `size` is their mean size.
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
    scale: float = 0.1
    joint_noise: float = 0.015
    seed: int = 0
    detections: bool = False
    swapped: float = 0.0
    missing: float = 0.0

    def __post_init__(self):
        for name, least in (("train_ids", 1), ("test_ids", 1), ("tracklets", 1), ("frames", 1)):
            self._require(name, _is_whole(getattr(self, name), least), "a whole number, 1 or more")
        fits = self.train_ids + self.test_ids <= MAX_IDENTITIES
        self._require("test_ids", fits, f"at most {MAX_IDENTITIES} together with TRAIN_IDS")
        self._require("seed", _is_whole(self.seed, 0), "a whole number, 0 or more")
        for name in ("background", "detections"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        for name, most in (("occlusion", 1.0), ("blur", 100.0), ("scale", 0.5), ("joint_noise", 1),
                           ("swapped", 1), ("missing", 1)):  # fmt: skip
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self._require(name, number and 0 <= value <= most, f"between 0 and {most:g}")
        pair = isinstance(self.size, tuple | list) and len(self.size) == 2
        good = pair and all(_is_whole(side, 16) and side <= 2048 for side in self.size)
        self._require("size", good, "[height, width], each 16 to 2048")
        object.__setattr__(self, "size", tuple(self.size))

    def _require(self, name: str, condition: bool, wanted: str) -> None:
        if not condition:
            value = getattr(self, name)
            raise UserError(f"DATASETS.SYNTHETIC.{name.upper()} is {value!r}; it must be {wanted}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SyntheticOptions:
        """The options in ``cfg.DATASETS.SYNTHETIC``."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(cfg.DATASETS.SYNTHETIC, name.upper()) for name in names})

    def to_dict(self) -> dict:
        """The options as plain JSON values."""
        return {**dataclasses.asdict(self), "size": list(self.size)}


def _is_whole(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
