"""What all benchmarks have in common: groups, warnings, published rows."""

import math
import re
import warnings

import pytest

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.protocol import score_answer, summarize_answers
from spa3r.data_scripts.benchmarks.vsi_bench import ABLATIONS, DIRECTIONS, QUESTION_TYPES

PROTOCOLS = {
    f"{name}/{protocol.name}": protocol for name, benchmark in BENCHMARKS.items() for protocol in benchmark.protocols
}
VSI = BENCHMARKS["vsi-bench"].protocol()
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


@every_protocol
def test_unknown_groups_are_refused_by_name(protocol):
    refused = {"group": {protocol.group_by: "nonsense"}, "summarize": {"nonsense": 1.0}}
    for method, argument in refused.items():
        with pytest.raises(ValueError, match=f"`{protocol.group_by}` is `nonsense`.*{re.escape(protocol.groups[-1])}"):
            getattr(protocol, method)(argument, *([{"nonsense": 1}] if method == "summarize" else []))


@pytest.mark.parametrize("name", ["vsi-bench", "spar-bench"])
def test_unknown_kinds_of_questions_are_neither_asked_nor_scored(name):
    for protocol in BENCHMARKS[name].protocols:
        record = {protocol.group_by: "nonsense", "question": "?", "options": None, protocol.truth: "A"}
        for refused in (lambda p=protocol, r=record: p.score(r, "A"), lambda p=protocol, r=record: p.prompt(r)):
            with pytest.raises(ValueError, match="`nonsense`"):
                refused()


@every_protocol
def test_columns_have_the_order_of_their_headings(protocol):
    means = dict.fromkeys(protocol.groups, 0.5)
    assert protocol.summarize(means, dict.fromkeys(means, 2)) == pytest.approx(dict.fromkeys(protocol.columns, 0.5))
    assert list(protocol.average(means, dict.fromkeys(means, 2))) == list(protocol.columns)


@every_protocol
def test_missing_groups_are_named_once_and_the_others_averaged(protocol):
    first, *missing = protocol.groups
    with pytest.warns(UserWarning, match=re.escape(", ".join(missing))):
        columns = protocol.summarize({first: 0.25}, {first: 3})
    assert set(columns.values()) == {0.25} and "overall" in columns
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert [protocol.summarize({first: 0.25}, {first: 3}) for _ in range(3)] == [columns] * 3
    assert len(caught) == 1


@every_protocol
def test_no_scores_have_no_average(protocol):
    assert math.isnan(protocol.average({}, {})["overall"])


def test_a_protocol_is_found_by_name_and_the_first_is_the_default():
    assert [BENCHMARKS["cv-bench"].protocol(name).name for name in (None, "lmms-eval")] == ["paper", "lmms-eval"]
    with pytest.raises(ValueError, match="`mine`.*paper, lmms-eval"):
        BENCHMARKS["cv-bench"].protocol("mine")


def test_whitespace_around_an_answer_is_stripped_before_it_is_scored():
    record = {"question_type": "route_planning", "ground_truth": "A"}
    assert VSI.score(record, " A") == 0 and score_answer(VSI, record, " A\n") == 1


@pytest.mark.parametrize(("num_records", "num_answers"), [(0, 0), (2, 1)])
def test_every_record_needs_one_answer(num_records, num_answers):
    records = [{"question_type": kind, "ground_truth": "A"} for kind in QUESTION_TYPES[:num_records]]
    with pytest.raises(ValueError, match=rf"`predictions`.* {num_answers} .* {num_records} "):
        summarize_answers(VSI, records, ["A"] * num_answers)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_rows_have_columns_of_every_protocol(name):
    for protocol in BENCHMARKS[name].protocols:
        for row in BENCHMARKS[name].published:
            assert row.columns.keys() <= protocol.columns.keys() and all(0 < v < 100 for v in row.columns.values())


@pytest.mark.parametrize(
    ("name", "overall"), [("vsi-bench", 58.6), ("cv-bench", 75.6), ("spar-bench", 58.4), ("viewspatial-bench", 43.9)]
)
def test_published_rows_end_with_the_papers_model(name, overall):
    row = BENCHMARKS[name].published[-1]
    assert row.label.startswith("Spa3-VLM") and row.columns["overall"] == overall
    assert "2602.21186" in row.source


def test_published_averages_are_those_of_their_tasks():
    # Printed so: the average of the last three models does not follow from their tasks.
    odd = {"Chance, most frequent answer": 1.5, "Qwen2.5VL-3B": -1.8, "Qwen2.5VL-7B": -1.8, "Spatial-MLLM-4B": -1.5}
    rows = [row for row in BENCHMARKS["vsi-bench"].published if row.columns.keys() == VSI.columns.keys()]
    assert rows
    for row in rows:
        tasks = [value for column, value in row.columns.items() if column != "overall"]
        gap = sum(tasks) / len(tasks) - row.columns["overall"]
        assert gap == pytest.approx(odd.get(row.label, 0.0), abs=0.07), row.label


def test_averages_of_ablations_are_those_of_both_kinds_of_answers():
    for variants in ABLATIONS.values():
        for numerical, choice, average in variants.values():
            assert (numerical + choice) / 2 == pytest.approx(average, abs=0.11)
        assert (60.4, 56.8, 58.6) in variants.values()  # the full model is a row of every table


def test_directions_of_vsi_bench_count_as_one_task():
    means = {kind: 0.5 for kind in QUESTION_TYPES} | {DIRECTIONS[0]: 1.0, "object_counting": 0.9}
    columns = VSI.summarize(means, dict.fromkeys(means, 1))
    assert columns["object_rel_direction"] == pytest.approx(2 / 3)
    assert columns["overall"] == pytest.approx((6 * 0.5 + 2 / 3 + 0.9) / 8)
