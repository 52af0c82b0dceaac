"""Options of room questions: what they mean, what is stored of them, and which are refused."""

import pytest

from spa3r.data_scripts.rooms.question_options import GROUPS, QuestionOptions
from spa3r.data_scripts.rooms.question_types import QUESTION_TYPES
from spa3r.data_scripts.rooms.training_questions import LIST_FAMILIES


def test_the_types_of_the_benchmark_are_asked_by_default_in_their_order():
    assert QuestionOptions().names == tuple(QUESTION_TYPES)


def test_a_family_is_asked_once_though_it_is_named_twice():
    names = QuestionOptions(families=("grounding", "3d", "object_counting")).names
    assert names == (*sorted(GROUPS["3d"], key=lambda name: name != "grounding"), "object_counting")


@pytest.mark.parametrize(
    "families, views, shown",
    [
        (("2d",), None, 1),
        (("color",), 1, 1),
        (("benchmark", "3d"), None, None),
        (("3d",), 12, 12),
        (("3d", "2d"), 1, 1),
    ],
)
def test_families_of_images_are_about_one_view(families, views, shown):
    assert QuestionOptions(families=families, views_per_question=views).num_views == shown


def test_default_options_are_stored_as_in_sets_that_had_no_others():
    assert QuestionOptions("benchmark", 3, 7).as_json() == {"format": "benchmark", "seed": 3, "questions_per_room": 7}
    assert QuestionOptions(families=tuple(QUESTION_TYPES)).as_json() == QuestionOptions().as_json()


def test_other_options_are_stored_with_the_names_of_the_families():
    stored = QuestionOptions(families=("2d",), turns=4, min_visible_share=0.015).as_json()
    assert stored.items() >= {"families": list(GROUPS["2d"]), "turns": 4, "min_visible_share": 0.015}.items()
    assert "views_per_question" not in stored


@pytest.mark.parametrize(
    "options, named",
    [
        ({"questions_per_room": 0}, ["`questions_per_room`", "0"]),
        ({"turns": 0}, ["`turns`", "0"]),
        ({"views_per_question": 0}, ["`views_per_question`", "0"]),
        ({"seed": -1}, ["`seed`", "-1"]),
        ({"format": "test"}, ["`format`", "`test`", "benchmark"]),
        ({"min_visible_share": 0.0}, ["`min_visible_share`", "0.0"]),
        ({"min_visible_share": 1.5}, ["`min_visible_share`", "1.5"]),
        ({"lettered_share": 1.5}, ["`lettered_share`", "1.5"]),
        ({"families": ()}, ["`families`", "none"]),
        ({"families": ("3d", "colour")}, ["`families`", "`colour`", "grounding", "2d"]),
        ({"families": ("2d",), "views_per_question": 4}, ["`color`", "`views_per_question`", "4"]),
        ({"families": ("grounding", "color")}, ["`color`", "`grounding`", "`views_per_question`"]),
        ({"format": "benchmark", "families": ("benchmark", "grounding")}, ["`grounding`", "`format`", "benchmark"]),
        ({"format": "benchmark", "turns": 2}, ["`turns`", "2", "`format`"]),
        ({"format": "benchmark", "lettered_share": 0.5}, ["`lettered_share`", "0.5", "`format`"]),
        ({"format": "benchmark", "views_per_question": 8}, ["`views_per_question`", "8", "`format`"]),
    ],
    ids=str,
)
def test_options_that_are_wrong_or_do_not_go_together_are_refused(options, named):
    with pytest.raises(ValueError) as refusal:
        QuestionOptions(**options)
    assert all(word in str(refusal.value) for word in named)


def test_lists_are_asked_for_by_their_own_names_only():
    assert not set(LIST_FAMILIES) & {name for group in GROUPS.values() for name in group}
    assert QuestionOptions(families=("2d", "image_objects")).num_views == 1
