#!/usr/bin/env python
"""Is this machine ready to train? Ends with status 1 where something must be cured first.

    python tools/doctor.py --device npu --num-devices 8
    python tools/doctor.py --config-file configs/HITSZ-VCM/STAR_R50.yml DATASETS.ROOT /path/to/datasets

Looks at versions, devices, a tiny training step of STAR and an all-reduce between the processes; with a config, at all
that training with it would be refused for: the config itself, the data, the skeletons, the output folder.
"""

from __future__ import annotations

import argparse
import logging
import sys


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", metavar="NAME", help="auto, npu, cuda or cpu, as MODEL.DEVICE; default: auto"
    )
    parser.add_argument(
        "--num-devices", type=int, default=1, metavar="N", help="processes of the all-reduce"
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="a run's config: is everything there for it?"
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and values to change",
    )
    args = parser.parse_args()
    if args.opts and not args.config_file:
        parser.error("KEY VALUE change a config: add --config-file FILE")
    logging.disable(logging.INFO)
    try:
        from fastreid_star.engine.doctor import doctor
    except ImportError as error:  # what is wrong may well be what the plugin needs to be imported
        print(f"FAIL  import         {str(error).splitlines()[0]}\nnot ready: see FAIL above")
        sys.exit(1)
    good = True
    device = [] if args.device is None else ["MODEL.DEVICE", args.device]
    for finding in doctor(
        args.device or "auto",
        args.num_devices,
        config_file=args.config_file or "",
        opts=args.opts + device,
    ):
        print(finding, flush=True)
        good = good and finding.good is not False
    print("ready to train" if good else "not ready: see FAIL above")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
