"""What can be chosen about the synthetic dataset."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from fastreid.config import CfgNode

from fastreid_star.errors import UserError

MOST_IDENTITIES = 9999  # a pid has four digits in the file names


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """The fields of ``cfg.DATASETS.SYNTHETIC``, under the same names and with the same defaults.

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

    def __post_init__(self):
        for name in ("train_ids", "test_ids", "tracklets", "frames"):
            value = getattr(self, name)
            _require(_is_whole(value) and value >= 1, name, self, "a whole number, 1 or more")
        _require(
            self.train_ids + self.test_ids <= MOST_IDENTITIES,
            "test_ids",
            self,
            f"at most {MOST_IDENTITIES} together with TRAIN_IDS",
        )
        _require(_is_whole(self.seed) and self.seed >= 0, "seed", self, "a whole number, 0 or more")
        _require(isinstance(self.background, bool), "background", self, "True or False")
        for name, most in (
            ("occlusion", 1.0),
            ("blur", math.inf),
            ("scale", 0.5),
            ("joint_noise", 1.0),
        ):
            value = getattr(self, name)
            good = (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and 0 <= value <= most
            )
            _require(good and math.isfinite(value), name, self, f"between 0 and {most:g}")
        pair = isinstance(self.size, (tuple, list)) and len(self.size) == 2
        _require(
            pair and all(_is_whole(side) and 16 <= side <= 2048 for side in self.size),
            "size",
            self,
            "[height, width], each 16 to 2048",
        )
        object.__setattr__(self, "size", tuple(self.size))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SyntheticOptions:
        """The options in ``cfg.DATASETS.SYNTHETIC``."""
        node = cfg.DATASETS.SYNTHETIC
        return cls(
            **{field.name: getattr(node, field.name.upper()) for field in dataclasses.fields(cls)}
        )

    def to_dict(self) -> dict:
        """The options as plain JSON values."""
        return {**dataclasses.asdict(self), "size": list(self.size)}


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, name: str, options: SyntheticOptions, wanted: str) -> None:
    if not condition:
        raise UserError(
            f"DATASETS.SYNTHETIC.{name.upper()} is {getattr(options, name)!r}; it must be {wanted}"
        )
