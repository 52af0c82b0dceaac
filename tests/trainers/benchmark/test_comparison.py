"""Comparisons of two benchmark runs."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_runs import PROTOCOL, QUESTIONS, RUN, make_predictions, make_questions, write_without_chart
from refusals import refused

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.trainers.benchmark.comparison import compare_runs, format_comparison
from spa3r.trainers.benchmark.report import read_report
from spa3r.trainers.benchmark.statistics import SceneScores, compare_paired

FIRST = make_predictions(QUESTIONS)
# Every third answer is better, and some are worse.
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
    before, after = (read_report(folder)["columns"] for folder in folders)
    assert [column["key"] for column in comparison["columns"]] == list(PROTOCOL.columns)
    for column, first, second in zip(comparison["columns"], before, after, strict=True):
        assert (column["first"], column["second"]) == (first["value"], second["value"])
        assert column["difference"] == column["second"] - column["first"]


def test_intervals_and_p_values_are_those_of_paired_scores(comparison):
    scenes = [question.scene_id for question in QUESTIONS]
    groups = [question.record["question_type"] for question in QUESTIONS]
    scores = [[PROTOCOL.score(question.record, run[question.id]) for question in QUESTIONS] for run in (FIRST, SECOND)]
    expected = compare_paired(*(SceneScores.collect(scenes, groups, each) for each in scores), PROTOCOL.average)
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
        changed = "same" if texts[0] == texts[1] else "changed"
        kind = "better" if after > before else "worse" if after < before else changed
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


def test_equal_runs_differ_in_nothing(folders):
    comparison = compare_runs(folders[0], folders[0])
    assert all(
        (row["difference"], row["low"], row["high"], row["p_value"]) == (0, 0, 0, 1) for row in comparison["columns"]
    )
    assert comparison["questions"] == [] and comparison["provenance"] == {}
    assert format_comparison(comparison).rstrip().endswith("None.")


def test_the_order_of_answers_does_not_matter(folders, comparison, tmp_path):
    shuffled = [QUESTIONS[index] for index in np.random.default_rng(0).permutation(len(QUESTIONS))]
    other = compare_runs(folders[0], write(tmp_path, SECOND, shuffled, run=CHANGED_RUN))
    assert other["columns"] == comparison["columns"] and other["questions"] == comparison["questions"]


def without_answers(folder):
    (write(folder) / "answers.jsonl").unlink()


def with_cut_answers(folder):
    file = write(folder) / "answers.jsonl"
    file.write_text(file.read_text()[:-20])


def with_fewer_questions(folder):
    questions = make_questions(290)
    write(folder, {question.id: FIRST[question.id] for question in questions}, questions)


def with_protocol(protocol):
    return lambda folder: write(folder, run=RUN | {"protocol": protocol.name}, protocol=protocol)


REFUSED = {
    "another benchmark": (lambda folder: write(folder, run=RUN | {"benchmark": "rooms"}), ["`vsi-bench`", "`rooms`"]),
    "other data": (lambda folder: write(folder, run=RUN | {"data_fingerprint": "xyz"}), ["`abc`", "`xyz`"]),
    "another protocol": (
        with_protocol(BENCHMARKS["vsi-bench"].protocol("lmms-eval-2026")),
        ["`protocol`", "`official`", "`lmms-eval-2026`"],
    ),
    "other questions": (with_fewer_questions, ["10 questions"]),
    "no report": (Path.mkdir, ["/second`", "report.json"]),
    "no answers": (without_answers, ["/second`", "answers.jsonl"]),
    "damaged answers": (with_cut_answers, ["Line 300", "answers.jsonl`"]),
}


@pytest.mark.parametrize("write_second, tokens", REFUSED.values(), ids=REFUSED)
def test_runs_that_cannot_be_compared_are_refused(write_second, tokens, folders, tmp_path):
    write_second(tmp_path / "second")
    with refused(*tokens):
        compare_runs(folders[0], tmp_path / "second")


def test_unknown_protocols_are_refused(tmp_path):
    with_protocol(replace(PROTOCOL, name="later"))(tmp_path)
    with refused("`later`"):
        compare_runs(tmp_path, tmp_path)


def test_the_page_shows_signed_points_and_both_p_values(comparison):
    page = format_comparison(comparison)
    overall = comparison["columns"][0]
    ends = f"[+{100 * overall['low']:.1f}, +{100 * overall['high']:.1f}]"
    p_values = ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in (overall["p_value"], overall["p_value_corrected"])]
    values = [f"{100 * overall[run]:.1f}" for run in ("first", "second")]
    line = next(line for line in page.splitlines() if line.startswith("| Avg."))
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    assert cells == ["Avg.", *values, f"+{100 * overall['difference']:.1f}", ends, *p_values]
    assert "other" in page.splitlines()[0] and "spa3-vlm-4b.v2" in page.splitlines()[0]


def test_the_page_lists_some_of_many_changes_the_largest_first(comparison):
    page = format_comparison(comparison)
    better = [question for question in comparison["questions"] if question["kind"] == "better"]
    assert re.search(rf"### B better than A: .*25 of {len(better)}\n", page)
    table = page.split("### B better")[1].split("\n\n")[1].splitlines()[2:]
    gains = [float(cells[-2]) - float(cells[-3]) for cells in (line.split("|") for line in table)]
    assert len(gains) == 25 and gains == sorted(gains, reverse=True)


def test_answers_are_shown_with_what_scores_depend_on(tmp_path):
    before = write(tmp_path / "a", FIRST | {"6": "4", "16": "4"})
    after = write(tmp_path / "b", FIRST | {"6": "  4\n| `木`", "16": "cut \ud83d"})
    page = format_comparison(compare_runs(before, after))
    assert "`\"  4\\n\\| '木'\"`" in page and "\\ud83d" in page
    page.encode("utf-8")


def test_a_single_scene_is_compared_without_intervals(tmp_path):
    questions = make_questions(20, num_scenes=1)
    runs = [make_predictions(questions, seed) for seed in (0, 1)]
    comparison = compare_runs(*(write(tmp_path / str(seed), run, questions) for seed, run in enumerate(runs)))
    assert all(column["low"] is None for column in comparison["columns"])
    assert re.search(r"^\| Avg\..*\| +– \|", format_comparison(comparison), re.MULTILINE)
