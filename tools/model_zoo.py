#!/usr/bin/env python
"""Bring the table of trained models up to date from the folders of their runs.

    python tools/model_zoo.py logs/HITSZ-VCM/SAD_R50 logs/HITSZ-VCM/STAR_R50

The table stands between two marks of the page. Every number of a run's training goes along, as a file beside the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastreid_star.engine.defaults import run_tool
from fastreid_star.report.zoo import update_zoo

PAGE = Path(__file__).resolve().parent.parent / "configs" / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="the folder of a run, its OUTPUT_DIR"
    )
    parser.add_argument(
        "--page", default=str(PAGE), metavar="FILE", help="default: configs/README.md"
    )
    parser.add_argument(
        "--logs", default="logs", metavar="DIR", help="for the numbers, from the page's folder on"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="config keys, such as DATASETS.TESTS",
    )
    args = parser.parse_args()
    update_zoo(args.runs, page=args.page, logs=args.logs, options=args.set)
    print(f"{len(args.runs)} runs: {args.page}")


if __name__ == "__main__":
    run_tool(main)
