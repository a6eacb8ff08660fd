import json
import subprocess
import sys

import pytest

from fastreid_star.benchmark.parts import start
from fastreid_star.data.datasets.synthetic import SyntheticOptions, write_synthetic_vcm

from ..conftest import CONFIGS

MADE = SyntheticOptions(train_ids=4, test_ids=4, tracklets=2, frames=12, size=(32, 16))
SMALL = (
    "MODEL.BACKBONE.DEPTH", "tiny", "INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]",
    "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "8",
)  # fmt: skip


def test_figures_and_what_is_run_for_them(options, monkeypatch):
    write_synthetic_vcm(options.folder / "SyntheticVCM", MADE)
    ran, run = [], start._run

    def only_the_evaluation(arguments, result=None):
        """The program once: each start takes seconds."""
        ran.append(arguments)
        return run(arguments, result) if result is not None else None

    monkeypatch.setattr(start, "_run", only_the_evaluation)
    path = CONFIGS / "Synthetic" / start.CONFIG
    figures = {
        figure.name: figure for figure in start.measure(path, options.folder, MADE, options, *SMALL)
    }
    assert "STAR_demo, 8 identities" in figures["start_seconds"].note
    assert figures["first_evaluation_processes"].value == 0
    assert figures["first_evaluation_seconds"].value > 0
    program, imports = ran[0], ran[1]
    assert program[:2] == ["-m", "fastreid_star.benchmark.first_step"]
    assert imports[0] == "-c"
    assert "--with-evaluation" not in program
    assert ran[-1] == [*program, "--with-evaluation"]
    # training stopped after its first step, before anything was written
    assert not (options.folder / "run" / "model_final.pth").exists()


def test_a_program_that_fails_is_not_timed():
    with pytest.raises(RuntimeError, match="ended with 3"):
        start._run(["-c", "raise SystemExit(3)"])


def test_started_processes_are_counted():
    """The hook that the program counts with sees what subprocess starts."""
    code = (
        "import subprocess, sys, json\n"
        "started = []\n"
        "sys.addaudithook(lambda event, args: started.append(args) if event == 'subprocess.Popen' else None)\n"
        "subprocess.run([sys.executable, '-c', ''])\n"
        "print(json.dumps(len(started)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == 1
