#!/usr/bin/env python
"""Turn a published checkpoint, SAADG's or that of STAR's authors (SDTG), into one of ours.

    python tools/convert_weights.py THEIRS.pth OURS.pth --config-file configs/HITSZ-VCM/SAD_R50_saadg.yml
    python tools/convert_weights.py THEIRS.t OURS.pth --config-file configs/HITSZ-VCM/STAR_R50_release.yml

Whose it is shows in its names. Names that are left out are listed with the reason, unknown ones too; a weight of our
model that is missing or of another shape ends it, and so does a config that would give other features. Evaluate the
result with tools/train_net.py --config-file (the same) --eval-only MODEL.WEIGHTS OURS.pth.
"""

from __future__ import annotations

import argparse
import os

import torch

from fastreid_star.engine.convert import convert, read_published, require_fit
from fastreid_star.engine.defaults import load_config, run_tool
from fastreid_star.errors import UserError
from fastreid_star.files import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("theirs", metavar="THEIRS", help="the published checkpoint")
    parser.add_argument("ours", metavar="OURS", help="the file to write")
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a YAML file of configs/"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values to change"
    )
    args = parser.parse_args()

    cfg = load_config(args.config_file, args.set)
    folder = os.path.dirname(os.path.abspath(args.ours))
    if not os.path.isdir(folder):
        raise UserError(f"the folder {folder} does not exist: make it, or write elsewhere")
    if (
        os.path.exists(args.ours)
        and os.path.exists(args.theirs)
        and os.path.samefile(args.theirs, args.ours)
    ):
        raise UserError(f"{args.ours} is the published checkpoint itself: write elsewhere")
    conversion = convert(read_published(args.theirs))
    print(conversion.report())
    require_fit(conversion, cfg)
    write_whole(args.ours, lambda file: torch.save({"model": conversion.weights}, file))
    print(f"nothing is missing; written to {os.path.abspath(args.ours)}")


if __name__ == "__main__":
    run_tool(main)
