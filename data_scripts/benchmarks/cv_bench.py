"""CV-Bench: prompts, scores and aggregates of VG-LLM, whose numbers papers compare, and of lmms-eval."""

import math
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from .protocol import Protocol, average_groups, check_groups, check_known, mean, mean_of_all
from .vsi_bench import CHOICE_SUFFIX, LEAD

__all__ = ["PROTOCOLS", "aggregate"]

SOURCES_2D = ("ADE20K", "COCO")
SOURCES_3D = ("Omni3D",)
SOURCES = (*SOURCES_2D, *SOURCES_3D)
COLUMNS = {"overall": "Avg.", "2D": "2D", "3D": "3D"}
_OPENING_LETTER = re.compile(r"[(\s]*([A-Z])", re.IGNORECASE)
_CAPITAL = re.compile("[A-F]")


def source(record: Mapping[str, Any]) -> str:
    """The data set that an image is from; `ValueError` if CV-Bench has none such."""
    return check_known("The source", record["source"], SOURCES)


def write_prompt_paper(record: Mapping[str, Any]) -> str:
    """VG-LLM's text, which calls the image frames of a video, as for VSI-Bench, and letters the choices itself."""
    choices = "".join(
        f"{letter}. {choice}\n" for letter, choice in zip(ascii_uppercase, record["choices"], strict=False)
    )
    return f"{LEAD}{record['question']}\nOptions:\n{choices}{CHOICE_SUFFIX}"


def write_prompt_lmms_eval(record: Mapping[str, Any]) -> str:
    """lmms-eval's text: letters that may be answered, then the published `prompt`, which lists the choices."""
    letters = ", ".join(ascii_uppercase[: len(record["choices"])])
    note = f"Note: You only need to respond with {letters} without providing any additional information."
    return f"{note}\n\n{record['prompt']}"


def find_capital(prediction: str) -> str:
    """The letter that VG-LLM takes: the first of the capitals A to F, wherever it stands, or none.

    - Small letters never count: "a", "(b)" and "the answer is b" are no letter.
    - Capitals count inside of words: "Based on the image, A" is B, "Depth" is D, "Cabinet" is C.
    - Phrases such as "The answer is" are removed before, which changes nothing, as none has such a capital. One would,
      but two entries of the list have grown together, "Best answer:" and "Best option:": so "Best answer: A" is B.
    """
    found = _CAPITAL.search(prediction.replace("Best answer:Best option:", ""))
    return found.group() if found else ""


def find_opening_letter(prediction: str) -> str:
    """The letter that lmms-eval takes: the first of an answer, in capitals, after brackets and space at most, or none.

    - Whole words count as their first letter: "apple" is A, "bed" is B, and "The answer is A" is T.
    - Any other sign before the letter is fatal: "[B]", "**B**" and "'B'" are no letter.
    """
    found = _OPENING_LETTER.match(prediction.strip())
    return found.group(1).upper() if found else ""


def score_paper(record: Mapping[str, Any], prediction: str) -> float:
    """1 if the letter of `find_capital` is the one in the brackets of `answer`, "(B)"."""
    return float(find_capital(prediction) == record["answer"][1])


def score_lmms_eval(record: Mapping[str, Any], prediction: str) -> float:
    """1 if the letter of `find_opening_letter` is `answer` without its brackets."""
    return float(find_opening_letter(prediction) == record["answer"].strip("()"))


def _combine(means: Mapping[str, float]) -> dict[str, float]:
    """Overall, 2D and 3D by means of sources: 2D is the mean of two sources, and overall that of 2D and 3D.

    So each of Omni3D's questions counts more than one of ADE20K or COCO. What there is no mean of is left out.
    """
    halves = {}
    for name, sources in (("2D", SOURCES_2D), ("3D", SOURCES_3D)):
        present = [means[each] for each in sources if each in means]
        halves |= {name: mean(present)} if present else {}
    return {"overall": mean(halves.values())} | halves


def summarize_paper(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """The combined score of CV-Bench's paper, ((ADE20K + COCO) / 2 + Omni3D) / 2, and its halves; see `Protocol`."""
    check_groups("CV-Bench", "The source", means, SOURCES)
    return _combine(means)


def summarize_lmms_eval(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """The share of right answers over all questions, and over those of 2D and 3D; see `Protocol`."""
    check_groups("CV-Bench", "The source", means, SOURCES)
    columns = {"overall": mean_of_all(means, counts)}
    for column, sources in (("2D", SOURCES_2D), ("3D", SOURCES_3D)):
        present = {each: means[each] for each in sources if each in means}
        columns |= {column: mean_of_all(present, counts)} if present else {}
    return columns


def aggregate(sources: Sequence[str], scores: Sequence[float], code: str = "vg-llm") -> dict[str, float]:
    """What some official code prints, under its keys and in its scale.

    - `vg-llm`: `combined_times100`, in percent; not a number if a source is missing.
    - `lmms-eval`: `accuracy`, the share of right answers; 0 if there are none.
    - `lmms-eval-original-formula`: `original_formula`, VG-LLM's as a fraction, which is in lmms-eval's code but not
      called. A `KeyError` if a source is missing.

    Args:
        sources (`Sequence[str]`): Of each answer.
        scores (`Sequence[float]`): Of each answer, under the protocol of that code.
        code (`str`, *optional*, defaults to `"vg-llm"`): Whose.
    """
    check_known("The code", code, ("vg-llm", "lmms-eval", "lmms-eval-original-formula"))
    if code == "lmms-eval":
        return {"accuracy": mean(scores) if scores else 0.0}
    means, _ = average_groups(sources, scores)
    means = {check_known("The source", each, SOURCES): value for each, value in means.items()}
    missing = [each for each in SOURCES if each not in means]
    if code == "vg-llm":
        return {"combined_times100": math.nan if missing else 100 * _combine(means)["overall"]}
    if missing:
        raise KeyError(missing[0])
    return {"original_formula": _combine(means)["overall"]}


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="paper",
            source="VG-LLM's CV-Bench: the first capital A to F; 2D and 3D count alike",
            prompt=write_prompt_paper,
            score=score_paper,
            group=source,
            summarize=summarize_paper,
            columns=COLUMNS,
            max_new_tokens=16,
        ),
        Protocol(
            name="lmms-eval",
            source="lmms-eval@75571cf: the opening letter; all questions count alike",
            prompt=write_prompt_lmms_eval,
            score=score_lmms_eval,
            group=source,
            summarize=summarize_lmms_eval,
            columns=COLUMNS,
            max_new_tokens=1024,
        ),
    )
}
