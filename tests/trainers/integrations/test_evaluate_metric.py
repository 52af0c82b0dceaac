"""The module for `evaluate` loads without network and scores as the protocols do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spa3r.data_scripts.benchmarks import BENCHMARKS, revsi, vsi_super
from spa3r.data_scripts.benchmarks.protocol import summarize_answers
from spa3r.data_scripts.benchmarks.vsi_bench import CHOICE_TYPES, QUESTION_TYPES

pytest.importorskip("evaluate")
SCRIPT = Path(__file__).resolve().parents[3] / "trainers" / "integrations" / "evaluate_metric.py"
# With columns that scores do not depend on.
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
for budget in revsi.BUDGETS:
    RECORDS[f"revsi-{budget}"] = [
        {"question_type": kind, "ground_truth": "A" if kind in revsi.CHOICE_TYPES else "3"}
        for kind in revsi.QUESTION_TYPES[:10]
    ]
RECORDS["vsi-super-count"] = [{"split": length, "answer": "3"} for length in vsi_super.COUNT_LENGTHS]
RECORDS["vsi-super-count-streaming"] = [{"split": length, "answers": [3]} for length in vsi_super.STREAMING_LENGTHS]
RECORDS["vsi-super-recall"] = [{"type": length, "answer": "A"} for length in vsi_super.RECALL_LENGTHS]
ANSWERS = ["[3]", "A", " 3", "three", "b", "Based on it, A", "1.5 or 2", "A\n", "", "(A)"]
PROTOCOLS = {
    f"{name}/{protocol.name}": protocol for name, benchmark in BENCHMARKS.items() for protocol in benchmark.protocols
}
DEFAULTS = {name: benchmark.protocol() for name, benchmark in BENCHMARKS.items()}
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
metric = evaluate.load(script, "rooms/spatial-mllm")
for name, call in {
    "empty": lambda: metric.compute(predictions=[], references=[]),
    "unequal": lambda: metric.compute(predictions=["A"], references=records["rooms"]),
    "lacking": lambda: metric.compute(predictions=["A"], references=[{"question_type": "route_planning"}]),
    "no protocol": lambda: evaluate.load(script, "vsi-bench/paper"),
    "no benchmark": lambda: evaluate.load(script, "vsi"),
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
    inputs = json.dumps([str(SCRIPT), list(DEFAULTS | PROTOCOLS), RECORDS, ANSWERS])
    removed = ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_DATASETS_CACHE", "HF_METRICS_CACHE")
    environment = {key: value for key, value in os.environ.items() if key not in removed} | settings
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=inputs, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.filterwarnings("ignore:No answers")
@pytest.mark.parametrize("name", DEFAULTS | PROTOCOLS)
def test_results_are_those_of_the_protocol(results, name):
    records = RECORDS[name.partition("/")[0]]
    expected = summarize_answers((DEFAULTS | PROTOCOLS)[name], records, ANSWERS[: len(records)])
    assert results[name] == expected


def test_protocols_of_one_benchmark_differ_in_these_answers(results):
    assert len({results[name]["overall"] for name in PROTOCOLS if name.startswith("vsi-bench/")}) > 1
    assert results["cv-bench/paper"] != results["cv-bench/lmms-eval"]


def test_answers_can_be_added_one_by_one_and_in_batches(results):
    assert results["batches"] == results["rooms/spatial-mllm"]


REFUSED = {
    "empty": ["`predictions`"],
    "unequal": ["(1)", "(10)"],
    "lacking": ["question_type", "ground_truth"],
    "no protocol": ["`vsi-bench`", "`paper`", "official"],
    "no benchmark": ["`vsi`", "vsi-bench"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_refused_by_what_is_wrong(results, case):
    assert all(token in results[case] for token in REFUSED[case]), results[case]
