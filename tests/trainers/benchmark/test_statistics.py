"""Intervals and p-values of scores, compared with explicit resamples, all permutations, and theory."""

import itertools
from statistics import fmean

import numpy as np
import pytest

from spa3r.trainers.benchmark.statistics import (
    NUM_PERMUTATIONS,
    NUM_RESAMPLES,
    SceneScores,
    bootstrap_intervals,
    compare_paired,
    correct_for_many,
)


def average(means, counts):
    """Join two groups into one task, as VSI-Bench joins its directions, and average tasks into the overall column."""
    tasks = {name: value for name, value in means.items() if name not in ("easy", "hard")}
    if directions := [means[name] for name in ("easy", "hard") if name in means]:
        tasks["direction"] = fmean(directions)
    return {"overall": fmean(tasks.values())} | tasks


def each_group(means, counts):
    return means


def random_questions(num_scenes=12, num_questions=90, seed=0):
    """Draw scenes, groups and scores of questions. Scenes have different numbers of questions."""
    generator = np.random.default_rng(seed)
    scenes = [f"scene{number:02d}" for number in (num_scenes * generator.random(num_questions) ** 2).astype(int)]
    groups = generator.choice(["easy", "hard", "count"], num_questions, p=[0.5, 0.1, 0.4]).tolist()
    scores = (generator.integers(0, 11, num_questions) / 10).tolist()
    return scenes, groups, scores


def resample_naively(scenes, groups, scores, summary=average):
    """Compute the columns of each resample from an explicit list of its questions."""
    names = sorted(set(scenes))
    drawn = np.random.default_rng(0).integers(len(names), size=(NUM_RESAMPLES, len(names)))
    columns = {}
    for resample in drawn:
        written = {}
        for scene in resample:
            for own, group, score in zip(scenes, groups, scores, strict=True):
                if own == names[scene]:
                    written.setdefault(group, []).append(score)
        for column, value in summary({group: fmean(each) for group, each in written.items()}, {}).items():
            columns.setdefault(column, []).append(value)
    return columns


def test_intervals_are_those_of_explicit_resamples():
    questions = random_questions()
    tally = SceneScores.collect(*questions)
    # Groups, too: as the columns of an average that leaves means as they are.
    for summary, intervals in zip((average, each_group), bootstrap_intervals(tally, average), strict=True):
        resampled = resample_naively(*questions, summary)
        assert intervals.keys() == resampled.keys()
        for column, interval in intervals.items():
            assert interval == pytest.approx(np.percentile(resampled[column], [2.5, 97.5]))


def test_means_and_numbers_are_those_of_the_questions():
    scenes, groups, scores = random_questions()
    tally = SceneScores.collect(scenes, groups, scores)
    for group in ("easy", "hard", "count"):
        chosen = [index for index, each in enumerate(groups) if each == group]
        assert tally.means()[group] == pytest.approx(fmean(scores[index] for index in chosen), abs=1e-15)
        assert tally.num_questions()[group] == len(chosen)
        assert tally.num_scenes()[group] == len({scenes[index] for index in chosen})


def test_intervals_do_not_depend_on_the_order_of_questions():
    questions = list(zip(*random_questions(), strict=True))
    shuffled = [questions[index] for index in np.random.default_rng(1).permutation(len(questions))]
    intervals = [
        bootstrap_intervals(SceneScores.collect(*zip(*each, strict=True)), average) for each in (questions, shuffled)
    ]
    for one, other in zip(*intervals, strict=True):
        assert {name: pytest.approx(ends) for name, ends in one.items()} == other


def test_resamples_without_a_group_are_averaged_without_it():
    scenes = [f"scene{number}" for number in range(8)] + ["scene0"]
    tally = SceneScores.collect(scenes, ["count"] * 8 + ["easy"], [0.0, 1.0] * 4 + [0.4])
    columns, groups = bootstrap_intervals(tally, average)
    assert columns["direction"] == pytest.approx((0.4, 0.4))
    # One scene of a group says nothing about others.
    assert groups["easy"] is None and groups["count"] is not None


def test_a_single_scene_has_no_interval():
    tally = SceneScores.collect(["a", "a"], ["count"] * 2, [0.0, 1.0])
    assert bootstrap_intervals(tally, average) == ({"overall": None, "count": None}, {"count": None})
    assert compare_paired(tally, tally, average)["overall"].interval is None


def second_run(scores, seed=5, gain=0.15):
    generator = np.random.default_rng(seed)
    return [min(1.0, max(0.0, score + round(float(gain + generator.normal() / 4), 1))) for score in scores]


def test_p_values_are_close_to_those_of_all_permutations():
    scenes, groups, first = random_questions(num_scenes=7, num_questions=60)
    second = second_run(first)
    names = sorted(set(scenes))

    def difference(swapped):
        runs = ({}, {})
        for scene, group, *scores in zip(scenes, groups, first, second, strict=True):
            for run, score in zip(runs, reversed(scores) if scene in swapped else scores, strict=True):
                run.setdefault(group, []).append(score)
        averages = [average({group: fmean(each) for group, each in run.items()}, {}) for run in runs]
        return {column: averages[1][column] - averages[0][column] for column in averages[0]}

    every = [
        difference({name for name, is_swapped in zip(names, choice, strict=True) if is_swapped})
        for choice in itertools.product([False, True], repeat=len(names))
    ]
    compared = compare_paired(*(SceneScores.collect(scenes, groups, run) for run in (first, second)), average)
    assert len(every) == 128
    for column, difference in compared.items():
        assert difference.difference == pytest.approx(every[0][column])
        exact = fmean(abs(each[column]) >= abs(every[0][column]) - 1e-9 for each in every)
        tolerance = 3.5 * (exact * (1 - exact) / NUM_PERMUTATIONS) ** 0.5 + 1 / NUM_PERMUTATIONS
        assert difference.p_value == pytest.approx(exact, abs=tolerance)
    assert min(each.p_value for each in compared.values()) < 0.2


def test_intervals_of_differences_are_those_of_the_same_scenes_drawn_for_both():
    scenes, groups, first = random_questions()
    second = second_run(first)
    compared = compare_paired(*(SceneScores.collect(scenes, groups, run) for run in (first, second)), average)
    resampled = [resample_naively(scenes, groups, run) for run in (first, second)]
    for column, difference in compared.items():
        expected = np.subtract(resampled[1][column], resampled[0][column])
        assert difference.interval == pytest.approx(np.percentile(expected, [2.5, 97.5]))


def test_swapped_runs_differ_as_much_the_other_way():
    scenes, groups, first = random_questions()
    runs = [SceneScores.collect(scenes, groups, run) for run in (first, second_run(first))]
    there, back = compare_paired(*runs, average), compare_paired(*reversed(runs), average)
    for column in there:
        assert there[column].difference == -back[column].difference
        assert there[column].p_value == back[column].p_value
        assert there[column].interval == pytest.approx([-end for end in reversed(back[column].interval)])


def test_a_difference_in_every_scene_has_the_least_p_value():
    scenes = [f"scene{number:02d}" for number in range(30)]
    runs = [SceneScores.collect(scenes, ["count"] * 30, [score] * 30) for score in (0.2, 0.3)]
    assert compare_paired(*runs, average)["overall"].p_value == 1 / (1 + NUM_PERMUTATIONS)


def test_p_values_are_corrected_as_in_holms_example_and_at_most_one():
    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert correct_for_many(p_values) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert correct_for_many({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
