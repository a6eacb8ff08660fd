from fastreid_star.benchmark.networks import BARE, Setting
from fastreid_star.benchmark.parts import memory
from fastreid_star.benchmark.process import Outcome


def test_figures(options, monkeypatch):
    growth = {BARE: 4_000_000, "sad": 5_000_000, "star": 10_000_000}

    def measured(function, network, setting, given):
        assert (function, setting, given) == (memory.train, Setting(), options)
        return Outcome(None, 1.0, growth[network])

    monkeypatch.setattr(memory, "in_own_process", measured)
    figures = {figure.name: figure for figure in memory.figures(options)}
    assert figures["backbone_step_memory_mb"].value == 4
    assert (figures["star_step_memory_mb"].value, figures["star_step_memory_mb"].ratio) == (10, 2.5)
    # where the device counts, its own number is taken
    monkeypatch.setattr(memory, "in_own_process", lambda *args: Outcome(7_000_000, 1.0, 1))
    assert {figure.value for figure in memory.figures(options)} == {7}


def test_a_cpu_does_not_count(options):
    assert memory.train("sad", Setting(), options) is None
