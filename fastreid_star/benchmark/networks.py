"""The networks that are measured, run by the trainer's own step; and the bare backbone that does the same passes.

B clips, T frames, N = B T, H and W the size of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from torch import nn
from torch.utils.data import DataLoader

from fastreid_star.benchmark.options import BACKBONES, Options, Work
from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.build import DeviceLoader
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.train_loop import StepRunner
from fastreid_star.engine.trainer import Trainer
from fastreid_star.modeling.sad import SAD
from fastreid_star.modeling.two_stream import TwoStreamBackbone
from fastreid_star.structures import Modality

IDENTITIES = 500  # HITSZ-VCM's, the width of the classifiers
CONFIGS = {
    "sad": "SAD_R50.yml",
    "star": "STAR_R50.yml",
    "star_frame": "STAR_R50_frame.yml",
    "star_sequence": "STAR_R50_sequence.yml",
}
BARE = "backbone"


@dataclass(frozen=True)
class Setting:
    """How a step is computed.

    Args:
        channels_last: the memory format of weights and maps; False: torch's default.
        amp: None for float32, else the type of mixed precision.
        compiled: stems and stages by torch.compile.
        keeps_memory: on a CPU; once a step of a process does, all that follow do. False: torch's default.
    """

    channels_last: bool = False
    amp: str | None = None
    compiled: bool = False
    keeps_memory: bool = True

    def __str__(self) -> str:
        parts = (
            self.amp or "float32",
            "channels_last" * self.channels_last,
            "compiled" * self.compiled,
            "memory_handed_back" * (not self.keeps_memory),
        )
        return "_".join(filter(None, parts))


def config(network: str, work: Work, options: Options, setting: Setting | None = None) -> CfgNode:
    """The paper's config of a network, at the size of the benchmark.

    Args:
        network: a key of :data:`CONFIGS`, or :data:`BARE`, which is the baseline's.
        work, options: the size and the device.
        setting: how it is computed; None: the defaults.
    """
    setting = setting or Setting()
    name, depth = BACKBONES[work.backbone]
    settings = {
        "MODEL.DEVICE": options.device,
        "MODEL.BACKBONE.NAME": name,
        "MODEL.BACKBONE.DEPTH": depth,
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NUM_CLASSES": IDENTITIES,
        "MODEL.CHANNELS_LAST": setting.channels_last,
        "INPUT.SIZE_TRAIN": list(work.size),
        "INPUT.CLIP.LENGTH": work.frames,
        "SOLVER.IMS_PER_BATCH": work.clips,
        "SOLVER.BASE_LR": 1e-4,  # from random weights and on noise, the paper's rate diverges
        "SOLVER.AMP.ENABLED": setting.amp is not None,
        "SOLVER.AMP.DTYPE": setting.amp or "float16",
        "CUDNN_BENCHMARK": True,  # every step has the same shapes
    }
    path = options.configs / "HITSZ-VCM" / CONFIGS.get(network, CONFIGS["sad"])
    return load_config(str(path), [str(part) for pair in settings.items() for part in pair])


def batch(work: Work) -> dict[str, torch.Tensor]:
    """A training batch of noise, as the loader hands it over: visible clips first, on the host."""
    identities = torch.arange(2).repeat_interleave(work.clips // 4).repeat(2)
    return {
        "images": torch.randint(
            0, 256, (work.clips, work.frames, 3, *work.size), dtype=torch.uint8
        ),
        "skeletons": torch.rand(work.clips, work.frames, NUM_JOINTS, 3)
        * torch.tensor([*work.size[::-1], 1.0]),
        "has_skeleton": torch.ones(work.clips, work.frames, dtype=torch.bool),
        "targets": identities,
        "modality": torch.tensor([Modality.VISIBLE, Modality.INFRARED]).repeat_interleave(
            work.clips // 2
        ),
    }


class BareBackbone(nn.Module):
    """The limit of a training step: the backbone's passes and nothing else.

    In a step the stems and the two low stages see every frame once, the two high stages twice: clean, and with the
    attacker's style. So here: the same convolutions, forward and backward, on as many frames. What it sees is ready:
    float32, normalized, on the device and in the memory format of the weights.
    """

    def __init__(self, backbone: TwoStreamBackbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """`images` ``[N, 3, H, W]`` and `is_visible` ``[N]`` to one loss, that reaches every weight."""
        low = self.backbone.low(self.backbone.stem(batch["images"], batch["is_visible"]))
        features = [
            SAD.pool_frames(self.backbone.stage4(self.backbone.stage3(low))) for _ in range(2)
        ]
        return {"loss": torch.stack(features).square().mean()}


def bare_batch(work: Work, setting: Setting) -> dict[str, torch.Tensor]:
    """What :class:`BareBackbone` takes: noise of mean 0 and deviation 1."""
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    frames = work.clips * work.frames
    return {
        "images": torch.randn(frames, 3, *work.size).contiguous(memory_format=layout),
        "is_visible": torch.arange(frames) < frames // 2,
    }


class EndlessLoader:
    """One batch for ever, in page-locked memory where the device reads that faster: nobody waits for it."""

    def __init__(self, batch: dict[str, torch.Tensor], device: torch.device):
        pinned = devices.needs_pinned_memory(device)
        self.batch = {key: value.pin_memory() if pinned else value for key, value in batch.items()}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield self.batch


class OnDevice:
    """One batch that is on the device already, for ever."""

    def __init__(self, batch: dict[str, torch.Tensor], device: torch.device):
        self.batch = {**batch, "images": batch["images"].to(device)}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield self.batch


class TrainingStep:
    """One optimization step of a network, over and over, as :class:`~fastreid_star.engine.train_loop.StepRunner` does it.

    Args:
        network: a key of :data:`CONFIGS`, or :data:`BARE`.
        work, options: the size and the device.
        setting: how it is computed.
    """

    def __init__(self, network: str, work: Work, options: Options, setting: Setting | None = None):
        setting = setting or Setting()
        cfg = config(network, work, options, setting)
        self.device = devices.choose_device(options.device)
        self.model: Any = _build(network, cfg)
        if network == BARE:
            loader: Any = OnDevice(bare_batch(work, setting), self.device)
        else:
            loader = DeviceLoader(
                cast(DataLoader, EndlessLoader(batch(work), self.device)), self.device
            )
        if setting.compiled:
            for part in self.model.get_submodule("backbone").children():
                for module in part if isinstance(part, nn.ModuleList) else [part]:
                    module.compile()
        optimizer, _ = Trainer.build_optimizer(cfg, self.model)
        self._runner = StepRunner(
            self.model, loader, optimizer, device=self.device, amp_dtype=setting.amp, seed=cfg.SEED
        )
        self._runner.iter = 0

    def __call__(self) -> None:
        """Forward, losses, backward, optimizer; the gradients are dropped, and their memory with them."""
        with EventStorage(0):
            self._runner.run_step()
        self._runner.optimizer.zero_grad()
        self._runner.iter += 1


def _build(network: str, cfg: CfgNode) -> nn.Module:
    if network != BARE:
        return Trainer.build_model(cfg)
    # by way of the trainer: device, switches and memory format are those of a run
    return BareBackbone(Trainer.build_model(cfg).backbone)
