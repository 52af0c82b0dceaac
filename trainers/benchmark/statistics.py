"""How sure a score is, and a difference between two: questions about one scene are not independent, so scenes are
drawn, or swapped, as wholes.

All is counted in sums of scores by scene and group of questions; the columns of a report, which need not be means over
questions, are computed anew by the protocol for each resample. Results are the same to the last bit everywhere.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

__all__ = [
    "LEVEL",
    "NUM_PERMUTATIONS",
    "NUM_RESAMPLES",
    "PairedDifference",
    "SceneScores",
    "bootstrap_intervals",
    "compare_paired",
    "correct_for_many",
    "silence",
]

LEVEL = 0.95
NUM_RESAMPLES = 1000
NUM_PERMUTATIONS = 2000
SEED = 0
# Differences closer than this are ties: the same sum, rounded in another order.
TIE = 1e-9

Summarize = Callable[[Mapping[str, float], Mapping[str, int]], Mapping[str, float]]


@dataclass(frozen=True)
class SceneScores:
    """
    Scores by scene and group.

    groups (`list[str]`):
        In the order in which they come first.
    sums, counts (`numpy.ndarray` of shape `(num_scenes, num_groups)`):
        Sums of scores, and numbers of questions; scenes are in the order of their names.
    """

    groups: list[str]
    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def collect(cls, scenes: Sequence[str], groups: Sequence[str], scores: Sequence[float]) -> "SceneScores":
        """Bring together questions of which each has a scene, a group and a score in [0, 1]."""
        names = list(dict.fromkeys(groups))
        rows = {scene: row for row, scene in enumerate(sorted(set(scenes)))}
        columns = {group: column for column, group in enumerate(names)}
        cells: dict[tuple[int, int], list[float]] = {}
        for scene, group, score in zip(scenes, groups, scores, strict=True):
            cells.setdefault((rows[scene], columns[group]), []).append(score)
        sums, counts = np.zeros((2, len(rows), len(columns)))
        for cell, values in cells.items():
            sums[cell], counts[cell] = math.fsum(values), len(values)
        return cls(names, sums, counts)

    def means(self) -> dict[str, float]:
        """Mean score of each group."""
        totals = [math.fsum(column) for column in self.sums.T]
        return dict(zip(self.groups, (np.array(totals) / self.counts.sum(axis=0)).tolist(), strict=True))

    def num_questions(self) -> dict[str, int]:
        """Number of questions of each group."""
        return dict(zip(self.groups, self.counts.sum(axis=0).astype(int).tolist(), strict=True))

    def num_scenes(self) -> dict[str, int]:
        """Number of scenes that each group has questions about."""
        return dict(zip(self.groups, (self.counts > 0).sum(axis=0).tolist(), strict=True))


def bootstrap_intervals(
    scores: SceneScores, summarize: Summarize
) -> tuple[dict[str, tuple[float, float] | None], dict[str, tuple[float, float] | None]]:
    """Confidence intervals by resampling scenes: from the 2.5th to the 97.5th percentile of 1000 resamples.

    A resample that lacks all scenes of a group is summarized without it.

    Args:
        scores (`SceneScores`): All scores.
        summarize (`Callable`): Means and numbers of questions by group to columns, as `Protocol.summarize`.

    Returns:
        `tuple[dict, dict]`: Low and high end of each column, and of each group; `None` where a single scene says
        nothing about others.
    """
    weights = _draw_scenes(len(scores.sums))
    sums, counts = _weighted(weights, scores.sums), _weighted(weights, scores.counts)
    columns = _summarize_all(scores.groups, sums, counts, summarize)
    # Divided where the group is there, NaN elsewhere.
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    groups = dict(zip(scores.groups, means.T, strict=True))
    num_scenes, enough = scores.num_scenes(), len(scores.sums) > 1
    return (
        {column: _interval(values) if enough else None for column, values in columns.items()},
        {group: _interval(values) if num_scenes[group] > 1 else None for group, values in groups.items()},
    )


@dataclass(frozen=True)
class PairedDifference:
    """
    How much better the second of two runs is.

    difference (`float`):
        Second minus first.
    interval (`tuple[float, float]`, *optional*):
        Confidence interval of it; `None` with a single scene.
    p_value (`float`):
        How often swapping the runs, in scenes at random, makes a difference at least as large.
    p_value_corrected (`float`):
        Raised, by Holm's method, for looking at all columns at once.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float
    p_value_corrected: float


def compare_paired(first: SceneScores, second: SceneScores, summarize: Summarize) -> dict[str, PairedDifference]:
    """Differences between two runs, column by column: intervals by a paired bootstrap, p-values by permutation.

    The bootstrap draws the same scenes for both runs. The permutation test swaps the runs in each scene with
    probability 1/2, 2000 times; of these `m` differ at least as much, whatever the sign, and p = (1 + m) / (1 + 2000).

    Args:
        first, second (`SceneScores`): Of the same questions.
        summarize (`Callable`): As for `bootstrap_intervals`.

    Returns:
        `dict[str, PairedDifference]`: By column.
    """
    groups, counts, num_scenes = first.groups, first.counts, len(first.counts)

    def differences(of_first: np.ndarray, of_second: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        before = _summarize_all(groups, of_first, counts, summarize)
        after = _summarize_all(groups, of_second, counts, summarize)
        return {column: after[column] - before[column] for column in after}

    with silence():
        before, after = (summarize(run.means(), run.num_questions()) for run in (first, second))
    observed = {column: after[column] - before[column] for column in after}
    weights = _draw_scenes(num_scenes)
    resampled = differences(*(_weighted(weights, values) for values in (first.sums, second.sums, counts)))
    swapped = np.random.default_rng(SEED).integers(2, size=(NUM_PERMUTATIONS, num_scenes), dtype=np.int8)
    gains = _weighted(swapped, second.sums - first.sums)
    totals = np.broadcast_to(counts.sum(axis=0), gains.shape)
    permuted = differences(first.sums.sum(axis=0) + gains, second.sums.sum(axis=0) - gains, totals)

    p_values = {}
    for column, difference in observed.items():
        as_large = np.abs(permuted[column]) >= abs(difference) - TIE
        p_values[column] = (1 + int(as_large.sum())) / (1 + NUM_PERMUTATIONS)
    corrected = correct_for_many(p_values)
    return {
        column: PairedDifference(
            difference, _interval(resampled[column]) if num_scenes > 1 else None, p_values[column], corrected[column]
        )
        for column, difference in observed.items()
    }


def correct_for_many(p_values: Mapping[str, float]) -> dict[str, float]:
    """Raise p-values so that the chance of any false alarm among them keeps the level of one, by Holm's method."""
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


@contextmanager
def silence() -> Iterator[None]:
    """Keep warnings, which a resample that lacks a group would repeat a thousand times, to oneself."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _draw_scenes(num_scenes: int) -> np.ndarray:
    """How often each resample holds each scene: `(NUM_RESAMPLES, num_scenes)`."""
    drawn = np.random.default_rng(SEED).integers(num_scenes, size=(NUM_RESAMPLES, num_scenes))
    drawn += num_scenes * np.arange(NUM_RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.int16)


def _weighted(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The matrix product of `(num_resamples, num_scenes)` and `(num_scenes, num_groups)`.

    Scene after scene, as the order of BLAS's sums, and with it the last bits, is another on another machine.
    """
    total = np.zeros((len(weights), values.shape[1]))
    for weight, value in zip(np.ascontiguousarray(weights.T), values, strict=True):
        groups = np.flatnonzero(value)
        total[:, groups] += weight[:, None] * value[groups]
    return total


def _summarize_all(
    groups: Sequence[str], sums: np.ndarray, counts: np.ndarray, summarize: Summarize
) -> dict[str, np.ndarray]:
    """Columns of each resample, NaN where a resample has too few groups for one."""
    columns: dict[str, np.ndarray] = {}
    with silence():
        for row in range(len(sums)):
            there = np.flatnonzero(counts[row]).tolist()
            means, numbers = (sums[row] / np.maximum(counts[row], 1)).tolist(), counts[row].astype(int).tolist()
            summary = summarize({groups[i]: means[i] for i in there}, {groups[i]: numbers[i] for i in there})
            for column, value in summary.items():
                if column not in columns:
                    columns[column] = np.full(len(sums), np.nan)
                columns[column][row] = np.nan if value is None else value
    return columns


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    """The central part of values, over those that are not NaN."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
