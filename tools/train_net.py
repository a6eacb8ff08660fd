#!/usr/bin/env python
"""``fastreid-star train`` under the name that fast-reid's users look for."""

import sys

if __name__ == "__main__":
    try:
        from fastreid_star_command import main
    except ModuleNotFoundError:
        sys.exit(f"error: fastreid_star is not installed in {sys.executable}")
    sys.argv.insert(1, "train")
    main()
