#!/usr/bin/env python
"""Is this machine ready to train? Ends with status 1 where something must be cured first.

    python tools/doctor.py --device npu --num-devices 8

Looks at versions, devices, a tiny training step of STAR and an all-reduce between the processes.
"""

from __future__ import annotations

import argparse
import logging
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, npu, cuda or cpu, as MODEL.DEVICE")
    parser.add_argument("--num-devices", type=int, default=1, metavar="N", help="processes of the all-reduce")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    try:
        from fastreid_star.engine.doctor import examine
    except ImportError as error:  # what is wrong may well be what the plugin needs to be imported
        print(f"FAIL  import         {str(error).splitlines()[0]}\nnot ready: see FAIL above")
        sys.exit(1)
    good = True
    for finding in examine(args.device, args.num_devices):
        print(finding, flush=True)
        good = good and finding.good is not False
    print("ready to train" if good else "not ready: see FAIL above")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
