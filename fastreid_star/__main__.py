"""usage: python -m fastreid_star SCRIPT [ARGUMENTS]

Run a training script written for fast-reid, such as fast-reid's own tools/train_net.py, unchanged: its trainer,
launcher and config are this plugin's, on any device. ARGUMENTS are the script's: SCRIPT --help lists them.

  python -m fastreid_star path/to/train_net.py --config-file configs/Synthetic/STAR_small.yml --num-gpus 2
  torchrun --nproc-per-node 2 -m fastreid_star path/to/train_net.py --config-file configs/Synthetic/STAR_small.yml
"""

import sys

from fastreid_star.engine.defaults import run_tool
from fastreid_star.engine.script import run_script
from fastreid_star.errors import UserError


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return
    if not arguments or arguments[0].startswith("-"):
        raise UserError(
            "name a script first: python -m fastreid_star path/to/train_net.py [ARGUMENTS]"
        )
    run_script(arguments[0], arguments[1:])


if __name__ == "__main__":
    run_tool(main)
