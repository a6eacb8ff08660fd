"""A training step of each network against the bare backbone that does the same passes."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch
from torch.autograd import DeviceType
from torch.profiler import profile, supported_activities
from torch.utils.flop_counter import FlopCounterMode

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.networks import BARE, CONFIGS, Setting, TrainingStep
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.parts.loader import supply
from fastreid_star.benchmark.process import apart
from fastreid_star.benchmark.timing import Timing, in_turns
from fastreid_star.engine import device as devices
from fastreid_star.modeling.linear import ONEDNN_LINEAR

logger = logging.getLogger(__name__)

WARM_UP = 3  # rounds; until then memory that is kept still grows on a CPU, and a device compiles and chooses kernels
ON_CPU, ON_DEVICE = (
    2048,
    8192,
)  # rows and columns of the matrices whose product tells what a device can do

# operators by what they do, the first that fits; the rest are the many small ones between
KINDS = {
    "convolutions": ("convolution",),
    "batch normalization": ("batch_norm",),
    "matrix products, LSTM": ("mm", "matmul", "_linear", "attention", "rnn", "lstm"),
    "optimizer": ("fused_", "foreach"),
}

PRODUCT = "matrix product"
# the bare backbone as torch runs it where nothing is set
AS_TORCH_RUNS_IT = Setting(keeps_memory=False)


def settings(options: Options) -> dict[Setting, tuple[str, ...]]:
    """Which networks run in which setting; the first setting is the one that plain names stand for."""
    everything, two = (BARE, *CONFIGS), (BARE, "star")
    if options.on_cpu:
        chosen = {
            Setting(): everything,
            Setting(channels_last=True): two,
            AS_TORCH_RUNS_IT: (BARE,),
        }
        if not options.quick:
            chosen[Setting(channels_last=True, amp="bfloat16")] = two
    else:
        chosen = {
            Setting(channels_last=True, amp="bfloat16"): everything,
            Setting(amp="bfloat16"): two,
            Setting(channels_last=True, amp="float16"): two,
            Setting(channels_last=True): two,
            Setting(): two,
        }
    if options.compiles:
        first = next(iter(chosen))
        chosen[Setting(first.channels_last, first.amp, compiled=True)] = two
    return chosen


def figures(options: Options) -> Iterator[Figure]:
    """A training step of the baseline, of STAR and of its levels, against the bare backbone's same passes."""
    work = options.work
    times = measure(options, settings(options))
    first = next(iter(times))
    frames = work.clips * work.frames
    for setting, sides in times.items():
        bare, suffix = sides[BARE], "" if setting == first else f"_{setting}"
        yield Figure(
            f"backbone_step_frames_per_s{suffix}",
            frames / bare.best,
            "frames/s",
            note=f"stems and low stages once, high stages twice, and optimizer; {setting}; {work}; {bare}",
        )
        for network in (name for name in CONFIGS if name in sides):
            yield Figure.against(
                f"{network}_step_frames_per_s{suffix}",
                frames / sides[network].best,
                "frames/s",
                frames / bare.best,
                f"the bare backbone, {setting}; {sides[network]}",
            )
        if "star" in sides:
            share, note = (
                1 - bare.best / sides["star"].best,
                f"time outside the backbone, {setting}",
            )
            yield Figure(f"star_step_outside_share{suffix}", share, "share", note=note)
    yield from _formats(times, AS_TORCH_RUNS_IT if options.on_cpu else Setting(), frames)
    step, star = TrainingStep("star", work, options, first), times[first]["star"]
    yield Figure.against(
        "star_step_tflops",
        sum(flops(step).values()) / star.best / 1e12,
        "TFLOP/s",
        matrix_product(options, first.amp)[1] / times[first][PRODUCT].best / 1e12,
        f"one product of two large square matrices, {first.amp or 'float32'}; operations on the "
        "zeros around maps are counted, though not all are computed",
    )
    yield from _where_it_goes(step, first)
    yield _loader_processes(frames / star.best, options)


def measure(
    options: Options, chosen: Mapping[Setting, tuple[str, ...]]
) -> dict[Setting, dict[str, Timing]]:
    """Times of each setting's networks, and of the matrix product beside the first's.

    A setting has processes of its own: some switches hold for a whole process, and processes differ.
    """
    count = options.process_count
    first = next(iter(chosen))
    runs: dict[Setting, list[dict[str, Timing]]] = {setting: [] for setting in chosen}
    for number in range(1, count + 1):
        for setting, networks in chosen.items():
            title = options.title(f"{setting} {number}/{count}")
            runs[setting].append(
                apart(time_in_turns, networks, setting, options, setting == first, title)
            )
    return {
        setting: {side: Timing.joined([run[side] for run in found]) for side in found[0]}
        for setting, found in runs.items()
    }


def time_in_turns(
    networks: tuple[str, ...], setting: Setting, options: Options, with_product: bool, title: str
) -> dict[str, Timing]:
    """Times of a setting's networks in this process."""
    device = devices.choose_device(options.device)
    sides: dict[str, Callable[[], object]] = {
        network: TrainingStep(network, options.work, options, setting) for network in networks
    }
    if with_product:
        sides[PRODUCT], _ = matrix_product(options, setting.amp)
    return in_turns(
        sides,
        repeats=options.rounds,
        warm_up=WARM_UP,
        synchronize=lambda: devices.synchronize(device),
        title=title,
    )


def flops(step: Callable[[], None]) -> Counter[str]:
    """Floating point operations of a step by operator; a multiplication with its addition counts as two.

    What torch has no formula for, LSTMs and everything element by element, is not among them.
    """
    with FlopCounterMode(display=False, custom_mapping={ONEDNN_LINEAR: _linear_flops}) as counter:
        step()
    return Counter(
        {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    )


def _linear_flops(rows, weight, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(rows) * weight[0]


def matrix_product(options: Options, amp: str | None) -> tuple[Callable[[], object], int]:
    """A product of two square matrices in a step's type, the most a device can do, and its operations."""
    kind = torch.float32 if amp is None else getattr(torch, amp)
    size = ON_CPU if options.on_cpu else ON_DEVICE
    device = devices.choose_device(options.device)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return (lambda: torch.mm(a, b)), 2 * size**3


def kind_of(operator: str) -> str:
    """Which of :data:`KINDS` an operator is of."""
    return next(
        (kind for kind, parts in KINDS.items() if any(part in operator for part in parts)),
        "the rest",
    )


def profile_step(step: TrainingStep) -> dict[str, float] | None:
    """Share of a step's computing time by kind of operator; None where torch's profiler does not see the device."""
    with profile(activities=list(supported_activities())) as recorded:
        step()
    operators = [event for event in recorded.key_averages() if event.device_type == DeviceType.CPU]
    seconds: Counter[str] = Counter()
    on_device = any(event.self_device_time_total for event in operators)
    for event in operators:
        seconds[kind_of(event.key)] += (
            event.self_device_time_total if on_device else event.self_cpu_time_total
        )
    if step.device.type != "cpu" and not on_device:
        return None
    return {kind: seconds[kind] / seconds.total() for kind in (*KINDS, "the rest")}


def _formats(
    times: Mapping[Setting, Mapping[str, Timing]], plain: Setting, frames: int
) -> Iterator[Figure]:
    bare = times[plain][BARE]
    stars = {setting: sides["star"] for setting, sides in times.items() if "star" in sides}
    fastest = min(stars, key=lambda setting: stars[setting].best)
    for name, setting in (("channels_last", Setting(channels_last=True)), ("fastest", fastest)):
        yield Figure.against(
            f"star_step_{name}_frames_per_s",
            frames / stars[setting].best,
            "frames/s",
            frames / bare.best,
            f"the bare backbone as torch runs it where nothing is set, {bare}; STAR in {setting}",
        )


def _where_it_goes(step: TrainingStep, setting: Setting) -> Iterator[Figure]:
    shares = profile_step(step)
    if shares is None:
        logger.warning(
            "torch's profiler does not see this device: no figure of what a step's time goes into"
        )
        return
    text = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    yield Figure(
        "star_step_convolution_share",
        shares["convolutions"],
        "share",
        note=f"of STAR's computing time, {setting}: {text}",
    )


def _loader_processes(frames_per_second: float, options: Options) -> Figure:
    loaded = supply(options)
    return Figure(
        "star_step_loader_processes",
        frames_per_second / loaded,
        "processes",
        note=f"that the step keeps busy, each of {loaded:,.0f} frames/s",
    )
