"""SPAR-Bench's rules for numbers, changes of view and levels."""

import pytest

from spa3r.data_scripts.benchmarks.spar_bench import OFFICIAL, TASKS


def score(task, prediction, answer):
    return OFFICIAL.score({"task": task, "answer": answer}, prediction)


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
