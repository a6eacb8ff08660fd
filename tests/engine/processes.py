"""Call a function of a test module in several processes."""

import json
import sys
from pathlib import Path

from fastreid_star.engine.launch import run_command

PROGRAM = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
import fastreid_star
from fastreid_star.engine.defaults import run_tool
from fastreid_star.engine.launch import launch
module, function, device, args = sys.argv[2:]
function = getattr(importlib.import_module(module), function)
run_tool(lambda: launch(function, 2, device=device, args=tuple(json.loads(args))))
"""


def call_in_processes(function, count, *args, device="cpu"):
    """``function(*args)`` in `count` processes; its arguments are strings and numbers."""
    module = sys.modules[function.__module__]
    repository = Path(__file__).parents[2]
    name = ".".join(Path(module.__file__).relative_to(repository).with_suffix("").parts)
    arguments = json.dumps([str(arg) if isinstance(arg, Path) else arg for arg in args])
    run_command(["-c", PROGRAM, str(repository), name, function.__name__, device, arguments], count)
