"""ViewSpatial-Bench: prompts, scores and aggregates of lmms-eval."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .protocol import Protocol, average_groups, check_groups, check_known, mean_of_all

__all__ = ["PROTOCOLS", "aggregate"]

# With the headings of their columns, whose keys are lmms-eval's.
_TYPES = (
    ("Camera perspective - Relative Direction", "Camera: Rel. Dir."),
    ("Camera perspective - Object View Orientation", "Camera: View Ori."),
    ("Person perspective - Relative Direction", "Person: Rel. Dir."),
    ("Person perspective - Object View Orientation", "Person: View Ori."),
    ("Person perspective - Scene Simulation Relative Direction", "Person: Sim. Rel. Dir."),
)
TYPES = {kind: kind.lower().replace(" - ", "_").replace(" ", "_") for kind, _ in _TYPES}
COLUMNS = {"overall": "Avg."} | {TYPES[kind]: heading for kind, heading in _TYPES}
_OPTION = re.compile(r"\b[A-D]\b", re.IGNORECASE)


def question_type(record: Mapping[str, Any]) -> str:
    """The question type of a record; `ValueError` if ViewSpatial-Bench has none such."""
    return check_known("The question type", record["question_type"], TYPES)


def write_prompt(record: Mapping[str, Any]) -> str:
    """Text that follows the images; `choices` is one text of several lines, as published."""
    asked = f"Question: {record['question']}\nChoices: {record['choices']}"
    return f"{asked}\nReply only to the corresponding option.\nAnswer:"


def find_option(text: str) -> str | None:
    """The first of the letters A to D that stands alone, in capitals or not, or none.

    An article is a letter: "A chair is at B" and "I think it is a b" are A. Digits and underscores make a word with
    it: "A1" and "_A_" are none.
    """
    found = _OPTION.search(text)
    return found.group().upper() if found else None


def score(record: Mapping[str, Any], prediction: str) -> float:
    """1 if the letter in the last line of an answer is the one in `answer`; see `find_option`.

    - Only the last line counts, so that reasons may come first; but a line break at the end leaves an empty one:
      "A\\n" is wrong.
    - If the truth has no letter, an answer without one is right. The published ones all have one.

    Args:
        record (`Mapping`): Its `answer`, such as "A. front", is used.
        prediction (`str`): The answer.
    """
    return float(find_option(prediction.rpartition("\n")[2]) == find_option(record["answer"]))


def summarize(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """The share of right answers over all questions, where large types count more, and by type; see `Protocol`."""
    check_groups("ViewSpatial-Bench", "The question type", means, TYPES)
    return _average_types(means, counts)


def _average_types(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    return {"overall": mean_of_all(means, counts)} | {
        column: means[kind] for kind, column in TYPES.items() if kind in means
    }


def aggregate(question_types: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """lmms-eval's metrics, as fractions; a type without answers is 0, not missing, as is `overall` without any.

    Keys are those of `COLUMNS`; lmms-eval adds `_accuracy` to each.

    Args:
        question_types (`Sequence[str]`): Of each answer.
        scores (`Sequence[float]`): Of each answer.
    """
    means, counts = average_groups(question_types, scores)
    for kind in means:
        check_known("The question type", kind, TYPES)
    return dict.fromkeys(COLUMNS, 0.0) | (_average_types(means, counts) if means else {})


PROTOCOLS = {
    "official": Protocol(
        name="official",
        source="lmms-eval@75571cf, which scores as 04a5103",
        prompt=write_prompt,
        score=score,
        group=question_type,
        summarize=summarize,
        columns=COLUMNS,
        # lmms-eval leaves this to the model, whose limit lies far beyond what an option needs.
        max_new_tokens=1024,
    )
}
