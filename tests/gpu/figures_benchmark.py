"""Benchmark questions a second, by the engine of `spa3r benchmark`: one by one, and in batches.

Many questions about each scene, as in VSI-Bench, and one question about each image, as in CV-Bench.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpu.job import Job
from gpu.models import full_processor, full_vlm

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.reader import BenchmarkData, BenchmarkQuestion, read_benchmark
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.rooms.question_options import QuestionOptions
from spa3r.data_scripts.rooms.write_questions import write_questions
from spa3r.trainers.benchmark.answers import Answers
from spa3r.trainers.benchmark.runner import ask_all

# As `--batch-size`: the smallest, and the default.
BATCH_SIZES = {"one by one": 1, "in batches": 16}
NUM_ROOMS = 2
# Answered one by one, these take 10 s on an H100.
NUM_SINGLE = 8


class ScenesOfOneQuestion:
    """Questions of a benchmark, each about a scene of its own with the same images."""

    def __init__(self, data: BenchmarkData, questions: Sequence[BenchmarkQuestion]):
        self.name, self._data = data.name, data
        self._media = {question.id: question.media for question in questions}
        self.questions = [replace(question, media=question.id) for question in questions]

    def load_images(self, media: str, num_frames: int) -> list:
        return self._data.load_images(self._media[media], num_frames)


def rendered_benchmark(folder: Path, num_views: int, size: tuple[int, int], num_questions: int) -> BenchmarkData:
    """Questions about rendered rooms; a room without a certain case has fewer."""
    rooms, asked = folder / "rooms", folder / "questions"
    render_rooms(rooms, NUM_ROOMS, num_views, size)
    write_questions(rooms, asked, QuestionOptions(format="benchmark", questions_per_room=num_questions))
    return read_benchmark("rooms", asked, rooms)


def benchmark(job: Job):
    """Questions a second, from files to answers on disk, with one question at a time and with many."""
    model, processor, protocol = full_vlm(job), full_processor(job), BENCHMARKS["rooms"].protocol("official")
    rates, differing = {}, {}
    num_views, size, num_questions = (3, (64, 48), 8) if job.is_tiny else (8, (518, 392), 12)
    with tempfile.TemporaryDirectory(prefix="spa3r_gpu_") as folder:
        data = rendered_benchmark(Path(folder), num_views, size, num_questions)

        def measure(kind: str, asked: BenchmarkData | ScenesOfOneQuestion, num_images: int):
            answers = {}

            def ask(name: str, limit: int | None = None):
                place, questions = Answers(Path(tempfile.mkdtemp(dir=folder))), asked.questions[:limit]
                what = (asked, questions, protocol, place, num_images, BATCH_SIZES[name])
                found = ask_all(model, processor, *what)
                answers[name] = {number: answer["prediction"] for number, answer in found.items()}

            for name in BATCH_SIZES:
                ask(name, limit=BATCH_SIZES[name])  # loads kernels
                rates[kind + name] = len(asked.questions) / job.seconds(lambda name=name: ask(name))
                job.note(questions_per_second=rates)
                missing = len(asked.questions) - len(answers[name])
                job.check(f"questions without an answer, {kind}{name}", missing, 0)
            one_by_one, in_batches = answers.values()
            # Half precision rounds differently, so that some answers may differ: a figure, not a check.
            differing[kind + "in batches"] = sum(one_by_one[key] != in_batches.get(key) for key in one_by_one)
            job.note(answers_that_differ=differing)

        job.note(questions=len(data.questions), rooms=NUM_ROOMS, views=num_views, batch_sizes=BATCH_SIZES)
        measure("", data, num_views)
        measure("one a scene, ", ScenesOfOneQuestion(data, data.questions[:NUM_SINGLE]), 1)
