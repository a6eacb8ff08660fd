"""The check-up of a machine and of a run: it passes where training works, and says what is wrong where something is."""

import os
import subprocess
import sys

import pytest
import torch

from fastreid_star.engine import device as devices
from fastreid_star.engine import doctor
from fastreid_star.errors import UserError
from fastreid_star.modeling import STAR

from .conftest import DEMO, REPOSITORY, tiny_options


def run(*arguments, env=None):
    command = [sys.executable, str(REPOSITORY / "tools" / "doctor.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_a_machine_that_trains():
    done = run("--device", "cpu", "--num-devices", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line[6:20].strip(): line for line in done.stdout.splitlines()[:-1]}
    assert {"python", "torch", "torchvision", "fastreid", "npu", "cuda", "cpu"} <= set(lines)
    assert torch.__version__ in lines["torch"]
    assert "STAR on cpu" in lines["training step"]
    assert "2 processes over gloo" in lines["all-reduce"]
    assert done.stdout.endswith("ready to train\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without GPU")
def test_a_device_that_is_not_there():
    done = run("--device", "cuda")
    assert done.returncode == 1
    assert "FAIL  cuda" in done.stdout
    assert "FAIL  training step" in done.stdout
    assert done.stdout.endswith("not ready: see FAIL above\n")
    assert not done.stderr


def findings(**what):
    return {
        finding.name: finding
        for finding in doctor.examine(**{"device": "cpu", "num_devices": 1, **what})
    }


def test_a_plugin_that_does_not_import_is_a_finding(tmp_path):
    (tmp_path / "fastreid").mkdir()
    (tmp_path / "fastreid" / "__init__.py").write_text(
        "raise ImportError('no such thing as fastreid')"
    )
    done = run("--device", "cpu", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert (
        done.stdout == "FAIL  import         no such thing as fastreid\nnot ready: see FAIL above\n"
    )
    assert not done.stderr


def test_a_package_without_a_version(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    finding = findings()["no-such-package"]
    assert finding.good is False
    assert "tools/dev.py setup" in finding.text


def test_a_driver_that_cannot_count_is_a_finding(monkeypatch):
    def count(kind):
        raise RuntimeError("driver too old")

    monkeypatch.setattr(devices, "why_unusable", lambda kind: None)
    monkeypatch.setattr(devices, "device_count", count)
    found = findings()
    assert (found["cuda"].good, found["cuda"].text) == (False, "RuntimeError: driver too old")
    assert found["training step"].good, "the rest was not looked at"


def test_a_device_nobody_asked_for_is_no_failure(monkeypatch):
    monkeypatch.setattr(
        devices, "why_unusable", lambda kind: "MODEL.DEVICE x: gone" if kind == "cuda" else None
    )
    monkeypatch.setattr(devices, "device_count", lambda kind: None if kind == "cpu" else 3)
    found = findings()
    assert (found["cuda"].good, found["cuda"].text) == (None, "gone")
    assert (found["npu"].good, found["npu"].text) == (True, "3 device(s)")


def test_a_step_that_computes_wrongly(monkeypatch):
    original = STAR.losses

    def losses(self, *args):
        return {**original(self, *args), "loss_cls": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setattr(STAR, "losses", losses)
    finding = findings()["training step"]
    assert finding.good is False
    assert finding.text.startswith("loss_cls not finite on cpu")


def test_weights_that_do_not_move(monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    with pytest.raises(UserError, match=r"only 0 of \d+ weights moved"):
        doctor.train_step("cpu")


def test_a_driver_that_throws_is_a_finding(monkeypatch):
    def step(device):
        raise RuntimeError("first line\nerror code 507035")

    monkeypatch.setattr(doctor, "train_step", step)
    finding = findings()["training step"]
    assert (finding.good, finding.text) == (False, "RuntimeError: error code 507035")


def test_a_sum_that_is_wrong(monkeypatch):
    def launch(function, num_devices, device, args):
        for rank in range(num_devices):
            with open(f"{args[1]}/{rank}", "w") as file:
                file.write("2.0")

    monkeypatch.setattr(doctor, "launch", launch)
    with pytest.raises(
        UserError, match=r"1 \+ \.\.\. \+ 2 is 3, but the processes got \[2\.0, 2\.0\]"
    ):
        doctor.add_up("cpu", 2)


def test_inventory_of_an_ascend_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    assert "CANN" not in devices.inventory()
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert devices.inventory()["CANN"] == str(tmp_path)
    (tmp_path / "aarch64-linux").mkdir()
    (tmp_path / "aarch64-linux" / "ascend_toolkit_install.info").write_text(
        "package_name=x\nversion=8.9.9\n"
    )
    assert devices.inventory()["CANN"] == f"8.9.9 in {tmp_path}"


# --- of a run -------------------------------------------------------------------------------------------------------


def test_a_run_that_can_start(tiny_root, tmp_path):
    (finding,) = doctor.examine_run(DEMO, tiny_options(tiny_root, tmp_path), 1)
    assert (finding.name, finding.good) == ("run", True)
    assert finding.text == "SAD on SyntheticVCM: nothing is in its way"


def test_each_problem_of_a_run_is_a_finding(tiny_root, tmp_path):
    star = DEMO.replace("SAD_demo", "STAR_demo")
    options = ["SOLVER.BASE_LR", "0.0", "SOLVER.IMS_PER_BATCH", "8", "DATASETS.SKELETONS", ""]
    found = list(doctor.examine_run(star, tiny_options(tiny_root, tmp_path, *options), 4))
    assert {finding.name for finding in found} == {"run"}
    assert [finding.good for finding in found] == [False, False, None, False]
    said = " ".join(finding.text for finding in found)
    for words in (
        "SOLVER.BASE_LR is 0.0",
        "TripletLoss needs two",
        "SKELETONS is empty",
        "among 4 processes",
    ):
        assert words in said


def test_a_config_that_cannot_be_read_is_a_finding():
    (finding,) = doctor.examine_run("nowhere.yml", [], 1)
    assert (finding.name, finding.good, finding.text) == (
        "config",
        False,
        "config file nowhere.yml does not exist",
    )


def test_both_in_one_command(tiny_root, tmp_path):
    options = tiny_options(tiny_root, tmp_path, "SOLVER.BASE_LR", "0.0")
    done = run("--device", "cpu", "--config-file", DEMO, *options)
    assert done.returncode == 1
    assert " ok   training step" in done.stdout
    assert "FAIL  run            SOLVER.BASE_LR is 0.0: give a number above 0\n" in done.stdout
    assert done.stdout.endswith("not ready: see FAIL above\n")
    assert not done.stderr


def test_keys_without_a_config_are_refused():
    done = run("SOLVER.BASE_LR", "0.0")
    assert done.returncode == 2
    assert "add --config-file FILE" in done.stderr
