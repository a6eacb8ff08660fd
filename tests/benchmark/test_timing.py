import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastreid_star.benchmark.timing import Timing, fit_line, in_turns


def test_best_median_and_spread():
    timing = Timing((4.0, 2.0, 3.0))
    assert (timing.best, timing.median, timing.spread) == (2.0, 3.0, 0.5)
    assert str(timing) == "best of 3, median +50%"


def test_of_several_processes_the_mean_of_each_ones_best():
    joined = Timing.joined([Timing((4.0, 2.0, 3.0)), Timing((9.0, 5.0, 6.0))])
    assert (joined.best, joined.median) == (3.5, 4.5)
    assert str(joined) == "best of 3 in each of 2 processes, median +29%"


def test_sides_run_in_turns_and_every_other_round_backwards():
    order = []
    sides = {name: lambda name=name: order.append(name) for name in "abc"}
    times = in_turns(sides, repeats=3, warm_up=1)
    assert "".join(order) == "abccbaabccba"
    assert {name: len(timing.seconds) for name, timing in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_only_the_work_is_timed_and_the_device_is_waited_for():
    """A clock that the work itself moves on; what is still to be done on the device is done when it is waited for."""
    now, pending = [0.0], []

    def work(seconds):
        return lambda: pending.append(seconds)

    def synchronize():
        now[0] += sum(pending)
        pending.clear()

    def clock():
        now[0] += 0.125  # reading it takes time
        return now[0]

    times = in_turns(
        {"slow": work(3), "fast": work(1)},
        repeats=2,
        warm_up=0,
        synchronize=synchronize,
        clock=clock,
    )
    assert times["slow"].seconds == (3.125, 3.125)
    assert times["fast"].seconds == (1.125, 1.125)
    pending.append(100)
    assert (
        in_turns({"fast": work(1)}, repeats=1, warm_up=0, synchronize=synchronize, clock=clock)[
            "fast"
        ].best
        < 2
    )


def test_a_line_by_hand():
    line = fit_line([1, 2, 3], [3.0, 5.0, 7.0])
    assert (line.slope, line.intercept) == (pytest.approx(2), pytest.approx(1))
    assert line.residual < 1e-12
    # through (0, 1) (1, 3) (2, 2): slope 1/2, intercept 3/2, off by 1/2, 1, 1/2
    line = fit_line([0, 1, 2], [1.0, 3.0, 2.0])
    assert (line.slope, line.intercept, line.residual) == tuple(map(pytest.approx, (0.5, 1.5, 0.5)))


@given(st.floats(0.1, 100), st.floats(0.1, 100))
def test_a_straight_cost_has_no_residual(slope, intercept):
    sizes = [4, 8, 12, 16]
    line = fit_line(sizes, [intercept + slope * size for size in sizes])
    assert line.residual < 1e-6
    assert line.slope == pytest.approx(slope, rel=1e-6)
