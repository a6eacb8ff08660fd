"""SYSU-MM01, RegDB and LLCM from the command line: check, train, evaluate, report."""

import json

import pytest

from fastreid_star.cli.main import main
from fastreid_star.cli.main import run as command
from fastreid_star.engine.defaults import argument_parser
from fastreid_star.engine.trainer import train_or_evaluate
from fastreid_star.evaluation.tables import format_table
from fastreid_star.report.build import write_report

from ..image_sets import SIZE, WRITERS

NAMES = {"SYSU-MM01": "SYSUMM01", "RegDB": "RegDB", "LLCM": "LLCM"}


@pytest.mark.parametrize("folder", NAMES)
def test_check_reads_every_image(folder, tmp_path, capsys):
    WRITERS[folder](tmp_path / folder)
    images = sum(path.suffix in (".jpg", ".bmp") for path in (tmp_path / folder).rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["check", NAMES[folder], "--root", str(tmp_path)])
    out = capsys.readouterr().out
    assert ended.value.code == 1, "its counts are not the published ones"
    assert f"{images} of {images} frames read" in out
    assert f"{images} good, 0 missing, 0 broken" in out
    faults = [line for line in out.splitlines() if line.startswith("FAULT")]
    assert faults
    assert all(line.startswith("FAULT  not as published: t") for line in faults)


def run(config, options, *flags):
    words = [str(word) for pair in options.items() for word in pair]
    arguments = ["--config-file", str(config), *flags, *words]
    return train_or_evaluate(argument_parser("test").parse_args(arguments))


def test_sysu_is_trained_tested_and_reported(tmp_path):
    """A protocol without V2I through the whole line."""
    WRITERS["SYSU-MM01"](tmp_path / "SYSU-MM01")
    output = tmp_path / "out"
    options = {
        "DATASETS.ROOT": tmp_path,
        "OUTPUT_DIR": output,
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
        "MODEL.BACKBONE.DEPTH": "tiny",
        "MODEL.BACKBONE.PRETRAIN": False,
        "INPUT.SIZE_TRAIN": list(SIZE),
        "INPUT.SIZE_TEST": list(SIZE),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.MAX_EPOCH": 1,
        "TEST.EVAL_PERIOD": 1,
    }
    results = run("SYSU-MM01/SAD_R50.yml", options)
    assert results["metric"] == results["I2V/mAP"]
    assert "V2I/mAP" not in results
    assert (output / "model_best.pth").is_file()
    saved = json.loads((output / "results_SYSUMM01.json").read_text())
    assert saved["protocol"] == "all search, single-shot, seeded gallery"
    assert (saved["trials"], saved["metrics"]) == (10, results)
    rows = [line.split("|")[1].strip() for line in format_table({"a": results}).splitlines()]
    assert rows[2:] == ["a I2V"]

    again = {
        "MODEL.WEIGHTS": output / "model_final.pth",
        "DATASETS.IMAGE_PROTOCOL.SHOTS": 10,
        "OUTPUT_DIR": tmp_path / "multi",
        "TEST.ROC.ENABLED": True,
    }
    multi = run(output / "config.yaml", again, "--eval-only")
    assert multi != results
    assert {"ROC/EER", "DIR/I2V@FAR=1e-02"} <= set(multi)
    assert not any("V2I" in name for name in multi)
    command(
        *("threshold", "--config-file", output / "config.yaml", "--device", "cpu", "--workers", 0),
        *("--weights", output / "model_final.pth", "--false-accepts", 0.1),
        *("--set", "DATASETS.IMAGE_PROTOCOL.SHOTS", 10),
    )
    kept = json.loads((output / "threshold.json").read_text())
    assert "mean over 10 trials" in kept["source"], "its pairs are those of the evaluation"
    assert 100 * kept["true_accepts"] == pytest.approx(multi["ROC/TPR@FPR=1e-01"])
    saved = json.loads((tmp_path / "multi" / "results_SYSUMM01.json").read_text())
    assert saved["protocol"] == "all search, multi-shot, seeded gallery"

    page = write_report(output, gradcam=False, queries=1).read_text(encoding="utf-8")
    assert "I2V: infrared queries, visible gallery" in page
    assert "queries of camera 3 skip camera 2" in page
    assert "V2I: " not in page
