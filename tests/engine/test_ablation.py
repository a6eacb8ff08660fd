"""Configs x seeds: the plan, the table, and a whole small ablation that is interrupted and goes on."""

import json
import subprocess
import sys

import pytest

from fastreid_star.engine import ablation
from fastreid_star.errors import UserError

from .conftest import REPOSITORY, tiny_options

SYNTHETIC = REPOSITORY / "configs" / "Synthetic"


@pytest.fixture
def runs(tmp_path):
    """Two configs x two seeds; the last has not finished."""
    for name in ("A", "STAR_R50"):
        (tmp_path / f"{name}.yml").write_text("SEED: 0\n")
    runs = ablation.plan([str(tmp_path / "A.yml"), str(tmp_path / "STAR_R50.yml")], [0, 1], [None], tmp_path / "out")
    for number, run in enumerate(runs[:-1]):
        run.folder.mkdir(parents=True)
        numbers = {column: 10.0 * number + place for place, column in enumerate(ablation.COLUMNS)}
        (run.folder / ablation.RESULT).write_text(json.dumps({**numbers, "I2V/mINP": 1.5}))
    return runs


def test_the_plan_keeps_the_runs_of_a_seed_together(runs, tmp_path):
    assert [(run.config.stem, run.seed, run.folder.relative_to(tmp_path).as_posix()) for run in runs] == [
        ("A", 0, "out/seed0/A"),
        ("STAR_R50", 0, "out/seed0/STAR_R50"),
        ("A", 1, "out/seed1/A"),
        ("STAR_R50", 1, "out/seed1/STAR_R50"),
    ]


def test_the_plan_refuses_what_cannot_run(tmp_path):
    (tmp_path / "x").mkdir()
    for path in (tmp_path / "a.yml", tmp_path / "x" / "a.yml"):
        path.write_text("")
    with pytest.raises(UserError, match=r"no such config: none\.yml"):
        ablation.plan(["none.yml"], [0], [None], tmp_path)
    with pytest.raises(UserError, match="two configs have one name"):
        ablation.plan([str(tmp_path / "a.yml"), str(tmp_path / "x" / "a.yml")], [0], [None], tmp_path)


def test_options_of_a_run(runs, tmp_path):
    run = ablation.plan([str(tmp_path / "A.yml")], [3], [7], "out")[0]
    assert ablation.options_of(run, ["K", "V"], tmp_path / "w.pth", "data") == [
        "K", "V", "SEED", "3", "OUTPUT_DIR", "out/data7-seed3/A",
        "DATASETS.SYNTHETIC.SEED", "7", "DATASETS.ROOT", "data/data7",
        "MODEL.WEIGHTS", str(tmp_path / "w.pth"), "MODEL.LOSSES.CE_ONLY_EPOCHS", "0",
    ]  # fmt: skip
    assert ablation.options_of(runs[0], [], None, "") == ["SEED", "0", "OUTPUT_DIR", str(runs[0].folder)]


def test_the_table_has_mean_spread_and_the_papers_numbers(runs):
    table = ablation.summarise(runs)
    assert table["A"]["I2V/Rank-1"] == [0.0, 20.0]
    assert table["STAR_R50"]["I2V/Rank-1"] == [10.0], "only what has finished"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in ablation.to_markdown(table, with_paper=True).splitlines()
    ]
    assert lines[0] == ["config", "runs", *ablation.COLUMNS]
    assert lines[2][:3] == ["A", "2", "10.00 ± 14.14"]
    assert lines[3] == ["STAR_R50", "1", "10.00", "11.00", "12.00", "13.00", "14.00"]
    assert lines[4] == ["(paper)", "", "69.57", "56.01", "73.25", "58.56", "57.28"]
    assert "(paper)" not in ablation.to_markdown(table, with_paper=False)


def test_the_csv_has_every_number_of_every_run(runs):
    lines = ablation.to_csv(runs).splitlines()
    assert lines[0] == "config,data_seed,seed,I2V/Rank-1,I2V/mAP,I2V/mINP,V2I/Rank-1,V2I/mAP,mean/mAP"
    assert lines[1] == "A,,0,0.0,1.0,1.5,2.0,3.0,4.0"
    assert len(lines) == 4


def test_a_failing_run_names_its_folder_and_leaves_no_result(tmp_path):
    run = ablation.plan([str(SYNTHETIC / "SAD_demo.yml")], [0], [None], tmp_path)[0]
    with pytest.raises(UserError, match=r"SAD_demo failed \(error: .* no config key NO\.KEY.*see console\.txt"):
        ablation.train(run, ["NO.KEY", "1"])
    assert run.result is None


def test_whole_ablation_stops_and_goes_on(tiny_root, tmp_path):
    output = tmp_path / "out"
    options = tiny_options(tiny_root, "unused", "SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "()")
    pairs = list(zip(options[::2], options[1::2], strict=True))
    options = [part for key, value in pairs if key not in ("OUTPUT_DIR", "DATASETS.ROOT") for part in (key, value)]

    def ablate(*configs):
        command = [sys.executable, "tools/ablate.py", "--configs", *(str(SYNTHETIC / name) for name in configs)]
        command += ["--output", str(output), "--root", str(tiny_root), "--warm-start", str(SYNTHETIC / "SAD_demo.yml")]
        done = subprocess.run([*command, "--set", *options], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "warm start of seed0" in ablate("SAD_demo.yml")
    first = (output / "seed0" / "SAD_demo" / "result.json").stat().st_mtime_ns
    said = ablate("SAD_demo.yml", "STAR_demo.yml")
    assert "warm start" not in said
    assert "run 2 of 2" in said
    assert "run 1 of 2" not in said
    assert (output / "seed0" / "SAD_demo" / "result.json").stat().st_mtime_ns == first
    assert [line.split("|")[1].strip() for line in (output / "table.md").read_text().splitlines()[2:]] == [
        "SAD_demo",
        "STAR_demo",
    ]
    log = (output / "seed0" / "STAR_demo" / "log.txt").read_text()
    assert "warm-start/model_final.pth" in log
