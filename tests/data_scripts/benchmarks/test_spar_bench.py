"""SPAR-Bench's scores are compared with recorded ones of lmms-eval, at two commits."""

import math

import pytest
from scoring_cases import assert_all_agree, needs_scores, recorded_scores

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.spar_bench import TASKS, aggregate

OFFICIAL = BENCHMARKS["spar-bench"]["official"]
needs = needs_scores("sparbench")


def score(task, prediction, answer):
    return OFFICIAL.score({"task": task, "answer": answer}, prediction)


def totals(case):
    scores = [OFFICIAL.score(doc, doc["prediction"]) for doc in case["docs"]]
    return aggregate([doc["task"] for doc in case["docs"]], scores)


@needs
def test_every_kind_of_cases_is_compared():
    assert recorded_scores("sparbench").keys() == {"cases", "aggregates", "prompts"}


@needs
def test_scores_are_the_recorded_ones_of_both_commits():
    def compute(case):
        return OFFICIAL.score(case, case["prediction"])

    functions = {"score": compute, "score_pinned": compute}
    assert_all_agree(recorded_scores("sparbench")["cases"], functions, {"id", "task", "prediction", "answer"})


@needs
def test_aggregates_are_the_recorded_ones():
    assert_all_agree(recorded_scores("sparbench")["aggregates"], {"expected": totals}, {"name", "docs"})


@needs
def test_prompts_are_the_recorded_ones():
    def compute(case):
        return OFFICIAL.prompt({"task": case["task"], "question": "Q?"})

    assert_all_agree(recorded_scores("sparbench")["prompts"], {"prompt": compute}, {"task"})


def test_a_change_of_view_is_asked_for_with_two_empty_lines():
    assert OFFICIAL.prompt({"task": "view_change_infer", "question": "Q?"}) == "\nQ?\n\n"


@pytest.mark.parametrize("task", ["depth_prediction_oc", "depth_prediction_oc_mv"])
@pytest.mark.parametrize(("text", "first", "last"), [("2.5 then 1.5", 2.5, 1.5), ("2^34", 2, 4), ("-3m", 3, 3)])
def test_views_decide_which_number_counts(task, text, first, last):
    assert score(task, text, str(last if task.endswith("_mv") else first)) == 1


def test_the_roles_of_a_change_of_view_are_swapped():
    one, two = "move_right:1", "move_right:2"
    assert score("view_change_infer", two, one) == pytest.approx((0.1 + 4) / 5)
    assert score("view_change_infer", one, two) == pytest.approx((0 + 4) / 5)


@pytest.mark.parametrize("text", ["", "move_right", "move_right:1:2", "move_right:1,", "move_right:1 m"])
def test_a_change_of_view_that_cannot_be_read_scores_nothing(text):
    assert score("view_change_infer", text, "move_right:0") == 0
    assert score("view_change_infer", "move_right:0", text) == 0


def test_levels_are_means_of_tasks_and_the_middle_one_lacks_the_change_of_view():
    means = dict.fromkeys(TASKS, 0.5) | {
        "view_change_infer": 0.0,
        "position_matching": 0.7,
        "camera_motion_infer": 0.3,
    }
    columns = OFFICIAL.summarize(means, dict.fromkeys(TASKS, 1))
    assert columns == pytest.approx({"overall": 9.5 / 20, "low": 0.5, "middle": 0.5, "high": 0.5})
    assert list(columns) == list(OFFICIAL.columns)


def test_missing_tasks_are_warned_of_and_their_level_left_out():
    with pytest.warns(UserWarning, match="SPAR-Bench: there are no answers to questions of distance_prediction_oc, "):
        columns = OFFICIAL.summarize({"depth_prediction_oc": 0.4}, {"depth_prediction_oc": 2})
    assert columns == {"overall": 0.4, "low": 0.4}


@pytest.mark.filterwarnings("ignore:SPAR-Bench")
def test_nothing_is_summarized_without_crashing():
    assert math.isnan(OFFICIAL.summarize({}, {})["overall"])
    assert aggregate([], []) == {"overall": 0, "low": 0, "middle": 0, "high": 0}


def test_tasks_that_are_not_known_are_named():
    other = {"task": "spatial_volume", "question": "?", "answer": "A"}
    for refused in (
        lambda: OFFICIAL.group(other),
        lambda: OFFICIAL.score(other, "A"),
        lambda: OFFICIAL.prompt(other),
        lambda: OFFICIAL.summarize({"spatial_volume": 1.0}, {"spatial_volume": 1}),
        lambda: aggregate(["spatial_volume"], [1.0]),
    ):
        with pytest.raises(
            ValueError, match="The task `spatial_volume` is not known; known are depth_prediction_oc, "
        ):
            refused()
