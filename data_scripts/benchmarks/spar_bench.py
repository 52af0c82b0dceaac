"""SPAR-Bench: prompts, scores and aggregates of lmms-eval, in which the benchmark's authors report."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .protocol import Protocol, average_groups, check_groups, check_known, mean, share_of_tolerances, to_number
from .vsi_bench import CHOICE_SUFFIX, NUMBER_SUFFIXES

__all__ = ["PROTOCOLS", "aggregate"]

# Depths and distances, from one view or several.
LOW = tuple(f"{what}_prediction_{kind}" for kind in ("oc", "oo", "oc_mv", "oo_mv") for what in ("depth", "distance"))
# Without view_change_infer: see `aggregate`.
MIDDLE = ("position_matching", "camera_motion_infer")
HIGH = (
    *("obj_spatial_relation_oo", "obj_spatial_relation_oc_mv", "obj_spatial_relation_oo_mv"),
    *("spatial_imagination_oc", "spatial_imagination_oo", "spatial_imagination_oc_mv", "spatial_imagination_oo_mv"),
    *("distance_infer_center_oo", "distance_infer_center_oo_mv"),
)
LEVELS = {"low": LOW, "middle": MIDDLE, "high": HIGH}
VIEW_CHANGE = "view_change_infer"
TASKS = (*LOW, *MIDDLE, *HIGH, VIEW_CHANGE)
COLUMNS = {"overall": "Avg.", "low": "Low", "middle": "Middle", "high": "High"}

BOXES = (
    "The values represent the bounding box coordinates normalized to a 0-1000 scale, with the top-left corner as the "
    "origin of the image."
)
# What is counted as positive and as negative along the five axes of a change of view.
AXES = (
    ("move_right", "move_left"),
    ("move_up", "move_down"),
    ("move_forward", "move_backward"),
    ("rotate_right", "rotate_left"),
    ("rotate_up", "rotate_down"),
)
_NUMBERS = re.compile(r"(?<!\^)\d+(?:\.\d+)?")


def task(record: Mapping[str, Any]) -> str:
    """The task of a record; `ValueError` if SPAR-Bench has none such."""
    return check_known("The task", record["task"], TASKS)


def write_prompt(record: Mapping[str, Any]) -> str:
    """Text that follows the images.

    It begins with an empty line, where other benchmarks have a lead. Before the suffix of a choice comes a sentence on
    boxes, or where there are none, an empty line; a change of view is followed by two line breaks and nothing.
    """
    kind = task(record)
    if kind in LOW:
        return f"\n{record['question']}\n{NUMBER_SUFFIXES['default']}"
    note = BOXES if kind in MIDDLE else ""
    return f"\n{record['question']}\n{note}\n{'' if kind == VIEW_CHANGE else CHOICE_SUFFIX}"


def _score_choice(prediction: str, truth: str) -> float:
    """1 if an answer, in small letters, is part of the truth, or begins with a truth of one letter.

    - An empty answer is part of everything, and right. It matters: a model that says nothing gets full marks.
    - "t", "left" and "le" are all right for "top left", which some questions have instead of a letter.
    - "A. left", "Apple" and "AB" begin with the letter and are right for "A". "top left" is wrong for "left".
    - Nothing is stripped: " A", "\\nA" and "(A)" are wrong.
    """
    given, wanted = prediction.lower(), truth.lower()
    return float(given in wanted or given[0] == wanted)


def _score_number(prediction: str, truth: str, takes_last: bool) -> float:
    """Mean relative accuracy of one of the numbers in an answer.

    - Questions of several views (`_mv`) take the last number, others the first: "2.5 then 1.5" is 1.5 in one and 2.5
      in the other.
    - Signs are dropped, so "-1.5" is right for 1.5, and what follows "^" is passed over: "2^3" is 2. Of "2^34" only
      the first digit is, so its last number is 4.
    - Digits end at whatever else: "1,500" is 1, or 500 where the last number counts.
    - An answer without number scores 0; with several views it is taken as -1, which scores 0, too, for all truths that
      are not negative.
    - Unlike VSI-Bench's, a truth of 0 is no error: the difference itself is compared with the tolerances.
    """
    numbers = _NUMBERS.findall(prediction) or (["-1"] if takes_last else [])
    wanted = to_number(truth)
    if not numbers or wanted is None:
        return 0.0
    return share_of_tolerances(_relative_error(float(numbers[-1 if takes_last else 0]), wanted))


def _relative_error(value: float, reference: float) -> float:
    return abs(value - reference) if reference == 0 else abs((value - reference) / reference)


def _score_view_change(prediction: str, truth: str) -> float:
    """Mean over five axes of the mean relative accuracy of a movement such as "move_right:0.5,rotate_left:30".

    - The roles are swapped: errors are divided by what the model says. So exaggerations cost little: 2 for 1 keeps one
      tolerance of ten, where 1 for 2 keeps none. Where nothing is said of an axis, the truth itself is compared
      with the tolerances: 0.04 m keeps all, and a degree none.
    - Opposite movements are one axis, so "move_left:-0.5" is "move_right:0.5"; the last of equal ones counts.
    - Movements with a name that is not known are passed over, also for a leading space: of "move_right:0.5,
      move_up:0.2" the second is.
    - Anything that is not `name:number` between commas, anywhere, scores 0 for the whole.
    """
    given, wanted = _parse_movements(prediction), _parse_movements(truth)
    if given is None or wanted is None:
        return 0.0
    moves = [[each.get(plus, 0.0) - each.get(minus, 0.0) for plus, minus in AXES] for each in (given, wanted)]
    return mean([share_of_tolerances(_relative_error(true, told)) for told, true in zip(*moves, strict=True)])


def _parse_movements(text: str) -> dict[str, float] | None:
    movements = {}
    for item in text.split(","):
        name, *amounts = item.split(":")
        amount = to_number(amounts[0]) if len(amounts) == 1 else None
        if amount is None:
            return None
        movements[name] = amount
    return movements


def score(record: Mapping[str, Any], prediction: str) -> float:
    """Score an answer as its task asks; see `_score_choice`, `_score_number` and `_score_view_change`.

    Args:
        record (`Mapping`): Its `task` and `answer` are used.
        prediction (`str`): The answer.
    """
    kind = task(record)
    if kind == VIEW_CHANGE:
        return _score_view_change(prediction, record["answer"])
    if kind in LOW:
        return _score_number(prediction, record["answer"], takes_last=kind.endswith("_mv"))
    return _score_choice(prediction, record["answer"])


def _average_levels(means: Mapping[str, float]) -> dict[str, float]:
    """Overall, low, middle and high by means of tasks; levels of which there is no task are left out."""
    present = {level: [means[kind] for kind in tasks if kind in means] for level, tasks in LEVELS.items()}
    return {"overall": mean(means.values())} | {level: mean(each) for level, each in present.items() if each}


def summarize(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Plain means of tasks, over all and by level; see `Protocol` and, for what `middle` lacks, `aggregate`."""
    check_groups("SPAR-Bench", "The task", means, TASKS)
    return _average_levels(means)


def aggregate(tasks: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """lmms-eval's metrics, under its keys, as fractions; only what it prints as `sparbench_score` is 100 x `overall`.

    - Overall is the plain mean of the tasks that there are, not of the questions or levels.
    - `view_change_infer` is one of the three tasks of `middle`, but does not count there: levels are found by the key
      without its last part, and "view_change_infer_vci_metric" has one part too many. It does count in `overall`.
    - A level without tasks is 0, not missing, and so is `overall` without any.

    Args:
        tasks (`Sequence[str]`): Of each answer.
        scores (`Sequence[float]`): Of each answer.
    """
    means, _ = average_groups(tasks, scores)
    by_task = {_key(check_known("The task", kind, TASKS)): means[kind] for kind in sorted(means)}
    return by_task | dict.fromkeys(COLUMNS, 0.0) | (_average_levels(means) if means else {})


def _key(kind: str) -> str:
    metrics = dict.fromkeys(LOW, "MRA:.5:.95:.05") | {VIEW_CHANGE: "vci_metric"}
    return f"{kind}_{metrics.get(kind, 'accuracy')}"


PROTOCOLS = {
    "official": Protocol(
        name="official",
        source="lmms-eval@75571cf, which scores as 04a5103",
        prompt=write_prompt,
        score=score,
        group=task,
        summarize=summarize,
        columns=COLUMNS,
        max_new_tokens=100,
    )
}
