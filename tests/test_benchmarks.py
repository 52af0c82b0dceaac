"""The verdicts of `make bench`."""

import pytest
from benchmarks.measuring import verdicts


@pytest.mark.parametrize(
    ("now", "verdict"), [(0.5, "same"), (0.57, "same"), (0.58, "worse"), (0.43, "same"), (0.42, "better")]
)
def test_a_line_is_news_beyond_the_tolerance(now, verdict):
    (row,) = verdicts({"time": now}, {"time": 0.5}, tolerance=0.15)
    assert row["verdict"].startswith(verdict)


def test_a_line_without_a_committed_figure_is_no_failure():
    rows = verdicts({"new": 1.0}, {"old": 1.0}, tolerance=0.15)
    assert [(row["line"], row["verdict"]) for row in rows] == [("old", "new or gone"), ("new", "new or gone")]
