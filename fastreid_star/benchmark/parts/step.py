"""A training step of each network against the bare backbone that does the same passes."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import profile, supported_activities
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from fastreid_star.benchmark.figures import Figure
from fastreid_star.benchmark.networks import BARE, CONFIGS, Setting, TrainingStep
from fastreid_star.benchmark.options import Options
from fastreid_star.benchmark.parts.loader import supply
from fastreid_star.benchmark.process import Apart
from fastreid_star.benchmark.timing import Timing, in_turns
from fastreid_star.engine import device as devices
from fastreid_star.modeling.linear import ONEDNN_LINEAR

logger = logging.getLogger(__name__)

ROUNDS = 2  # as many as elsewhere, times this: some per cent are looked for
ON_CPU, ON_DEVICE = 2048, 8192  # rows and columns of the matrices whose product tells what a device can do

# operators by what they do, the first that fits; the rest are the many small ones between
KINDS = {
    "convolutions": ("convolution",),
    "batch normalisation": ("batch_norm",),
    "matrix products, LSTM": ("mm", "matmul", "_linear", "attention", "rnn", "lstm"),
    "optimizer": ("fused_", "foreach"),
}

# the bare backbone as torch runs it where nothing is set
AS_TORCH_RUNS_IT = Setting(keeps_memory=False)


def settings(options: Options) -> dict[Setting, tuple[str, ...]]:
    """Which networks run in which setting; the first setting is the one that plain names stand for."""
    everything, two = (BARE, *CONFIGS), (BARE, "star")
    if options.on_cpu:
        chosen = {Setting(): everything, Setting(channels_last=True): two}
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
    work, chosen = options.work, settings(options)
    device = devices.choose_device(options.device)
    # first: what comes after fills this process' memory, and fresh memory is slower to get for all processes then
    apart = _apart(options, [setting for setting in chosen if setting.channels_last]) if options.on_cpu else None
    steps = build_steps(options, chosen)
    first = next(iter(chosen))
    product, operations = matrix_product(device, first.amp, ON_CPU if options.on_cpu else ON_DEVICE)
    times: dict[str, Timing] = {}
    for setting, networks in chosen.items():  # one after the other: what is compared runs close together
        sides: dict[str, Callable[[], object]] = {key(name, setting): steps[key(name, setting)] for name in networks}
        times |= in_turns(
            {**sides, "matrix product": product} if setting == first else sides,
            repeats=ROUNDS * options.rounds,
            warm_up=1 if options.on_cpu else 3,
            synchronise=lambda: devices.synchronise(device),
            title=options.title(str(setting)),
        )
    frames = work.clips * work.frames
    for setting, networks in chosen.items():
        bare = times[key(BARE, setting)]
        suffix = "" if setting == first else f"_{setting}"
        yield Figure(
            f"backbone_step_frames_per_s{suffix}",
            frames / bare.best,
            "frames/s",
            note=f"stems and low stages once, high stages twice, and optimizer; {setting}; {work}; {bare}",
        )
        for network in networks[1:]:
            timing = times[key(network, setting)]
            yield Figure.against(
                f"{network}_step_frames_per_s{suffix}",
                frames / timing.best,
                "frames/s",
                frames / bare.best,
                f"the bare backbone, {setting}; {timing}",
            )
        share = 1 - bare.best / times[key("star", setting)].best
        yield Figure(f"star_step_outside_share{suffix}", share, "share", note=f"time outside the backbone, {setting}")
    yield from _formats(times if apart is None else apart, chosen, AS_TORCH_RUNS_IT if apart else Setting(), frames)
    star = steps[key("star", first)]
    yield Figure.against(
        "star_step_tflops",
        sum(flops(star).values()) / times[key("star", first)].best / 1e12,
        "TFLOP/s",
        operations / times["matrix product"].best / 1e12,
        f"one product of two large square matrices, {first.amp or 'float32'}; operations on the "
        "zeros around maps are counted, though not all are computed",
    )
    yield from _where_it_goes(star, first)
    yield _loader_processes(frames / times[key("star", first)].best, options)


def key(network: str, setting: Setting) -> str:
    """The name of a side."""
    return f"{network} {setting}"


def build_steps(options: Options, chosen: dict[Setting, tuple[str, ...]]) -> dict[str, TrainingStep]:
    """A step for each network and setting; settings of one memory format share the weights."""
    models: dict[tuple[str, bool, bool], nn.Module] = {}
    steps = {}
    todo = [(setting, network) for setting, networks in chosen.items() for network in networks]
    for setting, network in tqdm(todo, desc=options.title("building"), disable=not options.progress, leave=False):
        shared = (network, setting.channels_last, setting.compiled)
        step = TrainingStep(network, options.work, options, setting, model=models.get(shared))
        models[shared] = step.model
        steps[key(network, setting)] = step
    return steps


def flops(step: Callable[[], None]) -> Counter[str]:
    """Floating point operations of a step by operator; a multiplication with its addition counts as two.

    What torch has no formula for, LSTMs and everything element by element, is not among them.
    """
    with FlopCounterMode(display=False, custom_mapping={ONEDNN_LINEAR: _linear_flops}) as counter:
        step()
    return Counter({str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()})


def _linear_flops(rows, weight, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(rows) * weight[0]


def matrix_product(device: torch.device, amp: str | None, size: int) -> tuple[Callable[[], object], int]:
    """A product of two matrices of ``size x size`` in a step's type, the most a device can do, and its operations."""
    kind = torch.float32 if amp is None else getattr(torch, amp)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return (lambda: torch.mm(a, b)), 2 * size**3


def kind_of(operator: str) -> str:
    """Which of :data:`KINDS` an operator is of."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), "the rest")


def profile_step(step: TrainingStep) -> dict[str, float] | None:
    """Share of a step's computing time by kind of operator; None where torch's profiler does not see the device."""
    with profile(activities=list(supported_activities())) as recorded:
        step()
    operators = [event for event in recorded.key_averages() if event.device_type == DeviceType.CPU]
    seconds: Counter[str] = Counter()
    on_device = any(event.self_device_time_total for event in operators)
    for event in operators:
        seconds[kind_of(event.key)] += event.self_device_time_total if on_device else event.self_cpu_time_total
    if step.device.type != "cpu" and not on_device:
        return None
    return {kind: seconds[kind] / seconds.total() for kind in (*KINDS, "the rest")}


def _apart(options: Options, formats: Iterable[Setting]) -> dict[str, Timing]:
    """Times of STAR's formats and of the bare backbone as torch runs it, each in a process of its own."""
    with contextlib.ExitStack() as processes:
        sides = {}
        for network, setting in ((BARE, AS_TORCH_RUNS_IT), *(("star", setting) for setting in formats)):
            sides[key(network, setting)] = step = Apart(TrainingStep, network, options.work, options, setting)
            processes.callback(step.close)
        return in_turns(sides, repeats=options.rounds, title=options.title("formats"))


def _formats(times: Mapping[str, Timing], chosen: Iterable[Setting], plain: Setting, frames: int) -> Iterator[Figure]:
    bare = times[key(BARE, plain)]
    fastest = min((s for s in chosen if key("star", s) in times), key=lambda setting: times[key("star", setting)].best)
    for name, setting in (("channels_last", Setting(channels_last=True)), ("fastest", fastest)):
        star = times[key("star", setting)]
        yield Figure.against(
            f"star_step_{name}_frames_per_s",
            frames / star.best,
            "frames/s",
            frames / bare.best,
            f"the bare backbone as torch runs it where nothing is set, {bare}; STAR in {setting}, {star}",
        )


def _where_it_goes(step: TrainingStep, setting: Setting) -> Iterator[Figure]:
    shares = profile_step(step)
    if shares is None:
        logger.warning("torch's profiler does not see this device: no figure of what a step's time goes into")
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
