"""The config keys of M3-ReID.

Its other parts have keys that all methods share: ``MODEL.BACKBONE.STREAMS`` and ``NON_LOCAL``, and
``DATALOADER.SAMPLER_TRAIN NaiveIdentitySampler``.
"""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
TRAINING_KEYS = ("MODEL.M3REID.AUGMENT", "MODEL.M3REID.ERASING")


def add_config(cfg: CN) -> None:
    """Add ``MODEL.M3REID`` to a fast-reid config, in place."""
    cfg.MODEL.M3REID = CN()
    # Style augmentation of training clips, the same in all frames of a clip: half of the visible
    # clips become gray with random weights of the colors; then visible clips are multiplied by a
    # factor of 0.5 to 1.5 for each channel, infrared clips by one factor.
    cfg.MODEL.M3REID.AUGMENT = True
    # Share of training clips in which one rectangle is erased, the same in all frames.
    # INPUT.REA erases another rectangle in each frame: switch it off.
    cfg.MODEL.M3REID.ERASING = 0.5
