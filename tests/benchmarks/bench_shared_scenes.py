"""Scenes with one question each, as `spa3r benchmark` asks them: one by one, and several in one `generate`.

    python tests/benchmarks/bench_shared_scenes.py --output runs/bench_shared_scenes.json
    python tests/benchmarks/bench_shared_scenes.py --preset base --device cuda --dtype bfloat16

Both encode each scene by itself, which is timed alone, too: sharing can only shorten the rest. Videos are noise, and
weights are random. In float32 the answers are compared, and refused if they differ. `measuring.py` says how time is
taken.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_benchmarks import PROTOCOL, make_attentive, write_benchmark
from bench_spa3_vlm import PRESETS, build_model, make_processor
from measuring import compare_times, make_model_parser, parse_model_options, print_table, write_figures

from spa3r import SceneSession
from spa3r.data_scripts.benchmarks.reader import BenchmarkData, read_benchmark
from spa3r.trainers.benchmark.answers import Answers
from spa3r.trainers.benchmark.runner import ask_all

ENCODING, SINGLY, SHARED = "encoding alone", "one by one", "in one generate"


def bench_sharing(benchmark: BenchmarkData, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of all questions, from files to answers on disk."""
    make_attentive(model := build_model(options))
    processor, questions, answers = make_processor(options), benchmark.questions, {}

    def encode():
        for question in questions:
            SceneSession(model, processor, benchmark.load_images(question.media, options.frames))

    def ask(name: str, batch_size: int):
        place = Answers(Path(tempfile.mkdtemp(dir=folder)))
        answers[name] = ask_all(model, processor, benchmark, questions, PROTOCOL, place, options.frames, batch_size)

    variants = {ENCODING: encode, SINGLY: lambda: ask(SINGLY, 1), SHARED: lambda: ask(SHARED, len(questions))}
    seconds = compare_times(variants, options.repeats, options.device)
    differing = sum(answers[SINGLY][name] != answer for name, answer in answers[SHARED].items())
    if differing and options.dtype == torch.float32:
        raise RuntimeError(f"{differing} answers differ; there is nothing to compare.")
    rows = [{"variant": name, "seconds": value, "ratio": value / seconds[SINGLY]} for name, value in seconds.items()]
    answering = (seconds[SHARED] - seconds[ENCODING]) / (seconds[SINGLY] - seconds[ENCODING])
    return {
        "answers_that_differ": differing,
        "distinct_answers": len({answer["prediction"] for answer in answers[SINGLY].values()}),
        "ratio_without_encoding": answering,
        "rows": rows,
    }


def main():
    parser = make_model_parser(__doc__, PRESETS, repeats=3)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--frames", type=int, default=1, help="images of each scene")
    parser.add_argument("--width", type=int, default=518, help="of the images as prepared, in pixels")
    options = parse_model_options(parser)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_benchmark(data, options.scenes, (640, 480), options.frames, questions_per_scene=1)
        sharing = bench_sharing(read_benchmark("vsi-bench", data), options, Path(folder))
    print_table(f"{options.scenes} scenes with one question each, images of each: {options.frames}", sharing["rows"])
    print(f"Without encoding, the ratio is {sharing['ratio_without_encoding']:.2f}.")
    write_figures(options, sharing=sharing)


if __name__ == "__main__":
    main()
