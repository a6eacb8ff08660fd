"""What depends on the device, on one that is no CPU: settings, transfers, mixed precision, memory."""

import json
from pathlib import Path

import pytest

import simulated_npu

REPOSITORY = Path(__file__).parents[2]
reason = simulated_npu.missing_compiler()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def check_step_and_memory(folder):
    simulated_npu.load()
    from dataclasses import asdict

    from fastreid_star.benchmark.networks import BARE, Setting
    from fastreid_star.benchmark.options import Options
    from fastreid_star.benchmark.parts import loader, memory, step
    from fastreid_star.data.datasets.synthetic import SyntheticOptions

    step.ON_DEVICE, step.CONFIGS = 64, {"star": "STAR_R50.yml"}
    step.apart = lambda function, *args: function(*args)  # what is set here holds in this process
    loader.DATASET = SyntheticOptions(
        train_ids=8, test_ids=2, tracklets=2, frames=12, size=(32, 16)
    )
    options = Options(
        configs=REPOSITORY / "configs",
        folder=Path(folder),
        quick=True,
        device="npu",
        repeats=1,
        backbone="tiny",
        clips=4,
        frames=2,
        size=(32, 16),
        progress=False,
    )
    assert not options.on_cpu
    assert not options.compiles
    print(memory.train(BARE, Setting(), options))
    print(json.dumps([asdict(figure) for figure in step.figures(options)]))


def test_step_and_memory(tmp_path):
    (said,) = simulated_npu.run(check_step_and_memory, str(tmp_path))
    peak, figures = said.splitlines()[-2:]
    assert int(peak) > 100_000  # the tiny backbone's weights, gradients and momentum take more
    figures = {figure["name"]: figure for figure in json.loads(figures)}
    assert "bfloat16_channels_last" in figures["star_step_frames_per_s"]["note"]
    for suffix in ("_bfloat16", "_float16_channels_last", "_float32_channels_last", "_float32"):
        assert figures[f"star_step_frames_per_s{suffix}"]["value"] > 0
    assert "star_step_convolution_share" not in figures, "torch's profiler does not see this device"
