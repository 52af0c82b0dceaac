"""Did anything get slower? What `make bench` runs.

    python tests/benchmarks/guard.py                                                   # compare
    python tests/benchmarks/guard.py --output tests/benchmarks/results/guard_cpu.json  # commit other figures

Each line is the cost of our way to a result, relative to the plain way to the same result, which the benchmarks here
write out: a dense mask over all pairs of tokens, a pass of its own over the context views, a fresh call for each
question and each scene, training that encodes every image again. Both ways take turns in one run, so a line holds on
any machine. A change of a line by more than the tolerance is more than what two runs of the same code differ by.
The status is 1 if a line got worse by more. Not a part of the tests, because it measures time.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from bench_sft import bench_steps, build_trainers
from bench_spa3_vlm import bench_batch, bench_prefill, bench_session, build_model, make_processor
from bench_spa3r import bench_aggregation, build_config, random_views
from measuring import compare_times, make_parser, print_table, verdicts, write_figures

from spa3r import Spa3RForPreTraining

COMMITTED = Path(__file__).parent / "results" / "guard_cpu.json"
# Relative. Times of the same code differ by up to a tenth between runs on a busy machine; memory does not differ.
TOLERANCE = 0.15
SPA3R = {"hidden_size": 256, "layers": 8, "image_size": 168, "views": 12}
SPA3_VLM = {"preset": "small", "views": 4, "width": 252, "height": 196, "new_tokens": 8}


def aggregation(options: argparse.Namespace) -> dict[str, float]:
    """VGGT over target views that see all views, and context views that see none of them."""
    asymmetric, dense, two_passes = bench_aggregation(options)["rows"]
    return {
        "aggregation, time to a dense mask's": asymmetric["seconds"] / dense["seconds"],
        "aggregation, memory to a dense mask's": asymmetric["peak_bytes"] / dense["peak_bytes"],
        "aggregation, time to two passes'": asymmetric["seconds"] / two_passes["seconds"],
    }


def pretraining(options: argparse.Namespace) -> dict[str, float]:
    """Forward and backward of pre-training, with one pass of VGGT and with two."""
    config, views = build_config(options.hidden_size, options.layers), random_views(options.views, options)
    steps = {}
    for name in ("asymmetric", "separate"):
        config.view_aggregation = name
        torch.manual_seed(0)
        model = Spa3RForPreTraining(config).to(options.device).train()
        model.freeze_teachers()
        steps[name] = lambda model=model: model(views, options.views // 2).loss.backward()
    seconds = compare_times(steps, options.repeats, options.device)
    return {"pre-training step, time to two passes'": seconds["asymmetric"] / seconds["separate"]}


def answers(options: argparse.Namespace) -> dict[str, float]:
    """Questions about one scene, and scenes in one batch."""
    processor, model = make_processor(options), build_model(options)
    _, in_turn, at_once = bench_session(model, processor, options)["rows"]
    return {
        "18 questions, one by one, time to fresh calls'": 1 / in_turn["speedup"],
        "18 questions, one batch, time to fresh calls'": 1 / at_once["speedup"],
        "4 scenes in a batch, time to 4 calls'": bench_batch(model, processor, options)["ratio"],
        "prefill, memory to the sum of its parts'": bench_prefill(model, processor, options)["ratio"],
    }


def tuning(options: argparse.Namespace) -> dict[str, float]:
    """Steps of `spa3r sft` from what is kept of scenes."""
    with tempfile.TemporaryDirectory() as folder:
        _, latents, features = bench_steps(build_trainers(Path(folder), options), options)["rows"]
    return {
        "tuning step from latents, time to a live one's": 1 / latents["speedup"],
        "tuning step from vision features, time to a live one's": 1 / features["speedup"],
    }


PARTS: dict[Callable, dict] = {aggregation: SPA3R, pretraining: SPA3R, answers: SPA3_VLM, tuning: SPA3_VLM}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="relative change that is no news")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, float] = {}
    for part, sizes in PARTS.items():
        options = argparse.Namespace(
            device=torch.device("cpu"), dtype=torch.float32, repeats=given.repeats, output=None, **sizes
        )
        ratios |= part(options)
    write_figures(given, ratios=ratios)
    committed = json.loads(COMMITTED.read_text())["ratios"] if COMMITTED.is_file() else {}
    rows = verdicts(ratios, committed, given.tolerance)
    print_table("Our cost, relative to the plain way's", rows)
    if worse := [row["line"] for row in rows if row["verdict"].startswith("worse")]:
        sys.exit(f"Worse by more than {given.tolerance:.0%}: " + "; ".join(worse))


if __name__ == "__main__":
    main()
