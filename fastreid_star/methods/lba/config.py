"""The config keys of LbA."""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
TRAINING_KEYS = ("MODEL.LBA.READING",)


def add_config(cfg: CN) -> None:
    """Add ``MODEL.LBA`` to a fast-reid config, in place."""
    cfg.MODEL.LBA = CN()
    # default | release (the dense triplet loss weighs the positions of every frame by the batch's
    # mean, and the reconstructions change the running statistics of the BatchNorms).
    cfg.MODEL.LBA.READING = "default"
