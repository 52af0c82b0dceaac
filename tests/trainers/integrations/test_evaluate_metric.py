"""The module for `evaluate` loads without network and scores as the protocols do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.protocol import summarize_answers
from spa3r.data_scripts.benchmarks.vsi_bench import CHOICE_TYPES, QUESTION_TYPES

pytest.importorskip("evaluate")
SCRIPT = Path(__file__).resolve().parents[3] / "trainers" / "integrations" / "evaluate_metric.py"
# Columns that scores do not depend on may be there, too.
RECORDS = {
    "vsi-bench": [
        {"question_type": kind, "ground_truth": "A" if kind in CHOICE_TYPES else "3", "options": None}
        for kind in QUESTION_TYPES
    ],
    "cv-bench": [
        {"source": source, "answer": "(B)", "idx": 1} for source in ("ADE20K", "COCO", "Omni3D", "Omni3D", "COCO")
    ],
    "spar-bench": [{"task": task, "answer": "1.5"} for task in ("depth_prediction_oc", "depth_prediction_oc_mv")],
    "viewspatial-bench": [
        {"question_type": "Camera perspective - Relative Direction", "answer": "A. left"},
        {"question_type": "Person perspective - Relative Direction", "answer": "B. right"},
    ],
}
RECORDS["rooms"] = RECORDS["vsi-bench"]
ANSWERS = ["A", " 3", "three", "b", "Based on it, A", "1.5 or 2", "A\n", "", "(A)", "3.2"]
CONFIGURATIONS = [*BENCHMARKS, *(f"{benchmark}/{name}" for benchmark, names in BENCHMARKS.items() for name in names)]
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import evaluate
script, names, records, answers = json.load(sys.stdin)
results = {}
for name in names:
    cases = records[name.partition("/")[0]]
    metric = evaluate.load(script, name)
    results[name] = metric.compute(predictions=answers[:len(cases)], references=cases)
for name, call in {
    "empty": lambda: metric.compute(predictions=[], references=[]),
    "unequal": lambda: metric.compute(predictions=["A"], references=records["rooms"]),
    "lacking": lambda: metric.compute(predictions=["A"], references=[{"question_type": "route_planning"}]),
    "unknown": lambda: evaluate.load(script, "vsi-bench/paper"),
}.items():
    try:
        call()
    except ValueError as error:
        results[name] = str(error)
metric.add(prediction=answers[0], reference=records["rooms"][0])
metric.add_batch(predictions=answers[1:10], references=records["rooms"][1:])
results["batches"] = metric.compute()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    inputs = json.dumps([str(SCRIPT), CONFIGURATIONS, RECORDS, ANSWERS])
    removed = ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_DATASETS_CACHE", "HF_METRICS_CACHE")
    environment = {key: value for key, value in os.environ.items() if key not in removed} | settings
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=inputs, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.filterwarnings("ignore:.*there are no answers")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_results_are_those_of_the_protocol(results, name):
    benchmark, _, protocol = name.partition("/")
    protocols = BENCHMARKS[benchmark]
    records = RECORDS[benchmark]
    expected = summarize_answers(protocols[protocol or next(iter(protocols))], records, ANSWERS[: len(records)])
    assert results[name] == expected


def test_protocols_of_one_benchmark_differ_in_these_answers(results):
    assert len({results[f"vsi-bench/{name}"]["overall"] for name in BENCHMARKS["vsi-bench"]}) > 1
    assert results["cv-bench/paper"] != results["cv-bench/lmms-eval"]


def test_answers_can_be_added_one_by_one_and_in_batches(results):
    assert results["batches"] == results["rooms/spatial-mllm"]


def test_wrong_input_is_refused_in_one_sentence(results):
    assert results["empty"] == "`predictions` is empty; give the answers and as many records of their questions."
    assert "(1)" in results["unequal"] and "(10)" in results["unequal"]
    assert results["lacking"] == "A reference lacks ['ground_truth']: rooms scores by question_type, ground_truth."
    assert results["unknown"].startswith("The configuration `vsi-bench/paper` is not known; known are vsi-bench/off")


def test_scoring_nothing_or_too_little_is_refused():
    protocol = BENCHMARKS["vsi-bench"]["official"]
    for records, answers in (([], []), (RECORDS["vsi-bench"], ["A"])):
        with pytest.raises(ValueError, match=f"got {len(answers)} answers for {len(records)} records"):
            summarize_answers(protocol, records, answers)
