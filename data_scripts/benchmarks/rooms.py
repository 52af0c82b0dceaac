"""The benchmark of rendered rooms: questions in VSI-Bench's columns, scored by VSI-Bench's protocols."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from .vsi_bench import VSI_BENCH

# Stands beside rendered rooms and holds the options that they were made with.
OPTIONS_FILE = "rooms.json"


# Entries of the manifest, and how reports call them.
BASELINES = {"frequency_baseline": "frequency", "blind_bound": "blind (text only)"}


def read_baselines(folder: Path) -> dict[str, dict[str, float]]:
    """Read what answers without images score on the questions in a folder.

    Returns:
        `dict[str, dict[str, float]]`: Fractions by question type: of the most frequent answers ("frequency"), and of a
            reader who knows the texts of the training questions but sees no image ("blind (text only)").

    Raises:
        ValueError: If the folder has no manifest of such questions.
    """
    manifest = _read_json(folder / "manifest.json")
    if manifest is None or not all(_is_scores(manifest.get(name)) for name in BASELINES):
        raise ValueError(
            f"`{folder}` has no manifest.json with the scores of answers without images; run spa3r room-questions "
            "--format benchmark to its end."
        )
    return {label: manifest[name] for name, label in BASELINES.items()}


def _is_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(type(score) in (int, float) for score in value.values())


def _check_same_rooms(folder: Path, root: Path):
    """Refuse rooms of another seed, whose names are the same."""
    asked, there = (_read_json(folder / "manifest.json") or {}).get("rooms"), _read_json(root / OPTIONS_FILE)
    if asked is not None and there is not None and asked != there:
        raise ValueError(
            f"The questions in `{folder}` are about rooms made with {asked}, but the rooms in `{root}` were made with "
            f"{there}; name the folder of the rooms that the questions are about."
        )


def _read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object, or return `None` if the file holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


ROOMS = replace(
    VSI_BENCH,
    name="rooms",
    title="rooms",
    question_files=("test.jsonl",),
    media_paths=lambda record: [f"{record['scene_name']}/color"],
    sizes=(),
    how_to_get="spa3r room-questions --format benchmark --rooms ... --output ...",
    published=(),
    check_folders=_check_same_rooms,
    read_baselines=read_baselines,
)
