"""Comparisons of two benchmark runs: what is refused, what differs, and how sure that is."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from benchmark_runs import PROTOCOL, QUESTIONS, RUN, make_predictions, make_questions, write_without_chart

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.trainers.benchmark.comparison import compare_runs, format_comparison
from spa3r.trainers.benchmark.report import read_report
from spa3r.trainers.benchmark.statistics import SceneScores, compare_paired

FIRST = make_predictions(QUESTIONS)
# Better by every third answer, and worse by some.
SECOND = {
    question.id: question.record["ground_truth"]
    if number % 3 == 0
    else ("7" if number % 11 == 0 else FIRST[question.id])
    for number, question in enumerate(QUESTIONS)
}
CHANGED_RUN = RUN | {"model": "other", "num_frames": 16, "versions": RUN["versions"] | {"torch": "2.14.0"}}


def write(folder, predictions=FIRST, questions=QUESTIONS, run=RUN, protocol=PROTOCOL):
    write_without_chart(folder, run, questions, predictions, protocol, [], {})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return write(root / "before"), write(root / "after", SECOND, run=CHANGED_RUN)


@pytest.fixture(scope="module")
def comparison(folders):
    return compare_runs(*folders)


def test_values_are_those_of_the_reports(folders, comparison):
    before, after = ({row["key"]: row["value"] for row in read_report(folder)["columns"]} for folder in folders)
    for column in comparison["columns"]:
        assert (column["first"], column["second"]) == (before[column["key"]], after[column["key"]])
        assert column["difference"] == column["second"] - column["first"]
    assert [column["key"] for column in comparison["columns"]] == list(PROTOCOL.columns)


def test_intervals_and_p_values_are_those_of_paired_scores(comparison):
    scenes = [question.scene_id for question in QUESTIONS]
    groups = [question.record["question_type"] for question in QUESTIONS]
    scores = [[PROTOCOL.score(question.record, run[question.id]) for question in QUESTIONS] for run in (FIRST, SECOND)]
    expected = compare_paired(*(SceneScores.collect(scenes, groups, each) for each in scores), PROTOCOL.summarize)
    for column in comparison["columns"]:
        difference = expected[column["key"]]
        assert (column["low"], column["high"]) == difference.interval
        assert column["p_value"] == difference.p_value
        assert column["p_value_corrected"] == difference.p_value_corrected
    overall = comparison["columns"][0]
    assert overall["low"] > 0 and overall["p_value"] < 0.01


def test_changes_are_counted_by_group(comparison):
    expected = Counter()
    for question in QUESTIONS:
        texts = [run[question.id] for run in (FIRST, SECOND)]
        before, after = (PROTOCOL.score(question.record, text) for text in texts)
        kind = (
            "better"
            if after > before
            else "worse"
            if after < before
            else "same"
            if texts[0] == texts[1]
            else "changed"
        )
        expected[question.record["question_type"], kind] += 1
    for group in comparison["groups"]:
        for kind in ("better", "worse", "changed", "same"):
            assert group[kind] == expected[group["name"], kind]
    assert sum(expected.values()) == sum(sum(list(group.values())[1:]) for group in comparison["groups"])


def test_questions_with_other_answers_are_listed(comparison):
    changed = [question.id for question in QUESTIONS if FIRST[question.id] != SECOND[question.id]]
    assert [question["id"] for question in comparison["questions"]] == changed
    for question in comparison["questions"]:
        assert (question["first"], question["second"]) == (FIRST[question["id"]], SECOND[question["id"]])


def test_what_differs_between_the_runs_is_named(comparison):
    assert comparison["provenance"] == {
        "model": [RUN["model"], "other"],
        "num_frames": [32, 16],
        "versions.torch": ["2.13.0", "2.14.0"],
    }


def test_comparisons_can_be_written_as_json(comparison):
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison


def test_equal_runs_differ_in_nothing(folders):
    comparison = compare_runs(folders[0], folders[0])
    assert all(
        (row["difference"], row["low"], row["high"], row["p_value"]) == (0, 0, 0, 1) for row in comparison["columns"]
    )
    assert comparison["questions"] == [] and comparison["provenance"] == {}
    assert "## Settings that differ\n\nNone." in format_comparison(comparison)


def test_the_order_of_answers_does_not_matter(folders, comparison, tmp_path):
    shuffled = [QUESTIONS[index] for index in np.random.default_rng(0).permutation(len(QUESTIONS))]
    other = compare_runs(folders[0], write(tmp_path, SECOND, shuffled, run=CHANGED_RUN))
    assert other["columns"] == comparison["columns"] and other["questions"] == comparison["questions"]


REFUSED = {
    "benchmark": ({"benchmark": "rooms"}, "their benchmark differs: `vsi-bench` and `rooms`"),
    "data": ({"data_fingerprint": "xyz"}, "their data fingerprint differs: `abc` and `xyz`"),
}


@pytest.mark.parametrize("run, message", REFUSED.values(), ids=REFUSED)
def test_runs_on_other_data_are_refused(run, message, folders, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare_runs(folders[0], write(tmp_path, run=RUN | run))


def test_runs_scored_otherwise_are_refused(folders, tmp_path):
    other = write(tmp_path, protocol=BENCHMARKS["vsi-bench"]["lmms-eval-2026"])
    with pytest.raises(ValueError, match="their protocol differs: `official` and `lmms-eval-2026`"):
        compare_runs(folders[0], other)


def test_runs_on_other_questions_are_refused(folders, tmp_path):
    questions = make_questions(290)
    other = write(tmp_path, {question.id: FIRST[question.id] for question in questions}, questions)
    with pytest.raises(ValueError, match="10 questions are answered in only one of them"):
        compare_runs(folders[0], other)


def test_folders_without_a_report_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=f"`{tmp_path}` holds no report"):
        compare_runs(folders[0], tmp_path)


def test_reports_without_answers_are_refused(folders, tmp_path):
    (write(tmp_path) / "answers.jsonl").unlink()
    with pytest.raises(ValueError, match=r"there is no answers\.jsonl in it"):
        compare_runs(folders[0], tmp_path)


def test_damaged_answers_are_refused(folders, tmp_path):
    file = write(tmp_path) / "answers.jsonl"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"Line 300 of .* is damaged"):
        compare_runs(folders[0], tmp_path)


def test_protocols_that_are_not_known_are_refused(tmp_path):
    protocol = replace(PROTOCOL, name="of a later version")
    folders = [write(tmp_path / name, protocol=protocol) for name in ("before", "after")]
    with pytest.raises(ValueError, match="`of a later version` of vsi-bench, which is not known here"):
        compare_runs(*folders)


def test_the_page_shows_signed_points_and_both_p_values(comparison):
    page = format_comparison(comparison)
    overall = comparison["columns"][0]
    ends = f"[+{100 * overall['low']:.1f}, +{100 * overall['high']:.1f}]"
    p_values = ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in (overall["p_value"], overall["p_value_corrected"])]
    values = [f"{100 * overall[run]:.1f}" for run in ("first", "second")]
    line = next(line for line in page.splitlines() if line.startswith("| Avg."))
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    assert cells == ["Avg.", *values, f"+{100 * overall['difference']:.1f}", ends, *p_values]
    assert page.startswith("# vsi-bench: other against spa3-vlm-4b.v2\n") and "2,000 times" in page


def test_the_page_lists_some_of_many_changes_the_largest_first(comparison):
    page = format_comparison(comparison)
    better = [question for question in comparison["questions"] if question["kind"] == "better"]
    assert f"### B better than A: first 25 of {len(better)}\n" in page
    table = page.split("### B better")[1].split("\n\n")[1].splitlines()[2:]
    gains = [float(cells[-2]) - float(cells[-3]) for cells in (line.split("|") for line in table)]
    assert len(gains) == 25 and gains == sorted(gains, reverse=True)


def test_answers_are_shown_with_what_scores_depend_on(folders, tmp_path):
    answers = FIRST | {"6": "  4\n| `木`", "16": "cut \ud83d"}
    page = format_comparison(
        compare_runs(write(tmp_path, {**FIRST, "6": "4", "16": "4"}), write(tmp_path / "b", answers))
    )
    assert "`\"  4\\n\\| '木'\"`" in page and "\\ud83d" in page
    page.encode("utf-8")


def test_a_single_scene_is_compared_without_intervals(tmp_path):
    questions = make_questions(20, num_scenes=1)
    runs = [make_predictions(questions, seed) for seed in (0, 1)]
    comparison = compare_runs(*(write(tmp_path / str(seed), run, questions) for seed, run in enumerate(runs)))
    assert "there are no intervals" in format_comparison(comparison)
