#!/usr/bin/env python
"""Estimate the skeleton of every crop with a trained pose network. Runs in the pose environment.

    python tools/dev.py pose
    .venv-pose/bin/python tools/extract_skeletons.py --dataset HITSZVCM --root datasets \\
        --output datasets/HITSZ-VCM/skeletons --checkpoint hrnet_w32.pth

Killed or interrupted, it goes on where it was when the same command is given again. Crops that cannot be read are
listed and have no skeleton. Several machines that share --output's folder share the work with --shard 1/2 and 2/2.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys

from fastreid_star.data.skeletons import FlatStore
from fastreid_star.engine.defaults import run_tool
from fastreid_star.errors import UserError
from fastreid_star.pose.estimator import BACKENDS, DTYPES
from fastreid_star.pose.extraction import Share, parts_folder
from fastreid_star.pose.job import Job, extract


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    crops = parser.add_mutually_exclusive_group(required=True)
    crops.add_argument(
        "--dataset", default="", metavar="NAME", help="HITSZVCM, BUPTCampus, SyntheticVCM, ..."
    )
    crops.add_argument(
        "--images", default="", metavar="FOLDER", help="any folder of crops, its folders included"
    )
    parser.add_argument(
        "--root", default="", metavar="FOLDER", help="the datasets' folder, DATASETS.ROOT"
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="the skeleton store to make"
    )
    parser.add_argument("--backend", default="mmpose", choices=sorted(BACKENDS))
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="mmpose: a config of its own, or a file; HRNet-w32",
    )
    parser.add_argument(
        "--checkpoint", default="", metavar="PATH", help="mmpose: a file; vitpose: a folder"
    )
    parser.add_argument(
        "--flip-test", action="store_true", help="average with the mirrored crop: twice the time"
    )
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="mixed precision; without it float32"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, npu, cuda or cpu")
    parser.add_argument(
        "--num-devices", type=int, default=1, metavar="N", help="processes, one a device"
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="K/N", help="this machine's share, where several work"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="crops at a time")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="decoding processes for each device"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the store that is there, once this is whole",
    )
    args = vars(parser.parse_args())
    args["shard"] = _shard(args["shard"])
    job = Job(**args)
    if not extract(job):
        done = len(glob.glob(os.path.join(glob.escape(parts_folder(job.output)), "*.npz")))
        print(f"this shard is done, parts in all: {done}; the last shard to end makes {job.output}")
        return
    sys.stdout.reconfigure(errors="replace")  # names of files need not be text
    print(_summary(job.output))


def _shard(text: str) -> Share:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise UserError(f"--shard {text!r}: write it as 1/4, the first of four")
    return Share(int(found[1]) - 1, int(found[2]))


def _summary(output: str, most: int = 5) -> str:
    meta = FlatStore(output).meta
    counts, missing = meta["counts"], meta["missing"]
    lines = [
        f"{os.path.abspath(output)}: {counts['with_skeleton']:,} of {counts['frames']:,} crops have a skeleton"
    ]
    lines += [f"  none: {key}: {reason}" for key, reason in list(missing.items())[:most]]
    if len(missing) > most:
        lines.append(f"  and {len(missing) - most:,} more, listed in its index.json")
    return "\n".join(lines)


if __name__ == "__main__":
    run_tool(main)
