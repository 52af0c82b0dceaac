"""Ask a model the questions of a benchmark, score its answers by a named protocol, and write a report.

    spa3r benchmark --model checkpoints/spa3-vlm-4b --benchmark vsi-bench --data VSI-Bench
    accelerate launch --config_file configuration/accelerate/ddp.yaml benchmark.py \\
        --model checkpoints/spa3-vlm-4b --benchmark vsi-bench --data VSI-Bench
    spa3r benchmark --predictions answers.jsonl --benchmark vsi-bench --data VSI-Bench
    spa3r benchmark --compare runs/benchmarks/before runs/benchmarks/after

A model is a Spa3-VLM, or a plain Qwen2.5-VL. Each scene is seen once, however many questions there are about it.
Answers are kept as they come: the same command, run again after it was killed, goes on, on any number of processes,
and ends with the report, byte for byte, of a run that was not. The output folder then holds report.md, report.json,
report.png, answers.jsonl (each answer with its score) and predictions.jsonl.
"""

import argparse
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import ProcessorMixin
from transformers.utils import logging

from ...data_scripts.benchmarks import BENCHMARKS
from ...data_scripts.benchmarks.protocol import Protocol, score_answer
from ...data_scripts.benchmarks.reader import Benchmark, BenchmarkQuestion, read_benchmark, read_room_baselines
from ...data_scripts.common.files import claim_folder, write_json, write_text
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ..runs.distributed import join_processes
from ..runs.resume import NO_ROOM, flatten
from .comparison import compare_runs, format_comparison
from .models import fingerprint_checkpoint, load_benchmark_model
from .paper_results import reference_rows
from .report import read_predictions, write_report
from .runner import Answers, ask_all

__all__ = ["main"]

SETTINGS = "run.json"
# What can change answers.
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "pillow", "av")
SHOWN = 5
# Columns by which questions are asked and scored, where a benchmark has them.
NEVER_EMPTY = ("question", "ground_truth", "answer")
# What there is to do, and which options have a use there; `None`: all.
USEFUL = {
    "model": None,
    "predictions": (
        *("predictions", "benchmark", "data", "media", "protocol", "output", "beside", "label", "limit"),
        "skip_missing",
    ),
    "compare": ("compare", "output"),
}


def main(arguments: Sequence[str] | None = None):
    """Entry point of `spa3r benchmark`."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    try:
        if options.compare is not None:
            compare(options)
        elif options.predictions is not None:
            score(options)
        else:
            run(options)
    except SafetensorError as error:
        sys.exit(f"spa3r benchmark: the weights in `{options.model}` are damaged ({error}); copy them again.")
    except torch.OutOfMemoryError as error:
        sys.exit(
            f"spa3r benchmark: out of memory ({str(error).splitlines()[0]}) with batches of {options.batch_size} "
            "questions; run the same with a lower --batch-size into another --output, or with fewer --frames."
        )
    except (ValueError, OSError, ImportError) as error:
        if getattr(error, "errno", None) in NO_ROOM:
            sys.exit(
                f"spa3r benchmark: there is no room to write in `{options.output}` ({error.strerror}); make room, and "
                "run the same command again: it goes on."
            )
        sys.exit(f"spa3r benchmark: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spa3r benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="folder or Hub name of a Spa3-VLM, or of a plain Qwen2.5-VL")
    what.add_argument(
        "--predictions", type=Path, metavar="FILE", help="answers to score: JSON lines of id, prediction"
    )
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="folders of two runs to compare")
    parser.add_argument("--benchmark", choices=list(BENCHMARKS), help="which benchmark")
    parser.add_argument("--data", type=Path, help="its folder, as published, or a file of questions in it")
    parser.add_argument("--media", type=Path, help="folder of its videos or images, or of rooms (default: --data)")
    known = "; ".join(f"{name}: {', '.join(protocols)}" for name, protocols in BENCHMARKS.items())
    parser.add_argument("--protocol", help=f"how answers are scored (default: the first). {known}")
    parser.add_argument("--frames", type=int, default=32, help="frames of a video, spread evenly (default: 32)")
    parser.add_argument("--output", type=Path, help="folder for the report (default: runs/benchmarks/...)")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="RUN", help="other runs as further rows")
    parser.add_argument("--label", help="name of the row in the table (default: the model's)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask the first N questions only")
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out what has no readable video or image, or no answer"
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="most questions about one scene answered at once (default: 16)"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="(default: as in the checkpoint)")
    parser.add_argument("--attn-implementation", help="such as flash_attention_2 (default: the library's choice)")
    return parser


def _check_options(parser: argparse.ArgumentParser, options: argparse.Namespace):
    what = next(name for name in USEFUL if getattr(options, name) is not None)
    for name, value in vars(options).items():
        if USEFUL[what] is not None and name not in USEFUL[what] and value != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} has no use with --{what}")
    if options.compare is not None:
        return
    for name in ("benchmark", "data"):
        if getattr(options, name) is None:
            parser.error(f"give --{name}, too")
    protocols = BENCHMARKS[options.benchmark]
    options.protocol = options.protocol or next(iter(protocols))
    if options.protocol not in protocols:
        parser.error(f"{options.benchmark} has no protocol {options.protocol!r}; choose from {', '.join(protocols)}")
    for name in ("frames", "batch_size", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    source = options.model or str(options.predictions.with_suffix(""))
    if Path(source).name in ("", ".."):
        source = str(Path(source).resolve())
    options.label = options.label or "/".join(Path(source).parts[-2:]).replace("//", "/")
    place = Path("runs", "benchmarks", options.benchmark, options.protocol, source.strip("/").replace("/", "--"))
    options.output = options.output or place


def run(options: argparse.Namespace):
    """Ask a model, score, and report; in every process."""
    logging.disable_progress_bar()
    state = join_processes()
    protocol = BENCHMARKS[options.benchmark][options.protocol]
    with state.main_process_first():
        benchmark, questions, missing = _read_questions(options, protocol)
    model, processor = load_benchmark_model(options.model, state.device, options.dtype, options.attn_implementation)
    with state.main_process_first():
        settings = _describe(options, protocol, benchmark, questions) | _describe_model(options, model, processor)
        beside = _beside(options, settings)
        if state.is_main_process:
            settings["model_fingerprint"] = fingerprint_checkpoint(options.model)
            _claim(options.output, flatten(settings))
    place, retries = Answers(options.output), not options.skip_missing
    asked = (benchmark, questions, protocol, place, options.frames, options.batch_size)
    answers = ask_all(model, processor, *asked, retry_unreadable=retries)
    if state.is_main_process:
        predictions, unreadable = _sort_answers(options, questions, answers)
        settings |= {"missing": missing, "unreadable": unreadable}
        _report(options, protocol, questions, predictions, settings, beside)


def _describe_model(
    options: argparse.Namespace, model: Spa3VLMForConditionalGeneration, processor: ProcessorMixin
) -> dict[str, Any]:
    """What a score depends on in the model, and in how it is asked."""
    return {
        "model": options.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "device": _device_name(model.device),
        "num_frames": options.frames,
        "batch_size": options.batch_size,
        "image_width": processor.image_processor.image_width,
        "repetition_penalty": model.generation_config.repetition_penalty or 1.0,
    }


def _sort_answers(
    options: argparse.Namespace, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Predictions, and reasons why images could not be read, by the ids of questions."""
    if lost := [question.id for question in questions if question.id not in answers]:
        raise ValueError(
            f"The answers to {len(lost)} questions were lost ({_first(lost)}): another run writes to "
            f"`{options.output}`, too. End it, and run the same command again."
        )
    unreadable = {name: answer["unreadable"] for name, answer in answers.items() if "unreadable" in answer}
    if unreadable and not options.skip_missing:
        reasons = list(dict.fromkeys(reason.rstrip(".") for reason in unreadable.values()))
        raise ValueError(
            f"{len(unreadable)} questions have images that cannot be read; all others were asked. "
            f"{_first(reasons, '; ')}. Put them right and run the same command again, or give --skip-missing."
        )
    return {name: answer["prediction"] for name, answer in answers.items() if "prediction" in answer}, unreadable


def compare(options: argparse.Namespace):
    """Print how two runs differ, and write it where asked to."""
    comparison = compare_runs(*map(Path, options.compare))
    text = format_comparison(comparison)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_text(options.output / "comparison.md", text)
        write_json(options.output / "comparison.json", comparison)


def score(options: argparse.Namespace):
    """Score and report the answers in a file, whoever gave them."""
    protocol = BENCHMARKS[options.benchmark][options.protocol]
    benchmark = read_benchmark(options.benchmark, options.data, options.media)
    questions = benchmark.questions[: options.limit]
    _check_records(protocol, questions)
    if (options.output / SETTINGS).is_file():
        raise ValueError(
            f"`{options.output}` holds a run of a model, whose report would be lost; choose another folder for the "
            "output."
        )
    predictions = read_predictions(options.predictions, questions, options.skip_missing)
    unanswered = dict.fromkeys(question.media for question in questions if question.id not in predictions)
    content = options.predictions.read_bytes()
    settings = _describe(options, protocol, benchmark, questions) | {
        "predictions": str(options.predictions),
        "predictions_fingerprint": hashlib.sha256(content).hexdigest(),
        "missing": list(unanswered),
    }
    _report(options, protocol, questions, predictions, settings, _beside(options, settings))


def _read_questions(
    options: argparse.Namespace, protocol: Protocol
) -> tuple[Benchmark, list[BenchmarkQuestion], list[str]]:
    """A benchmark, the questions to ask, and the media that are missing."""
    benchmark = read_benchmark(options.benchmark, options.data, options.media)
    questions = list(benchmark.questions[: options.limit])
    _check_records(protocol, questions)
    asked = {question.media for question in questions}
    missing = [media for media in benchmark.missing_media() if media in asked]
    if missing and not options.skip_missing:
        raise ValueError(
            f"{len(missing)} of {len(asked)} videos or images of {options.benchmark} are not there: "
            f"{_first(missing)}. Unpack them in `{options.media or options.data}`, name their folder with --media, or "
            "leave them out with --skip-missing, which the report then says."
        )
    absent = set(missing)
    questions = [question for question in questions if question.media not in absent]
    if not questions:
        raise ValueError(f"There is nothing to ask: of all {len(absent)} videos or images none is there.")
    return benchmark, questions, missing


def _check_records(protocol: Protocol, questions: Sequence[BenchmarkQuestion]):
    """Refuse questions that are of an unknown type, or cannot be asked or scored, before anything is asked."""
    for question in questions:
        protocol.group(question.record)
        for name in NEVER_EMPTY:
            if question.record.get(name, "") is None:
                raise ValueError(
                    f"Question {question.id} cannot be asked or scored, as its {name} is null; leave it out."
                )
        try:
            protocol.prompt(question.record).encode()
            # A number, which is compared with the truth where that is one, and stands for a wrong letter elsewhere.
            score_answer(protocol, question.record, "1")
        except (TypeError, ValueError, AttributeError, LookupError, ZeroDivisionError) as error:
            raise ValueError(
                f"Question {question.id} cannot be asked or scored ({type(error).__name__}: {error}); put right what "
                "it holds, or leave it out."
            ) from error


def _first(names: Sequence[str], separator: str = ", ") -> str:
    return separator.join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def _describe(
    options: argparse.Namespace, protocol: Protocol, benchmark: Benchmark, questions: Sequence[BenchmarkQuestion]
) -> dict[str, Any]:
    """What a score depends on, besides the model."""
    return {
        "label": options.label,
        "benchmark": options.benchmark,
        "protocol": protocol.name,
        "protocol_source": protocol.source,
        "max_new_tokens": protocol.max_new_tokens,
        "data": options.data.absolute().name,
        "data_fingerprint": benchmark.fingerprint,
        "num_questions": len(questions),
        "published_size": benchmark.published_size,
        "limit": options.limit,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES if _is_installed(name)}
        | {"python": platform.python_version(), "spa3r": importlib.metadata.version("spa3r")},
        "commit": _commit(),
    }


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """The commit of this package where it runs from its own checkout, with a mark if files were changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An installed package may lie in the checkout of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _claim(output: Path, settings: dict[str, Any]):
    """Note what is asked, or compare it with what was asked before."""
    # More videos may be there than before; answers to questions about others do not depend on it.
    settings = {name: value for name, value in settings.items() if name not in ("label", "num_questions")}
    claim_folder(output / SETTINGS, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _beside(options: argparse.Namespace, settings: dict[str, Any]) -> tuple[list, dict]:
    """Rows and baselines of the table beside a run, as `write_report` takes them."""
    baselines = read_room_baselines(options.data) if options.benchmark == "rooms" else {}
    return reference_rows(settings, options.beside), baselines


def _report(
    options: argparse.Namespace,
    protocol: Protocol,
    questions: Sequence[BenchmarkQuestion],
    predictions: dict[str, str],
    settings: dict[str, Any],
    beside: tuple[list, dict],
):
    answered = [question for question in questions if question.id in predictions]
    provenance = settings | {"num_questions": len(answered)}
    write_report(options.output, provenance, answered, predictions, protocol, *beside)
    print((options.output / "report.md").read_text(encoding="utf-8"))
    print(f"The report is in {options.output}: report.md, report.json, report.png.")


if __name__ == "__main__":
    main()
