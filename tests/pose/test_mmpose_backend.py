"""mmpose's networks, in the pose environment; what is checked stands in checks/mmpose_checks.py."""

from .environment import needs_environment, run_checks


@needs_environment
def test_mmpose(tmp_path):
    print(run_checks("mmpose_checks", tmp_path))
