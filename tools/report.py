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

from fastreid_star.engine.defaults import run_tool
from fastreid_star.errors import UserError
from fastreid_star.report.ablation import write_ablation_page
from fastreid_star.report.build import write_report


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
    start = time.monotonic()
    if args.ablation:
        page = write_ablation_page(args.ablation, output=args.output)
    else:
        page = write_report(
            args.run,
            args.other,
            output=args.output,
            config_file=args.config_file,
            options=[*args.set, *(["MODEL.DEVICE", args.device] if args.device else [])],
            queries=args.queries,
            seed=args.seed,
            gradcam=not args.no_gradcam,
            progress=say,
        )
    size = page.stat().st_size / 1e6
    print(f"{page.resolve()} ({size:.1f} MB, {time.monotonic() - start:.0f} s)")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_tool(main)
