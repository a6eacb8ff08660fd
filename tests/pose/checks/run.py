"""Runs the checks of a file beside this one, all of them whatever fails: run.py MODULE FOLDER."""

import importlib
import sys
import time
import traceback
from pathlib import Path


def main(name, folder):
    module = importlib.import_module(name)
    checks = [value for key, value in vars(module).items() if key.startswith("check_")]
    failed = 0
    for check in checks:
        start = time.monotonic()
        try:
            check(Path(folder))
        except Exception:
            failed += 1
            print(f"FAILED {check.__name__}", flush=True)
            traceback.print_exc()
        print(f"{time.monotonic() - start:6.1f} s  {check.__name__}", flush=True)
    print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return 1 if failed or not checks else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
