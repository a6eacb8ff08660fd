#!/usr/bin/env python
"""Measure speed and memory, each figure beside its own limit in the same run.

    python tools/benchmark.py --quick
    python tools/benchmark.py step loader --device npu --json figures.json
    python tools/benchmark.py --read figures.json --markdown docs/performance.md

docs/performance.md says what the figures mean and what they were. The parts:

"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from fastreid_star.benchmark.figures import (
    Figure,
    around_table,
    format_table,
    read_json,
    write_json,
    write_markdown,
)
from fastreid_star.benchmark.options import BACKBONES, Options
from fastreid_star.benchmark.parts import ON_REQUEST, PARTS
from fastreid_star.engine.defaults import run_tool
from fastreid_star.engine.device import DEVICE_NAMES
from fastreid_star.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
    args = parse()
    figures = read_json(args.read) if args.read else measure(args)
    print(f"\n{format_table(figures)}\n")
    if args.json:
        print(f"the figures are in {Path(args.json).resolve()}")
    if args.markdown:
        write_markdown(args.markdown, figures)
        print(f"the table is in {Path(args.markdown).resolve()}")


def parse() -> argparse.Namespace:
    parts = "".join(f"  {name:11} {part.__doc__.splitlines()[0]}\n" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__ + parts, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="what to measure; none: all but drift and pose"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smaller work, fewer repeats: within 5 minutes on two cores",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--markdown", metavar="FILE", help="write the table there, between the marks of a document"
    )
    parser.add_argument(
        "--read", metavar="FILE", help="measure nothing: show figures that --json has written"
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help=f"{', '.join(DEVICE_NAMES)}, as MODEL.DEVICE",
    )
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="how often each side runs (5, with --quick 3)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="that a training step's settings are measured in (3 on a CPU, else 1)",
    )
    step = parser.add_argument_group(
        "the training step of the parts step, scaling and memory (else by the device)"
    )
    step.add_argument(
        "--backbone", choices=list(BACKBONES), help="a ResNet by its depth, or a small one"
    )
    step.add_argument("--clips", type=int, metavar="B", help="clips of a batch, a multiple of 4")
    step.add_argument("--frames", type=int, metavar="T", help="frames of a clip")
    step.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="height and width of a frame"
    )
    step.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="measure torch.compile as well (else on a device that is no CPU, without --quick)",
    )
    args = parser.parse_intermixed_args()
    unknown = [name for name in args.parts if name not in PARTS]
    if args.read and (args.parts or args.json):
        raise UserError(
            "--read measures nothing: leave out --json and the parts, or leave out --read"
        )
    if unknown:
        raise UserError(f"there is no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    for path in (args.json, args.markdown):
        if path and not Path(path).resolve().parent.is_dir():
            raise UserError(
                f"the folder {Path(path).resolve().parent} does not exist: make it, or write elsewhere"
            )
    if args.markdown:
        around_table(
            args.markdown
        )  # a document without a place for the table is refused before anything is measured
    return args


def measure(args: argparse.Namespace) -> list[Figure]:
    """Run the parts, in their own order, and tell each figure as it comes."""
    logging.getLogger("fastreid_star.data").setLevel(
        logging.ERROR
    )  # made data differ from the published, on purpose
    chosen = [name for name in PARTS if name in (args.parts or PARTS.keys() - ON_REQUEST)]
    if "machine" not in chosen:
        chosen.insert(0, "machine")
    figures, start = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastreid-star-benchmark-") as folder:
        options = Options(
            configs=CONFIGS,
            folder=Path(folder),
            quick=args.quick,
            device=args.device,
            repeats=args.repeats,
            processes=args.processes,
            backbone=args.backbone,
            clips=args.clips,
            frames=args.frames,
            size=None if args.size is None else tuple(args.size),
            compile=args.compile,
            progress=sys.stderr.isatty(),
        )
        for number, name in enumerate(chosen, start=1):
            began, part = time.monotonic(), PARTS[name]
            say(f"[{number}/{len(chosen)}] {name}: {part.__doc__.splitlines()[0]}")
            for figure in part(options):
                figures.append(figure)
                say(
                    f"{time.monotonic() - began:7.0f} s  {figure.name} {figure.value:.4g} {figure.unit}"
                )
            if args.json:  # what is measured is kept, whatever becomes of the next part
                write_json(args.json, figures)
    say(f"done in {time.monotonic() - start:.0f} s")
    return figures


def say(text: str) -> None:
    """Tell how far it is, where it does not mix with the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_tool(main)
