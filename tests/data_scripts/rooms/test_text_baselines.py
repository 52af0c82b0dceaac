"""Scores of answers without images, on questions whose best answers are known."""

import json
import math
import os
from pathlib import Path

import pytest

from spa3r.data_scripts.benchmarks.protocol import to_number
from spa3r.data_scripts.rooms.question_types import Question
from spa3r.data_scripts.rooms.text_baselines import blind_bound, frequency_baseline, mean_relative_accuracy
from spa3r.data_scripts.rooms.training_questions import ShortQuestion

CASES = Path(os.environ.get("SPA3R_CASES_DIR", Path(__file__).resolve().parents[4] / "shared" / "cases"))


def count(category, answer):
    return Question("object_counting", f"How many {category}(s) are in this room?", str(answer))


def nearest(names, answer, reference="bed"):
    question = f"which of these objects ({', '.join(names)}) is the closest to the {reference}?"
    options = [f"{letter}. {name}" for letter, name in zip("ABCD", names, strict=True)]
    return Question("object_rel_distance", question, "ABCD"[names.index(answer)], options)


def test_relative_accuracy_is_that_of_the_official_cases():
    path = CASES / "vsibench_cases.json"
    cases = json.loads(path.read_text())["cases"] if path.exists() else []
    numbers = [(to_number(case["official_token"]), to_number(case["ground_truth"]), case["score"]) for case in cases]
    compared = [case for case in numbers if None not in case and math.isfinite(case[0]) and 0 < case[1] < math.inf]
    if not compared:
        pytest.skip(f"there are no cases with numbers at {path}")
    for prediction, truth, score in compared:
        assert mean_relative_accuracy(prediction, truth) == pytest.approx(score), (prediction, truth)


def test_frequency_answers_each_type_with_its_most_frequent_answer():
    train = [count("chair", 2), count("door", 2), count("chair", 4), nearest(["a", "b", "c", "d"], "b")]
    test = [
        count("chair", 2),
        count("chair", 4),
        nearest(["a", "b", "c", "d"], "a"),
        nearest(["b", "a", "c", "d"], "a"),
    ]
    # The answer 2 for 4 has a relative error of one half, which meets one of ten tolerances.
    assert frequency_baseline(train, test) == pytest.approx({"object_counting": 0.55, "object_rel_distance": 0.5})


def test_blind_answers_depend_on_the_words_of_a_question():
    train = [count("chair", 4), count("door", 1)] * 3
    assert blind_bound(train, [count("chair", 4), count("door", 1)]) == {"object_counting": 1.0}


def test_blind_answers_prefer_options_that_were_right_before():
    train = [nearest(["lamp", "bed", "sofa", "door"], "sofa"), nearest(["sofa", "desk", "lamp", "door"], "sofa")]
    test = [nearest(["desk", "lamp", "door", "sofa"], "sofa", "table"), nearest(["sofa", "a", "b", "c"], "sofa")]
    assert blind_bound(train, test) == {"object_rel_distance": 1.0}


def test_blind_answers_distinguish_references():
    train = [nearest(["lamp", "sofa", "box", "door"], "lamp", "bed")] * 2
    train += [nearest(["lamp", "sofa", "box", "door"], "sofa", "tv")] * 3
    test = [nearest(["sofa", "door", "lamp", "box"], "lamp", "bed"), nearest(["lamp", "sofa", "a", "b"], "sofa", "tv")]
    assert blind_bound(train, test) == {"object_rel_distance": 1.0}


def color(name, answer):
    return ShortQuestion("color", f"What color is the {name}?", answer)


def place(name, answer):
    return ShortQuestion("grounding", f"Where is the {name} from view 1 (right, down, ahead in meters)?", answer)


def test_words_are_right_or_wrong_and_the_most_frequent_ones_are_answered():
    train = [color("bed", "red"), color("bed", "blue"), color("bed", "blue"), color("sofa", "red"), color("tv", "red")]
    test = [color("bed", "blue"), color("sofa", "red"), color("rug", "red"), color("rug", "blue")]
    assert frequency_baseline(train, test) == {"color": 0.5}
    # The bed was blue most often; a rug, which was not asked about, is as red as most things.
    assert blind_bound(train, test) == {"color": 0.75}


def test_the_median_position_is_answered_and_scored_by_its_distance():
    names = ("right 1.0, down 1.0, ahead 2.0", "right 3.0, down 1.0, ahead 2.0", "left 9.0, down 1.0, ahead 2.0")
    train = [place("bed", name) for name in names]
    # The median of each coordinate is the first place; the second question's bed is 0.9 m from it.
    test = [place("bed", names[0]), place("bed", "right 1.0, down 1.9, ahead 2.0")]
    distance = math.hypot(1.0, 1.9, 2.0)
    met = sum(0.9 / distance <= 0.5 - 0.05 * k for k in range(10)) / 10
    assert blind_bound(train, test) == pytest.approx({"grounding": (1 + met) / 2})


@pytest.mark.parametrize("score", [frequency_baseline, blind_bound])
def test_types_that_were_not_learned_are_left_out(score):
    assert score([count("chair", 4)], [nearest(["a", "b", "c", "d"], "b")]) == {}
    assert score([], []) == {}
