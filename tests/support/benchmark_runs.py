"""A benchmark run that tests of reports and comparisons share."""

import numpy as np
import pytest

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.reader import BenchmarkQuestion
from spa3r.data_scripts.benchmarks.vsi_bench import NUMBER_TYPES, QUESTION_TYPES
from spa3r.trainers.benchmark import report as benchmark_report
from spa3r.trainers.benchmark.report import write_report

PROTOCOL = BENCHMARKS["vsi-bench"].protocol("official")
RUN = {
    "benchmark": "vsi-bench",
    "protocol": "official",
    "model": "checkpoints/spa3-vlm-4b.v2",
    "data_fingerprint": "abc",
    "published_size": 5130,
    "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
    "num_frames": 32,
    "missing": [],
    "unreadable": {},
}


def make_questions(num_questions=300, num_scenes=30, types=QUESTION_TYPES):
    questions = []
    for number in range(num_questions):
        kind = types[number % len(types)]
        truth = "4" if kind in NUMBER_TYPES else "B"
        record = {"question_type": kind, "ground_truth": truth, "question": "?", "options": None}
        scene = f"scene{(number + number // 10) % num_scenes:04d}_00"
        questions.append(BenchmarkQuestion(id=str(number), scene_id=scene, media=scene, record=record))
    return questions


def make_predictions(questions, seed=0):
    generator = np.random.default_rng(seed)
    return {
        question.id: str(generator.choice(["A", "B", "4", "3.9", "5", "The answer is B"])) for question in questions
    }


QUESTIONS = make_questions()
PREDICTIONS = make_predictions(QUESTIONS)


def write_without_chart(*arguments):
    """Write a report with an empty chart, because drawing takes the most time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_report, "draw_report", lambda report: b"")
        return write_report(*arguments)
