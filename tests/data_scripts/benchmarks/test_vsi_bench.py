"""VSI-Bench's prompts and averages, compared with recorded ones of five implementations, and its rules for numbers."""

import re

import pytest
import torch
from scoring_cases import agrees, assert_all_agree, assert_figures_agree, recorded, scores_and_figures

from spa3r.data_scripts.benchmarks.vsi_bench import (
    DIRECTIONS,
    VSI_BENCH,
    find_number,
    parse_prompt,
    write_prompt,
)
from spa3r.data_scripts.rooms.text_baselines import mean_relative_accuracy

# Protocol and scale of each recorded implementation.
IMPLEMENTATIONS = {
    "official_thinking_in_space": ("official", 100),
    "lmms_eval_pinned_04a5103": ("official", 1),
    "lmms_eval_head_75571cf": ("lmms-eval-2026", 1),
    "vg_llm": ("official", 100),
    "vlm_3r": ("official", 100),
}


def record(question_type, ground_truth="A"):
    return {"question_type": question_type, "ground_truth": ground_truth}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_averages_are_the_recorded_ones(implementation):
    name, scale = IMPLEMENTATIONS[implementation]
    for case in recorded("vsibench", "aggregates"):
        expected = case.get(implementation, {"raises": None})
        directions = {doc["question_type"] for doc in case["docs"]} & set(DIRECTIONS)
        if "raises" in expected:
            # Others raise an error unless all difficulties are there.
            assert len(directions) < len(DIRECTIONS)
            continue
        scores, figures = scores_and_figures(VSI_BENCH.protocol(name), case["docs"])
        assert agrees(scores, expected["per_doc"])
        averages = expected["aggregate"]
        # thinking-in-space averages otherwise if only some difficulties are there.
        if implementation == "vlm_3r" or len(directions) in (0, len(DIRECTIONS)):
            averages = averages if isinstance(averages, dict) else {"overall": averages}
            assert_figures_agree(figures, averages, scale)


def test_prompts_are_the_recorded_ones():
    prompts = recorded("vsibench", "prompts")
    assert_all_agree(prompts, {"prompt": lambda case: write_prompt(case["doc"], case["variant"])})
    default = [case for case in prompts if case["variant"] == "default"]
    for name in ("official", "lmms-eval-2026"):
        assert_all_agree(default, {"prompt": lambda case, name=name: VSI_BENCH.protocol(name).prompt(case["doc"])})


@pytest.mark.parametrize("options", [None, ["A. here", "B. there"]])
def test_a_prompt_is_parsed_into_its_question_and_options(options):
    kind = "object_counting" if options is None else "route_planning"
    text = write_prompt({"question_type": kind, "question": "Where\nto?", "options": options})
    assert parse_prompt(text) == ("Where\nto?", options)


@pytest.mark.parametrize("text", ["How many?", "These are frames of a video.\nHow many?", ""])
def test_a_text_that_is_no_prompt_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_prompt(text)


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
            score = VSI_BENCH.protocol(name).score(record("object_abs_distance", repr(truth)), text)
            assert score == mean_relative_accuracy(float(text), truth)


def test_spatial_mllm_compares_in_torchs_float32():
    tolerances = 1 - torch.arange(0.5, 0.975, 0.05, dtype=torch.float32)
    for text in ("1.1", "0.9", "1.05", "0.55", "1.5", "0.3333333", "1e300", "inf", "-1", "0"):
        for truth in ("1", "0.7", "-1", "0", "1e300", "inf"):
            predicted, true = (torch.as_tensor(float(each), dtype=torch.float32) for each in (text, truth))
            error = torch.abs(predicted - true) / (torch.abs(true) + 1e-8)
            expected = (error < tolerances).float().mean().item()
            assert VSI_BENCH.protocol("spatial-mllm").score(record("object_counting", truth), text) == expected


def test_spatial_mllm_takes_the_last_answer_and_the_question_alone():
    protocol = VSI_BENCH.protocol("spatial-mllm")
    text = "<answer>B</answer> no, <answer>\nA.. </answer>"
    # Dots before a space at the end stay officially, too.
    assert protocol.score(record("route_planning"), text) == 1
    assert protocol.score(record("route_planning"), "A chair") == 0
    asked = record("route_planning") | {"question": "Where?", "options": ["A. here", "B. there"]}
    assert protocol.prompt(asked).startswith("Where?\nOptions:\nA. here\n")
