import re
from dataclasses import replace

import pytest

from fastreid_star.benchmark.parts import scaling


def test_figures(options):
    figures = {
        figure.name: figure for figure in scaling.figures(replace(options, clips=8, frames=8))
    }
    assert set(figures) == {
        "scaling_step_ms_per_clip",
        "scaling_step_residual_over_clips",
        *(f"scaling_{name}_ms_per_frame" for name in ("step", "attention", "graph")),
        *(f"scaling_{name}_residual_over_frames" for name in ("step", "attention", "graph")),
    }
    for name, sizes in (("step_ms_per_clip", [4, 8, 12, 16]), ("graph_ms_per_frame", [2, 4, 6, 8])):
        figure = figures[f"scaling_{name}"]
        costs = re.findall(r"(\d+): ([\d.,e+]+)", figure.note.split("ms at ")[1].split(";")[0])
        assert [int(size) for size, _ in costs] == sizes
        # the note holds rounded costs: the line through them is nearly the figure's
        again = scaling.fit_line(
            sizes, [float(cost.strip(",").replace(",", "")) for _, cost in costs]
        )
        assert again.slope == pytest.approx(figure.value, abs=0.02 * max(abs(figure.value), 10))


def test_parts_work_forward_and_backward(monkeypatch):
    import torch

    device = torch.device("cpu")
    for make in (scaling.attention, scaling.graph):
        run = make(32, 2, 3, device)
        run()
        run()
