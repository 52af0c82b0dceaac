"""Benchmark questions a second, by the engine of `spa3r benchmark`: one by one, and in batches."""

import tempfile
from pathlib import Path

from gpu.job import Job
from gpu.models import full_processor, full_vlm

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.reader import BenchmarkData, read_benchmark
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.rooms.question_options import QuestionOptions
from spa3r.data_scripts.rooms.write_questions import write_questions
from spa3r.trainers.benchmark.answers import Answers
from spa3r.trainers.benchmark.runner import ask_all

# As `--batch-size`: the smallest, and the default.
BATCH_SIZES = {"one by one": 1, "in batches": 16}
NUM_ROOMS = 2


def rendered_benchmark(folder: Path, num_views: int, size: tuple[int, int], num_questions: int) -> BenchmarkData:
    """Questions about rendered rooms; a room without a certain case has fewer."""
    rooms, asked = folder / "rooms", folder / "questions"
    render_rooms(rooms, NUM_ROOMS, num_views, size)
    write_questions(rooms, asked, QuestionOptions(format="benchmark", questions_per_room=num_questions))
    return read_benchmark("rooms", asked, rooms)


def benchmark(job: Job):
    """Questions a second, from files to answers on disk, with one question at a time and with many about a room."""
    model, processor, protocol = full_vlm(job), full_processor(job), BENCHMARKS["rooms"].protocol("official")
    rates, answers = {}, {}
    num_views, size, num_questions = (3, (64, 48), 8) if job.is_tiny else (8, (518, 392), 12)
    with tempfile.TemporaryDirectory(prefix="spa3r_gpu_") as folder:
        data = rendered_benchmark(Path(folder), num_views, size, num_questions)

        def ask(name: str, questions=data.questions):
            place = Path(tempfile.mkdtemp(dir=folder))
            found = ask_all(model, processor, data, questions, protocol, Answers(place), num_views, BATCH_SIZES[name])
            answers[name] = {number: answer["prediction"] for number, answer in found.items()}

        job.note(questions=len(data.questions), rooms=NUM_ROOMS, views=num_views, batch_sizes=BATCH_SIZES)
        for name in BATCH_SIZES:
            # The first batch loads kernels.
            ask(name, data.questions[: BATCH_SIZES[name]])
            rates[name] = len(data.questions) / job.seconds(lambda name=name: ask(name))
            job.note(questions_per_second=rates)
    one_by_one, in_batches = answers.values()
    # Half precision rounds differently, so that some answers may differ: a figure, not a check.
    job.note(answers_that_differ=sum(one_by_one[number] != in_batches.get(number) for number in one_by_one))
    for name, found in answers.items():
        job.check(f"questions without an answer, {name}", len(data.questions) - len(found), 0)
