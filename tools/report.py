#!/usr/bin/env python
"""Make one HTML file of a run: results, curves, ranked lists, what the network looked at, Grad-CAM, confusions.

    python tools/report.py logs/HITSZ-VCM/STAR_R50
    python tools/report.py logs/HITSZ-VCM/STAR_R50 logs/HITSZ-VCM/SAD_R50 --output report.html
    python tools/report.py --ablation logs/ablation

With a second run, such as the baseline, both are shown side by side, and so are the queries that the first has won and
lost. With --ablation it is the figures of what tools/ablate.py has left: mAP over the clip's length (Figure 5) and over
the exponents (Figure 6). The file needs no network and no other file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from fastreid_star.engine.defaults import run_tool
from fastreid_star.errors import UserError
from fastreid_star.report.ablation_figures import build_ablation_report
from fastreid_star.report.build import build_report
from fastreid_star.report.gather import gather
from fastreid_star.report.html import make_folder_of, write_page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="the folder of a run, its OUTPUT_DIR")
    parser.add_argument(
        "other", nargs="?", metavar="RUN_B", help="the folder of another, such as the baseline"
    )
    parser.add_argument(
        "--ablation", metavar="DIR", help="the folder of tools/ablate.py, in place of a run"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="the page to write; default: report.html in the folder"
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="for a folder without config.yaml"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="auto, npu, cuda or cpu; default: the run's MODEL.DEVICE"
    )
    parser.add_argument(
        "--queries", type=int, default=2, metavar="N", help="shown of each kind and direction"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random queries")
    parser.add_argument("--no-gradcam", action="store_true", help="leave Grad-CAM out")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values to change"
    )
    args = parser.parse_args()
    if (args.run is None) == (args.ablation is None):
        raise UserError("name the folder of a run, or give --ablation DIR")
    if args.queries < 1:
        raise UserError(f"--queries {args.queries}: show at least one")

    start = time.monotonic()
    output = Path(args.output or Path(args.ablation or args.run) / "report.html")
    if args.output:
        make_folder_of(output)
    page = build_ablation_report(args.ablation) if args.ablation else page_of_runs(args)
    size = write_page(output, page)
    print(f"{output.resolve()} ({size / 1e6:.1f} MB, {time.monotonic() - start:.0f} s)")


def page_of_runs(args: argparse.Namespace) -> str:
    options = [*args.set, *(["MODEL.DEVICE", args.device] if args.device else [])]
    if args.other and "MODEL.WEIGHTS" in options[::2]:
        raise UserError(
            "MODEL.WEIGHTS is one file, but there are two runs: report on one, or leave it out"
        )
    runs = [gather(f, options, config_file=args.config_file) for f in (args.run, args.other) if f]
    return build_report(
        *runs, queries=args.queries, seed=args.seed, with_gradcam=not args.no_gradcam, say=say
    )


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_tool(main)
