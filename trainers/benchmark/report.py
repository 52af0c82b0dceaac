"""The report of a benchmark run: each answer with its score, tables beside published figures, and a chart."""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...data_scripts.benchmarks import BENCHMARKS
from ...data_scripts.benchmarks.cv_bench import SOURCES
from ...data_scripts.benchmarks.protocol import Protocol, score_answer
from ...data_scripts.benchmarks.reader import BenchmarkQuestion
from ...data_scripts.benchmarks.spar_bench import TASKS
from ...data_scripts.benchmarks.viewspatial_bench import TYPES
from ...data_scripts.benchmarks.vsi_bench import QUESTION_TYPES
from ...data_scripts.common.files import write_bytes, write_json, write_text
from .statistics import LEVEL, NUM_RESAMPLES, SceneScores, bootstrap_intervals, silence

__all__ = ["ReferenceRow", "format_table", "read_predictions", "read_report", "write_report"]

ANSWERS, REPORT, PAGE, CHART = "answers.jsonl", "report.json", "report.md", "report.png"
OVERALL = "overall"
UNKNOWN = "–"
# Groups that the whole of a benchmark has.
KNOWN_GROUPS = {
    "vsi-bench": QUESTION_TYPES,
    "cv-bench": SOURCES,
    "spar-bench": tuple(TASKS),
    "viewspatial-bench": tuple(TYPES),
    "rooms": QUESTION_TYPES,
}
# Below, intervals by resampling scenes are too narrow.
FEW_SCENES = 20
SHOWN = 5  # of a list that may be long, or of foreign ids
LABEL_WIDTH = 34  # characters, in the chart
OWN_COLOR, OTHER_COLOR, BASELINE_COLOR = "#1f6f8b", "#c3cbd1", "#e3b778"
MARKERS = "Ds^vPX*<>ph8"
RIGHT = 102  # percent; behind all that is drawn
DPI = 150


class ReferenceRow(NamedTuple):
    """
    A row that stands beside the run's own.

    label (`str`):
        Of whom.
    columns (`dict[str, float]`):
        In percent, by the keys of the protocol's columns; those that are not known are left out.
    source (`str`):
        Where the figures are from.
    """

    label: str
    columns: dict[str, float]
    source: str


def read_predictions(
    path: str | os.PathLike, questions: Sequence[BenchmarkQuestion], allow_missing: bool = False
) -> dict[str, str]:
    """Read the answers that any program gave: JSON lines with `id` and `prediction`; other fields are passed over.

    Args:
        path (`str` or `os.PathLike`): The file.
        questions (`Sequence[BenchmarkQuestion]`): What was asked, all of it.
        allow_missing (`bool`, *optional*, defaults to `False`): Whether questions may have no answer.

    Returns:
        `dict[str, str]`: Answers by the ids of their questions, in the order of these.

    Raises:
        ValueError: If the file is empty, a line is no answer, answers are to other questions, or a question has none
            or several.
    """
    predictions: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not text in UTF-8 ({error}); give a file of JSON lines.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, prediction = _parse_prediction(path, number, line)
        if name in predictions:
            raise ValueError(f"Line {number} of `{path}` answers question {name} again; leave one answer to each.")
        predictions[name] = prediction
    if not predictions:
        raise ValueError(f"`{path}` holds no answers; give JSON lines with `id` and `prediction`.")
    known = {question.id for question in questions}
    if foreign := [name for name in predictions if name not in known]:
        raise ValueError(
            f"`{path}` holds answers to {len(foreign):,} questions that are not asked ({_first(foreign)}); give the "
            "answers to the questions of this benchmark, and to no others."
        )
    missing = [question.id for question in questions if question.id not in predictions]
    if missing and not allow_missing:
        raise ValueError(
            f"`{path}` lacks the answers to {len(missing):,} of {len(known):,} questions ({_first(missing)}); each "
            "needs one, though it may be empty, or leave them out with --skip-missing."
        )
    return {question.id: predictions[question.id] for question in questions if question.id in predictions}


def _parse_prediction(path: str | os.PathLike, number: int, line: str) -> tuple[str, str]:
    where = f"Line {number} of `{path}`"
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}); give one object with `id` and `prediction`.") from error
    if not isinstance(content, dict) or not {"id", "prediction"} <= content.keys():
        raise ValueError(f"{where} is no object with `id` and `prediction`: {_shorten(line)}")
    name, prediction = content["id"], content["prediction"]
    # Benchmarks number their questions, too.
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"{where} has an `id` that is neither text nor a whole number: {_shorten(line)}")
    if not isinstance(prediction, str):
        raise ValueError(f"{where} has a `prediction` that is not text: {_shorten(line)}")
    return str(name), prediction


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def read_report(folder: str | os.PathLike) -> dict[str, Any]:
    """What `write_report` has written to a folder.

    Raises:
        ValueError: If there is no report, a damaged one, or one of another command.
    """
    file = Path(folder) / REPORT
    if not file.is_file():
        raise ValueError(
            f"`{folder}` holds no report: there is no {REPORT} in it; give the output folder of a run that has ended."
        )
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{file}` is damaged ({error}); run the benchmark again.") from error
    if not isinstance(report, dict) or not {"benchmark", "protocol", "columns", "provenance"} <= report.keys():
        raise ValueError(f"`{file}` is no report of a benchmark; give the output folder of such a run.")
    return report


def write_report(
    folder: str | os.PathLike,
    run: Mapping[str, Any],
    questions: Sequence[BenchmarkQuestion],
    predictions: Mapping[str, str],
    protocol: Protocol,
    reference_rows: Sequence[tuple[str, Mapping[str, float], str]],
    baselines: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Score answers, and write the report: answers.jsonl, report.md, report.png, and at the end report.json.

    Each file is written whole or not at all, and follows from the arguments alone, byte for byte.

    Args:
        folder (`str` or `os.PathLike`): Where to; it is made if need be.
        run (`Mapping[str, Any]`):
            Whatever the answers depend on, as JSON types; shown as it is. What is known by its name: `label` of the
            run's row (by default the name of its `model`), `benchmark`, `published_size` of the benchmark (`None`
            where the questions are not known to be all), `limit`, `missing` media, and ids that were `unreadable`.
        questions (`Sequence[BenchmarkQuestion]`): Those that were answered.
        predictions (`Mapping[str, str]`): Their answers by id.
        protocol (`Protocol`): Scores them.
        reference_rows (`Sequence`): Rows beside the run's own; see `ReferenceRow`.
        baselines (`Mapping[str, Mapping[str, float]]`): Fractions by group, of answers without a look, by label.

    Returns:
        `dict`: What report.json holds. Figures of the run are fractions, those of reference rows percent.

    Raises:
        ValueError: If there is no question, or the predictions are to others.
    """
    if not questions:
        raise ValueError("There is nothing to report: no question was answered.")
    if different := {question.id for question in questions} ^ set(predictions):
        raise ValueError(
            f"Questions and predictions differ in {len(different):,} ids ({_first(sorted(different))}); each question "
            "needs one prediction."
        )
    groups = [protocol.group(question.record) for question in questions]
    scores = [score_answer(protocol, question.record, predictions[question.id]) for question in questions]
    tally = SceneScores.collect([question.scene_id for question in questions], groups, scores)
    report = _summarize(run, tally, protocol, reference_rows, baselines)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for question, group, score in zip(questions, groups, scores, strict=True):
        answer = {"id": question.id, "scene_id": question.scene_id, "group": group}
        lines.append(json.dumps(answer | {"prediction": predictions[question.id], "score": score}) + "\n")
    write_text(folder / ANSWERS, "".join(lines))
    write_text(folder / PAGE, format_report(report))
    write_bytes(folder / CHART, draw_report(report))
    write_json(folder / REPORT, report, sort_keys=False, ensure_ascii=False, allow_nan=False)
    return report


def _summarize(
    run: Mapping[str, Any],
    tally: SceneScores,
    protocol: Protocol,
    reference_rows: Sequence[tuple[str, Mapping[str, float], str]],
    baselines: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """All figures of a report, unrounded."""
    means, numbers, scenes = tally.means(), tally.num_questions(), tally.num_scenes()
    summary = protocol.summarize(means, numbers)
    column_intervals, group_intervals = bootstrap_intervals(tally, protocol.summarize)
    columns = [
        {"key": key, "heading": heading, "value": _finite(summary.get(key)), **_ends(column_intervals.get(key))}
        for key, heading in _headings(protocol, summary).items()
    ]
    return {
        "label": _label(run),
        "benchmark": run.get("benchmark"),
        "protocol": protocol.name,
        "protocol_source": protocol.source,
        "num_questions": sum(numbers.values()),
        "num_scenes": len(tally.sums),
        "columns": columns,
        "groups": [
            {
                "name": group,
                "num_questions": numbers[group],
                "num_scenes": scenes[group],
                "value": means[group],
                **_ends(group_intervals[group]),
            }
            for group in sorted(means)
        ],
        "intervals": {"level": LEVEL, "method": "bootstrap of scenes, percentiles", "num_resamples": NUM_RESAMPLES},
        "references": [
            {"label": label, "percent": dict(percent), "source": source} for label, percent, source in reference_rows
        ],
        "baselines": [_baseline(label, known, numbers, protocol) for label, known in baselines.items()],
        "notes": _notes(run, tally, protocol, baselines),
        "provenance": dict(run),
    }


def _headings(protocol: Protocol, summary: Mapping[str, float]) -> dict[str, str]:
    """Headings of all columns: of the protocol's, and of any further ones that the summary has; overall first."""
    keys = dict.fromkeys([OVERALL, *protocol.columns, *summary])
    return {key: protocol.columns.get(key, "Avg." if key == OVERALL else key) for key in keys}


def _label(run: Mapping[str, Any]) -> str:
    return run.get("label") or Path(run.get("model") or run.get("predictions") or "this run").name


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _ends(interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def _baseline(
    label: str, known: Mapping[str, float], numbers: Mapping[str, int], protocol: Protocol
) -> dict[str, Any]:
    """Columns of a baseline over the groups that were asked."""
    groups = {group: known[group] for group in numbers if group in known}
    with silence():  # what is missing is said of the run, or in a note
        columns = protocol.summarize(groups, {group: numbers[group] for group in groups}) if groups else {}
    columns = {key: value for key, value in columns.items() if _finite(value) is not None}
    return {"label": label, "columns": columns, "groups": groups}


def _notes(
    run: Mapping[str, Any],
    tally: SceneScores,
    protocol: Protocol,
    baselines: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """What a reader must know before comparing figures."""
    notes, asked = [], tally.num_questions()
    num_questions, num_scenes = sum(asked.values()), len(tally.sums)
    published = run.get("published_size")
    if published is not None and published != num_questions:
        notes.append(
            f"The run is about {num_questions:,} questions, the published set has {published:,}: figures of the whole "
            "set are not comparable."
        )
    elif published is None and "published_size" in run and run.get("benchmark") != "rooms":
        notes.append("The questions are not the whole published set: figures of that are not comparable.")
    default = next(iter(BENCHMARKS.get(run.get("benchmark"), ())), protocol.name)
    if default != protocol.name:
        notes.append(f"Published figures are scored by the protocol `{default}`, and this run by `{protocol.name}`.")
    if run.get("limit"):
        notes.append(f"The run was limited to the first {_counted(run['limit'], 'question')} of the file.")
    if missing := run.get("missing"):
        counted = _counted(len(missing), "video or image", "videos or images")
        notes.append(f"Questions about {counted} were left out, as the files were not there: {_first(missing)}.")
    if unreadable := run.get("unreadable"):
        counted = _counted(len(unreadable), "question")
        notes.append(f"Left out as unreadable: {counted} ({_first(list(unreadable))}).")
    known_groups = KNOWN_GROUPS.get(run.get("benchmark"), ())
    if absent := [group for group in known_groups if group not in asked]:
        notes.append(
            f"There are no questions of {', '.join(absent)}: means are of the others, and not comparable with those "
            "of the whole set."
        )
    for label, known in baselines.items():
        if lacking := [group for group in asked if group not in known]:
            notes.append(f"“{label}” is not known for {', '.join(lacking)}; its average is over the rest.")
    if num_scenes == 1:
        notes.append("All questions are about one scene, which says nothing about others: there are no intervals.")
    elif num_scenes < FEW_SCENES:
        notes.append(f"The intervals are too narrow: {num_scenes} scenes are too few to resample.")
    return notes


def _counted(count: int, singular: str, plural: str | None = None) -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def format_report(report: Mapping[str, Any]) -> str:
    """A report as Markdown, in percent."""
    questions = _counted(report["num_questions"], "question")
    parts = [
        f"# {report['benchmark'] or 'Benchmark'}: {report['label']}",
        f"{questions} about {_counted(report['num_scenes'], 'scene')}, scored by the protocol `{report['protocol']}` "
        f"({report['protocol_source']}).",
        _main_table(report),
        f"Percent; {UNKNOWN}: not known. Intervals tell how far the choice of scenes matters: of {NUM_RESAMPLES:,} "
        f"resamples of scenes, each with all questions about it, {LEVEL * 100:.0f} % lie within.",
    ]
    if report["notes"]:
        parts.append("\n".join(f"- **Note.** {note}" for note in report["notes"]))
    parts += ["## By kind of question", _group_table(report), "## Provenance", _provenance(report["provenance"])]
    parts.append(f"![Scores with their intervals]({CHART})")
    return "\n\n".join(parts) + "\n"


def _main_table(report: Mapping[str, Any]) -> str:
    columns = report["columns"]
    header = ["Model", *(column["heading"] for column in columns), "Source"]
    rows = [
        [row["label"], *(_number(row["percent"].get(column["key"])) for column in columns), row["source"]]
        for row in report["references"]
    ]
    for row in report["baselines"]:
        rows.append([row["label"], *(_percent(row["columns"].get(c["key"])) for c in columns), "without a look"])
    rows.append([_bold(report["label"]), *(_bold(_percent(column["value"])) for column in columns), "this run"])
    rows.append([f"{LEVEL * 100:.0f} % interval", *map(_interval, columns), ""])
    return format_table(header, rows, num_words=1, words_at_end=1)


def _group_table(report: Mapping[str, Any]) -> str:
    header = ["Questions of", "Questions", "Scenes", "Score", f"{LEVEL * 100:.0f} % interval"]
    rows = []
    for group in report["groups"]:
        counts = [f"{group['num_questions']:,}", f"{group['num_scenes']:,}"]
        baselines = [_percent(row["groups"].get(group["name"])) for row in report["baselines"]]
        rows.append([group["name"], *counts, _percent(group["value"]), _interval(group), *baselines])
    return format_table([*header, *(row["label"] for row in report["baselines"])], rows, num_words=1)


def _provenance(run: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_shown(value)}" for name, value in run.items())


def _shown(value: Any) -> str:
    """A value on one line; of what may be long, the beginning."""
    if isinstance(value, Mapping):
        shown = [f"{name} {_shown(each)}" for name, each in value.items()]
        return _beginning(shown, 4 * SHOWN) or "none"
    if isinstance(value, list | tuple):
        return _beginning([_shown(each) for each in value], SHOWN) or "none"
    return UNKNOWN if value is None else f"`{value}`"


def _beginning(shown: list[str], length: int) -> str:
    more = [f"and {len(shown) - length:,} more (in {REPORT})"] if len(shown) > length else []
    return ", ".join(shown[:length] + more)


def _bold(text: str) -> str:
    return text if text == UNKNOWN else f"**{text}**"


def _percent(fraction: float | None) -> str:
    return _number(None if fraction is None else 100 * fraction)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def _interval(row: Mapping[str, Any]) -> str:
    return UNKNOWN if row["low"] is None else f"{_percent(row['low'])}–{_percent(row['high'])}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_words: int, words_at_end: int = 0) -> str:
    """A Markdown table, aligned to be read as plain text too.

    Args:
        header (`Sequence[str]`): Of each column.
        rows (`Sequence[Sequence[str]]`): Cells.
        num_words, words_at_end (`int`): Columns at the beginning and end that hold words, not numbers.
    """
    lines = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    is_words = [column < num_words or column >= len(header) - words_at_end for column in range(len(header))]
    cells = [
        [cell.ljust(width) if words else cell.rjust(width) for cell, width, words in zip(*each, strict=True)]
        for each in ((line, widths, is_words) for line in lines)
    ]
    rule = ["-" * width if words else "-" * (width - 1) + ":" for width, words in zip(widths, is_words, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])


def draw_report(report: Mapping[str, Any]) -> bytes:
    """A chart of a report as PNG: the average beside others', and each column with what is known of others."""
    others = [(row["label"], row["percent"], OTHER_COLOR) for row in report["references"]]
    for row in report["baselines"]:
        percent = {key: 100 * value for key, value in row["columns"].items()}
        others.append((row["label"], percent, BASELINE_COLOR))
    with matplotlib.style.context("default"):
        compared = [(label, percent[OVERALL], color) for label, percent, color in others if OVERALL in percent]
        overall, *rest = report["columns"]
        columns = rest if compared else report["columns"]
        drawn = [(label, percent) for label, percent, _ in others if any(c["key"] in percent for c in columns)]
        num_rows = max(len(compared) + 1 if compared else 0, len(columns))
        num_panels = bool(compared) + bool(columns)
        height = 1.5 + 0.36 * max(num_rows, 4) + 0.2 * -(-len(drawn) // 4)
        figure = Figure(figsize=(6.2 * num_panels, height), layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(1, num_panels, squeeze=False)[0])
        if compared:
            _draw_overall(panels.pop(0), report["label"], overall, compared, num_rows)
        if columns:
            _draw_columns(panels.pop(0), columns, drawn, num_rows)
        title = f"{report['label']} · {report['benchmark'] or 'benchmark'}, protocol {report['protocol']}"
        counts = f"{_counted(report['num_questions'], 'question')}, {_counted(report['num_scenes'], 'scene')}"
        subtitle = f"{counts}; whiskers: {LEVEL * 100:.0f} % intervals"
        figure.suptitle(f"{_clip(title, 50 * num_panels)}\n{subtitle}", fontsize=10)
        if drawn:
            figure.legend(loc="outside lower center", ncols=2 * num_panels, fontsize=8, frameon=False)
        content = io.BytesIO()
        # Without the version of matplotlib, by which charts would differ.
        figure.savefig(content, dpi=DPI, format="png", metadata={"Software": None})
    return content.getvalue()


def _draw_overall(
    axes: Axes, label: str, column: Mapping[str, Any], compared: Sequence[tuple[str, float, str]], num_rows: int
):
    """One bar for each row of the table, the run's own at the end."""
    labels = [*(row[0] for row in compared), label]
    values = [*(row[1] for row in compared), _as_percent(column["value"])]
    axes.barh(range(len(labels)), values, height=0.7, color=[*(row[2] for row in compared), OWN_COLOR])
    for row, value in enumerate(values[:-1]):
        _write_value(axes, row, value, value)
    _draw_whisker(axes, len(values) - 1, column)
    _finish(axes, labels, column["heading"], num_rows)
    axes.get_yticklabels()[-1].set_fontweight("bold")


def _draw_columns(
    axes: Axes, columns: Sequence[Mapping[str, Any]], drawn: Sequence[tuple[str, Mapping[str, float]]], num_rows: int
):
    """One bar for each column, with whiskers; markers of others have one height each, above or below these."""
    axes.barh(range(len(columns)), [_as_percent(c["value"]) for c in columns], height=0.7, color=OWN_COLOR, alpha=0.85)
    for row, column in enumerate(columns):
        # A number beside another's marker would be taken for its.
        _draw_whisker(axes, row, column, reach=RIGHT if drawn else 0)
    for number, (label, percent) in enumerate(drawn):
        side = (number + 0.5) / len(drawn) - 0.5
        offset = 0.4 * side + math.copysign(0.11, side)
        known = [(percent[c["key"]], row + offset) for row, c in enumerate(columns) if c["key"] in percent]
        marker, color = MARKERS[number % len(MARKERS)], f"C{(number + 1) % 10}"
        style = {"marker": marker, "color": color, "edgecolor": "white", "linewidth": 0.6, "zorder": 4}
        axes.scatter(*zip(*known, strict=True), s=34, label=_clip(label, LABEL_WIDTH), **style)
    _finish(axes, [column["heading"] for column in columns], "by column", num_rows)


def _draw_whisker(axes: Axes, row: int, column: Mapping[str, Any], reach: float = 0):
    """The interval of a value, and the value, written to the right of all that is drawn."""
    if column["value"] is None:
        _write_value(axes, row, None, reach)
        return
    value, high = 100 * column["value"], 100 * column["value"]
    if column["low"] is not None:
        high = 100 * column["high"]
        ends = [[max(0, value - 100 * column["low"])], [max(0, high - value)]]
        axes.errorbar([value], [row], xerr=ends, color="black", capsize=3, linewidth=1, zorder=3)
    _write_value(axes, row, value, max(value, high, reach), weight="bold")


def _write_value(axes: Axes, row: int, value: float | None, right_of: float, weight: str = "normal"):
    position = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(_number(value), (right_of, row), fontsize=8, fontweight=weight, **position)


def _finish(axes: Axes, labels: Sequence[str], title: str, num_rows: int):
    axes.set_yticks(range(len(labels)), [_clip(label, LABEL_WIDTH) for label in labels], fontsize=9)
    # From above; a panel of few bars does not make them thick.
    axes.set_ylim(max(len(labels), num_rows / 2) - 0.4, -0.6)
    axes.set_xlim(0, RIGHT + 10)  # room for the number of a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"{title}, %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _as_percent(fraction: float | None) -> float:
    return 0.0 if fraction is None else 100 * fraction


def _clip(text: str, width: int) -> str:
    # A dollar would begin a formula.
    return (text if len(text) <= width else text[: width - 1] + "…").replace("$", r"\$")
