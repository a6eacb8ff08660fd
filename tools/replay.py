#!/usr/bin/env python
"""Run a training step again that was not finite, and show where it began.

    python tools/replay.py logs/HITSZ-VCM/STAR_R50/nonfinite-1234.pth
    python tools/replay.py FILE --float64

The file holds the weights and the batch of before the step. Its losses are held against those of then; every operator
is looked at, and the first whose result is not finite is named, with its module, its line and the ranges around it.
"""

from __future__ import annotations

import argparse

from fastreid_star.engine.defaults import run_tool
from fastreid_star.engine.replay import replay


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file", metavar="FILE", help="nonfinite-ITERATION.pth of a run's OUTPUT_DIR"
    )
    parser.add_argument("--device", default="cpu", help="as MODEL.DEVICE (default: cpu)")
    parser.add_argument(
        "--float64",
        action="store_true",
        help="compute in double precision: what is finite there was lost to rounding",
    )
    args = parser.parse_args()
    print(replay(args.file, args.device, float64=args.float64))


if __name__ == "__main__":
    run_tool(main)
