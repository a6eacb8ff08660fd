from dataclasses import replace

import pytest

from fastreid_star.benchmark.options import Options, Work
from fastreid_star.errors import UserError

from .conftest import CONFIGS


def test_the_step_suits_the_device_unless_something_else_is_asked_for(tmp_path):
    options = Options(configs=CONFIGS, folder=tmp_path, device="cpu")
    assert options.work == Work("R50", 8, 12, (144, 72))
    quick = replace(options, quick=True)
    assert quick.work == Work("R18", 4, 6, (96, 48))
    assert replace(quick, clips=8, size=(64, 32)).work == Work("R18", 8, 6, (64, 32))
    assert (options.rounds, quick.rounds, replace(quick, repeats=7).rounds) == (5, 3, 7)
    assert (
        options.process_count,
        quick.process_count,
        replace(quick, processes=2).process_count,
    ) == (3, 1, 2)
    assert (options.compiles, replace(options, compile=True).compiles) == (False, True)
    assert str(options.work) == "R50, 8 clips of 12 frames of 144x72"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "R51"}, "--backbone R51: choose one of R18"),
        ({"clips": 6}, "--clips 6: two modalities of two identities take a multiple of 4"),
        ({"clips": 0}, "--clips 0"),
        ({"frames": 0}, "--frames 0: give 1 or more"),
        ({"repeats": 0}, "--repeats 0: give 1 or more"),
        ({"processes": 0}, "--processes 0: give 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(options, change, message):
    with pytest.raises(UserError, match=message):
        replace(options, **change)


def test_configs_must_be_there(tmp_path):
    with pytest.raises(UserError, match="is not the project's folder of configs"):
        Options(configs=tmp_path, folder=tmp_path)
