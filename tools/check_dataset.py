#!/usr/bin/env python
"""Is a dataset whole? Ends with status 1 where something is missing, broken or other than published.

    python tools/check_dataset.py HITSZVCM --root /path/to/datasets --skeletons skeletons --output check

Counts tracklets, reads every frame, compares every skeleton with its frame. Writes check.html, with some tracklets and
their skeletons to look at, and problems.csv with a line for every frame and skeleton that is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys

from fastreid_star.data.check import check_dataset, open_dataset, splits
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.engine.defaults import run_tool
from fastreid_star.errors import UserError
from fastreid_star.report.dataset import PAGE, format_check, write_dataset_page
from fastreid_star.report.page import make_folder_of

FEW = 5000  # frames that one process has read before others have started
MOST_WORKERS = 16  # unless asked for: by then the disk is what takes the time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name", metavar="NAME", help="HITSZVCM, BUPTCampus, SyntheticVCM: as in DATASETS.NAMES"
    )
    parser.add_argument(
        "--root", default="", metavar="DIR", help="the datasets' folder, DATASETS.ROOT"
    )
    help_text = (
        "a folder or an HDF5 file; a relative path starts at the dataset's folder, or else here"
    )
    parser.add_argument("--skeletons", metavar="PATH", help=help_text)
    parser.add_argument(
        "--output", metavar="DIR", help="where the report goes; left out: nothing is written"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read; left out: as many as cores, up to 16",
    )
    parser.add_argument(
        "--sample", type=int, default=1, metavar="N", help="look at every Nth frame only"
    )
    parser.add_argument(
        "--no-decode", action="store_true", help="only see that the files are there and not empty"
    )
    parser.add_argument(
        "--tracklets", type=int, default=3, metavar="N", help="in the picture, of each modality"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="another one, other tracklets in the picture",
    )
    args = parser.parse_args()
    for option, least in (("sample", 1), ("workers", 1), ("tracklets", 1), ("seed", 0)):
        if getattr(args, option) is not None and getattr(args, option) < least:
            raise UserError(f"--{option} {getattr(args, option)}: at least {least}")

    dataset = open_dataset(args.name, args.root)
    store = None
    if args.skeletons:
        path = dataset.path(args.skeletons)  # as training takes it
        store = SkeletonStore.open(path if os.path.exists(path) else args.skeletons)
    if args.output:
        make_folder_of(os.path.join(args.output, PAGE))
    frames = (
        sum(len(tracklet) for part in splits(dataset).values() for tracklet in part) // args.sample
    )
    workers = args.workers or (1 if frames < FEW else min(MOST_WORKERS, os.cpu_count() or 1))
    check = check_dataset(
        dataset, store, decode=not args.no_decode, every=args.sample, workers=workers, progress=True
    )
    sys.stdout.reconfigure(errors="replace")  # a terminal that does not know the histogram's blocks
    print(format_check(check))
    if args.output:
        files = write_dataset_page(
            check, dataset, store, output=args.output, tracklets=args.tracklets, seed=args.seed
        )
        names = ", ".join(path.name for path in files)
        print(f"{names}: {os.path.abspath(args.output)}")
    sys.exit(0 if check.good else 1)


if __name__ == "__main__":
    run_tool(main)
