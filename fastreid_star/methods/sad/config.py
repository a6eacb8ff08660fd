"""The config keys of SAD."""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
TRAINING_KEYS = ("MODEL.SAD.AUGMENT", "MODEL.SAD.STD")


def add_config(cfg: CN) -> None:
    """Add ``MODEL.SAD`` to a fast-reid config, in place."""
    cfg.MODEL.SAD = CN()
    # Style augmentation of normalized training frames: infrared frames are multiplied by one
    # factor of 0.5 to 1.5, visible frames by one for each channel, and the channels of visible
    # frames are permuted.
    cfg.MODEL.SAD.AUGMENT = True
    # Standard deviation in AdaIN: sqrt_var (sqrt(var + 1e-5), whose gradient is bounded on flat
    # maps) | release (std + 1e-6, as in the authors' program).
    cfg.MODEL.SAD.STD = "sqrt_var"
