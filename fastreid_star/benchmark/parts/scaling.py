"""How the cost of a training step grows with the number of clips and of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from fastreid_star.benchmark.figures import Figure, number
from fastreid_star.benchmark.networks import IDENTITIES, TrainingStep
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.timing import fit_line, in_turns
from fastreid_star.coco import NUM_JOINTS
from fastreid_star.engine import device as devices
from fastreid_star.modeling.frame_corrector import BoneEncoder, FrameCorrector
from fastreid_star.modeling.gat_gem_head import GATGeMHead


def figures(options: Options) -> Iterator[Figure]:
    """How STAR's step grows with clips and frames, and its attention and graph with frames, as straight lines."""
    work = options.work
    clips = tuple(max(4, work.clips * share // 8 // 4 * 4) for share in (2, 4, 6, 8))
    if len(set(clips)) < len(clips):  # a batch that has no such parts
        clips = (4, 8, 12, 16)
    frames = tuple(max(1, work.frames // 4) * share for share in (1, 2, 3, 4))
    few = max(1, work.frames // 2)
    yield from _lines(
        "clips",
        clips,
        {"step": lambda size: TrainingStep("star", replace(work, clips=size, frames=few), options)},
        options,
        {"step": f"{few} frames each"},
    )
    # the two parts that look across frames see as many clips as the step, and a feature width of the backbone's
    width = TrainingStep(
        "star", replace(work, clips=4, frames=1), options
    ).model.backbone.feature_width
    device = devices.choose_device(options.device)
    yield from _lines(
        "frames",
        frames,
        {
            "step": lambda size: TrainingStep(
                "star", replace(work, clips=clips[0], frames=size), options
            ),
            "attention": lambda size: attention(width, work.clips, size, device),
            "graph": lambda size: graph(width, work.clips, size, device),
        },
        options,
        {
            "step": f"{clips[0]} clips",
            "attention": f"{work.clips} clips, the whole frame level, {width} features",
            "graph": f"{work.clips} clips, the whole sequence level, {width} features",
        },
    )


def _lines(
    of: str,
    sizes: Sequence[int],
    makers: dict[str, Callable[[int], Callable[[], None]]],
    options: Options,
    notes: dict[str, str],
) -> Iterator[Figure]:
    sides = {f"{name} {size}": make(size) for name, make in makers.items() for size in sizes}
    device = devices.choose_device(options.device)
    times = in_turns(
        sides,
        repeats=options.rounds,
        synchronize=lambda: devices.synchronize(device),
        title=options.title(f"scaling over {of}"),
    )
    for name in makers:
        costs = [1000 * times[f"{name} {size}"].best for size in sizes]
        line = fit_line(sizes, costs)
        measured = ", ".join(
            f"{size}: {number(cost)}" for size, cost in zip(sizes, costs, strict=True)
        )
        yield Figure(
            f"scaling_{name}_ms_per_{of.removesuffix('s')}",
            line.slope,
            f"ms/{of.removesuffix('s')}",
            note=f"slope, and {number(line.intercept)} ms however few {of}; ms at {measured}; {notes[name]}",
        )
        yield Figure(
            f"scaling_{name}_residual_over_{of}",
            line.residual,
            "share",
            note="largest distance of a cost from the straight line; 0: the cost is linear",
        )


def attention(width: int, clips: int, frames: int, device: torch.device) -> Callable[[], None]:
    """The frame level, equations (1)-(7), forward and backward."""
    corrector = FrameCorrector(feat_dim=width, encoder=BoneEncoder(feat_dim=width)).to(device)
    x = torch.rand(clips, frames, width, device=device, requires_grad=True)
    skeletons, present = _skeletons(clips, frames, device)

    def run() -> None:
        corrector(x, skeletons, present).frames.sum().backward()
        corrector.zero_grad()
        x.grad = None

    return run


def graph(width: int, clips: int, frames: int, device: torch.device) -> Callable[[], None]:
    """The sequence level, equations (8)-(13), forward and backward, without neck and classifier."""
    head = GATGeMHead(feat_dim=width, num_classes=IDENTITIES).to(device)
    x = torch.rand(clips, frames, width, device=device, requires_grad=True)
    skeletons, present = _skeletons(clips, frames, device)

    def run() -> None:
        head.aggregate(x, skeletons, present).clip.sum().backward()
        head.zero_grad()
        x.grad = None

    return run


def _skeletons(clips: int, frames: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    joints = torch.rand(clips, frames, NUM_JOINTS, 3) * torch.tensor(
        [64.0, 128.0, 0.5]
    ) + torch.tensor([0, 0, 0.5])
    return joints.to(device), torch.ones(clips, frames, dtype=torch.bool, device=device)
