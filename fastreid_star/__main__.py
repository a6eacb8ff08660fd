"""``python -m fastreid_star COMMAND`` is ``fastreid-star COMMAND``.

If the first argument ends in .py, it is a script written for fast-reid, which is run unmodified.
"""

import sys

from fastreid_star.cli.main import main

if __name__ == "__main__":
    is_script = len(sys.argv) > 1 and sys.argv[1].endswith(".py")
    main(["run-script", *sys.argv[1:]] if is_script else None)
