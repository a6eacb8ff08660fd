"""Entry point of the console command ``fastreid-star``.

This module is outside of the package because ``import fastreid_star`` imports torch and fast-reid.
That takes seconds, too long for ``fastreid-star --help``, and fails if one of them is missing.
"""

import importlib.util
import sys


def main() -> None:
    """Put the package into ``sys.modules`` unexecuted, and execute it when a command needs it."""
    if "fastreid_star" in sys.modules:
        from fastreid_star.cli.main import main as run_command

        return run_command()
    spec = importlib.util.find_spec("fastreid_star")
    if spec is None or spec.loader is None:
        sys.exit(f"error: fastreid_star is not installed in {sys.executable}")
    package = importlib.util.module_from_spec(spec)
    sys.modules["fastreid_star"] = package
    from fastreid_star.cli.main import main as run_command

    return run_command(load=lambda: spec.loader.exec_module(package))


if __name__ == "__main__":
    main()
