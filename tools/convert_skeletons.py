#!/usr/bin/env python
"""Turn the HDF5 file of STAR's authors into a flat store, which reads some hundred times faster, or back.

    python tools/convert_skeletons.py skeletons.h5 datasets/HITSZ-VCM/skeletons
    python tools/convert_skeletons.py datasets/HITSZ-VCM/skeletons skeletons.h5

A name that ends in .h5 or .hdf5 is a file, any other a folder. There and back gives the same store, bit for bit. Give
DATASETS.SKELETONS either; an older store is replaced, and nothing else is.
"""

from __future__ import annotations

import argparse
import os

from fastreid_star.data.skeleton_conversion import convert_skeletons
from fastreid_star.engine.defaults import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="the store to read")
    parser.add_argument("target", metavar="TARGET", help="the store to write")
    args = parser.parse_args()
    conversion = convert_skeletons(args.source, args.target, progress=True)
    without = f"{conversion.not_finite:,} of them without a skeleton (values that are not finite, or beyond a million)"
    print(
        f"{conversion.frames:,} frames converted, {without}; written to {os.path.abspath(args.target)}"
    )


if __name__ == "__main__":
    run_tool(main)
