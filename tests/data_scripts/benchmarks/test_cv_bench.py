"""CV-Bench's scores are compared with recorded ones of VG-LLM and lmms-eval."""

import math

import pytest
from scoring_cases import assert_all_agree, needs_scores, recorded_scores

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.cv_bench import aggregate, find_capital, find_opening_letter

PAPER, LMMS_EVAL = BENCHMARKS["cv-bench"].values()
MEANS, COUNTS = {"ADE20K": 0.2, "COCO": 0.6, "Omni3D": 0.8}, {"ADE20K": 10, "COCO": 30, "Omni3D": 60}
needs = needs_scores("cvbench")


def total(protocol, code, key):
    def compute(case):
        scores = [protocol.score(doc, doc["prediction"]) for doc in case["docs"]]
        return aggregate([doc["source"] for doc in case["docs"]], scores, code)[key]

    return compute


def test_the_default_is_what_papers_report():
    assert [PAPER.name, LMMS_EVAL.name] == ["paper", "lmms-eval"]


@needs
def test_every_kind_of_cases_is_compared():
    assert recorded_scores("cvbench").keys() == {"cases", "aggregates", "prompts"}


@needs
def test_letters_and_scores_are_the_recorded_ones():
    functions = {
        "lmms_eval_letter": lambda case: find_opening_letter(case["prediction"]),
        "score_lmms_eval": lambda case: LMMS_EVAL.score(case, case["prediction"]),
        "vg_llm_letter": lambda case: find_capital(case["prediction"]),
        "score_vg_llm": lambda case: PAPER.score(case, case["prediction"]),
    }
    assert_all_agree(recorded_scores("cvbench")["cases"], functions, {"id", "prediction", "answer"})


@needs
def test_aggregates_are_the_recorded_ones():
    functions = {
        "lmms_eval_accuracy": total(LMMS_EVAL, "lmms-eval", "accuracy"),
        "lmms_eval_original_formula": total(LMMS_EVAL, "lmms-eval-original-formula", "original_formula"),
        "vg_llm_combined_times100": total(PAPER, "vg-llm", "combined_times100"),
    }
    cases = recorded_scores("cvbench")["aggregates"]
    assert all(case.keys() == {"name", "docs", "expected"} for case in cases)
    assert_all_agree([case["expected"] | {"docs": case["docs"]} for case in cases], functions, {"docs"})


@needs
def test_prompts_are_the_recorded_ones():
    functions = {
        "lmms_eval": lambda case: LMMS_EVAL.prompt(case["doc"]),
        "vg_llm": lambda case: PAPER.prompt(case["doc"]),
    }
    assert_all_agree(recorded_scores("cvbench")["prompts"], functions, {"doc"})


@pytest.mark.parametrize(
    ("text", "letter"),
    [("Best answer: A", "B"), ("Best answer:Best option: A", "A"), ("The answer is E", "E"), ("g H", "")],
)
def test_grown_together_phrases_are_removed_only_together(text, letter):
    assert find_capital(text) == letter


def test_2d_and_3d_count_alike_in_papers_and_questions_in_lmms_eval():
    assert PAPER.summarize(MEANS, COUNTS) == pytest.approx({"overall": 0.6, "2D": 0.4, "3D": 0.8})
    assert LMMS_EVAL.summarize(MEANS, COUNTS) == pytest.approx({"overall": 0.68, "2D": 0.5, "3D": 0.8})
    assert list(PAPER.summarize(MEANS, COUNTS)) == list(PAPER.columns) == ["overall", "2D", "3D"]


@pytest.mark.parametrize("protocol", [PAPER, LMMS_EVAL], ids=lambda protocol: protocol.name)
def test_a_missing_source_is_warned_of(protocol):
    with pytest.warns(UserWarning, match=f"CV-Bench: .* {'Omni3D' if protocol is PAPER else 'ADE20K'},? "):
        missing = "Omni3D" if protocol is PAPER else "ADE20K"
        columns = protocol.summarize({k: v for k, v in MEANS.items() if k != missing}, COUNTS)
    expected = {"overall": 0.4, "2D": 0.4} if protocol is PAPER else {"overall": 66 / 90, "2D": 0.6, "3D": 0.8}
    assert columns == pytest.approx(expected)


def test_official_aggregates_do_without_a_source_each_in_its_way():
    assert math.isnan(aggregate(["COCO"], [1.0], "vg-llm")["combined_times100"])
    assert aggregate(["COCO"], [1.0], "lmms-eval") == {"accuracy": 1.0}
    with pytest.raises(KeyError, match="ADE20K"):
        aggregate(["COCO"], [1.0], "lmms-eval-original-formula")


@pytest.mark.parametrize("protocol", [PAPER, LMMS_EVAL], ids=lambda protocol: protocol.name)
def test_sources_that_are_not_known_are_named(protocol):
    for refused in (
        lambda: protocol.group({"source": "KITTI"}),
        lambda: protocol.summarize({"KITTI": 1}, {"KITTI": 1}),
    ):
        with pytest.raises(ValueError, match="The source `KITTI` is not known; known are ADE20K, COCO, Omni3D."):
            refused()
