"""Compare two runs on the same questions: by column, by question, and in their settings."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data_scripts.benchmarks import BENCHMARKS
from ...data_scripts.benchmarks.protocol import Protocol
from ..runs.settings import flatten
from .formatting import clip, format_percent, format_table
from .report import ANSWERS, COMPARABLE, interval_ends, read_report
from .statistics import LEVEL, NUM_PERMUTATIONS, NUM_RESAMPLES, SceneScores, compare_paired

MAX_LISTED = 25  # questions answered better, and questions answered worse
TEXT_WIDTH = 40  # characters
RUNS = (("A", "first"), ("B", "second"))

# Answers of both runs to each question.
Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


def compare_runs(first: str | os.PathLike, second: str | os.PathLike) -> dict[str, Any]:
    """Compare two runs question by question.

    Args:
        first, second (`str` or `os.PathLike`): Their folders, as `write_report` wrote them.

    Returns:
        `dict`: `first` and `second` (folder and label), `columns` (both values, their difference, second minus first,
            its interval and p-values; fractions), `provenance` (settings that differ, by flat names), `groups` (number
            of questions answered better, worse, differently with the same score, or equally), and `questions` (those
            with different answers).

    Raises:
        ValueError: If a folder has no report, or the runs differ in benchmark, protocol, data or questions.
    """
    reports = [read_report(folder) for folder in (first, second)]
    before, after = (report["provenance"] for report in reports)
    for what in COMPARABLE:
        if before.get(what) != after.get(what):
            raise ValueError(
                f"`{first}` and `{second}` cannot be compared: their `{what}` is `{before.get(what)}` and "
                f"`{after.get(what)}`. Compare runs with the same."
            )
    answers = [read_answers(folder) for folder in (first, second)]
    if different := answers[0].keys() ^ answers[1].keys():
        raise ValueError(
            f"`{first}` and `{second}` cannot be compared: {len(different):,} questions have an answer in only "
            "one of them. Run both on the same questions."
        )
    pairs = [(answer, answers[1][name]) for name, answer in answers[0].items()]
    protocol = BENCHMARKS[reports[0]["benchmark"]].protocol(reports[0]["protocol"])
    return {
        "first": {"folder": str(first), "label": reports[0]["label"]},
        "second": {"folder": str(second), "label": reports[1]["label"]},
        "benchmark": reports[0]["benchmark"],
        "protocol": protocol.name,
        "num_questions": len(pairs),
        "num_scenes": len({answer["scene_id"] for answer, _ in pairs}),
        "columns": _compare_columns(pairs, protocol),
        "provenance": _compare_provenance(before, after),
        "groups": _count_changes(pairs),
        "questions": [_describe_change(*pair) for pair in pairs if _kind_of_change(*pair) != "same"],
    }


def read_answers(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read the answers of a run by question id."""
    file = Path(folder) / ANSWERS
    if not file.is_file():
        raise ValueError(f"`{folder}` holds no {ANSWERS}; run the benchmark again.")
    answers = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            answer = json.loads(line)
            answers[answer["id"]] = answer
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Line {number} of `{file}` is damaged; run the benchmark again.") from error
    return answers


def _compare_columns(pairs: Pairs, protocol: Protocol) -> list[dict[str, Any]]:
    scenes, groups = ([answer[key] for answer, _ in pairs] for key in ("scene_id", "group"))
    before, after = (SceneScores.collect(scenes, groups, [pair[run]["score"] for pair in pairs]) for run in (0, 1))
    summaries = [protocol.summarize(run.means(), run.num_questions()) for run in (before, after)]
    rows = []
    for key, compared in compare_paired(before, after, protocol.average).items():
        rows.append(
            {
                "key": key,
                "heading": protocol.columns.get(key, key),
                "first": summaries[0][key],
                "second": summaries[1][key],
                "difference": compared.difference,
                **interval_ends(compared.interval),
                "p_value": compared.p_value,
                "p_value_corrected": compared.p_value_corrected,
            }
        )
    return rows


def _compare_provenance(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return settings that differ, by flat names such as `versions.torch`, with both values."""
    before, after = flatten(dict(first)), flatten(dict(second))
    return {
        name: [before.get(name), after.get(name)]
        for name in sorted(before | after)
        if before.get(name) != after.get(name)
    }


def _kind_of_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if before["score"] != after["score"]:
        return "better" if after["score"] > before["score"] else "worse"
    return "same" if before["prediction"] == after["prediction"] else "changed"


def _count_changes(pairs: Pairs) -> list[dict[str, Any]]:
    counts: dict[str, dict[str, int]] = {}
    for before, after in pairs:
        group = counts.setdefault(before["group"], {"better": 0, "worse": 0, "changed": 0, "same": 0})
        group[_kind_of_change(before, after)] += 1
    return [{"name": name, **counts[name]} for name in sorted(counts)]


def _describe_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": before["id"],
        "scene_id": before["scene_id"],
        "group": before["group"],
        "kind": _kind_of_change(before, after),
        "first": before["prediction"],
        "second": after["prediction"],
        "first_score": before["score"],
        "second_score": after["score"],
    }


def require_better(comparison: Mapping[str, Any], key: str):
    """Refuse a second run that is not surely better than the first in a column.

    Args:
        comparison (`Mapping`): As `compare_runs` returns it.
        key (`str`): Key of the column.

    Raises:
        ValueError: If there is no such column, or the interval of its difference reaches down to 0.
    """
    columns = {column["key"]: column for column in comparison["columns"]}
    if key not in columns:
        raise ValueError(f"There is no column `{key}` to require; choose one of {', '.join(columns)}.")
    column = columns[key]
    if column["low"] is None or column["low"] <= 0:
        low = "–" if column["low"] is None else _points(column["low"])
        raise ValueError(
            f"`{comparison['second']['folder']}` is not surely better in `{key}` than "
            f"`{comparison['first']['folder']}`, as --require-better asks: the difference is "
            f"{_points(column['difference'])} points, and its interval begins at {low}."
        )


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """Write a comparison as Markdown: scores in percent, differences in percentage points."""
    runs = "\n".join(f"- {name}: {comparison[run]['label']} (`{comparison[run]['folder']}`)" for name, run in RUNS)
    parts = [
        f"# {comparison['benchmark']}: {comparison['second']['label']} against {comparison['first']['label']}",
        f"{runs}\n- {comparison['num_questions']:,} questions about {comparison['num_scenes']:,} scenes, protocol "
        f"`{comparison['protocol']}`",
        _column_table(comparison["columns"]),
        f"Difference: B minus A in percentage points, with its {LEVEL * 100:.0f} % interval over {NUM_RESAMPLES:,} "
        "resamples of scenes, the same for both runs. p: (1 + m) / (1 + n), where m of "
        f"n = {NUM_PERMUTATIONS:,} random swaps of A and B in whole scenes give a difference at least as large. "
        "p (Holm): corrected for testing all columns of this table.",
    ]
    if comparison["num_scenes"] == 1:
        parts.append("All questions are about one scene, so there are no intervals.")
    parts += ["## Answers", _group_table(comparison["groups"])]
    for kind in ("worse", "better"):
        parts += _list_questions(comparison["questions"], kind)
    parts += ["## Settings that differ", _provenance_table(comparison["provenance"])]
    return "\n\n".join(parts) + "\n"


def _column_table(columns: Sequence[Mapping[str, Any]]) -> str:
    header = ["Column", "A", "B", "Difference", f"{LEVEL * 100:.0f} % interval", "p", "p (Holm)"]
    rows = []
    for column in columns:
        values = [*(format_percent(column[run]) for _, run in RUNS), _points(column["difference"])]
        interval = "–" if column["low"] is None else f"[{_points(column['low'])}, {_points(column['high'])}]"
        p_values = [_p_value(column["p_value"]), _p_value(column["p_value_corrected"])]
        rows.append([column["heading"], *values, interval, *p_values])
    return format_table(header, rows, num_words=1)


def _points(fraction: float) -> str:
    """Write percentage points with a sign; zero has none."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _p_value(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _group_table(groups: Sequence[Mapping[str, Any]]) -> str:
    kinds = {"better": "better", "worse": "worse", "changed": "different, same score", "same": "same answer"}
    rows = [[group["name"], *(f"{group[kind]:,}" for kind in kinds)] for group in groups]
    rows.append(["all", *(f"{sum(group[kind] for group in groups):,}" for kind in kinds)])
    return format_table(["Questions of", *kinds.values()], rows, num_words=1)


def _list_questions(questions: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """List the questions that B answers better, or worse, the largest differences first, under a heading."""
    chosen = [question for question in questions if question["kind"] == kind]
    chosen.sort(key=lambda question: -abs(question["second_score"] - question["first_score"]))
    if not chosen:
        return []
    rows = [
        [
            question["id"],
            question["scene_id"],
            question["group"],
            _quote(question["first"]),
            _quote(question["second"]),
            format_percent(question["first_score"]),
            format_percent(question["second_score"]),
        ]
        for question in chosen[:MAX_LISTED]
    ]
    header = ["Question", "Scene", "Of", "A answers", "B answers", "A scores", "B scores"]
    shown = f"first {MAX_LISTED} of {len(chosen):,}" if len(chosen) > MAX_LISTED else f"{len(chosen)}"
    return [f"### B {kind} than A: {shown}", format_table(header, rows, num_words=5)]


def _quote(text: str) -> str:
    """Write an answer as code on one line, showing spaces and line breaks, which matter to scores."""
    shown = json.dumps(text, ensure_ascii=False).replace("`", "'")
    # A cut answer may end with half a character, which UTF-8 cannot hold.
    shown = shown.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"`{clip(shown, TEXT_WIDTH)}`"


def _provenance_table(provenance: Mapping[str, Sequence[Any]]) -> str:
    if not provenance:
        return "None."
    rows = [[name, *(_quote_value(value) for value in values)] for name, values in provenance.items()]
    return format_table(["Setting", "A", "B"], rows, num_words=3)


def _quote_value(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
    return "–" if value is None else f"`{clip(shown, 2 * TEXT_WIDTH)}`"
