"""One training step of a network on noise: its time, and what it keeps for its backward pass."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from torch import nn

from fastreid_star.coco import NUM_JOINTS
from fastreid_star.data.build import DeviceLoader
from fastreid_star.engine import device as devices
from fastreid_star.engine.defaults import load_config
from fastreid_star.engine.train_loop import StepRunner
from fastreid_star.engine.trainer import Trainer
from fastreid_star.structures import Modality

BARE = "backbone"
NETWORKS = {
    BARE: "HITSZ-VCM/SAD_R50.yml",
    "SAD": "HITSZ-VCM/SAD_R50.yml",
    "STAR": "HITSZ-VCM/STAR_R50.yml",
}


def changed_config(file: str, settings: Mapping[str, Any], opts: Sequence[str]) -> CfgNode:
    """A config of the project, changed by `settings` and then by the user's options."""
    pairs = [str(part) for pair in settings.items() for part in pair]
    return load_config(file, [*pairs, *opts])


def in_turns(
    sides: Mapping[str, Callable], *, repeats: int, warm_up: int = 1, wait: Callable = lambda: None
) -> dict[str, float]:
    """Seconds of the fastest run of each side.

    All sides run once, then again in the opposite order, and so on: a disturbance meets them all.
    `wait` waits for a device, before each reading of the clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + repeats):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            wait()
            start = time.perf_counter()
            sides[name]()
            wait()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


class BareBackbone(nn.Module):
    """The reference of a training step: the passes of the backbone and nothing else.

    In a step the stems and the two low stages see each frame once, and the two high stages see it
    twice: clean, and in the style of the attack. So do they here.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone: Any = backbone

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """The batch of :class:`TrainingStep` to a loss that reaches each weight."""
        frames, length = batch["images"].flatten(0, 1) / 255, batch["images"].shape[1]
        is_visible = batch["modality"].repeat_interleave(length) == Modality.VISIBLE
        low = self.backbone.low(self.backbone.stem(frames, is_visible), length)
        maps = [self.backbone.stage4(self.backbone.stage3(low, length), length) for _ in range(2)]
        return {"loss": torch.stack([m.float().mean((2, 3)) for m in maps]).square().mean()}


class TrainingStep:
    """One optimization step of a network of :data:`NETWORKS`, on a batch of noise."""

    def __init__(self, network: str, cfg: CfgNode):
        device = devices.choose_device(cfg.MODEL.DEVICE)
        clips, frames = cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.CLIP.LENGTH
        height, width = cfg.INPUT.SIZE_TRAIN
        scale = torch.tensor([width, height, 1.0])
        batch = {
            "images": torch.randint(0, 256, (clips, frames, 3, height, width)).byte(),
            "skeletons": torch.rand(clips, frames, NUM_JOINTS, 3) * scale,
            "has_skeleton": torch.ones(clips, frames, dtype=torch.bool),
            "targets": torch.arange(2).repeat_interleave(clips // 4).repeat(2),
            "modality": torch.tensor(list(Modality)).repeat_interleave(clips // 2),
        }
        if cfg.DATASETS.SHAPES:
            batch["shapes"] = torch.randint(0, 256, (clips, frames, height, width)).byte()
        if devices.needs_pinned_memory(device):
            batch = {key: value.pin_memory() for key, value in batch.items()}
        self.model = Trainer.build_model(cfg)
        if network == BARE:
            self.model = BareBackbone(self.model.backbone)
        self._runner = StepRunner(
            self.model,
            DeviceLoader(cast(Any, itertools.repeat(batch)), device),
            Trainer.build_optimizer(cfg, self.model)[0],
            device=device,
            amp_dtype=cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None,
            seed=cfg.SEED,
        )
        self._runner.iter = 0

    def kept_by_frame(self) -> float:
        """Bytes of a frame that autograd keeps between the forward and the backward pass."""
        batch = next(iter(self._runner.data_loader))
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage  # held, so that its address stays its own
            return tensor

        with (
            EventStorage(0),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            self.model(batch)
        count = sum(s.nbytes() for address, s in kept.items() if address not in weights)
        return count / batch["images"].shape[:2].numel()

    def __call__(self) -> None:
        with EventStorage(0):
            self._runner.run_step()
        self._runner.optimizer.zero_grad()
        self._runner.iter += 1


class StepCost(NamedTuple):
    """The cost of a training step.

    Args:
        time: by that of SAD with as many clips and frames of the same size, measured in turns.
        kept: bytes of a frame that the step keeps for its backward pass, on a CPU in float32, at
            the config's own size of frames.
    """

    time: float
    kept: float


def step_cost(name: str, opts: Sequence[str] = ()) -> StepCost:
    """Measure a training step of a config, with its backbone, losses and optimizer, in float32.

    The time of a CPU is that of 4 clips of 6 frames of 144x72, the time of other devices that of
    ``benchmark step``. What is kept is counted with 4 clips of 2 frames.

    Args:
        name: of a config.
        opts: config keys and values to change.
    """
    device = devices.choose_device("auto")
    settings = {**step_settings(device, quick=True), "SOLVER.AMP.ENABLED": False}
    del settings["MODEL.BACKBONE.DEPTH"]
    own_size = load_config(name).INPUT.SIZE_TRAIN
    few = {"INPUT.SIZE_TRAIN": own_size, "INPUT.CLIP.LENGTH": 2, "SOLVER.IMS_PER_BATCH": 4}
    alone = {**settings, **few, "MODEL.DEVICE": "cpu"}
    kept = TrainingStep(name, changed_config(name, alone, opts)).kept_by_frame()
    if device.type == "cpu":
        settings["INPUT.SIZE_TRAIN"] = "[144,72]"
    reference = NETWORKS["SAD"]
    seconds = in_turns(
        {
            file: TrainingStep(file, changed_config(file, settings, opts))
            for file in (reference, name)
        },
        repeats=3,
        warm_up=1 if device.type == "cpu" else 3,
        wait=partial(devices.synchronize, device),
    )
    return StepCost(seconds[name] / seconds[reference], kept)


def step_settings(device: torch.device, quick: bool) -> dict[str, Any]:
    """The config keys that make the work of a measured training step."""
    size = "50x 32 12 [288,144]"  # the paper's
    if device.type == "cpu":
        size = "18x 4 6 [96,48]" if quick else "50x 8 12 [144,72]"
    depth, clips, frames, pixels = size.split()
    return {
        "MODEL.BACKBONE.DEPTH": depth,
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NUM_CLASSES": 500,  # as in HITSZ-VCM
        "INPUT.SIZE_TRAIN": pixels,
        "INPUT.CLIP.LENGTH": frames,
        "SOLVER.IMS_PER_BATCH": clips,
        "SOLVER.BASE_LR": 1e-4,  # noise and random weights diverge at the paper's rate
        "CUDNN_BENCHMARK": True,
    }
