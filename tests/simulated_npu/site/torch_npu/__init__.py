"""Put the folder above this one on PYTHONPATH, and ``import torch_npu`` finds the simulated device."""

import importlib.util
import sys
from pathlib import Path

if "simulated_npu" not in sys.modules:
    _folder = Path(__file__).resolve().parents[2]
    _spec = importlib.util.spec_from_file_location(
        "simulated_npu", _folder / "__init__.py", submodule_search_locations=[str(_folder)]
    )
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["simulated_npu"] = _module
    _spec.loader.exec_module(_module)

sys.modules["simulated_npu"].load()
