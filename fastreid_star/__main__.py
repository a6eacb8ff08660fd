"""usage: python -m fastreid_star SCRIPT [ARGUMENTS]

Run an unmodified training script of fast-reid, such as its tools/train_net.py, on any device and
with the plugin's datasets and models. SCRIPT --help lists the script's own arguments.

  python -m fastreid_star train_net.py --config-file Synthetic/STAR_small.yml --num-gpus 2
  torchrun --nproc-per-node 2 -m fastreid_star train_net.py --config-file Synthetic/STAR_small.yml
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
        raise UserError("give a script: python -m fastreid_star path/to/train_net.py [ARGUMENTS]")
    run_script(arguments[0], arguments[1:])


if __name__ == "__main__":
    run_tool(main)
