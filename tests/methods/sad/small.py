"""Configs, small models and batches of SAD."""

import torch
from fastreid.config import get_cfg

from fastreid_star.methods.sad import SAD

ALL = (
    "CrossEntropyLoss",
    "FrameCrossEntropyLoss",
    "TripletLoss",
    "StyleAttackLoss",
    "StyleDefenseLoss",
)


def config(name="build_resnet_backbone", depth="18x", losses=ALL, size=(64, 32), classes=2):
    cfg = get_cfg()
    cfg.INPUT.SIZE_TRAIN = list(size)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SAD"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.DEPTH = depth
    cfg.MODEL.BACKBONE.FEAT_DIM = 0
    cfg.MODEL.HEADS.NAME = "ClipHead"
    cfg.MODEL.HEADS.NUM_CLASSES = classes
    cfg.MODEL.LOSSES.NAME = tuple(losses)
    cfg.MODEL.LOSSES.TRI.HARD_MINING = True
    return cfg


def small(**options):
    """A small, quick model."""
    torch.manual_seed(0)
    return SAD(config("build_osnet_backbone", "x0_25", **options))


def make_batch(clips_per_half=4, length=3, size=(64, 32), seed=0):
    """[visible; infrared], two identities."""
    generator = torch.Generator().manual_seed(seed)
    clips = 2 * clips_per_half
    return {
        "images": torch.randint(
            0, 256, (clips, length, 3, *size), generator=generator, dtype=torch.uint8
        ),
        "modality": torch.tensor([2] * clips_per_half + [1] * clips_per_half),
        "targets": torch.arange(clips_per_half)
        .mul(2)
        .div(clips_per_half, rounding_mode="floor")
        .repeat(2),
    }
