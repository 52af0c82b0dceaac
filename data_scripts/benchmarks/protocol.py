"""What all benchmarks have in common: a named protocol, and the arithmetic of scores."""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "TOLERANCES",
    "Protocol",
    "average_groups",
    "check_groups",
    "check_known",
    "mean",
    "mean_of_all",
    "score_answer",
    "share_of_tolerances",
    "summarize_answers",
    "to_number",
]

# VSI-Bench's tolerances of the relative error, bit for bit.
TOLERANCES = 1 - np.linspace(0.5, 0.95, 10)
# The same as Python floats: comparing ten of them costs less than one call of NumPy.
_TOLERANCES = tuple(TOLERANCES.tolist())


@dataclass(frozen=True)
class Protocol:
    """How the questions of a benchmark are worded, scored and summarized.

    Scores under two protocols are not comparable, which is why each has a name that every report tells.

    Args:
        name (`str`): What users call it.
        source (`str`): Whose code it follows, at which commit, in one phrase.
        prompt (`Callable`): Text that follows the images, by a record of the benchmark.
        score (`Callable`): Score in [0, 1] of a record and the text that was answered, as the official code gives it.
        group (`Callable`): What a record is averaged with (question type, task, source); `ValueError` if not known.
        summarize (`Callable`):
            Columns of a report in order, as fractions, "overall" first, by the mean and the number of scores of each
            group. Warns once of groups that are missing; columns of which nothing is known are left out.
        columns (`Mapping[str, str]`): Headings of these columns.
        max_new_tokens (`int`): Most tokens of an answer.
    """

    name: str
    source: str
    prompt: Callable[[Mapping[str, Any]], str]
    score: Callable[[Mapping[str, Any], str], float]
    group: Callable[[Mapping[str, Any]], str]
    summarize: Callable[[Mapping[str, float], Mapping[str, int]], dict[str, float]]
    columns: Mapping[str, str]
    max_new_tokens: int


def score_answer(protocol: Protocol, record: Mapping[str, Any], answer: str) -> float:
    """Score an answer as official evaluations do: lmms-eval, by which all of them run, takes the space at both ends of
    an answer away before a scorer sees it, to many of which " A" is wrong.

    Args:
        protocol (`Protocol`): Whose scorer.
        record (`Mapping`): The question's.
        answer (`str`): As the model wrote it.
    """
    return float(protocol.score(record, answer.strip()))


def summarize_answers(
    protocol: Protocol, records: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> dict[str, float]:
    """Score answers and summarize the scores.

    Args:
        protocol (`Protocol`): How.
        records (`Sequence[Mapping]`): Of each, the fields that the protocol scores by suffice.
        predictions (`Sequence[str]`): The answers, in the order of the records.

    Returns:
        `dict[str, float]`: Columns of a report, as fractions.

    Raises:
        ValueError: If there is no answer, not one for each record, or a record of a type that is not known.
    """
    if not records or len(predictions) != len(records):
        raise ValueError(
            f"Scoring takes one answer for each record, and at least one; got {len(predictions)} answers for "
            f"{len(records)} records."
        )
    groups = [protocol.group(record) for record in records]
    scores = [score_answer(protocol, *answered) for answered in zip(records, predictions, strict=True)]
    return protocol.summarize(*average_groups(groups, scores))


def share_of_tolerances(error: float) -> float:
    """Mean relative accuracy: the share of VSI-Bench's ten tolerances 0.5, 0.45, ..., 0.05 that an error keeps.

    - The tolerances are `1 - linspace(0.5, 0.95, 10)` to the bit, so that errors at a tolerance fall as officially. It
      matters since ground truth is rounded: 1.1 for 1 keeps nine tolerances, although 0.1 is not exactly one of them.
    - An error that equals a tolerance keeps it, where the paper's formula has "less than".
    - An error that is no number (infinity for infinity) keeps none, a negative one keeps all.
    """
    return sum(error <= tolerance for tolerance in _TOLERANCES) / len(_TOLERANCES)


def to_number(text: str) -> float | None:
    """The number that Python reads in a text, or `None`.

    "1e1", "+3", ".5", "1_000", "inf", "nan" and digits of other scripts are numbers; "1,200" and "3 m" are not.
    """
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def mean(values: Collection[float]) -> float:
    """The mean, whatever the order of the values; not a number, if there are none."""
    return math.fsum(values) / len(values) if values else math.nan


def average_groups(groups: Iterable[str], scores: Iterable[float]) -> tuple[dict[str, float], dict[str, int]]:
    """Mean and number of the scores of each group, in the order in which the groups come first."""
    collected: dict[str, list[float]] = {}
    for group, score in zip(groups, scores, strict=True):
        collected.setdefault(group, []).append(score)
    means = {group: mean(each) for group, each in collected.items()}
    return means, {group: len(each) for group, each in collected.items()}


def mean_of_all(means: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """The mean of the scores of all groups together, so that large groups count more; see `average_groups`."""
    total = sum(counts[group] for group in means)
    return math.fsum(means[group] * counts[group] for group in means) / total if total else math.nan


def check_known(what: str, value: str, known: Collection[str]) -> str:
    """Give back a value that must be one of some.

    Raises:
        ValueError: If it is not.
    """
    if value not in known:
        raise ValueError(f"{what} `{value}` is not known; known are {', '.join(known)}.")
    return value


def check_groups(benchmark: str, what: str, present: Collection[str], known: Collection[str]):
    """Refuse groups that are not known, and warn, once for the same ones, of those of which there is no answer.

    Raises:
        ValueError: By the first that is not known.
    """
    for group in present:
        check_known(what, group, known)
    missing = [group for group in known if group not in present]
    if missing:
        # Told as of this line, whoever calls, so that Python shows the same text once.
        warnings.warn(
            f"{benchmark}: there are no answers to questions of {', '.join(missing)}, so means are of the others, and "
            "not comparable with those of the whole benchmark.",
            stacklevel=1,
        )
