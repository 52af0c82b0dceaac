"""ViewSpatial-Bench's averages."""

import pytest

from spa3r.data_scripts.benchmarks.viewspatial_bench import OFFICIAL, TYPES

CAMERA = "Camera perspective - Relative Direction"


def test_all_questions_count_alike():
    means = dict.fromkeys(TYPES, 0.5) | {CAMERA: 1.0}
    columns = OFFICIAL.summarize(means, dict.fromkeys(TYPES, 1) | {CAMERA: 6})
    assert columns["overall"] == pytest.approx(0.8) and columns["camera_perspective_relative_direction"] == 1.0
