"""ViewSpatial-Bench: its files, its prompt and scores by lmms-eval, and published figures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .protocol import Benchmark, Protocol, ReferenceRow, mean_of_all

HEADINGS = {
    "Camera perspective - Relative Direction": "Camera: Rel. Dir.",
    "Camera perspective - Object View Orientation": "Camera: View Ori.",
    "Person perspective - Relative Direction": "Person: Rel. Dir.",
    "Person perspective - Object View Orientation": "Person: View Ori.",
    "Person perspective - Scene Simulation Relative Direction": "Person: Sim. Rel. Dir.",
}
# By question type: lmms-eval's key of its column, to which lmms-eval adds "_accuracy".
TYPES = {kind: kind.lower().replace(" - ", "_").replace(" ", "_") for kind in HEADINGS}
_OPTION = re.compile(r"\b[A-D]\b", re.IGNORECASE)


def write_prompt(record: Mapping[str, Any]) -> str:
    """Write the text that follows the images. `choices` is one text of several lines, as published."""
    asked = f"Question: {record['question']}\nChoices: {record['choices']}"
    return f"{asked}\nReply only to the corresponding option.\nAnswer:"


def find_option(text: str) -> str | None:
    """Return the first letter from A to D that stands alone, as a capital, or `None`.

    An article is such a letter: "A chair is at B" and "I think it is a b" are A. Digits and underscores join a letter
    to a word: "A1" and "_A_" have none.
    """
    found = _OPTION.search(text)
    return found.group().upper() if found else None


def score(record: Mapping[str, Any], prediction: str) -> float:
    """Return 1 if the letter in the last line of an answer is the one in `answer`; see `find_option`.

    - Only the last line counts, so reasons may come first. A line break at the end leaves an empty last line: "A\\n"
      is wrong.
    - If the truth has no letter, an answer without one is right. All published truths have one.

    Args:
        record (`Mapping`): Record with `answer`, such as "A. front".
        prediction (`str`): The answer.
    """
    return float(find_option(prediction.rpartition("\n")[2]) == find_option(record["answer"]))


def average_types(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Average over all questions, so that large types count more, and by type; see `Protocol`."""
    return {"overall": mean_of_all(means, counts)} | {
        column: means[kind] for kind, column in TYPES.items() if kind in means
    }


def _image_paths(record: Mapping[str, Any]) -> Sequence[str]:
    listed = record.get("image_path") or []
    return [listed] if isinstance(listed, str) else listed


OFFICIAL = Protocol(
    name="official",
    source="lmms-eval@75571cf, which scores as 04a5103",
    prompt=write_prompt,
    score=score,
    group_by="question_type",
    groups=tuple(TYPES),
    truth="answer",
    average=average_types,
    columns={"overall": "Avg."} | {TYPES[kind]: heading for kind, heading in HEADINGS.items()},
    # lmms-eval leaves the limit to the model. This is far beyond what an option needs.
    max_new_tokens=1024,
)

TABLE_2 = "arXiv:2602.21186, Tab. 2"
VIEWSPATIAL_BENCH = Benchmark(
    name="viewspatial-bench",
    title="ViewSpatial-Bench",
    protocols=(OFFICIAL,),
    # The second is the mirror for lmms-eval, with images inside.
    question_files=("ViewSpatial-Bench.json", "data/test-*.parquet", "test-*.parquet"),
    columns=("question_type", "question", "choices", "answer"),
    image_column="images",
    media_paths=_image_paths,
    # Published paths begin with it, but the published zip files unpack to scannetv2_val/ and val2017/.
    leading_folder="ViewSpatial-Bench/",
    sizes=(5712,),
    how_to_get="hf download lidingm/ViewSpatial-Bench --repo-type dataset --local-dir ...",
    published=(
        ReferenceRow("Qwen2.5-VL-3B", {"overall": 35.6}, TABLE_2),
        ReferenceRow("SpatialLadder-3B", {"overall": 44.2}, TABLE_2),
        ReferenceRow("Spatial-MLLM-4B", {"overall": 43.6}, TABLE_2),
        ReferenceRow("SpaceR-7B", {"overall": 37.3}, TABLE_2),
        ReferenceRow("Spa3-VLM", {"overall": 43.9}, TABLE_2),
    ),
)
