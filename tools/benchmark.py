#!/usr/bin/env python
"""Measure speed and memory, each figure beside a reference from the same run.

    python tools/benchmark.py --quick
    python tools/benchmark.py step --device cuda SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE bfloat16

Parts: step (a training step), loader, ranking, start (the time to the first training step).
docs/performance.md explains the figures and their limits.
"""

from __future__ import annotations

import argparse
import sys

from fastreid_star.benchmark import PARTS, run
from fastreid_star.engine.defaults import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PART or KEY VALUE",
        help=f"what to measure ({', '.join(PARTS)}; all by default), and config keys to change",
    )
    parser.add_argument("--device", default="auto", help="as MODEL.DEVICE (default: auto)")
    parser.add_argument("--quick", action="store_true", help="smaller work, about two minutes")
    args = parser.parse_intermixed_args()
    first = next((i for i, word in enumerate(args.words) if "." in word or word.isupper()), None)
    parts, opts = (args.words, []) if first is None else (args.words[:first], args.words[first:])
    figures = run(parts, device=args.device, quick=args.quick, opts=opts)
    sys.exit(any(figure.is_outside for figure in figures))


if __name__ == "__main__":
    run_tool(main)
