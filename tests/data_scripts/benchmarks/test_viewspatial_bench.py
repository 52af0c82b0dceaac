"""ViewSpatial-Bench's scores are compared with recorded ones of lmms-eval."""

import math

import pytest
from scoring_cases import assert_all_agree, needs_scores, recorded_scores

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.viewspatial_bench import TYPES, aggregate, find_option

OFFICIAL = BENCHMARKS["viewspatial-bench"]["official"]
CAMERA, PERSON = "Camera perspective - Relative Direction", "Person perspective - Relative Direction"
needs = needs_scores("viewspatial")


def totals(case):
    scores = [OFFICIAL.score(doc, doc["prediction"]) for doc in case["docs"]]
    return aggregate([doc["question_type"] for doc in case["docs"]], scores)


@needs
def test_every_kind_of_cases_is_compared():
    assert recorded_scores("viewspatial").keys() == {"cases", "aggregates", "prompts"}


@needs
def test_options_and_scores_are_the_recorded_ones():
    functions = {
        "extracted": lambda case: find_option(case["prediction"].split("\n")[-1]),
        "score": lambda case: OFFICIAL.score(case, case["prediction"]),
    }
    assert_all_agree(recorded_scores("viewspatial")["cases"], functions, {"id", "prediction", "answer"})


@needs
def test_aggregates_are_the_recorded_ones():
    assert_all_agree(recorded_scores("viewspatial")["aggregates"], {"expected": totals}, {"name", "docs"})


@needs
def test_prompts_are_the_recorded_ones():
    prompts = recorded_scores("viewspatial")["prompts"]
    assert_all_agree(prompts, {"prompt": lambda case: OFFICIAL.prompt(case["doc"])}, {"doc"})


def test_all_questions_count_alike():
    means = dict.fromkeys(TYPES, 0.5) | {CAMERA: 1.0}
    columns = OFFICIAL.summarize(means, dict.fromkeys(TYPES, 1) | {CAMERA: 6})
    assert columns["overall"] == pytest.approx(0.8) and columns["camera_perspective_relative_direction"] == 1.0
    assert list(columns) == list(OFFICIAL.columns)


def test_missing_types_are_warned_of_and_left_out():
    with pytest.warns(UserWarning, match="ViewSpatial-Bench: there are no answers .* Object View Orientation, "):
        columns = OFFICIAL.summarize({CAMERA: 0.2, PERSON: 0.8}, {CAMERA: 1, PERSON: 3})
    assert columns == pytest.approx(
        {
            "overall": 0.65,
            "camera_perspective_relative_direction": 0.2,
            "person_perspective_relative_direction": 0.8,
        }
    )


@pytest.mark.filterwarnings("ignore:ViewSpatial-Bench")
def test_nothing_is_summarized_without_crashing():
    assert math.isnan(OFFICIAL.summarize({}, {})["overall"])
    assert not any(aggregate([], []).values())


def test_types_that_are_not_known_are_named():
    for refused in (
        lambda: OFFICIAL.group({"question_type": "Bird's"}),
        lambda: OFFICIAL.summarize({"Bird's": 1.0}, {"Bird's": 1}),
        lambda: aggregate(["Bird's"], [1.0]),
    ):
        with pytest.raises(ValueError, match="The question type `Bird's` is not known; known are Camera perspective"):
            refused()
