"""Prompts, scores and averages of the official code of each benchmark, recorded, are those of the protocols."""

import pytest
from scoring_cases import assert_all_agree, assert_figures_agree, recorded, scores_and_figures

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.cv_bench import find_capital, find_opening_letter
from spa3r.data_scripts.benchmarks.viewspatial_bench import find_option
from spa3r.data_scripts.benchmarks.vsi_bench import first_token


def scorer(benchmark, protocol=None):
    return lambda case: BENCHMARKS[benchmark].protocol(protocol).score(case, case["prediction"])


def asker(benchmark, protocol=None):
    return lambda case: BENCHMARKS[benchmark].protocol(protocol).prompt(case.get("doc") or case | {"question": "Q?"})


# By recording and kind of case: what computes each recorded output.
FUNCTIONS = {
    ("vsibench", "cases"): {
        "official_token": lambda case: first_token(case["prediction"]),
        "score": scorer("vsi-bench", "official"),
        "score_lmms_eval_pinned_04a5103": scorer("vsi-bench", "official"),
        "score_lmms_eval_head_75571cf": scorer("vsi-bench", "lmms-eval-2026"),
        "score_spatial_mllm": scorer("vsi-bench", "spatial-mllm"),
    },
    ("cvbench", "cases"): {
        "lmms_eval_letter": lambda case: find_opening_letter(case["prediction"]),
        "score_lmms_eval": scorer("cv-bench", "lmms-eval"),
        "vg_llm_letter": lambda case: find_capital(case["prediction"]),
        "score_vg_llm": scorer("cv-bench", "paper"),
    },
    ("sparbench", "cases"): {"score": scorer("spar-bench"), "score_pinned": scorer("spar-bench")},
    ("viewspatial", "cases"): {
        "extracted": lambda case: find_option(case["prediction"].split("\n")[-1]),
        "score": scorer("viewspatial-bench"),
    },
    ("cvbench", "prompts"): {"lmms_eval": asker("cv-bench", "lmms-eval"), "vg_llm": asker("cv-bench", "paper")},
    ("sparbench", "prompts"): {"prompt": asker("spar-bench")},
    ("viewspatial", "prompts"): {"prompt": asker("viewspatial-bench")},
}


@pytest.mark.parametrize("recording", FUNCTIONS, ids=" ".join)
def test_outputs_are_the_recorded_ones(recording):
    assert_all_agree(recorded(*recording), FUNCTIONS[recording])


@pytest.mark.parametrize("name", ["sparbench", "viewspatial"])
def test_averages_are_the_recorded_ones(name):
    protocol = BENCHMARKS[{"sparbench": "spar-bench", "viewspatial": "viewspatial-bench"}[name]].protocol()
    for case in recorded(name, "aggregates"):
        assert_figures_agree(scores_and_figures(protocol, case["docs"])[1], case["expected"])
