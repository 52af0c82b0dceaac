"""What `spa3r benchmark` does: ask a model or read answers, score them, report, and compare runs."""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...data_scripts.benchmarks import BENCHMARKS
from ...data_scripts.benchmarks.protocol import Protocol, ReferenceRow, score_answer
from ...data_scripts.benchmarks.reader import BenchmarkData, BenchmarkQuestion, read_benchmark
from ...data_scripts.common.files import blame_file, claim_folder, write_json, write_text
from ...data_scripts.common.locks import only_run_in
from ..runs.distributed import join_processes
from ..runs.settings import flatten
from .answers import Answers, read_predictions
from .comparison import compare_runs, format_comparison, require_better
from .formatting import first_few
from .models import fingerprint_checkpoint, load_benchmark_model
from .provenance import describe_model, describe_software
from .report import reference_rows, write_report
from .runner import MAX_SHARED_TOKENS, ask_all
from .side_by_side import format_side_by_side

SETTINGS = "run.json"


def run(options: argparse.Namespace):
    """Ask a model, score its answers, and report; every process calls it."""
    logging.disable_progress_bar()
    state = join_processes()
    with state.main_process_first():
        benchmark, questions, missing = _read_questions(options)
    model, processor = load_benchmark_model(options.model, state.device, options.dtype, options.attn_implementation)
    settings = _describe(options, benchmark, questions) | {"model": options.model, **describe_model(model, processor)}
    settings |= {"num_frames": options.frames, "batch_size": options.batch_size}
    settings["max_shared_tokens"] = MAX_SHARED_TOKENS  # with `batch_size`, it decides which questions share a batch
    if options.without_images:
        settings["without_images"] = True
    with only_run_in(options.output, state.is_main_process):
        with state.main_process_first():
            references, baselines = _references(options, settings)
            if state.is_main_process:
                settings["model_fingerprint"] = fingerprint_checkpoint(options.model)
                _claim(options.output, flatten(settings))
        answers = ask_all(
            model,
            processor,
            benchmark,
            questions,
            options.protocol,
            Answers(options.output),
            options.frames,
            options.batch_size,
            retry_unreadable=not options.skip_missing,
            without_images=options.without_images,
        )
        if state.is_main_process:
            predictions, unreadable = _sort_answers(options, questions, answers)
            settings |= {"missing": missing, "unreadable": unreadable}
            _report(options, questions, predictions, settings, references, baselines)


def score(options: argparse.Namespace):
    """Score and report the answers in a file."""
    benchmark = read_benchmark(options.benchmark, options.data, options.media)
    questions = benchmark.questions[: options.limit]
    _check_records(options.protocol, questions, options.data)
    if (options.output / SETTINGS).is_file():
        raise ValueError(
            f"`{options.output}` holds the run of a model, whose report would be lost; choose another --output."
        )
    predictions = read_predictions(options.predictions, questions, options.skip_missing)
    unanswered = dict.fromkeys(question.media for question in questions if question.id not in predictions)
    settings = _describe(options, benchmark, questions) | {
        "predictions": str(options.predictions),
        "predictions_fingerprint": hashlib.sha256(options.predictions.read_bytes()).hexdigest(),
        "missing": list(unanswered),
    }
    _report(options, questions, predictions, settings, *_references(options, settings))


def compare(options: argparse.Namespace):
    """Print how two runs differ, and write it to the output folder, if one is given."""
    with blame_file("` or `".join(options.compare), "run the benchmark again"):
        comparison = compare_runs(*map(Path, options.compare))
    text = format_comparison(comparison)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_text(options.output / "comparison.md", text)
        write_json(options.output / "comparison.json", comparison)
    if options.require_better is not None:
        require_better(comparison, options.require_better)


def show_side_by_side(options: argparse.Namespace):
    """Print runs on different benchmarks beside each other, and write it to the output folder, if one is given."""
    text = format_side_by_side(options.side_by_side)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_text(options.output / "side_by_side.md", text)


def _read_questions(options: argparse.Namespace) -> tuple[BenchmarkData, list[BenchmarkQuestion], list[str]]:
    """Read a benchmark, the questions to ask, and the keys of missing media."""
    benchmark = read_benchmark(options.benchmark, options.data, options.media)
    questions = list(benchmark.questions[: options.limit])
    _check_records(options.protocol, questions, options.data)
    asked = {question.media for question in questions}
    missing = [media for media in benchmark.missing_media() if media in asked]
    if missing and not options.skip_missing:
        raise ValueError(
            f"{len(missing)} of {len(asked)} videos or images of {options.benchmark} are missing: "
            f"{first_few(missing)}. Unpack them in `{options.media or options.data}`, name their folder with --media, "
            "or leave them out with --skip-missing."
        )
    absent = set(missing)
    questions = [question for question in questions if question.media not in absent]
    if not questions:
        raise ValueError(
            f"All {len(absent)} videos or images of {options.benchmark} are missing in "
            f"`{options.media or options.data}`; name their folder with --media."
        )
    return benchmark, questions, missing


def _check_records(protocol: Protocol, questions: Sequence[BenchmarkQuestion], data: Path):
    """Refuse questions of an unknown type, and those that cannot be asked or scored, before any is asked."""
    for question in questions:
        try:
            protocol.group(question.record)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Question {question.id} in `{data}` cannot be scored: {error}") from error
        for name in ("question", protocol.truth):
            if question.record[name] is None:
                raise ValueError(
                    f"Question {question.id} in `{data}` cannot be asked or scored, because its `{name}` is null; "
                    "leave it out."
                )
        try:
            protocol.prompt(question.record).encode()
            # A number is compared with the truth if that is a number, and is a wrong letter otherwise.
            score_answer(protocol, question.record, "1")
        except (TypeError, ValueError, AttributeError, LookupError, ZeroDivisionError) as error:
            raise ValueError(
                f"Question {question.id} in `{data}` cannot be asked or scored ({type(error).__name__}: {error}); "
                "correct its record, or leave it out."
            ) from error


def _describe(
    options: argparse.Namespace, benchmark: BenchmarkData, questions: Sequence[BenchmarkQuestion]
) -> dict[str, Any]:
    """Collect everything that scores depend on besides the model."""
    return {
        "label": options.label,
        "benchmark": options.benchmark,
        "protocol": options.protocol.name,
        "protocol_source": options.protocol.source,
        "max_new_tokens": options.protocol.max_new_tokens,
        "data": options.data.absolute().name,
        "data_fingerprint": benchmark.fingerprint,
        "num_questions": len(questions),
        "published_size": benchmark.published_size,
        "limit": options.limit,
        **describe_software(),
    }


def _claim(output: Path, settings: dict[str, Any]):
    """Save the settings of a run, or compare them with those of an earlier run in the same folder."""
    # More videos may be there than before. Answers to questions about the others do not depend on them.
    settings = {name: value for name, value in settings.items() if name not in ("label", "num_questions")}
    claim_folder(output / SETTINGS, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _sort_answers(
    options: argparse.Namespace, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return predictions, and the reasons why images cannot be read, by question id."""
    if lost := [question.id for question in questions if question.id not in answers]:
        raise ValueError(
            f"The answers to {len(lost)} questions were lost ({first_few(lost)}), because another run writes to "
            f"`{options.output}`. End it, and run the same command again."
        )
    unreadable = {name: answer["unreadable"] for name, answer in answers.items() if "unreadable" in answer}
    if unreadable and not options.skip_missing:
        reasons = list(dict.fromkeys(reason.rstrip(".") for reason in unreadable.values()))
        raise ValueError(
            f"{len(unreadable)} questions have images that cannot be read; all others are answered. "
            f"{first_few(reasons, '; ')}. Repair the files and run the same command again, or add --skip-missing."
        )
    return {name: answer["prediction"] for name, answer in answers.items() if "prediction" in answer}, unreadable


def _references(options: argparse.Namespace, settings: dict[str, Any]) -> tuple[list[ReferenceRow], dict]:
    """Return the rows and the baselines that stand beside a run."""
    read_baselines = BENCHMARKS[options.benchmark].read_baselines
    folder = options.data.parent if options.data.is_file() else options.data
    return reference_rows(settings, options.beside), read_baselines(folder) if read_baselines else {}


def _report(
    options: argparse.Namespace,
    questions: Sequence[BenchmarkQuestion],
    predictions: dict[str, str],
    settings: dict[str, Any],
    references: Sequence[ReferenceRow],
    baselines: Mapping[str, Mapping[str, float]],
):
    answered = [question for question in questions if question.id in predictions]
    provenance = settings | {"num_questions": len(answered)}
    write_report(options.output, provenance, answered, predictions, options.protocol, references, baselines)
    print((options.output / "report.md").read_text(encoding="utf-8"))
    print(f"The report is in {options.output}: report.md, report.json, report.png.")
