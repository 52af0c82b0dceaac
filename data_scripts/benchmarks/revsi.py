"""ReVSI: VSI-Bench's questions with repaired answers, which hold for a number of frames; by lmms-eval.

A question has an answer of its own for each frame budget: what a model could know from 16, 32 or 64 frames, or from
the whole video. So each budget is a benchmark, and the first three show exactly the frames of their videos.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .protocol import Benchmark, Protocol, check_known, mean, share_of_tolerances, to_number
from .vsi_bench import CHOICE_SUFFIX, LEAD, first_token
from .vsi_bench import COLUMNS as VSI_COLUMNS

BUDGETS = ("16", "32", "64", "all")
# Question types of each column, in the words of VSI-Bench's columns. It has no order of appearance.
DIRECTIONS = tuple(
    f"object_rel_direction_{way}_{level}" for level in ("easy", "hard") for way in ("forward", "backward")
)
PARTS = {
    "object_counting": ("object_counting_single", "object_counting_multiple"),
    "object_abs_distance": ("object_abs_distance",),
    "object_size_estimation": ("object_size_estimation",),
    "room_size_estimation": ("room_size_estimation_single", "room_size_estimation_multiple"),
    "object_rel_distance": ("object_rel_distance_closest", "object_rel_distance_farthest"),
    "object_rel_direction": DIRECTIONS,
    "route_planning": ("route_planning",),
}
CHOICE_TYPES = (*PARTS["object_rel_direction"], *PARTS["object_rel_distance"], *PARTS["route_planning"])
QUESTION_TYPES = tuple(kind for kinds in PARTS.values() for kind in kinds)
NUMBER_SUFFIX = "Answer the question using a single integer or decimal number."


def _asks_for_choice(record: Mapping[str, Any]) -> bool:
    return check_known("question_type", record["question_type"], QUESTION_TYPES) in CHOICE_TYPES


def write_prompt(record: Mapping[str, Any]) -> str:
    """Write the text that follows the frames; raises `ValueError` if the question type is not known."""
    if _asks_for_choice(record):
        options = "\n".join(record["options"])
        return f"{LEAD}{record['question']}\nOptions:\n{options}\n{CHOICE_SUFFIX}"
    return f"{LEAD}{record['question']}\n{NUMBER_SUFFIX}"


def score(record: Mapping[str, Any], prediction: str) -> float:
    """Score the first token of an answer, as VSI-Bench's `official` protocol does.

    - Whitespace around the answer does no harm: " A" is A.
    - Where VSI-Bench divides by zero, a truth of 0, the score is 0, also for the answer 0.
    - The error is divided by the signed truth, so any number scores 1 against a negative truth.

    Args:
        record (`Mapping`): Record with `question_type` and `ground_truth`.
        prediction (`str`): The answer.

    Raises:
        ValueError: If the question type is not known.
    """
    given, truth = first_token(prediction.strip()), record["ground_truth"]
    if _asks_for_choice(record):
        return float(given.lower() == truth.lower())
    numbers = to_number(given), to_number(truth)
    if None in numbers or not numbers[1]:
        return 0.0
    return share_of_tolerances(abs(numbers[0] - numbers[1]) / numbers[1])


def average_columns(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Average question types into columns, and the columns that there are into the overall score; see `Protocol`."""
    columns = {
        column: mean([means[kind] for kind in kinds if kind in means])
        for column, kinds in PARTS.items()
        if any(kind in means for kind in kinds)
    }
    return {"overall": mean(columns.values())} | columns


def _media_paths(budget: str, record: Mapping[str, Any]) -> Sequence[str]:
    if str(record["num_frames"]) != budget:
        raise ValueError(
            f"The questions are about {record['num_frames']} frames (`num_frames`), not {budget}, and their answers "
            f"hold for these alone; choose the benchmark `revsi-{record['num_frames']}`."
        )
    return [f"{budget}_frame/{record['scene_id']}.mp4"]


OFFICIAL = Protocol(
    name="official",
    source="lmms-eval 0.7.3, task revsi",
    prompt=write_prompt,
    score=score,
    group_by="question_type",
    groups=QUESTION_TYPES,
    truth="ground_truth",
    average=average_columns,
    columns={column: VSI_COLUMNS[column] for column in ("overall", *PARTS)},
    max_new_tokens=16,
)

REVSI = tuple(
    Benchmark(
        name=f"revsi-{budget}",
        title=f"ReVSI ({budget} frames)",
        protocols=(OFFICIAL,),
        question_files=(
            *(f"{budget}_frame/{name}" for name in ("*.parquet", "*.jsonl", "*.json")),
            f"*{budget}_frame*.parquet",
            f"data/*{budget}_frame*.parquet",
        ),
        columns=("num_frames", "scene_id", "question_type", "question", "options", "ground_truth"),
        scene_column="scene_id",
        media_paths=partial(_media_paths, budget),
        num_frames=None if budget == "all" else int(budget),
        how_to_get="hf download 3dlg-hcvc/ReVSI --repo-type dataset --local-dir ...",
    )
    for budget in BUDGETS
)
