"""What a benchmark is, how its answers are scored, and the arithmetic that all benchmarks share."""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# VSI-Bench's tolerances of the relative error, bit for bit.
TOLERANCES = 1 - np.linspace(0.5, 0.95, 10)
# The same as Python floats: comparing ten of them costs less than one call of NumPy.
_TOLERANCES = tuple(TOLERANCES.tolist())


class ReferenceRow(NamedTuple):
    """
    Figures of another model, shown beside a run.

    label (`str`):
        The model.
    columns (`dict[str, float]`):
        Percent, by the keys of `Protocol.columns`. Columns without a figure are left out.
    source (`str`):
        Where the figures come from.
    """

    label: str
    columns: dict[str, float]
    source: str


@dataclass(frozen=True)
class Protocol:
    """How the questions of a benchmark are worded, scored and summarized.

    Scores under different protocols cannot be compared, so every report names its protocol.

    Args:
        name (`str`): Name on the command line.
        source (`str`): The code that the protocol follows, with its commit.
        prompt (`Callable`): Returns the text that follows the images, given a record of the benchmark.
        score (`Callable`): Scores an answer in [0, 1] as the official code does, given a record and the answer.
        group_by (`str`): Column of a record that says which scores are averaged together.
        groups (`tuple[str, ...]`): All values of that column.
        truth (`str`): Column of a record that holds the right answer.
        average (`Callable`):
            Returns the columns of a report as fractions, "overall" first, given the mean score and the number of
            questions of each group. Groups may be missing; a column without any group is left out.
        columns (`Mapping[str, str]`): Headings of these columns.
        max_new_tokens (`int`): Most tokens of an answer.
    """

    name: str
    source: str
    prompt: Callable[[Mapping[str, Any]], str]
    score: Callable[[Mapping[str, Any], str], float]
    group_by: str
    groups: tuple[str, ...]
    truth: str
    average: Callable[[Mapping[str, float], Mapping[str, int]], dict[str, float]]
    columns: Mapping[str, str]
    max_new_tokens: int

    def group(self, record: Mapping[str, Any]) -> str:
        """Return the group of a record; raises `ValueError` if the benchmark has no such group."""
        return check_known(self.group_by, record[self.group_by], self.groups)

    def summarize(self, means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
        """Turn scores of groups into the columns of a report. Warns, once for each text, about missing groups.

        Args:
            means (`Mapping[str, float]`): Mean score of each group.
            counts (`Mapping[str, int]`): Number of questions of each group.

        Returns:
            `dict[str, float]`: Fractions by column, "overall" first.

        Raises:
            ValueError: If the benchmark has no such group.
        """
        for group in means:
            check_known(self.group_by, group, self.groups)
        missing = [group for group in self.groups if group not in means]
        if missing:
            warnings.warn(
                f"No answers to questions of {', '.join(missing)}: averages cover the other groups, and cannot be "
                "compared with those of the whole benchmark.",
                # Attributed to this line, not the caller's, so that Python shows the same text once.
                stacklevel=1,
            )
        return self.average(means, counts)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what is published, where its images lie, how answers are scored, and what others reached.

    Args:
        name (`str`): Name on the command line.
        title (`str`): Name in prose.
        protocols (`tuple[Protocol, ...]`): Ways to score it. The first is the default; published figures use it.
        question_files (`tuple[str, ...]`): Patterns of the files of questions. The first that matches counts.
        columns (`tuple[str, ...]`): Columns that every question must have.
        id_column (`str`, *optional*): Column of ids. Without one, questions are numbered from 0.
        scene_column (`str`, *optional*):
            Column of scenes. Without one, a question's scene is the ScanNet scene that an image's path names, or the
            images themselves.
        image_column (`str`, *optional*): Column of images inside Parquet files.
        media_paths (`Callable`, *optional*):
            Returns the paths of a record's videos, images or folders of frames, relative to the media folder.
        leading_folder (`str`): First folder of published paths that may be missing on disk, with its slash.
        keep (`Callable`, *optional*): Whether a record is a question of this benchmark; by default all are.
        num_frames (`int`, *optional*): Frames that the answers hold for; another number of frames is refused.
        sizes (`tuple[int, ...]`): Numbers of questions of the published sets, ascending.
        how_to_get (`str`): Command that downloads or makes it.
        published (`tuple[ReferenceRow, ...]`): Published figures.
        check_folders (`Callable`, *optional*):
            Raises `ValueError` if the folder of questions and the media folder, its arguments, do not belong together.
        read_baselines (`Callable`, *optional*):
            Reads what answers without images score, as fractions by label and group, from the folder of questions.
    """

    name: str
    title: str
    protocols: tuple[Protocol, ...]
    question_files: tuple[str, ...]
    columns: tuple[str, ...]
    id_column: str | None = None
    scene_column: str | None = None
    image_column: str | None = None
    media_paths: Callable[[Mapping[str, Any]], Sequence[str]] | None = None
    leading_folder: str = ""
    keep: Callable[[Mapping[str, Any]], bool] | None = None
    num_frames: int | None = None
    sizes: tuple[int, ...] = ()
    how_to_get: str = ""
    published: tuple[ReferenceRow, ...] = ()
    check_folders: Callable[[Path, Path], None] | None = None
    read_baselines: Callable[[Path], dict[str, dict[str, float]]] | None = None

    def protocol(self, name: str | None = None) -> Protocol:
        """Return a protocol by its name, or the default one.

        Raises:
            ValueError: If there is no such protocol.
        """
        for protocol in self.protocols:
            if name in (None, protocol.name):
                return protocol
        names = ", ".join(protocol.name for protocol in self.protocols)
        raise ValueError(f"`{self.name}` has no protocol `{name}`; choose one of {names}.")


def score_answer(protocol: Protocol, record: Mapping[str, Any], answer: str) -> float:
    """Score an answer without the whitespace around it.

    All official evaluations run in lmms-eval, which strips an answer before a scorer sees it. Many scorers would
    count " A" as wrong.
    """
    return float(protocol.score(record, answer.strip()))


def summarize_answers(
    protocol: Protocol, records: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> dict[str, float]:
    """Score answers and summarize the scores.

    Args:
        protocol (`Protocol`): The protocol.
        records (`Sequence[Mapping]`): Records with at least the columns `protocol.group_by` and `protocol.truth`.
        predictions (`Sequence[str]`): One answer for each record.

    Returns:
        `dict[str, float]`: Fractions by column.

    Raises:
        ValueError: If there are no answers, not one for each record, or the benchmark has no such group.
    """
    if not records or len(predictions) != len(records):
        raise ValueError(
            f"`predictions` must hold one answer for each of `records`, and at least one; got {len(predictions)} "
            f"answers for {len(records)} records."
        )
    groups = [protocol.group(record) for record in records]
    scores = [score_answer(protocol, *answered) for answered in zip(records, predictions, strict=True)]
    return protocol.summarize(*average_groups(groups, scores))


def share_of_tolerances(error: float) -> float:
    """Mean relative accuracy: the share of VSI-Bench's ten tolerances 0.5, 0.45, ..., 0.05 that an error keeps.

    - The tolerances are `1 - linspace(0.5, 0.95, 10)` to the bit, so that an error at a tolerance counts as in the
      official code. Such errors are common, because ground truth is rounded: 1.1 for 1 keeps nine tolerances, although
      0.1 is not exact.
    - An error that equals a tolerance keeps it, where the formula of VSI-Bench's paper says "less than".
    - NaN, the error of infinity for infinity, keeps none; a negative error keeps all.
    """
    return sum(error <= tolerance for tolerance in _TOLERANCES) / len(_TOLERANCES)


def to_number(text: str) -> float | None:
    """Read a number as Python's `float` does, or return `None`.

    "1e1", "+3", ".5", "1_000", "inf", "nan" and digits of other scripts are numbers; "1,200" and "3 m" are not.
    """
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def mean(values: Collection[float]) -> float:
    """Average values, independent of their order to the last bit; NaN if there are none."""
    return math.fsum(values) / len(values) if values else math.nan


def average_groups(groups: Iterable[str], scores: Iterable[float]) -> tuple[dict[str, float], dict[str, int]]:
    """Return the mean and the number of the scores of each group, in the order of the first score of each."""
    collected: dict[str, list[float]] = {}
    for group, score in zip(groups, scores, strict=True):
        collected.setdefault(group, []).append(score)
    means = {group: mean(each) for group, each in collected.items()}
    return means, {group: len(each) for group, each in collected.items()}


def mean_of_all(means: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """Average over all questions, so that large groups count more; NaN if there are none."""
    total = sum(counts[group] for group in means)
    return math.fsum(means[group] * counts[group] for group in means) / total if total else math.nan


def check_known(name: str, value: str, known: Collection[str]) -> str:
    """Return a value, or raise `ValueError` if it is not one of the known ones."""
    if value not in known:
        raise ValueError(f"`{name}` is `{value}`, which is not known; use one of {', '.join(known)}.")
    return value
