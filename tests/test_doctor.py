"""The report about a machine: each line tells what is ready, what must be fixed and what is not
needed.
"""

from importlib import import_module

import pytest
import torch

from fastreid_star.engine import device as devices
from fastreid_star.errors import UserError
from fastreid_star.modeling.losses import CrossEntropyLoss

from .forked import command
from .tiny import DEMO, tiny_options

doctor = import_module("fastreid_star.doctor")


def examine(device="cpu", **more):
    found = list(doctor.doctor(device, **more))
    return {finding.name: finding for finding in found}, found


def test_a_machine_that_trains():
    found, _ = examine(num_devices=2)
    assert {"python", "torch", "torchvision", "fastreid", "npu", "cuda", "cpu"} <= set(found)
    assert torch.__version__ in found["torch"].text
    assert "STAR on cpu" in found["training step"].text
    assert "2 processes over gloo" in found["all-reduce"].text
    for name in ("cpu", "training step", "all-reduce"):
        assert found[name].good, found[name]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without GPU")
def test_a_device_that_is_not_there():
    found, _ = examine("cuda")
    assert [found[name].good for name in ("cuda", "training step", "npu")] == [False, False, None]
    assert str(found["cuda"]).startswith("FAIL  cuda ")


def test_a_driver_that_cannot_count_is_a_finding(monkeypatch):
    def count(kind):
        raise RuntimeError("driver too old\nerror code 507035")

    monkeypatch.setattr(devices, "why_unusable", lambda kind: None)
    monkeypatch.setattr(devices, "device_count", count)
    found, _ = examine()
    assert (found["cuda"].good, found["cuda"].text) == (False, "RuntimeError: error code 507035")
    assert found["training step"].good, "the rest is examined too"


def test_a_step_that_computes_wrongly(monkeypatch):
    monkeypatch.setattr(
        CrossEntropyLoss, "forward", lambda self, logits, targets: logits.sum() * 0 / 0
    )
    finding = examine()[0]["training step"]
    assert finding.good is False
    assert "loss_cls" in finding.text


def test_weights_that_do_not_move(monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    with pytest.raises(UserError, match=r"only 0 of \d+ weights"):
        doctor.train_step("cpu")


def test_a_sum_that_is_wrong(monkeypatch):
    def run(arguments, num_devices):
        for rank in range(num_devices):
            with open(f"{arguments[-1]}/{rank}", "w") as file:
                file.write("2.0")

    monkeypatch.setattr(doctor, "run_command", run)
    with pytest.raises(UserError, match=r"is 3, but the processes got \[2\.0, 2\.0\]"):
        doctor.all_reduce("cpu", 2)


# --- a run ---------------------------------------------------------------------------------------


def of_run(config, options, num_devices=1):
    return list(doctor._examine_run(config, options, num_devices))


def test_a_run_that_can_start(tiny_root, tmp_path):
    (finding,) = of_run(DEMO, tiny_options(tiny_root, tmp_path))
    assert (finding.name, finding.good) == ("run", True)


def test_each_problem_of_a_run_is_a_finding(tiny_root, tmp_path):
    star = DEMO.replace("SAD_demo", "STAR_demo")
    options = ["SOLVER.BASE_LR", "0.0", "SOLVER.IMS_PER_BATCH", "8", "DATASETS.SKELETONS", ""]
    found = of_run(star, tiny_options(tiny_root, tmp_path, *options), 4)
    assert {finding.name for finding in found} == {"run"}
    text = " ".join(finding.text for finding in found)
    for words in ("SOLVER.BASE_LR", "TripletLoss", "SKELETONS", "4 processes"):
        assert words in text
    assert [finding.good for finding in found if "SKELETONS" in finding.text] == [None]


def test_a_config_that_cannot_be_read_is_a_finding():
    (finding,) = of_run("nowhere.yml", [])
    assert (finding.name, finding.good) == ("config", False)
    assert "nowhere.yml" in finding.text


def test_the_command(tiny_root, tmp_path):
    options = tiny_options(tiny_root, tmp_path, "SOLVER.BASE_LR", "0.0")
    done = command("doctor", "--config-file", DEMO, "--device", "cpu", *options)
    assert done.status == 1
    assert " ok   training step" in done.text
    assert "FAIL  run            SOLVER.BASE_LR" in done.text
