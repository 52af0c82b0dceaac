"""CV-Bench: layout, published rows, and the prompts and scores of VG-LLM (which papers report) and of lmms-eval."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from .protocol import Benchmark, Protocol, ReferenceRow, mean, mean_of_all
from .vsi_bench import CHOICE_SUFFIX, LEAD

# Data sets that the images are from.
HALVES = {"2D": ("ADE20K", "COCO"), "3D": ("Omni3D",)}
_OPENING_LETTER = re.compile(r"[(\s]*([A-Z])", re.IGNORECASE)
_CAPITAL = re.compile("[A-F]")


def write_prompt_paper(record: Mapping[str, Any]) -> str:
    """Write VG-LLM's prompt, which letters the choices itself and, as for VSI-Bench, calls the image a video."""
    choices = "".join(
        f"{letter}. {choice}\n" for letter, choice in zip(ascii_uppercase, record["choices"], strict=False)
    )
    return f"{LEAD}{record['question']}\nOptions:\n{choices}{CHOICE_SUFFIX}"


def write_prompt_lmms_eval(record: Mapping[str, Any]) -> str:
    """Write lmms-eval's prompt: the letters to choose from, then the published `prompt`, which lists the choices."""
    letters = ", ".join(ascii_uppercase[: len(record["choices"])])
    note = f"Note: You only need to respond with {letters} without providing any additional information."
    return f"{note}\n\n{record['prompt']}"


def find_capital(prediction: str) -> str:
    """Return the letter that VG-LLM scores: the first capital from A to F anywhere in an answer, or "".

    - Small letters never count: "a", "(b)" and "the answer is b" have no letter.
    - Capitals inside words count: "Based on the image, A" is B, "Depth" is D, "Cabinet" is C.
    - VG-LLM first removes phrases such as "The answer is". None has such a capital except "Best answer:" and "Best
      option:", which a missing comma joins in its list. So "Best answer: A" is B.
    """
    found = _CAPITAL.search(prediction.replace("Best answer:Best option:", ""))
    return found.group() if found else ""


def find_opening_letter(prediction: str) -> str:
    """Return the letter that lmms-eval scores: the first of an answer, as a capital, or "".

    - Only brackets and whitespace may stand before it: "[B]", "**B**" and "'B'" have no letter.
    - A whole word counts as its first letter: "apple" is A, "bed" is B, and "The answer is A" is T.
    """
    found = _OPENING_LETTER.match(prediction.strip())
    return found.group(1).upper() if found else ""


def score_paper(record: Mapping[str, Any], prediction: str) -> float:
    """Return 1 if the letter of `find_capital` is the one in the brackets of `answer`, as in "(B)"."""
    return float(find_capital(prediction) == record["answer"][1])


def score_lmms_eval(record: Mapping[str, Any], prediction: str) -> float:
    """Return 1 if the letter of `find_opening_letter` is `answer` without its brackets."""
    return float(find_opening_letter(prediction) == record["answer"].strip("()"))


def _average_halves(means: Mapping[str, float], average: Callable[[dict[str, float]], float]) -> dict[str, float]:
    present = {half: {each: means[each] for each in sources if each in means} for half, sources in HALVES.items()}
    return {half: average(each) for half, each in present.items() if each}


def average_paper(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Average as CV-Bench's paper: ((ADE20K + COCO) / 2 + Omni3D) / 2, and its halves; see `Protocol`.

    So a question of Omni3D weighs more than one of ADE20K or COCO. VG-LLM gives NaN if a source is missing.
    """
    halves = _average_halves(means, lambda each: mean(each.values()))
    return {"overall": mean(halves.values())} | halves


def average_lmms_eval(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Average over all questions, and over those of 2D and of 3D; see `Protocol`."""
    return {"overall": mean_of_all(means, counts)} | _average_halves(means, lambda each: mean_of_all(each, counts))


PAPER = Protocol(
    name="paper",
    source="VG-LLM's CV-Bench: the first capital A to F; 2D and 3D count alike",
    prompt=write_prompt_paper,
    score=score_paper,
    group_by="source",
    groups=(*HALVES["2D"], *HALVES["3D"]),
    truth="answer",
    average=average_paper,
    columns={"overall": "Avg.", "2D": "2D", "3D": "3D"},
    max_new_tokens=16,
)
LMMS_EVAL = replace(
    PAPER,
    name="lmms-eval",
    source="lmms-eval@75571cf: the opening letter; all questions count alike",
    prompt=write_prompt_lmms_eval,
    score=score_lmms_eval,
    average=average_lmms_eval,
    max_new_tokens=1024,
)

TABLE_2 = "arXiv:2602.21186, Tab. 2"
CV_BENCH = Benchmark(
    name="cv-bench",
    title="CV-Bench",
    protocols=(PAPER, LMMS_EVAL),
    question_files=("test_[23]d.parquet", "test.parquet"),
    columns=("idx", "type", "task", "question", "choices", "answer", "prompt", "source"),
    id_column="idx",
    image_column="image",
    sizes=(2638,),
    how_to_get="hf download nyu-visionx/CV-Bench --repo-type dataset --local-dir ...",
    published=(
        ReferenceRow("Qwen2.5-VL-3B", {"overall": 70.6, "2D": 69.1, "3D": 72.2}, TABLE_2),
        ReferenceRow("SpatialLadder-3B", {"overall": 73.7, "2D": 72.4, "3D": 74.9}, TABLE_2),
        ReferenceRow("Spatial-MLLM-4B", {"overall": 73.8}, TABLE_2),
        ReferenceRow("SpatialThinker-3B", {"overall": 73.6, "2D": 71.0, "3D": 76.3}, TABLE_2),
        ReferenceRow("Spa3-VLM", {"overall": 75.6, "2D": 72.9, "3D": 78.3}, TABLE_2),
    ),
)
