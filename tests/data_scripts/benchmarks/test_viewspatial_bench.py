"""ViewSpatial-Bench's prompts, scores and averages are compared with recorded ones of lmms-eval."""

import pytest
from scoring_cases import assert_all_agree, assert_figures_agree, recorded, scores_and_figures

from spa3r.data_scripts.benchmarks.viewspatial_bench import OFFICIAL, TYPES, find_option

CAMERA = "Camera perspective - Relative Direction"


def test_options_and_scores_are_the_recorded_ones():
    functions = {
        "extracted": lambda case: find_option(case["prediction"].split("\n")[-1]),
        "score": lambda case: OFFICIAL.score(case, case["prediction"]),
    }
    assert_all_agree(recorded("viewspatial", "cases"), functions)


def test_averages_are_the_recorded_ones():
    for case in recorded("viewspatial", "aggregates"):
        assert_figures_agree(scores_and_figures(OFFICIAL, case["docs"])[1], case["expected"])


def test_prompts_are_the_recorded_ones():
    assert_all_agree(recorded("viewspatial", "prompts"), {"prompt": lambda case: OFFICIAL.prompt(case["doc"])})


def test_all_questions_count_alike():
    means = dict.fromkeys(TYPES, 0.5) | {CAMERA: 1.0}
    columns = OFFICIAL.summarize(means, dict.fromkeys(TYPES, 1) | {CAMERA: 6})
    assert columns["overall"] == pytest.approx(0.8) and columns["camera_perspective_relative_direction"] == 1.0
