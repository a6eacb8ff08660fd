"""The config keys of DinoGRL."""

from fastreid.config import CfgNode as CN

# Keys that do not change the features of a trained model: of training only, or of speed.
# DINOv2's path is one: a checkpoint refuses weights of DINOv2 that it was not trained with.
TRAINING_KEYS = ("MODEL.DINOGRL.DINOV2", "MODEL.DINOGRL.MASK_WEIGHTS")


def add_config(cfg: CN) -> None:
    """Add ``MODEL.DINOGRL`` to a fast-reid config, in place."""
    cfg.MODEL.DINOGRL = CN()
    # default | authors (what the published program computes, its faults included).
    cfg.MODEL.DINOGRL.READING = "default"
    # Weights of the frozen DINOv2: the original .pth, or a folder of transformers. Or a size with
    # random weights, for tests: tiny | vits14 | vitb14 | vitl14.
    cfg.MODEL.DINOGRL.DINOV2 = "dinov2_vits14_pretrain.pth"
    # Rows and columns of DINOv2's patches. Images are resized to fit; silhouettes have twice as
    # many rows and columns.
    cfg.MODEL.DINOGRL.GRID = [32, 16]
    # BigGait's MaskBranch_vits14.pt, whose class 0 is the person. Empty: the mask branch learns
    # from random weights, and which class is the person follows from the borders of the frames.
    cfg.MODEL.DINOGRL.MASK_WEIGHTS = ""
    # The streams that the features consist of: both (with PBMGE, the exchange of their parts) |
    # apart (both, without the exchange) | appearance | gait.
    cfg.MODEL.DINOGRL.STREAMS = "both"
    # Numbers of horizontal stripes that the maps are pooled over; the first must be 1.
    cfg.MODEL.DINOGRL.BINS = [1, 2, 4, 8, 16]
    # A head for clips, such as GATGeMHead, whose pooled feature takes the place of the appearance's
    # first part. MODEL.FRAME_CORRECTOR corrects the frames before. Empty: the first part is pooled
    # from the maps, as in the paper.
    cfg.MODEL.DINOGRL.GUIDE = ""
