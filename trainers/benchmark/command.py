"""Ask a model the questions of a benchmark, score its answers, and write a report.

    spa3r benchmark --model checkpoints/spa3-vlm-4b --benchmark vsi-bench --data VSI-Bench
    accelerate launch --config_file configuration/accelerate/ddp.yaml benchmark.py \\
        --model checkpoints/spa3-vlm-4b --benchmark vsi-bench --data VSI-Bench
    spa3r benchmark --predictions answers.jsonl --benchmark vsi-bench --data VSI-Bench
    spa3r benchmark --compare runs/benchmarks/before runs/benchmarks/after

The model is a Spa3-VLM or a plain Qwen2.5-VL. Each scene is encoded once, however many questions there are about it.
Answers are saved as they come: run the same command again after an interruption, on any number of processes, and the
report has the same bytes as that of an uninterrupted run. The output folder holds report.md, report.json, report.png,
answers.jsonl (each answer with its score) and predictions.jsonl.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...data_scripts.benchmarks import BENCHMARKS
from ...data_scripts.common.command_line import verb_parser

# Options that have a use with each task; `None`: all.
USEFUL = {
    "model": None,
    "predictions": (
        *("predictions", "benchmark", "data", "media", "protocol", "output", "beside", "label", "limit"),
        "skip_missing",
    ),
    "compare": ("compare", "output", "require_better"),
    "side_by_side": ("side_by_side", "output"),
}


def main(arguments: Sequence[str] | None = None):
    """Entry point of `spa3r benchmark`."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    # Here, so that --help does not wait for them.
    import torch

    from ..runs.errors import first_line
    from .benchmark import compare, run, score, show_side_by_side

    try:
        if options.compare is not None:
            compare(options)
        elif options.side_by_side is not None:
            show_side_by_side(options)
        elif options.predictions is not None:
            score(options)
        else:
            run(options)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"Out of memory ({first_line(error)}) with batches of {options.batch_size} questions: run the same with a "
            "lower --batch-size into another --output, or with fewer --frames."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("benchmark", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="folder or Hub name of a Spa3-VLM or a plain Qwen2.5-VL")
    what.add_argument("--predictions", type=Path, metavar="FILE", help="score answers: JSON lines of id, prediction")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two runs, given their folders")
    what.add_argument("--side-by-side", nargs="+", metavar="RUN", help="show runs on different benchmarks together")
    parser.add_argument("--benchmark", choices=list(BENCHMARKS), help="name of the benchmark")
    parser.add_argument("--data", type=Path, help="its folder as published, or a file of questions in it")
    parser.add_argument("--media", type=Path, help="folder of videos, images or rooms (default: that of --data)")
    known = "; ".join(
        f"{benchmark.name}: {', '.join(protocol.name for protocol in benchmark.protocols)}"
        for benchmark in BENCHMARKS.values()
    )
    parser.add_argument("--protocol", help=f"how answers are scored (default: the first). {known}")
    parser.add_argument(
        "--frames", type=int, help="frames of a video, spread evenly (default: the benchmark's, or 32)"
    )
    parser.add_argument("--output", type=Path, help="folder of the report (default: runs/benchmarks/...)")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="RUN", help="other runs to show as rows")
    parser.add_argument("--label", help="name of the run's row (default: that of the model)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N questions")
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out questions without readable images, or without an answer"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="most questions answered at once, also about several scenes (default: 16)",
    )
    parser.add_argument(
        "--without-images", action="store_true", help="show the model only the text: what do the words give away?"
    )
    parser.add_argument(
        "--require-better",
        metavar="COLUMN",
        help="with --compare, fail unless B is surely better than A in this column of report.json, such as overall",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: that of the checkpoint")
    parser.add_argument("--attn-implementation", help="for example flash_attention_2 (default: the library's choice)")
    return parser


def _check_options(parser: argparse.ArgumentParser, options: argparse.Namespace):
    """Refuse wrong options, and fill in defaults that depend on others."""
    what = next(name for name in USEFUL if getattr(options, name) is not None)
    for name, value in vars(options).items():
        if USEFUL[what] is not None and name not in USEFUL[what] and value != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} (here: {value}) has no use with --{what}; leave it out")
    if options.compare is not None or options.side_by_side is not None:
        return
    if options.require_better is not None:
        parser.error("--require-better compares two runs: give --compare A B")
    for name in ("benchmark", "data"):
        if getattr(options, name) is None:
            parser.error(f"--{what} needs --{name}, which is not given; add it")
    for name in ("frames", "batch_size", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    try:
        options.protocol = BENCHMARKS[options.benchmark].protocol(options.protocol)
    except ValueError as error:
        parser.error(str(error))
    fixed = BENCHMARKS[options.benchmark].num_frames
    if fixed is not None and options.frames not in (None, fixed):
        parser.error(
            f"the answers of {options.benchmark} hold for {fixed} frames, got --frames {options.frames}; leave it out"
        )
    options.frames = options.frames or fixed or 32
    source = options.model or str(options.predictions.with_suffix(""))
    if Path(source).name in ("", ".."):
        source = str(Path(source).resolve())
    options.label = options.label or "/".join(Path(source).parts[-2:]).replace("//", "/")
    name = source.strip("/").replace("/", "--")
    options.output = options.output or Path("runs", "benchmarks", options.benchmark, options.protocol.name, name)
