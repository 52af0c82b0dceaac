"""SPAR-Bench: layout, published rows, and the prompts and scores of lmms-eval, which the authors of SPAR use."""

import re
from collections.abc import Mapping
from typing import Any

from .protocol import Benchmark, Protocol, ReferenceRow, check_known, mean, share_of_tolerances, to_number
from .vsi_bench import CHOICE_SUFFIX, NUMBER_SUFFIXES

# Depths and distances, from one view or several.
LOW = tuple(f"{what}_prediction_{kind}" for kind in ("oc", "oo", "oc_mv", "oo_mv") for what in ("depth", "distance"))
# Without view_change_infer: see `average_tasks`.
MIDDLE = ("position_matching", "camera_motion_infer")
HIGH = (
    *("obj_spatial_relation_oo", "obj_spatial_relation_oc_mv", "obj_spatial_relation_oo_mv"),
    *("spatial_imagination_oc", "spatial_imagination_oo", "spatial_imagination_oc_mv", "spatial_imagination_oo_mv"),
    *("distance_infer_center_oo", "distance_infer_center_oo_mv"),
)
LEVELS = {"low": LOW, "middle": MIDDLE, "high": HIGH}
VIEW_CHANGE = "view_change_infer"
TASKS = (*LOW, *MIDDLE, *HIGH, VIEW_CHANGE)

BOXES = (
    "The values represent the bounding box coordinates normalized to a 0-1000 scale, with the top-left corner as the "
    "origin of the image."
)
# The positive and the negative movement along each of the five axes of a change of view.
AXES = (
    ("move_right", "move_left"),
    ("move_up", "move_down"),
    ("move_forward", "move_backward"),
    ("rotate_right", "rotate_left"),
    ("rotate_up", "rotate_down"),
)
_NUMBERS = re.compile(r"(?<!\^)\d+(?:\.\d+)?")


def write_prompt(record: Mapping[str, Any]) -> str:
    """Write the text that follows the images.

    It begins with an empty line where other benchmarks have a first sentence. A middle-level question is followed by a
    sentence about boxes, other choices by an empty line. A change of view ends with two line breaks.
    """
    kind = _task(record)
    if kind in LOW:
        return f"\n{record['question']}\n{NUMBER_SUFFIXES['default']}"
    note = BOXES if kind in MIDDLE else ""
    return f"\n{record['question']}\n{note}\n{'' if kind == VIEW_CHANGE else CHOICE_SUFFIX}"


def _task(record: Mapping[str, Any]) -> str:
    return check_known("task", record["task"], TASKS)


def _score_choice(prediction: str, truth: str) -> float:
    """Return 1 if the lowercased answer is part of the truth, or begins with a truth of one letter.

    - The empty answer is part of every truth, and so right: a model that answers nothing scores full marks.
    - "t", "left" and "le" are all right for "top left", which some questions have instead of a letter.
    - "A. left", "Apple" and "AB" begin with the letter and are right for "A". "top left" is wrong for "left".
    - Nothing is stripped: " A", "\\nA" and "(A)" are wrong.
    """
    given, wanted = prediction.lower(), truth.lower()
    return float(given in wanted or given[0] == wanted)


def _score_number(prediction: str, truth: str, takes_last: bool) -> float:
    """Mean relative accuracy of one of the numbers in an answer.

    - Questions about several views (`_mv`) score the last number, others the first one.
    - Signs are dropped, so "-1.5" is right for 1.5. The digit after "^" is skipped: "2^3" is 2, and the last number of
      "2^34" is 4.
    - A number ends at any other character: "1,500" is 1, or 500 where the last number counts.
    - An answer without a number scores 0. With several views it counts as -1, which scores 0 for any truth that is not
      negative.
    - Unlike VSI-Bench, a truth of 0 is no error: the difference itself is compared with the tolerances.
    """
    numbers = _NUMBERS.findall(prediction) or (["-1"] if takes_last else [])
    wanted = to_number(truth)
    if not numbers or wanted is None:
        return 0.0
    return share_of_tolerances(_relative_error(float(numbers[-1 if takes_last else 0]), wanted))


def _relative_error(value: float, reference: float) -> float:
    return abs(value - reference) if reference == 0 else abs((value - reference) / reference)


def _score_view_change(prediction: str, truth: str) -> float:
    """Mean relative accuracy over the five axes of a movement such as "move_right:0.5,rotate_left:30".

    - Errors are divided by the answer, not by the truth. So exaggeration costs little: 2 for 1 keeps one tolerance of
      ten, 1 for 2 keeps none. Where the answer leaves out an axis, the truth itself is compared with the tolerances:
      0.04 m keeps all, and one degree none.
    - Opposite movements share an axis: "move_left:-0.5" is "move_right:0.5". Of equal names the last one counts.
    - Unknown names are skipped, also because of a leading space, as the second one in "move_right:0.5, move_up:0.2".
    - Anything but `name:number` between commas scores 0 for the whole answer.
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
    """Score an answer as its task requires; see `_score_choice`, `_score_number` and `_score_view_change`.

    Args:
        record (`Mapping`): Record with `task` and `answer`.
        prediction (`str`): The answer.

    Raises:
        ValueError: If the task is not known.
    """
    kind = _task(record)
    if kind == VIEW_CHANGE:
        return _score_view_change(prediction, record["answer"])
    if kind in LOW:
        return _score_number(prediction, record["answer"], takes_last=kind.endswith("_mv"))
    return _score_choice(prediction, record["answer"])


def average_tasks(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Average tasks, over all and by level, not questions; see `Protocol`.

    `view_change_infer` counts in "overall", but not in "middle", although it is one of the three tasks of that level:
    lmms-eval finds the level of a metric by its name without the last part, and "view_change_infer_vci_metric" has one
    part too many. A level without tasks is left out, where lmms-eval gives 0.
    """
    present = {level: [means[kind] for kind in tasks if kind in means] for level, tasks in LEVELS.items()}
    return {"overall": mean(means.values())} | {level: mean(each) for level, each in present.items() if each}


OFFICIAL = Protocol(
    name="official",
    source="lmms-eval@75571cf, which scores as 04a5103",
    prompt=write_prompt,
    score=score,
    group_by="task",
    groups=TASKS,
    truth="answer",
    average=average_tasks,
    columns={"overall": "Avg.", "low": "Low", "middle": "Middle", "high": "High"},
    max_new_tokens=100,
)

TABLE_2 = "arXiv:2602.21186, Tab. 2"
SPAR_BENCH = Benchmark(
    name="spar-bench",
    title="SPAR-Bench",
    protocols=(OFFICIAL,),
    question_files=("data/test-*.parquet", "test-*.parquet"),
    columns=("id", "task", "question", "answer"),
    id_column="id",
    image_column="image",
    # SPAR-Bench-Tiny and the whole.
    sizes=(1000, 7207),
    how_to_get="hf download jasonzhango/SPAR-Bench --repo-type dataset --local-dir ...",
    published=(
        ReferenceRow("Qwen2.5-VL-3B", {"overall": 24.6}, TABLE_2),
        ReferenceRow("SpatialLadder-3B", {"overall": 34.4}, TABLE_2),
        ReferenceRow("Spatial-MLLM-4B", {"overall": 35.1}, TABLE_2),
        ReferenceRow("SpaceR-7B", {"overall": 37.6}, TABLE_2),
        ReferenceRow("Spa3-VLM", {"overall": 58.4}, TABLE_2),
    ),
)
