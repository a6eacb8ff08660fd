"""Ablations: the plan, the tables, and a small ablation that is interrupted and resumed."""

import json
import os
import shutil
import sys
import threading

import pytest
import yaml

from fastreid_star.ablation import runs as ablation
from fastreid_star.ablation.tables import (
    COLUMNS,
    RESULT,
    pairs_to_markdown,
    summarize,
    to_csv,
    to_markdown,
)
from fastreid_star.engine.configs import load_config
from fastreid_star.errors import UserError
from fastreid_star.files import locked

from ..forked import run_forked, start_forked
from ..tiny import DEMO, REPOSITORY, tiny_options

SYNTHETIC = REPOSITORY / "configs" / "Synthetic"


@pytest.fixture
def runs(tmp_path):
    """Two configs x two seeds; the last has not finished."""
    for name in ("A", "STAR_R50"):
        (tmp_path / f"{name}.yml").write_text("SEED: 0\n")
    runs = ablation.plan(
        [str(tmp_path / "A.yml"), str(tmp_path / "STAR_R50.yml")], [0, 1], [None], tmp_path / "out"
    )
    for number, run in enumerate(runs[:-1]):
        run.folder.mkdir(parents=True)
        numbers = {column: 10.0 * number + place for place, column in enumerate(COLUMNS)}
        (run.folder / RESULT).write_text(json.dumps({**numbers, "I2V/mINP": 1.5}))
    return runs


def finish(run, mean):
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / RESULT).write_text(json.dumps({"mean/mAP": mean}))


def test_the_plan_keeps_the_runs_of_a_seed_together(runs, tmp_path):
    assert [
        (run.config.stem, run.seed, run.folder.relative_to(tmp_path).as_posix()) for run in runs
    ] == [
        ("A", 0, "out/seed0/A"),
        ("STAR_R50", 0, "out/seed0/STAR_R50"),
        ("A", 1, "out/seed1/A"),
        ("STAR_R50", 1, "out/seed1/STAR_R50"),
    ]


@pytest.mark.parametrize(
    ("configs", "seeds", "retests", "message"),
    [
        (["none.yml"], [0], [], r"none\.yml"),
        (["A.yml"], [0, 1, 0], [], "seeds"),
        (["A.yml", "x/A.yml"], [0], [], "names"),
        (["A.yml"], [0], [("B", "x", "K", "V")], "--retest B x K V: give"),
        (["A.yml"], [0], [("A", "x", "K", "V")] * 2, "new name"),
        (["A.yml"], [0], [("A", "../x", "K", "V")], "new name"),
        (["A.yml"], [0], [("A", "x", "K", "V", "L")], "CONFIG NAME KEY VALUE"),
        (["A.yml"], [0], [("A",)], "CONFIG NAME KEY VALUE"),
    ],
)
def test_what_cannot_be_planned(tmp_path, monkeypatch, configs, seeds, retests, message):
    (tmp_path / "x").mkdir()
    for path in (tmp_path / "A.yml", tmp_path / "x" / "A.yml"):
        path.write_text("SEED: 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        ablation.ablate(configs, "out", seeds=seeds, retests=retests)


def test_options_of_a_run(tmp_path, runs):
    run = ablation.plan([str(tmp_path / "A.yml")], [3], [7], "out")[0]
    assert ablation.options_of(run, ["K", "V"], tmp_path, "data") == [
        "K", "V", "SEED", "3", "OUTPUT_DIR", "out/data7-seed3/A",
        "DATASETS.SYNTHETIC.SEED", "7", "DATASETS.ROOT", "data/data7",
        "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), "MODEL.LOSSES.CE_ONLY_EPOCHS", "0",
    ]  # fmt: skip


def test_the_table_has_mean_spread_and_the_papers_numbers(runs):
    table = summarize(runs)
    assert table["A"]["I2V/Rank-1"] == [0.0, 20.0]
    assert table["STAR_R50"]["I2V/Rank-1"] == [10.0], "only what has finished"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in to_markdown(table, with_paper=True).splitlines()
    ]
    assert lines[0] == ["config", "runs", *COLUMNS]
    assert lines[2][:3] == ["A", "2", "10.00 ± 14.14"]
    assert lines[3] == ["STAR_R50", "1", "10.00", "11.00", "12.00", "13.00", "14.00"]
    assert lines[4] == ["(paper)", "", "69.57", "56.01", "73.25", "58.56", "57.28"]
    assert "(paper)" not in to_markdown(table, with_paper=False)


def test_a_protocol_without_v2i_leaves_its_columns_empty(runs):
    for run in runs:
        if run.result is not None:
            kept = {key: value for key, value in run.result.items() if "V2I" not in key}
            (run.folder / "result.json").write_text(json.dumps(kept))
    table = summarize(runs)
    assert list(table["A"]) == [column for column in COLUMNS if "V2I" not in column]
    row = to_markdown(table, with_paper=False).splitlines()[2]
    assert [cell.strip() for cell in row.strip("|").split("|")][:6] == [
        "A", "2", "10.00 ± 14.14", "11.00 ± 14.14", "", "",
    ]  # fmt: skip


def test_the_csv_has_every_number_of_every_run(runs):
    lines = to_csv(runs).splitlines()
    assert (
        lines[0] == "config,data_seed,seed,I2V/Rank-1,I2V/mAP,I2V/mINP,V2I/Rank-1,V2I/mAP,mean/mAP"
    )
    assert lines[1] == "A,,0,0.0,1.0,1.5,2.0,3.0,4.0"
    assert len(lines) == 4


def test_pairs_are_compared_seed_by_seed(runs):
    ((retest, changed), *_) = ablation.plan_retests(runs, [("A", "blind", "K", "V")])
    assert (retest.folder, changed) == (runs[0].folder / "retest-blind", ("K", "V"))
    finish(retest, 1.25)
    lines = pairs_to_markdown([*runs, retest], "A").splitlines()
    assert [
        [cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])
    ] == [
        ["mean mAP against it", "seed0", "seed1", "mean", "least"],
        ["A", "4.00", "24.00", "", ""],
        ["STAR_R50", "+10.00", "", "+10.00", "+10.00"],
        ["A, blind", "-2.75", "", "-2.75", "-2.75"],
    ]
    finish(runs[-1], 21.0)
    row = pairs_to_markdown(runs, "A").splitlines()[3]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["+10.00", "-3.00", "+3.50", "-3.00"]
    with pytest.raises(UserError, match="--against B"):
        pairs_to_markdown(runs, "B")


def test_a_variant_is_trained_once_beside_its_config(runs):
    ((run, changed),) = ablation.plan_variants(runs, [("STAR_R50", "no-SE", "K", "V", "L", "W")])
    assert (run.name, run.seed, changed) == ("STAR_R50, no-SE", 0, ("K", "V", "L", "W"))
    assert run.folder == runs[1].folder.parent / "STAR_R50-vary-no-SE"
    with pytest.raises(UserError, match="--vary B x K V: give CONFIG NAME KEY VALUE"):
        ablation.plan_variants(runs, [("B", "x", "K", "V")])


def test_two_at_a_time_and_none_after_a_failure(tmp_path, monkeypatch):
    (tmp_path / "A.yml").write_text("SEED: 0\n")
    runs = ablation.plan([str(tmp_path / "A.yml")], range(6), [None], tmp_path / "out")
    finish(runs[1], 5.0)
    together = threading.Barrier(
        2
    )  # broken, and the test with it, unless two runs are under way at once
    started = []

    def execute(run, options):
        started.append(run.seed)
        if run.seed in (0, 2):
            together.wait(timeout=20)
        if run.seed == 3:
            raise KeyboardInterrupt
        finish(run, 7.0)

    monkeypatch.setattr(ablation, "execute", execute)
    said = []
    ablation.execute_all([(run, []) for run in runs[:3]], 2, said.append)
    assert sorted(started) == [0, 2]
    assert len(said) == 4
    with pytest.raises(KeyboardInterrupt):
        ablation.execute_all([(run, []) for run in runs], 1, said.append)
    assert sorted(started) == [0, 2, 3], "runs were started after one had failed"


def test_an_ablation_of_an_earlier_version_goes_on():
    """That version did not know SCORE_THRESHOLD, knew a key that was removed, and one that nobody knows."""
    now = load_config(DEMO).dump()
    saved = yaml.safe_load(now)
    assert ablation.changed_keys(now, now) == []
    del saved["MODEL"]["STAR"]["SCORE_THRESHOLD"]
    saved["MODEL"]["STAR"]["KL_LAST"] = "last_step"
    saved["MODEL"]["UNKNOWN"] = 3
    assert ablation.changed_keys(yaml.safe_dump(saved), now) == []
    other = load_config(DEMO, ["MODEL.STAR.SCORE_THRESHOLD", "0.3", "SOLVER.MAX_EPOCH", "7"]).dump()
    changed = ["MODEL.STAR.SCORE_THRESHOLD", "SOLVER.MAX_EPOCH"]
    assert ablation.changed_keys(yaml.safe_dump(saved), other) == changed


def test_a_second_ablation_in_a_folder_is_refused(tmp_path, monkeypatch):
    def second(*_):  # while the first one executes its runs
        other = run_forked(lambda: locked(tmp_path).__enter__())
        seen.append("another run is writing to" in other.text)

    seen = []
    monkeypatch.setattr(ablation, "execute_all", second)
    with pytest.raises(UserError, match="there is no table yet"):
        ablation.ablate([DEMO], str(tmp_path), root=str(tmp_path))
    assert seen == [True, True]


def forked_call(command, stdout, stderr):
    """What ``subprocess.call`` does with the program of a run, in a forked process."""
    code, *arguments = command[2:]

    def run():
        sys.argv = ["-c", *arguments]
        exec(code, {"__name__": "__main__"})

    pid = start_forked(run, output=stdout.fileno())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_whole_ablation_fails_and_is_resumed(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation.subprocess, "call", forked_call)
    output = tmp_path / "out"
    pairs = iter(tiny_options(tiny_root, "x", "SOLVER.MAX_EPOCH", "1", "SOLVER.STEPS", "()"))
    pairs = [(key, next(pairs)) for key in pairs]
    own = ("OUTPUT_DIR", "DATASETS.ROOT")
    opts = [part for pair in pairs if pair[0] not in own for part in pair]

    def ablate(*names, more=(), **options):
        said = []
        configs = [str(SYNTHETIC / f"{name}.yml") for name in names]
        options = {"root": str(tiny_root), "opts": [*opts, *more], **options}
        table = ablation.ablate(configs, str(output), report=said.append, **options)
        return table, said

    with pytest.raises(UserError, match="SAD_demo failed"):
        ablate("SAD_demo", more=("DATASETS.NAMES", "('none',)"))
    with pytest.raises(UserError, match=r"another config or options \(DATASETS\.NAMES\)"):
        ablate("SAD_demo")
    shutil.rmtree(output)
    page = tmp_path / "page.md"
    page.write_text("Results\n<!-- ablation: begin -->\nold\n<!-- ablation: end -->\nEnd\n")
    with pytest.raises(UserError, match=r"no run in .* has finished"):
        ablate("SAD_demo", page=str(page), table_only=True)
    assert "old" in page.read_text()

    warm = {"warm_start": str(SYNTHETIC / "SAD_demo.yml")}
    _, said = ablate("SAD_demo", **warm)
    assert "warm-start" in said[0]
    first = (output / "seed0" / "SAD_demo" / "result.json").stat().st_mtime_ns
    # Without skeletons a network that was trained with them must give other numbers.
    retests = [("STAR_demo", "missing", "DATASETS.SKELETONS_TEST", "none")]
    variants = [("SAD_demo", "slow", "SOLVER.BASE_LR", "0.0001")]
    options = {"retests": retests, "variants": variants, "against": "SAD_demo", **warm}
    table, said = ablate("SAD_demo", "STAR_demo", page=str(page), **options)
    assert [line.split(":")[0] for line in said if line.startswith("run")] == [
        *("run 1 of 2", "run 2 of 2", "run 1 of 1")
    ]
    assert page.read_text().startswith("Results\n<!-- ablation: begin -->\n\n| config")
    assert table in page.read_text()
    assert "old" not in page.read_text()
    assert (output / "seed0" / "SAD_demo" / "result.json").stat().st_mtime_ns == first
    names = [line.split("|")[1].strip() for line in table.splitlines() if line]
    rows = ["SAD_demo", "STAR_demo", "SAD_demo, slow", "STAR_demo, missing"]
    assert [name for name in names if name in rows] == rows * 2
    assert (output / "table.md").read_text() == f"{table}\n"
    folders = ("SAD_demo", "SAD_demo-vary-slow", "STAR_demo", "STAR_demo/retest-missing")
    plain, slow, intact, missing = (
        json.loads((output / "seed0" / folder / "result.json").read_text())["mean/mAP"]
        for folder in folders
    )
    assert plain != slow
    assert intact != missing
    log = (output / "seed0" / "STAR_demo" / "log.txt").read_text()
    assert "warm-start/model_final.pth" in log
