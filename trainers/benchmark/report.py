"""The report of a benchmark run: each answer with its score, and tables beside published figures."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data_scripts.benchmarks import BENCHMARKS
from ...data_scripts.benchmarks.protocol import Protocol, ReferenceRow, score_answer
from ...data_scripts.benchmarks.reader import BenchmarkQuestion
from ...data_scripts.common.files import write_bytes, write_json, write_text
from .chart import draw_report
from .formatting import (
    SHOWN,
    UNKNOWN,
    counted,
    first_few,
    format_interval,
    format_number,
    format_percent,
    format_table,
)
from .statistics import LEVEL, NUM_RESAMPLES, SceneScores, bootstrap_intervals

ANSWERS, REPORT, PAGE, CHART = "answers.jsonl", "report.json", "report.md", "report.png"
# With fewer scenes, intervals by resampling are too narrow.
FEW_SCENES = 20
# Runs that differ in one of these cannot be compared.
COMPARABLE = ("benchmark", "protocol", "data_fingerprint")


def read_report(folder: str | os.PathLike) -> dict[str, Any]:
    """Read the report that `write_report` wrote to a folder.

    Raises:
        ValueError: If there is no report, or it is damaged or of another command.
    """
    file = Path(folder) / REPORT
    if not file.is_file():
        raise ValueError(f"`{folder}` holds no {REPORT}; give the output folder of a finished run.")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{file}` is damaged ({error}); run the benchmark again.") from error
    if not isinstance(report, dict) or not {"benchmark", "protocol", "columns", "provenance"} <= report.keys():
        raise ValueError(f"`{file}` is not the report of a benchmark; give the output folder of a benchmark run.")
    return report


def reference_rows(run: Mapping[str, Any], others: Sequence[str | Path] = ()) -> list[ReferenceRow]:
    """Collect the rows that stand beside a run: published ones, then other runs.

    Args:
        run (`Mapping[str, Any]`): Settings with `benchmark`, `protocol` and `data_fingerprint`.
        others (`Sequence[str | Path]`, *optional*): Folders of other runs, each with a report.

    Raises:
        ValueError: If a folder has no report, or one with another benchmark, protocol or data.
    """
    rows = list(BENCHMARKS[run["benchmark"]].published)
    for folder in others:
        report = read_report(folder)
        for name in COMPARABLE:
            other = report["provenance"].get(name)
            if other != run.get(name):
                raise ValueError(
                    f"The run `{folder}` cannot stand beside this one: its `{name}` is `{other}`, not "
                    f"`{run.get(name)}`. Leave it out, or run it again on the same."
                )
        columns = {row["key"]: 100 * row["value"] for row in report["columns"] if row["value"] is not None}
        source = f"run `{Path(folder).name}`, {counted(report['num_questions'], 'question')}"
        rows.append(ReferenceRow(report["label"], columns, source))
    return rows


def write_report(
    folder: str | os.PathLike,
    run: Mapping[str, Any],
    questions: Sequence[BenchmarkQuestion],
    predictions: Mapping[str, str],
    protocol: Protocol,
    references: Sequence[ReferenceRow],
    baselines: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Score answers, and write answers.jsonl, report.md, report.png, and last report.json.

    Each file is written completely or not at all. Equal arguments give equal bytes.

    Args:
        folder (`str` or `os.PathLike`): Output folder; created if missing.
        run (`Mapping[str, Any]`):
            Everything the answers depend on, as JSON types; shown as it is. The report reads `benchmark`, `label` of
            the run's row (by default the name of its `model`), `published_size` of the benchmark (`None` if it is
            unknown whether the questions are all), `limit`, `missing` media, and ids of `unreadable` questions.
        questions (`Sequence[BenchmarkQuestion]`): Answered questions.
        predictions (`Mapping[str, str]`): Their answers by question id.
        protocol (`Protocol`): Scores the answers.
        references (`Sequence[ReferenceRow]`): Rows beside the run's own.
        baselines (`Mapping[str, Mapping[str, float]]`): Scores of answers without images, as fractions by label and
            group.

    Returns:
        `dict`: The content of report.json. The run's figures are fractions, those of references percent.

    Raises:
        ValueError: If there is no question, or questions and predictions differ in their ids.
    """
    if not questions:
        raise ValueError("`questions` is empty, so there is nothing to report; give at least one answered question.")
    if different := {question.id for question in questions} ^ set(predictions):
        raise ValueError(
            f"`questions` and `predictions` differ in {len(different):,} ids ({first_few(sorted(different))}); give "
            "one prediction for each question."
        )
    groups = [protocol.group(question.record) for question in questions]
    scores = [score_answer(protocol, question.record, predictions[question.id]) for question in questions]
    tally = SceneScores.collect([question.scene_id for question in questions], groups, scores)
    report = _summarize(run, tally, protocol, references, baselines)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for question, group, score in zip(questions, groups, scores, strict=True):
        answer = {"id": question.id, "scene_id": question.scene_id, "group": group}
        lines.append(json.dumps(answer | {"prediction": predictions[question.id], "score": score}) + "\n")
    write_text(folder / ANSWERS, "".join(lines))
    write_text(folder / PAGE, _format_report(report))
    write_bytes(folder / CHART, draw_report(report))
    write_json(folder / REPORT, report, sort_keys=False, ensure_ascii=False, allow_nan=False)
    return report


def _summarize(
    run: Mapping[str, Any],
    tally: SceneScores,
    protocol: Protocol,
    references: Sequence[ReferenceRow],
    baselines: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Compute all figures of a report, unrounded."""
    means, numbers, scenes = tally.means(), tally.num_questions(), tally.num_scenes()
    summary = protocol.summarize(means, numbers)
    column_intervals, group_intervals = bootstrap_intervals(tally, protocol.average)
    return {
        "label": run.get("label") or Path(run.get("model") or run.get("predictions") or "this run").name,
        "benchmark": run["benchmark"],
        "protocol": protocol.name,
        "protocol_source": protocol.source,
        "num_questions": sum(numbers.values()),
        "num_scenes": len(tally.sums),
        "columns": [
            {
                "key": key,
                "heading": heading,
                "value": _finite(summary.get(key)),
                **interval_ends(column_intervals.get(key)),
            }
            for key, heading in protocol.columns.items()
        ],
        "groups": [
            {
                "name": group,
                "num_questions": numbers[group],
                "num_scenes": scenes[group],
                "value": means[group],
                **interval_ends(group_intervals[group]),
            }
            for group in sorted(means)
        ],
        "intervals": {"level": LEVEL, "method": "bootstrap of scenes, percentiles", "num_resamples": NUM_RESAMPLES},
        "references": [
            {"label": label, "percent": dict(percent), "source": source} for label, percent, source in references
        ],
        "baselines": [_baseline(label, known, numbers, protocol) for label, known in baselines.items()],
        "notes": _notes(run, tally, protocol, baselines),
        "provenance": dict(run),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def interval_ends(interval: tuple[float, float] | None) -> dict[str, float | None]:
    """The ends of an interval as cells of a row, both `None` without one."""
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def _baseline(
    label: str, known: Mapping[str, float], numbers: Mapping[str, int], protocol: Protocol
) -> dict[str, Any]:
    """Summarize a baseline over the groups that were asked."""
    groups = {group: known[group] for group in numbers if group in known}
    columns = protocol.average(groups, {group: numbers[group] for group in groups}) if groups else {}
    columns = {key: value for key, value in columns.items() if _finite(value) is not None}
    return {"label": label, "columns": columns, "groups": groups}


def _notes(
    run: Mapping[str, Any], tally: SceneScores, protocol: Protocol, baselines: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """List what a reader must know before comparing figures."""
    notes, asked = [], tally.num_questions()
    num_questions, num_scenes = sum(asked.values()), len(tally.sums)
    benchmark, published = BENCHMARKS[run["benchmark"]], run.get("published_size")
    if published is not None and published != num_questions:
        notes.append(
            f"The run covers {counted(num_questions, 'question')}, the published set has {published:,}: figures of "
            "the whole set cannot be compared."
        )
    elif published is None and benchmark.sizes:
        notes.append("The questions are not the whole published set: its figures cannot be compared.")
    default = benchmark.protocol().name
    if default != protocol.name:
        notes.append(f"Published figures use the protocol `{default}`, this run uses `{protocol.name}`.")
    if run.get("limit"):
        notes.append(f"The run is limited to the first {counted(run['limit'], 'question')} of the file.")
    if missing := run.get("missing"):
        files = counted(len(missing), "video or image", "videos or images")
        notes.append(f"Questions about {files} were left out, because the files are missing: {first_few(missing)}.")
    if unreadable := run.get("unreadable"):
        left_out = counted(len(unreadable), "question")
        notes.append(f"Left out, because the images cannot be read: {left_out} ({first_few(list(unreadable))}).")
    if absent := [group for group in protocol.groups if group not in asked]:
        notes.append(
            f"There are no questions of {', '.join(absent)}: averages cover the other groups, and cannot be compared "
            "with those of the whole set."
        )
    for label, known in baselines.items():
        if lacking := [group for group in asked if group not in known]:
            notes.append(f"“{label}” has no figure for {', '.join(lacking)}; its average covers the other groups.")
    if num_scenes == 1:
        notes.append("All questions are about one scene, so there are no intervals.")
    elif num_scenes < FEW_SCENES:
        notes.append(f"The intervals are too narrow, because {num_scenes} scenes are too few to resample.")
    return notes


def _format_report(report: Mapping[str, Any]) -> str:
    """Write a report as Markdown, in percent."""
    questions, scenes = counted(report["num_questions"], "question"), counted(report["num_scenes"], "scene")
    parts = [
        f"# {report['benchmark']}: {report['label']}",
        f"{questions} about {scenes}, scored by the protocol `{report['protocol']}` ({report['protocol_source']}).",
        _main_table(report),
        f"Percent; {UNKNOWN}: not known. Intervals show how much the choice of scenes matters: they hold "
        f"{LEVEL * 100:.0f} % of {NUM_RESAMPLES:,} resamples of scenes, each scene with all questions about it.",
    ]
    if report["notes"]:
        parts.append("\n".join(f"- **Note.** {note}" for note in report["notes"]))
    provenance = "\n".join(f"- {name}: {_shown(value)}" for name, value in report["provenance"].items())
    parts += ["## By kind of question", _group_table(report), "## Provenance", provenance]
    parts.append(f"![Scores with their intervals]({CHART})")
    return "\n\n".join(parts) + "\n"


def _main_table(report: Mapping[str, Any]) -> str:
    columns = report["columns"]
    header = ["Model", *(column["heading"] for column in columns), "Source"]
    rows = [
        [row["label"], *(format_number(row["percent"].get(column["key"])) for column in columns), row["source"]]
        for row in report["references"]
    ]
    for row in report["baselines"]:
        rows.append([row["label"], *(format_percent(row["columns"].get(c["key"])) for c in columns), "without images"])
    values = [format_percent(column["value"]) for column in columns]
    own = [text if text == UNKNOWN else f"**{text}**" for text in values]
    rows.append([f"**{report['label']}**", *own, "this run"])
    rows.append([f"{LEVEL * 100:.0f} % interval", *map(_interval, columns), ""])
    return format_table(header, rows, num_words=1, words_at_end=1)


def _group_table(report: Mapping[str, Any]) -> str:
    header = ["Questions of", "Questions", "Scenes", "Score", f"{LEVEL * 100:.0f} % interval"]
    rows = []
    for group in report["groups"]:
        counts = [f"{group['num_questions']:,}", f"{group['num_scenes']:,}"]
        baselines = [format_percent(row["groups"].get(group["name"])) for row in report["baselines"]]
        rows.append([group["name"], *counts, format_percent(group["value"]), _interval(group), *baselines])
    return format_table([*header, *(row["label"] for row in report["baselines"])], rows, num_words=1)


def _interval(row: Mapping[str, Any]) -> str:
    return format_interval(row["low"], row["high"])


def _shown(value: Any) -> str:
    """Write a value on one line, and of a long list its beginning."""
    if isinstance(value, Mapping):
        return _beginning([f"{name} {_shown(each)}" for name, each in value.items()], 4 * SHOWN)
    if isinstance(value, list | tuple):
        return _beginning([_shown(each) for each in value], SHOWN)
    return UNKNOWN if value is None else f"`{value}`"


def _beginning(shown: list[str], length: int) -> str:
    more = [f"and {len(shown) - length:,} more (in {REPORT})"] if len(shown) > length else []
    return ", ".join(shown[:length] + more) or "none"
