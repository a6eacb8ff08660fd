"""The config keys of MITML."""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
TRAINING_KEYS = ("MODEL.MITML.CONFUSION_EPOCH",)


def add_config(cfg: CN) -> None:
    """Add ``MODEL.MITML`` to a fast-reid config, in place."""
    cfg.MODEL.MITML = CN()
    # The epoch, counted from 0, in which ModalityConfusionLoss begins to train. Before it, the
    # modality classifier learns alone.
    cfg.MODEL.MITML.CONFUSION_EPOCH = 60
