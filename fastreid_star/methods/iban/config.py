"""The config keys of IBAN."""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
TRAINING_KEYS = ("MODEL.IBAN.ANAGLYPH_EPOCH",)


def add_config(cfg: CN) -> None:
    """Add ``MODEL.IBAN`` to a fast-reid config, in place."""
    cfg.MODEL.IBAN = CN()
    # default | authors (what the published program computes: the cross attention mixes channels and
    # frames, and the easy-sample loss pulls other identities too).
    cfg.MODEL.IBAN.READING = "default"
    # The epoch, counted from 0, in which the reconstruction begins, and the cross entropy and the
    # easy-sample loss of the anaglyphs.
    cfg.MODEL.IBAN.ANAGLYPH_EPOCH = 40
