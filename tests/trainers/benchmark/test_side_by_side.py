"""Runs on VSI-Bench and ReVSI beside each other."""

import re

from benchmark_runs import PROTOCOL, QUESTIONS, RUN, make_predictions, write_without_chart
from refusals import refused

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.reader import BenchmarkQuestion
from spa3r.trainers.benchmark.report import read_report
from spa3r.trainers.benchmark.side_by_side import format_side_by_side


def write(folder, name, questions, protocol, predictions):
    write_without_chart(folder, RUN | {"benchmark": name, "label": name}, questions, predictions, protocol, [], {})
    return folder


def vsi(folder):
    return write(folder, "vsi-bench", QUESTIONS, PROTOCOL, make_predictions(QUESTIONS))


def other(folder, name, column):
    """A run on another benchmark, with questions of all its groups, answered rightly in every other scene."""
    protocol = BENCHMARKS[name].protocol()
    questions = [
        BenchmarkQuestion(f"{kind} {scene}", f"scene {scene}", "any", {column: kind, protocol.truth: "4"})
        for kind in protocol.groups
        for scene in range(4)
    ]
    predictions = {question.id: "4" if number % 2 else "x" for number, question in enumerate(questions)}
    return write(folder, name, questions, protocol, predictions)


def cells(page):
    """The cells of each line of the table, by its heading."""
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in page.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_question_types_stand_beside_each_other_with_their_intervals(tmp_path):
    folders = vsi(tmp_path / "vsi"), other(tmp_path / "revsi", "revsi-32", "question_type")
    table = cells(format_side_by_side(folders))
    for index, folder in enumerate(folders):
        for row in read_report(folder)["columns"]:
            shown = table[row["heading"]][2 * index : 2 * index + 2]
            assert shown == [f"{100 * row['value']:.1f}", f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"]
    assert table["Appr. Order"][2:] == ["–", "–"]


def test_an_average_covers_the_question_types_that_both_have(tmp_path):
    folders = vsi(tmp_path / "vsi"), other(tmp_path / "revsi", "revsi-32", "question_type")
    shared = [
        [
            row["value"]
            for row in read_report(folder)["columns"]
            if row["key"] not in ("overall", "obj_appearance_order")
        ]
        for folder in folders
    ]
    (found,) = [row for name, row in cells(format_side_by_side(folders)).items() if "7 in common" in name]
    assert [found[0], found[2]] == [f"{100 * sum(values) / 7:.1f}" for values in shared]


def test_benchmarks_without_a_common_question_type_are_refused(tmp_path):
    folders = vsi(tmp_path / "vsi"), other(tmp_path / "recall", "vsi-super-recall", "type")
    with refused("`vsi-bench`", "`vsi-super-recall`"):
        format_side_by_side(folders)
