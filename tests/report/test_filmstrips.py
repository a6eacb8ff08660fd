"""Filmstrips: who is shown beside a query, under which words."""

from fastreid_star.report.comparison import Change
from fastreid_star.report.filmstrips import changed, confused, ranked
from fastreid_star.report.similarity import confusions


def test_a_ranked_list_shows_the_first_entries(star):
    direction = star.ranking.directions["V2I"]
    strip = ranked(direction, 3, star.album, 4)
    assert strip.query.clip.position == direction.queries[3]
    assert (strip.query.right, strip.query.similarity) == (None, None)
    assert [shown.clip.position for shown in strip.found] == direction.gallery[
        direction.top(3, 4)
    ].tolist()
    assert [shown.label for shown in strip.found] == ["rank 1", "rank 2", "rank 3", "rank 4"]
    assert [shown.right for shown in strip.found] == [
        shown.clip.pid == strip.query.clip.pid for shown in strip.found
    ]
    assert f"{100 * direction.per_query.ap[3]:.1f} %" in strip.title


def test_a_confusion_shows_the_wrong_and_the_right(star):
    direction = star.ranking.directions["I2V"]
    (confusion,) = confusions(direction, star.ranking.tracklets, 1)
    wrong, right = confused(direction, confusion, star.album).found
    assert (wrong.right, wrong.label) == (False, "rank 1")
    assert (right.right, right.label) == (True, f"rank {confusion.right_rank}")
    assert wrong.similarity - right.similarity > 0


def test_a_change_shows_both_first_entries_and_the_match_that_was_missed(star, sad):
    ours, theirs = (e.ranking.directions["I2V"] for e in (star, sad))
    for row in range(len(ours.queries)):
        change = Change(
            row, int(ours.per_query.first_match[row]), int(theirs.per_query.first_match[row])
        )
        strip = changed(ours, theirs, change, star.album, ("A", "B"))
        assert [shown.label for shown in strip.found[:2]] == ["rank 1 in A", "rank 1 in B"]
        assert strip.found[0].clip.position == ours.gallery[ours.top(row, 1)[0]]
        assert strip.found[1].clip.position == theirs.gallery[theirs.top(row, 1)[0]]
        assert len(strip.found) == (2 if change.rank == 1 else 3)
        if change.rank > 1:
            assert strip.found[2].right
            match = ours.best_right(row)
            assert (
                strip.found[2].label
                == f"rank {change.rank} in A, {theirs.rank_of(row, match)} in B"
            )
