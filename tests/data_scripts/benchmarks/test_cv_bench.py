"""CV-Bench's averages, compared with recorded ones of VG-LLM and lmms-eval, and its rules for letters."""

import pytest
from scoring_cases import agrees, recorded, scores_and_figures

from spa3r.data_scripts.benchmarks.cv_bench import LMMS_EVAL, PAPER, find_capital
from spa3r.data_scripts.benchmarks.protocol import average_groups

MEANS, COUNTS = {"ADE20K": 0.2, "COCO": 0.6, "Omni3D": 0.8}, {"ADE20K": 10, "COCO": 30, "Omni3D": 60}


def test_averages_are_the_recorded_ones():
    for case in recorded("cvbench", "aggregates"):
        docs, expected = case["docs"], case["expected"]
        scores, of_lmms_eval = scores_and_figures(LMMS_EVAL, docs)
        assert agrees(of_lmms_eval["overall"], expected["lmms_eval_accuracy"])
        if {doc["source"] for doc in docs} < set(PAPER.groups):
            continue  # official code gives NaN or an error
        assert agrees(100 * scores_and_figures(PAPER, docs)[1]["overall"], expected["vg_llm_combined_times100"])
        # lmms-eval has the paper's formula, too, but does not call it.
        formula = PAPER.average(*average_groups([doc["source"] for doc in docs], scores))
        assert agrees(formula["overall"], expected["lmms_eval_original_formula"])


@pytest.mark.parametrize(
    ("text", "letter"),
    [("Best answer: A", "B"), ("Best answer:Best option: A", "A"), ("The answer is E", "E"), ("g H", "")],
)
def test_phrases_joined_by_a_missing_comma_are_removed_only_together(text, letter):
    assert find_capital(text) == letter


def test_2d_and_3d_count_alike_in_papers_and_questions_in_lmms_eval():
    assert PAPER.summarize(MEANS, COUNTS) == pytest.approx({"overall": 0.6, "2D": 0.4, "3D": 0.8})
    assert LMMS_EVAL.summarize(MEANS, COUNTS) == pytest.approx({"overall": 0.68, "2D": 0.5, "3D": 0.8})


def test_a_half_without_questions_is_left_out():
    means = {"ADE20K": 0.2, "COCO": 0.6}
    assert PAPER.average(means, COUNTS) == pytest.approx({"overall": 0.4, "2D": 0.4})
    assert LMMS_EVAL.average(means, COUNTS) == pytest.approx({"overall": 0.5, "2D": 0.5})
