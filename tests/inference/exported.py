"""Small models and random clips, to be exported."""

import torch
import torch.nn.functional as F
from torch import nn

from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.trainer import Trainer

from ..tiny import REPOSITORY

LENGTH, CONFIGS, CLOSE = 3, REPOSITORY / "configs", 1e-5
TINY = ("MODEL.BACKBONE.DEPTH", "tiny", "INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]")
SAD, STAR = "Synthetic/SAD_small", "Synthetic/STAR_small"


def config(name, *options):
    fixed = (
        "MODEL.BACKBONE.PRETRAIN",
        "False",
        "MODEL.HEADS.NUM_CLASSES",
        "3",
        "MODEL.DEVICE",
        "cpu",
    )
    return load_config(
        str(CONFIGS / f"{name}.yml"), [*fixed, "INPUT.CLIP.LENGTH", str(LENGTH), *options]
    )


def build(cfg):
    """A model that tells random clips apart: BatchNorms of all kinds, with the statistics of what they see."""
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    norms = [
        module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    ]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
        norm.momentum = 0.7
    model.train()
    for seed in range(2):
        model({**clips(6, cfg.INPUT.SIZE_TEST, seed), "targets": torch.tensor([0, 0, 1, 1, 2, 2])})
    return model.eval()


def clips(number, size, seed=5):
    """Random clips of both modalities; frames without skeletons, the second clip without any."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (number * LENGTH, 3, 4, 2), generator=generator).float()
    images = F.interpolate(coarse, tuple(size), mode="bilinear").to(torch.uint8)
    has_skeleton = torch.rand(number, LENGTH, generator=generator) < 0.7
    has_skeleton[0], has_skeleton[1:2] = True, False
    scale = torch.tensor([size[1], size[0], 1.0])
    return {
        "images": images.unflatten(0, (number, LENGTH)),
        "modality": torch.tensor([1, 2, 2, 1, 1, 2])[:number],
        "skeletons": (torch.rand(number, LENGTH, 17, 3, generator=generator) * scale).round(
            decimals=1
        ),
        "has_skeleton": has_skeleton,
        "crop_sizes": torch.randint(20, 90, (number, LENGTH, 2), generator=generator),
    }
