"""Confidence intervals of scores, and tests of differences between two runs.

Questions about one scene are not independent, so whole scenes are resampled, or swapped between runs. For each
resample the protocol computes the columns of a report anew from sums of scores by scene and group, because columns
need not be means over questions. Results are the same on every machine, to the last bit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 1000
NUM_PERMUTATIONS = 2000
SEED = 0
# Differences that are closer are ties: the same sum, rounded in another order.
TIE = 1e-9

Average = Callable[[Mapping[str, float], Mapping[str, int]], Mapping[str, float]]


@dataclass(frozen=True)
class SceneScores:
    """
    Scores by scene and group.

    groups (`list[str]`):
        Groups in the order of their first question.
    sums, counts (`numpy.ndarray` of shape `(num_scenes, num_groups)`):
        Sums of scores, and numbers of questions. Scenes are sorted by name.
    """

    groups: list[str]
    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def collect(cls, scenes: Sequence[str], groups: Sequence[str], scores: Sequence[float]) -> "SceneScores":
        """Add up the scores of questions, given the scene, the group and the score in [0, 1] of each."""
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
        """Return the mean score of each group."""
        totals = [math.fsum(column) for column in self.sums.T]
        return dict(zip(self.groups, (np.array(totals) / self.counts.sum(axis=0)).tolist(), strict=True))

    def num_questions(self) -> dict[str, int]:
        """Return the number of questions of each group."""
        return dict(zip(self.groups, self.counts.sum(axis=0).astype(int).tolist(), strict=True))

    def num_scenes(self) -> dict[str, int]:
        """Return the number of scenes of each group."""
        return dict(zip(self.groups, (self.counts > 0).sum(axis=0).tolist(), strict=True))


def bootstrap_intervals(
    scores: SceneScores, average: Average
) -> tuple[dict[str, tuple[float, float] | None], dict[str, tuple[float, float] | None]]:
    """Compute confidence intervals: from the 2.5th to the 97.5th percentile of 1000 resamples of scenes.

    A resample without any scene of a group is averaged without that group.

    Args:
        scores (`SceneScores`): All scores.
        average (`Callable`): Returns columns, given means and numbers of questions by group; see `Protocol.average`.

    Returns:
        `tuple[dict, dict]`: Low and high end for each column, and for each group; `None` if there is only one scene.
    """
    weights = _draw_scenes(len(scores.sums))
    sums, counts = _weighted(weights, scores.sums), _weighted(weights, scores.counts)
    columns = _average_all(scores.groups, sums, counts, average)
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
    Difference between two runs.

    difference (`float`):
        Second minus first.
    interval (`tuple[float, float]`, *optional*):
        Its confidence interval; `None` if there is only one scene.
    p_value (`float`):
        Share of random swaps of the runs in whole scenes with a difference that is at least as large.
    p_value_corrected (`float`):
        Corrected by Holm's method for testing all columns at once.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float
    p_value_corrected: float


def compare_paired(first: SceneScores, second: SceneScores, average: Average) -> dict[str, PairedDifference]:
    """Compare two runs column by column: intervals by a paired bootstrap, p-values by a permutation test.

    The bootstrap draws the same scenes for both runs. The permutation test swaps the runs in each scene with
    probability 1/2, 2000 times. If the difference is at least as large in `m` of them, whatever its sign, then
    p = (1 + m) / (1 + 2000).

    Args:
        first, second (`SceneScores`): Scores of the same questions.
        average (`Callable`): As for `bootstrap_intervals`.

    Returns:
        `dict[str, PairedDifference]`: Differences by column.
    """
    groups, counts, num_scenes = first.groups, first.counts, len(first.counts)

    def differences(of_first: np.ndarray, of_second: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        before = _average_all(groups, of_first, counts, average)
        after = _average_all(groups, of_second, counts, average)
        return {column: after[column] - before[column] for column in after}

    before, after = (average(run.means(), run.num_questions()) for run in (first, second))
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
    """Correct p-values by Holm's method, so that the chance of any false alarm among them keeps the level of one."""
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def _draw_scenes(num_scenes: int) -> np.ndarray:
    """Count how often each resample holds each scene; shape `(NUM_RESAMPLES, num_scenes)`."""
    drawn = np.random.default_rng(SEED).integers(num_scenes, size=(NUM_RESAMPLES, num_scenes))
    drawn += num_scenes * np.arange(NUM_RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.int16)


def _weighted(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Multiply `(num_resamples, num_scenes)` and `(num_scenes, num_groups)`.

    It adds scene after scene, because the order of BLAS's sums, and so the last bits, differ between machines.
    """
    total = np.zeros((len(weights), values.shape[1]))
    for weight, value in zip(np.ascontiguousarray(weights.T), values, strict=True):
        groups = np.flatnonzero(value)
        total[:, groups] += weight[:, None] * value[groups]
    return total


def _average_all(
    groups: Sequence[str], sums: np.ndarray, counts: np.ndarray, average: Average
) -> dict[str, np.ndarray]:
    """Average each resample; NaN where a resample has too few groups for a column."""
    columns: dict[str, np.ndarray] = {}
    for row in range(len(sums)):
        there = np.flatnonzero(counts[row]).tolist()
        means, numbers = (sums[row] / np.maximum(counts[row], 1)).tolist(), counts[row].astype(int).tolist()
        averages = average({groups[i]: means[i] for i in there}, {groups[i]: numbers[i] for i in there})
        for column, value in averages.items():
            if column not in columns:
                columns[column] = np.full(len(sums), np.nan)
            columns[column][row] = value
    return columns


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return the central part of values, without NaN."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
