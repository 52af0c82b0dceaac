"""Benchmarks: questions grouped by scene against one by one, the time of scoring, and memory by number of questions.

    python tests/benchmarks/bench_benchmarks.py --output runs/bench_benchmarks.json
    python tests/benchmarks/bench_benchmarks.py --preset base --frames 32 --device cuda --dtype bfloat16

A small VSI-Bench is written, with videos of noise in its layout. One by one, each question has its video decoded, its
frames prepared and both encoders run anew, as official evaluation does. Grouped is what `spa3r benchmark` runs.
Answers are compared within the run, and refused if they differ. Weights are random; how time is taken is said in
`measuring.py`.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from bench_spa3_vlm import PRESETS, ask_alone, build_model, make_processor
from measuring import (
    make_model_parser,
    parse_model_options,
    peak_megabytes,
    print_table,
    print_verdict,
    timed,
    write_figures,
)
from tiny_spa3_vlm import tiny_model, tiny_processor

from spa3r import Spa3VLMForConditionalGeneration, Spa3VLMProcessor
from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.reader import BenchmarkData, read_benchmark
from spa3r.trainers.benchmark.answers import Answers
from spa3r.trainers.benchmark.report import write_report
from spa3r.trainers.benchmark.runner import ask_all

PROTOCOL = BENCHMARKS["vsi-bench"].protocol("official")
QUESTIONS_PER_SCENE = 18  # of VSI-Bench: 5130 questions of 288 videos
TYPES = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
CHOICES = ("object_rel_distance", "route_planning", "obj_appearance_order", "object_rel_direction_easy")
CHOICES += ("object_rel_direction_medium", "object_rel_direction_hard")
ASKINGS = ("How many of", "What is the length, in centimeters, of", "If I stand by the window, which side is")
OBJECTS = ("chairs", "dining table", "lamp with a shade", "bed", "white bookcase", "sofa")
NUM_ANSWERS = 5130
MIN_SPEEDUP, MAX_SECONDS, MAX_KILOBYTES = 8, 2, 10


def write_benchmark(
    folder: Path,
    num_questions: int,
    video_size: tuple[int, int],
    num_frames: int,
    questions_per_scene: int = QUESTIONS_PER_SCENE,
):
    """Questions in VSI-Bench's layout, of all its types, and their videos of noise."""
    (folder / "scannet").mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(num_questions):
        scene, kind = f"scene{number // questions_per_scene:04d}_00", (*TYPES, *CHOICES)[number % 10]
        is_choice = kind in CHOICES
        rows.append(
            {
                "id": number,
                "dataset": "scannet",
                "scene_name": scene,
                "question_type": kind,
                "question": f"{ASKINGS[number % 3]} the {OBJECTS[number // 3 % 6]}, {number}?",
                "ground_truth": "A" if is_choice else "2.5",
                "options": ["A. left", "B. right"] if is_choice else None,
            }
        )
        path = folder / "scannet" / f"{scene}.mp4"
        if not path.exists():
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=10)
                stream.width, stream.height, stream.pix_fmt = *video_size, "yuv420p"
                for _ in range(num_frames):
                    pixels = generator.integers(0, 256, (video_size[1], video_size[0], 3), dtype=np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode())
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_attentive(model: Spa3VLMForConditionalGeneration):
    """Make what the language model says depend on the question: fresh weights say the same to all."""
    with torch.no_grad():
        for name, weight in model.model.vlm.language_model.named_parameters():
            if name.endswith("proj.weight"):
                weight.mul_(6)


def bench_grouping(
    model: Spa3VLMForConditionalGeneration,
    processor: Spa3VLMProcessor,
    benchmark: BenchmarkData,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """All questions of a benchmark: one by one, grouped but answered one by one, and grouped in batches."""
    options.new_tokens = PROTOCOL.max_new_tokens

    def one_by_one() -> dict[str, str]:
        predictions = {}
        for question in benchmark.questions:
            images = benchmark.load_images(question.media, options.frames)
            tokens = ask_alone(model, processor, images, PROTOCOL.prompt(question.record), options)
            predictions[question.id] = processor.decode(tokens[0], skip_special_tokens=True)
        return predictions

    def grouped(batch_size: int) -> dict[str, str]:
        (place := folder / f"grouped_{batch_size}").mkdir()
        answers = ask_all(
            model, processor, benchmark, benchmark.questions, PROTOCOL, Answers(place), options.frames, batch_size
        )
        return {name: given["prediction"] for name, given in answers.items()}

    variants = {
        "one by one": one_by_one,
        "grouped by scene, batches of 1": lambda: grouped(1),
        f"grouped by scene, batches of {QUESTIONS_PER_SCENE}": lambda: grouped(QUESTIONS_PER_SCENE),
    }
    rows, expected = [], None
    for name, function in variants.items():
        predictions, seconds = timed(function, options.device)
        expected = expected or predictions
        if predictions != expected:
            raise RuntimeError(f"{name} gives other answers; there is nothing to compare.")
        rows.append({"variant": name, "seconds": seconds, "speedup": rows[0]["seconds"] / seconds if rows else 1.0})
    figures = {"questions": len(benchmark.questions), "distinct_answers": len(set(expected.values()))}
    if figures["distinct_answers"] < figures["questions"] / 2:
        raise RuntimeError(f"Only {figures['distinct_answers']} answers differ; that they are equal says nothing.")
    return figures | {"frames": options.frames, "rows": rows}


def bench_scoring(folder: Path) -> dict[str, Any]:
    """Seconds to score as many answers as VSI-Bench has questions, and to write the report with its intervals."""
    generator = random.Random(0)
    write_benchmark(folder / "data", NUM_ANSWERS, (16, 16), 1)
    benchmark = read_benchmark("vsi-bench", folder / "data")
    choices = ["A", "B", "A. left", "The answer is B", "2.5", "3", "2.4 meters", "two"]
    predictions = {question.id: generator.choice(choices) for question in benchmark.questions}
    start = time.perf_counter()
    for question in benchmark.questions:
        PROTOCOL.score(question.record, predictions[question.id])
    scoring = time.perf_counter() - start
    (folder / "report").mkdir()
    start = time.perf_counter()
    write_report(folder / "report", {"benchmark": "vsi-bench"}, benchmark.questions, predictions, PROTOCOL, [], {})
    return {"answers": NUM_ANSWERS, "scoring_seconds": scoring, "report_seconds": time.perf_counter() - start}


def ask_and_measure(num_questions: int) -> dict[str, float]:
    """Ask a tiny model in this process, which must be a fresh one; its peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        write_benchmark(Path(folder) / "data", num_questions, (64, 48), 4)
        benchmark = read_benchmark("vsi-bench", Path(folder) / "data")
        (place := Path(folder) / "run").mkdir()
        ask_all(tiny_model(), tiny_processor(), benchmark, benchmark.questions, PROTOCOL, Answers(place), 4, 16)
    return {"questions": num_questions, "peak_megabytes": peak_megabytes()}


def bench_memory(numbers: Sequence[int]) -> list[dict[str, float]]:
    """Peak memory of whole processes by their number of questions, 18 about each video."""
    commands = [[sys.executable, __file__, "--ask", str(number)] for number in numbers]
    results = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for command in commands]
    return [json.loads(result.splitlines()[-1]) for result in results]


def main():
    parser = make_model_parser(__doc__, PRESETS, repeats=1)
    parser.add_argument("--scenes", type=int, default=1)
    parser.add_argument("--frames", type=int, default=8, help="frames taken of each video")
    parser.add_argument("--width", type=int, default=518, help="of the frames as prepared, in pixels")
    parser.add_argument("--memory", type=int, nargs=2, default=[360, 3600], help="numbers of questions to compare")
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    options = parse_model_options(parser)
    if options.ask is not None:
        print(json.dumps(ask_and_measure(options.ask)))
        return
    with tempfile.TemporaryDirectory() as folder:
        scoring = bench_scoring(Path(folder) / "scoring")
        print_table("Scoring", [scoring])
        print_verdict(f"scoring under {MAX_SECONDS} s", scoring["scoring_seconds"] < MAX_SECONDS)

        memory = bench_memory(options.memory)
        print_table("Peak memory of a run, tiny model", memory)
        more = 1024 * (memory[1]["peak_megabytes"] - memory[0]["peak_megabytes"])
        each = more / (memory[1]["questions"] - memory[0]["questions"])
        print_verdict(f"at most {MAX_KILOBYTES} KB more a question (it is {each:.1f})", each <= MAX_KILOBYTES)

        write_benchmark(Path(folder) / "data", options.scenes * QUESTIONS_PER_SCENE, (640, 480), 4 * options.frames)
        benchmark = read_benchmark("vsi-bench", Path(folder) / "data")
        make_attentive(model := build_model(options))
        grouping = bench_grouping(model, make_processor(options), benchmark, options, Path(folder))
    title = f"{grouping['questions']} questions of {options.scenes} videos, {options.frames} frames"
    print_table(title, grouping["rows"])
    print_verdict(f"grouped {MIN_SPEEDUP} times faster", grouping["rows"][-1]["speedup"] >= MIN_SPEEDUP)
    write_figures(options, grouping=grouping, scoring=scoring, memory=memory)


if __name__ == "__main__":
    main()
