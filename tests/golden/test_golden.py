"""Small runs give the numbers of the record: SAD those from before the package was rebuilt.

``python tests/golden/record.py`` prints the differences.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

spec = importlib.util.spec_from_file_location("golden", Path(__file__).with_name("record.py"))
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


@pytest.mark.parametrize("case", golden.CASES)
def test_numbers_are_those_of_the_record(case, tmp_path):
    found = golden.run(case, tmp_path)
    with np.load(golden.RECORD) as record:
        for name in ("loss_names", "result_names"):
            assert found[f"{case}/{name}"].tolist() == record[f"{case}/{name}"].tolist()
        losses, features, results = (
            (found[f"{case}/{name}"], record[f"{case}/{name}"])
            for name in ("losses", "features", "results")
        )
    np.testing.assert_allclose(*losses, rtol=1e-7)
    np.testing.assert_allclose(*features, atol=1e-5)
    np.testing.assert_allclose(*results, atol=1e-6)
