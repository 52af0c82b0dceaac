"""Published figures that stand beside a run's own: rows of the paper (arXiv:2602.21186), and what chance reaches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmark_report import ReferenceRow, read_report

__all__ = ["PUBLISHED_ROWS", "reference_rows"]

VSI_BENCH = "arXiv:2412.14171, Tab. 1"
TABLE_1, TABLE_2 = "arXiv:2602.21186, Tab. 1", "arXiv:2602.21186, Tab. 2"

# Rows by benchmark, columns in percent. Of VSI-Bench's tasks one by one the paper's figures are not at hand.
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
        ReferenceRow(
            "Chance, most frequent answer",
            {
                "overall": 34.0,  # as published; the mean of the eight is 35.5
                "object_counting": 62.1,
                "object_abs_distance": 32.0,
                "object_size_estimation": 29.9,
                "room_size_estimation": 33.1,
                "object_rel_distance": 25.1,
                "object_rel_direction": 47.9,
                "route_planning": 28.4,
                "obj_appearance_order": 25.2,
            },
            VSI_BENCH,
        ),
        ReferenceRow("GPT-4o", {"overall": 34.0}, TABLE_1),
        ReferenceRow("Gemini-1.5-Flash", {"overall": 42.1}, TABLE_1),
        ReferenceRow("Gemini-1.5-Pro", {"overall": 45.4}, TABLE_1),
        ReferenceRow("InternVL2-8B", {"overall": 37.5}, TABLE_1),
        ReferenceRow("LLaVA-Video-7B", {"overall": 35.6}, TABLE_1),
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
