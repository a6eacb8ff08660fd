"""Two runs: won and lost queries by hand, and what cannot be compared."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fastreid_star.errors import UserError
from fastreid_star.report.comparison import Change, changes, moves, require_comparable

from .test_ranking import IR, RGB, made_up


def ranks(first_match):
    first_match = np.array(first_match)
    return SimpleNamespace(
        per_query=SimpleNamespace(first_match=first_match, valid=first_match > 0)
    )


def test_the_queries_that_moved_most():
    ours, theirs = ranks([1, 5, 9, 0, 2, 7, 3]), ranks([4, 1, 9, 0, 5, 3, 1])
    won, lost = changes(ours, theirs, 3)
    assert won == [Change(0, 1, 4), Change(4, 2, 5)], (
        "of equal moves the one to the better rank is first"
    )
    assert lost == [Change(1, 5, 1), Change(5, 7, 3), Change(6, 3, 1)]
    assert changes(ours, theirs, 1) == ([Change(0, 1, 4)], [Change(1, 5, 1)])
    assert moves(ours, theirs) == {"better": 2, "equal": 1, "worse": 3}


def test_runs_on_other_tracklets_or_rules_are_refused():
    rows = [(1, 1, IR, 0), (2, 1, IR, 50), (2, 2, RGB, 10), (1, 2, RGB, 20)]
    one, other = made_up(rows), made_up([(3, *row[1:]) if row[0] == 2 else row for row in rows])
    require_comparable(one, made_up(rows), ("A", "B"))
    with pytest.raises(
        UserError, match="A is tested on 4 tracklets, B on 4, and they are not the same"
    ):
        require_comparable(one, other, ("A", "B"))
    looser = replace(one, results=replace(one.results, camera_filter=False))
    with pytest.raises(UserError, match=r"TEST\.CAMERA_FILTER"):
        require_comparable(one, looser, ("A", "B"))
