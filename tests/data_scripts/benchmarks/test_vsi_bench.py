"""VSI-Bench's scores are compared with recorded ones of five implementations."""

import math
import re
import warnings

import pytest
import torch
from scoring_cases import agrees, assert_all_agree, needs_scores, outcome, recorded_scores

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.protocol import average_groups, score_answer
from spa3r.data_scripts.benchmarks.vsi_bench import (
    QUESTION_TYPES,
    aggregate,
    find_number,
    first_token,
    parse_prompt,
    write_prompt,
)
from spa3r.data_scripts.rooms.text_baselines import mean_relative_accuracy

PROTOCOLS = BENCHMARKS["vsi-bench"]
OFFICIAL = PROTOCOLS["official"]
needs = needs_scores("vsibench")
# Protocol and aggregation of what is recorded.
IMPLEMENTATIONS = {
    "official_thinking_in_space": ("official", "thinking-in-space"),
    "lmms_eval_pinned_04a5103": ("official", "lmms-eval"),
    "lmms_eval_head_75571cf": ("lmms-eval-2026", "lmms-eval"),
    "vg_llm": ("official", "vg-llm"),
    "vlm_3r": ("official", "vlm-3r"),
}


def scorer(name):
    return lambda case: PROTOCOLS[name].score(case, case["prediction"])


def record(question_type, ground_truth="A"):
    return {"question_type": question_type, "ground_truth": ground_truth}


def run(implementation, docs):
    name, code = IMPLEMENTATIONS[implementation]
    scores = [PROTOCOLS[name].score(doc, doc["prediction"]) for doc in docs]
    totals = aggregate([doc["question_type"] for doc in docs], scores, code)
    return {"per_doc": scores, "aggregate": totals["overall"] if code in ("vg-llm", "vlm-3r") else totals}


@needs
def test_every_kind_of_cases_is_compared():
    # Indices of frames are compared in test_videos.py.
    assert recorded_scores("vsibench").keys() == {"meta", "cases", "aggregates", "prompts", "frame_indices"}


@needs
def test_scores_are_the_recorded_ones():
    functions = {
        "official_token": lambda case: first_token(case["prediction"]),
        "score": scorer("official"),
        "score_lmms_eval_pinned_04a5103": scorer("official"),
        "score_lmms_eval_head_75571cf": scorer("lmms-eval-2026"),
        "score_spatial_mllm": scorer("spatial-mllm"),
    }
    inputs = {"id", "tag", "question_type", "prediction", "ground_truth"}
    assert_all_agree(recorded_scores("vsibench")["cases"], functions, inputs)


@needs
def test_aggregates_are_the_recorded_ones():
    functions = {key: lambda case, key=key: run(key, case["docs"]) for key in IMPLEMENTATIONS}
    assert_all_agree(recorded_scores("vsibench")["aggregates"], functions, {"name", "docs"})


@needs
def test_errors_of_aggregates_name_what_is_missing_as_recorded():
    for case in recorded_scores("vsibench")["aggregates"]:
        for key in IMPLEMENTATIONS.keys() & case.keys():
            if "raises" in case[key]:
                with pytest.raises(KeyError) as caught:
                    run(key, case["docs"])
                assert str(caught.value) == case[key]["msg"]


@needs
def test_prompts_are_the_recorded_ones():
    prompts = recorded_scores("vsibench")["prompts"]
    assert_all_agree(prompts, {"prompt": lambda case: write_prompt(case["doc"], case["variant"])}, {"variant", "doc"})
    for name in ("official", "lmms-eval-2026"):
        default = [case for case in prompts if case["variant"] == "default"]
        assert all(PROTOCOLS[name].prompt(case["doc"]) == case["prompt"] for case in default)


@pytest.mark.parametrize("options", [None, ["A. here", "B. there"]])
def test_a_prompt_is_parsed_into_its_question_and_options(options):
    kind = "object_counting" if options is None else "route_planning"
    text = write_prompt({"question_type": kind, "question": "Where\nto?", "options": options})
    assert parse_prompt(text) == ("Where\nto?", options)


@pytest.mark.parametrize("text", ["How many?", "These are frames of a video.\nHow many?", ""])
def test_a_text_in_other_words_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_prompt(text)


@needs
def test_the_overall_of_a_summary_is_that_of_vlm_3r():
    for case in recorded_scores("vsibench")["aggregates"]:
        groups = [OFFICIAL.group(doc) for doc in case["docs"]]
        scores = [OFFICIAL.score(doc, doc["prediction"]) for doc in case["docs"]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            columns = OFFICIAL.summarize(*average_groups(groups, scores))
        assert agrees(100 * columns["overall"], case["vlm_3r"]["aggregate"])
        shown = case["official_thinking_in_space"]["aggregate"]
        for column in columns.keys() - {"object_rel_direction"}:
            key = next((key for key in shown if key.startswith(f"{column}_")), None)
            assert key is None or agrees(100 * columns[column], shown[key])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("one apple, room 2", 1),
        ("2 rooms, one apple", 2),
        ("twenty-one", 21),
        ("one hundred and twenty", 120),
        ("twelve hundred", 1200),
        ("three thousand two hundred and five", 3205),
        ("hundred thousand", 100000),
        ("one, two and three", 6),
        ("one 7 two", 3),
        ("three and a half", 3),
        ("room-3", -3),
        (".5", 5),
        ("1e3", 1),
        ("a dozen", None),
        ("everyone, none", None),
    ],
)
def test_numbers_are_found_anywhere_and_in_words(text, number):
    assert find_number(text) == number


@pytest.mark.parametrize("name", ["official", "lmms-eval-2026"])
def test_errors_at_a_tolerance_are_those_of_numpy(name):
    for truth in (0.3, 0.7, 1.0, 4.2, 25.3, 120.0):
        for step in range(-12, 13):
            text = repr(truth * (1 + 0.05 * step))
            score = PROTOCOLS[name].score(record("object_abs_distance", repr(truth)), text)
            assert score == mean_relative_accuracy(float(text), truth)


def test_spatial_mllm_compares_in_torchs_float32():
    tolerances = 1 - torch.arange(0.5, 0.975, 0.05, dtype=torch.float32)
    for text in ("1.1", "0.9", "1.05", "0.55", "1.5", "0.3333333", "1e300", "inf", "-1", "0"):
        for truth in ("1", "0.7", "-1", "0", "1e300", "inf"):
            predicted, true = (torch.as_tensor(float(each), dtype=torch.float32) for each in (text, truth))
            error = torch.abs(predicted - true) / (torch.abs(true) + 1e-8)
            expected = (error < tolerances).float().mean().item()
            assert PROTOCOLS["spatial-mllm"].score(record("object_counting", truth), text) == expected


def test_spatial_mllm_takes_the_last_answer_and_the_question_alone():
    protocol = PROTOCOLS["spatial-mllm"]
    text = "<answer>B</answer> no, <answer>\nA.. </answer>"
    # Dots before a space at the end stay officially, too.
    assert protocol.score(record("route_planning"), text) == 1
    assert protocol.score(record("route_planning"), "A chair") == 0
    asked = record("route_planning") | {"question": "Where?", "options": ["A. here", "B. there"]}
    assert protocol.prompt(asked).startswith("Where?\nOptions:\nA. here\n")


def test_columns_are_those_of_the_table_and_directions_count_as_one():
    means = {kind: 0.5 for kind in QUESTION_TYPES} | {"object_rel_direction_easy": 1.0, "object_counting": 0.9}
    columns = OFFICIAL.summarize(means, dict.fromkeys(means, 1))
    assert list(columns) == list(OFFICIAL.columns)
    assert columns["object_rel_direction"] == pytest.approx(2 / 3)
    assert columns["overall"] == pytest.approx((6 * 0.5 + 2 / 3 + 0.9) / 8)


def test_missing_types_are_warned_of_once():
    means, counts = {"object_counting": 0.3, "object_rel_direction_hard": 0.4}, {}
    with pytest.warns(UserWarning, match="object_rel_direction_easy, object_rel_direction_medium, object_rel_dist"):
        columns = OFFICIAL.summarize(means, counts)
    assert columns == pytest.approx({"overall": 0.35, "object_counting": 0.3, "object_rel_direction": 0.4})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert [OFFICIAL.summarize(means, counts) for _ in range(3)] == [columns] * 3
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:VSI-Bench")
def test_nothing_is_summarized_without_crashing():
    assert math.isnan(OFFICIAL.summarize({}, {})["overall"])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_types_that_are_not_known_are_named(name):
    protocol, other = PROTOCOLS[name], record("object_color") | {"question": "?", "options": None}
    for refused in (
        lambda: protocol.group(other),
        lambda: protocol.score(other, "A"),
        lambda: protocol.prompt(other),
        lambda: protocol.summarize({"object_color": 1.0}, {"object_color": 1}),
        lambda: aggregate(["object_color"], [1.0]),
    ):
        with pytest.raises(ValueError, match="`object_color` is not known; known are object_rel_direction_easy, "):
            refused()


def test_an_error_is_not_taken_for_another():
    assert outcome(int, "x") == {"raises": "ValueError"}
    assert not agrees(outcome(int, "x"), {"raises": "KeyError"})
    assert not agrees(1.0, {"raises": "KeyError"}) and not agrees({"raises": "KeyError"}, 1.0)


def test_space_around_an_answer_is_taken_away_before_it_is_scored():
    protocol = BENCHMARKS["vsi-bench"]["official"]
    record = {"question_type": "route_planning", "ground_truth": "A"}
    assert protocol.score(record, " A") == 0 and score_answer(protocol, record, " A\n") == 1
