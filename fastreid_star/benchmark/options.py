"""What can be chosen about a run of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastreid_star.engine import device as devices
from fastreid_star.errors import UserError

PROCESSES = 3  # on a CPU: the same ratio differs by some 3 % from process to process

# name -> what a config of a ResNet says in its place
BACKBONES = {
    "R18": ("build_resnet_backbone", "18x"),
    "R34": ("build_resnet_backbone", "34x"),
    "R50": ("build_resnet_backbone", "50x"),
    "R101": ("build_resnet_backbone", "101x"),
    "tiny": ("build_small_resnet_backbone", "tiny"),
    "small": ("build_small_resnet_backbone", "small"),
}


@dataclass(frozen=True)
class Work:
    """The size of a training step.

    Args:
        backbone: a name of :data:`BACKBONES`.
        clips: of a batch, both modalities together.
        frames: T.
        size: height and width of a frame.
    """

    backbone: str
    clips: int
    frames: int
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.backbone}, {self.clips} clips of {self.frames} frames of {self.size[0]}x{self.size[1]}"


_ON_DEVICE = Work("R50", 32, 12, (288, 144))  # the paper's
_ON_CPU = Work("R50", 8, 12, (144, 72))
_ON_CPU_QUICK = Work("R18", 4, 6, (96, 48))


@dataclass(frozen=True)
class Options:
    """What can be chosen about a run.

    Args:
        configs: the project's folder of configs.
        folder: where made data lie during the run.
        quick: smaller work and fewer repeats: all parts in less than five minutes on two cores.
        device: as ``MODEL.DEVICE``.
        repeats: how often each side runs; None: 5, with `quick` 3.
        processes: in which a training step's settings are measured; None: 3 on a CPU without `quick`, else 1.
        backbone, clips, frames, size: of a training step, see :class:`Work`; None: what suits the device.
        compile: measure torch.compile as well; None: on a device that is no CPU, without `quick`.
        progress: show bars.

    Raises:
        UserError: a value that cannot be.
    """

    configs: Path
    folder: Path
    quick: bool = False
    device: str = "auto"
    repeats: int | None = None
    processes: int | None = None
    backbone: str | None = None
    clips: int | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    compile: bool | None = None
    progress: bool = True

    def __post_init__(self):
        if self.backbone is not None and self.backbone not in BACKBONES:
            raise UserError(f"--backbone {self.backbone}: choose one of {', '.join(BACKBONES)}")
        if self.clips is not None and (self.clips < 4 or self.clips % 4):
            raise UserError(
                f"--clips {self.clips}: two modalities of two identities take a multiple of 4"
            )
        for name, value in (
            ("repeats", self.repeats),
            ("processes", self.processes),
            ("frames", self.frames),
        ):
            if value is not None and value < 1:
                raise UserError(f"--{name} {value}: give 1 or more")
        if not (self.configs / "Base-STAR.yml").is_file():
            raise UserError(f"{self.configs} is not the project's folder of configs")

    @property
    def on_cpu(self) -> bool:
        """Whether the device is a CPU."""
        return devices.choose_device(self.device).type == "cpu"

    @property
    def rounds(self) -> int:
        """How often each side runs."""
        return self.repeats or (3 if self.quick else 5)

    @property
    def process_count(self) -> int:
        """In how many processes each of a training step's settings is measured, one after the other."""
        return self.processes or (PROCESSES if self.on_cpu and not self.quick else 1)

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is measured."""
        return (not self.on_cpu and not self.quick) if self.compile is None else self.compile

    @property
    def work(self) -> Work:
        """The training step that is measured."""
        default = (_ON_CPU_QUICK if self.quick else _ON_CPU) if self.on_cpu else _ON_DEVICE
        return Work(
            self.backbone or default.backbone,
            self.clips or default.clips,
            self.frames or default.frames,
            self.size or default.size,
        )

    def title(self, text: str) -> str:
        """`text` for a progress bar, or none where none is to be shown."""
        return text if self.progress else ""
