"""Published figures that stand beside a run's own: rows of the paper (arXiv:2602.21186), and what chance reaches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data_scripts.benchmarks.vsi_bench import TASKS
from .report import ReferenceRow, read_report

__all__ = ["PUBLISHED_ROWS", "reference_rows"]

VSI_BENCH = "arXiv:2412.14171, Tab. 1"
TABLE_1, TABLE_2 = "arXiv:2602.21186, Tab. 1", "arXiv:2602.21186, Tab. 2"


def _vsi_row(label: str, overall: float, tasks: Sequence[float]) -> ReferenceRow:
    """A row of VSI-Bench's own paper, which has all its tasks."""
    return ReferenceRow(label, {"overall": overall} | dict(zip(TASKS, tasks, strict=True)), VSI_BENCH)


# Rows by benchmark, columns in percent. This paper's figures are as a public summary of it gives them, which leaves
# out VSI-Bench's tasks one by one; those of the first models are from VSI-Bench's own paper, with equal averages.
PUBLISHED_ROWS: dict[str, list[ReferenceRow]] = {
    "vsi-bench": [
        ReferenceRow(
            "Chance, random choice",
            {
                "object_rel_distance": 25.0,
                "object_rel_direction": 36.1,
                "route_planning": 28.3,
                "obj_appearance_order": 25.0,
            },
            VSI_BENCH,
        ),
        # As published; the mean of the eight is 35.5.
        _vsi_row("Chance, most frequent answer", 34.0, [62.1, 32.0, 29.9, 33.1, 25.1, 47.9, 28.4, 25.2]),
        _vsi_row("GPT-4o", 34.0, [46.2, 5.3, 43.8, 38.2, 37.0, 41.3, 31.5, 28.5]),
        _vsi_row("Gemini-1.5-Flash", 42.1, [49.8, 30.8, 53.5, 54.4, 37.7, 41.0, 31.5, 37.8]),
        _vsi_row("Gemini-1.5-Pro", 45.4, [56.2, 30.9, 64.1, 43.6, 51.3, 46.3, 36.0, 34.6]),
        _vsi_row("InternVL2-8B", 37.5, [31.3, 29.0, 48.9, 44.2, 38.0, 33.4, 28.9, 46.4]),
        _vsi_row("LLaVA-Video-7B", 35.6, [48.5, 14.0, 47.8, 24.2, 43.5, 42.4, 34.0, 30.6]),
        ReferenceRow("Qwen2.5-VL-7B", {"overall": 33.0}, TABLE_1),
        ReferenceRow("Spatial-MLLM-4B", {"overall": 48.4}, TABLE_1),
        ReferenceRow("VG-LLM-8B", {"overall": 50.7}, TABLE_1),
        ReferenceRow("Cambrian-S-3B", {"overall": 57.3}, TABLE_1),
        ReferenceRow("Spa3-VLM-4B", {"overall": 58.6}, TABLE_1),
    ],
    "cv-bench": [
        ReferenceRow("Qwen2.5-VL-3B", {"overall": 70.6, "2D": 69.1, "3D": 72.2}, TABLE_2),
        ReferenceRow("SpatialLadder-3B", {"overall": 73.7, "2D": 72.4, "3D": 74.9}, TABLE_2),
        ReferenceRow("Spatial-MLLM-4B", {"overall": 73.8}, TABLE_2),
        ReferenceRow("SpatialThinker-3B", {"overall": 73.6, "2D": 71.0, "3D": 76.3}, TABLE_2),
        ReferenceRow("Spa3-VLM-4B", {"overall": 75.6, "2D": 72.9, "3D": 78.3}, TABLE_2),
    ],
    "spar-bench": [
        ReferenceRow("Qwen2.5-VL-3B", {"overall": 24.6}, TABLE_2),
        ReferenceRow("SpatialLadder-3B", {"overall": 34.4}, TABLE_2),
        ReferenceRow("Spatial-MLLM-4B", {"overall": 35.1}, TABLE_2),
        ReferenceRow("SpaceR-7B", {"overall": 37.6}, TABLE_2),
        ReferenceRow("Spa3-VLM-4B", {"overall": 58.4}, TABLE_2),
    ],
    "viewspatial-bench": [
        ReferenceRow("Qwen2.5-VL-3B", {"overall": 35.6}, TABLE_2),
        ReferenceRow("SpatialLadder-3B", {"overall": 44.2}, TABLE_2),
        ReferenceRow("Spatial-MLLM-4B", {"overall": 43.6}, TABLE_2),
        ReferenceRow("SpaceR-7B", {"overall": 37.3}, TABLE_2),
        ReferenceRow("Spa3-VLM-4B", {"overall": 43.9}, TABLE_2),
    ],
}


def reference_rows(run: Mapping[str, Any], others: Sequence[str | Path] = ()) -> list[ReferenceRow]:
    """Rows that stand beside a run: what was published, then other runs.

    Args:
        run (`Mapping[str, Any]`): Its `benchmark`, of rooms nothing was published; `protocol` and `data_fingerprint`.
        others (`Sequence[str | Path]`, *optional*): Folders of other runs, each with a report.

    Raises:
        ValueError: If a folder has no report, or one of another benchmark, protocol or data.
    """
    rows = list(PUBLISHED_ROWS.get(run["benchmark"], []))
    for folder in others:
        report = read_report(folder)
        for name in ("benchmark", "protocol", "data_fingerprint"):
            theirs = report["provenance"].get(name)
            if theirs != run.get(name):
                raise ValueError(
                    f"The run `{folder}` cannot stand beside this one, as its {name} is `{theirs}`, and not "
                    f"`{run.get(name)}`: leave it out, or run it again on the same."
                )
        columns = {row["key"]: 100 * row["value"] for row in report["columns"] if row["value"] is not None}
        source = f"run `{Path(folder).name}`, {report['num_questions']:,} questions"
        rows.append(ReferenceRow(report["label"], columns, source))
    return rows
