"""The chart of a report."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .formatting import clip, counted, format_number
from .statistics import LEVEL

OVERALL = "overall"
LABEL_WIDTH = 34  # characters
OWN_COLOR, OTHER_COLOR, BASELINE_COLOR = "#1f6f8b", "#c3cbd1", "#e3b778"
MARKERS = "Ds^vPX*<>ph8"
RIGHT = 102  # percent, to the right of every bar and marker
DPI = 150


def draw_report(report: Mapping[str, Any]) -> bytes:
    """Draw a report as PNG: the average beside those of other models, and each column with other models' figures."""
    others = [(row["label"], row["percent"], OTHER_COLOR) for row in report["references"]]
    for row in report["baselines"]:
        percent = {key: 100 * value for key, value in row["columns"].items()}
        others.append((row["label"], percent, BASELINE_COLOR))
    # Independent of the user's style.
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
        title = f"{report['label']} · {report['benchmark']}, protocol {report['protocol']}"
        counts = f"{counted(report['num_questions'], 'question')}, {counted(report['num_scenes'], 'scene')}"
        subtitle = f"{counts}; whiskers: {LEVEL * 100:.0f} % intervals"
        figure.suptitle(f"{_shorten(title, 50 * num_panels)}\n{subtitle}", fontsize=10)
        if drawn:
            figure.legend(loc="outside lower center", ncols=2 * num_panels, fontsize=8, frameon=False)
        content = io.BytesIO()
        # Without matplotlib's version, so that equal reports give equal bytes.
        figure.savefig(content, dpi=DPI, format="png", metadata={"Software": None})
    return content.getvalue()


def _draw_overall(
    axes: Axes, label: str, column: Mapping[str, Any], compared: Sequence[tuple[str, float, str]], num_rows: int
):
    """One bar for each row of the table, the run's own last."""
    labels = [*(row[0] for row in compared), label]
    values = [*(row[1] for row in compared), 100 * (column["value"] or 0.0)]
    axes.barh(range(len(labels)), values, height=0.7, color=[*(row[2] for row in compared), OWN_COLOR])
    for row, value in enumerate(values[:-1]):
        _write_value(axes, row, value, value)
    _draw_whisker(axes, len(values) - 1, column)
    _finish(axes, labels, column["heading"], num_rows)
    axes.get_yticklabels()[-1].set_fontweight("bold")


def _draw_columns(
    axes: Axes, columns: Sequence[Mapping[str, Any]], drawn: Sequence[tuple[str, Mapping[str, float]]], num_rows: int
):
    """One bar with whiskers for each column. Each other model has a marker at its own height above or below them."""
    values = [100 * (column["value"] or 0.0) for column in columns]
    axes.barh(range(len(columns)), values, height=0.7, color=OWN_COLOR, alpha=0.85)
    for row, column in enumerate(columns):
        # A number next to a marker would be read as the marker's.
        _draw_whisker(axes, row, column, reach=RIGHT if drawn else 0)
    for number, (label, percent) in enumerate(drawn):
        side = (number + 0.5) / len(drawn) - 0.5
        offset = 0.4 * side + math.copysign(0.11, side)
        known = [(percent[c["key"]], row + offset) for row, c in enumerate(columns) if c["key"] in percent]
        marker, color = MARKERS[number % len(MARKERS)], f"C{(number + 1) % 10}"
        style = {"marker": marker, "color": color, "edgecolor": "white", "linewidth": 0.6, "zorder": 4}
        axes.scatter(*zip(*known, strict=True), s=34, label=_shorten(label, LABEL_WIDTH), **style)
    _finish(axes, [column["heading"] for column in columns], "by column", num_rows)


def _draw_whisker(axes: Axes, row: int, column: Mapping[str, Any], reach: float = 0):
    """Draw the interval of a value, and write the value to the right of everything else."""
    if column["value"] is None:
        _write_value(axes, row, None, reach)
        return
    value, high = 100 * column["value"], 100 * column["value"]
    if column["low"] is not None:
        high = 100 * column["high"]
        ends = [[max(0, value - 100 * column["low"])], [max(0, high - value)]]
        axes.errorbar([value], [row], xerr=ends, color="black", capsize=3, linewidth=1, zorder=3)
    _write_value(axes, row, value, max(value, high, reach), weight="bold")


def _write_value(axes: Axes, row: int, percent: float | None, right_of: float, weight: str = "normal"):
    position = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(format_number(percent), (right_of, row), fontsize=8, fontweight=weight, **position)


def _finish(axes: Axes, labels: Sequence[str], title: str, num_rows: int):
    axes.set_yticks(range(len(labels)), [_shorten(label, LABEL_WIDTH) for label in labels], fontsize=9)
    # From top to bottom; a panel with few bars does not make them thick.
    axes.set_ylim(max(len(labels), num_rows / 2) - 0.4, -0.6)
    axes.set_xlim(0, RIGHT + 10)  # room for the number of a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"{title}, %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _shorten(text: str, width: int) -> str:
    # A dollar sign would begin a formula.
    return clip(text, width).replace("$", r"\$")
