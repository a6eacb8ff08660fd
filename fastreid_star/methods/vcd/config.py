"""The config keys of VCD."""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
TRAINING_KEYS = ("MODEL.VCD.READING",)


def add_config(cfg: CN) -> None:
    """Add ``MODEL.VCD`` to a fast-reid config, in place."""
    cfg.MODEL.VCD = CN()
    # Divergence of the distillations: default (Kullback-Leibler, which is least where both
    # distributions are equal) | authors (what the published program computes: it gives
    # probabilities to a function that takes their logarithms, which makes it nearly inert).
    cfg.MODEL.VCD.READING = "default"
