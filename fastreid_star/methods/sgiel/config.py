"""The config keys of SGIEL."""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
TRAINING_KEYS = ("MODEL.SGIEL.ERASURE", "MODEL.SGIEL.CUTMIX", "MODEL.SGIEL.EMA")


def add_config(cfg: CN) -> None:
    """Add ``MODEL.SGIEL`` to a fast-reid config, in place."""
    cfg.MODEL.SGIEL = CN()
    # What is taken out of a feature: orthogonal (its part in the plane of the columns of P) |
    # columns (as published: the products with the columns at unit length, which is the same only
    # once they are orthogonal).
    cfg.MODEL.SGIEL.ERASURE = "orthogonal"
    # Share of the training steps with CutMix between the modalities.
    cfg.MODEL.SGIEL.CUTMIX = 0.2
    # How fast the evaluated network follows the trained one, as [first epoch, share of the
    # difference in a step] pairs; necks, classifiers and projections follow twice as fast.
    cfg.MODEL.SGIEL.EMA = [[0, 1e-3], [20, 1e-4], [85, 1e-5]]
