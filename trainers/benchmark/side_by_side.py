"""Runs on different benchmarks beside each other, question type by question type, such as VSI-Bench and ReVSI."""

import os
from collections.abc import Sequence
from math import fsum

from .formatting import format_interval, format_percent, format_table
from .report import read_report

OVERALL = "overall"


def format_side_by_side(folders: Sequence[str | os.PathLike]) -> str:
    """Write a table of the question types of several runs.

    Benchmarks ask different questions, so there is no test of a difference. A line averages the question types that
    all runs have, because the overall scores cover others, too.

    Args:
        folders (`Sequence[str | os.PathLike]`): Output folders of runs.

    Raises:
        ValueError: If a folder has no report, or the runs have no question type in common.
    """
    reports = [read_report(folder) for folder in folders]
    columns = [{row["key"]: row for row in report["columns"] if row["value"] is not None} for report in reports]
    kinds = list(dict.fromkeys(key for each in columns for key in each if key != OVERALL))
    shared = [key for key in kinds if all(key in each for each in columns)]
    if not shared:
        names = ", ".join(f"`{report['benchmark']}`" for report in reports)
        raise ValueError(
            f"Runs on {names} have no question type in common; set those of VSI-Bench and ReVSI side by side."
        )
    header = ["Questions of"]
    for report in reports:
        header += [f"{report['label']}: {report['benchmark']}", "95 %"]
    rows = []
    for key in [*kinds, OVERALL]:
        found = [each.get(key, {"value": None, "low": None, "high": None}) for each in columns]
        heading = next(each[key]["heading"] for each in columns if key in each)
        rows.append([heading, *_cells([(row["value"], row["low"], row["high"]) for row in found])])
    means = [fsum(each[key]["value"] for key in shared) / len(shared) for each in columns]
    rows.append([f"Avg. of the {len(shared)} in common", *_cells([(value, None, None) for value in means])])
    lines = [
        f"- {report['label']}: {report['num_questions']:,} questions of `{report['benchmark']}`, protocol "
        f"`{report['protocol']}` (`{folder}`)"
        for report, folder in zip(reports, folders, strict=True)
    ]
    note = "Percent. The questions differ, so differences between columns have no interval and no test."
    return "\n\n".join(["# Side by side", "\n".join(lines), format_table(header, rows, num_words=1), note]) + "\n"


def _cells(values: Sequence[tuple[float | None, float | None, float | None]]) -> list[str]:
    return [text for value, low, high in values for text in (format_percent(value), format_interval(low, high))]
