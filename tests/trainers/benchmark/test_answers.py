"""Answers that any program gave, read from a file."""

import json

import pytest
from benchmark_runs import QUESTIONS
from refusals import refused

from spa3r.trainers.benchmark.answers import read_predictions

THREE = QUESTIONS[:3]


def written(tmp_path, *lines):
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_predictions_are_read_in_the_order_of_the_questions(tmp_path):
    lines = ['{"id": "2", "prediction": "C"}', "", '{"id": 0, "prediction": " A ", "seconds": 3}']
    path = written(tmp_path, *lines, '{"id": "1", "prediction": "é"}')
    assert list(read_predictions(path, THREE).items()) == [("0", " A "), ("1", "é"), ("2", "C")]


def test_questions_without_an_answer_may_be_left_out(tmp_path):
    path = written(tmp_path, '{"id": "1", "prediction": ""}')
    assert read_predictions(path, THREE, allow_missing=True) == {"1": ""}


GOOD = [json.dumps({"id": str(number), "prediction": "A"}) for number in range(3)]
FOREIGN = [json.dumps({"id": f"x{number}", "prediction": "A"}) for number in range(1200)]
REFUSED = {
    "empty": ([], ["predictions.jsonl`"]),
    "blank": (["", " "], ["predictions.jsonl`"]),
    "bad JSON": ([*GOOD[:2], '{"id": "2", "prediction": "A'], ["Line 3", "JSON"]),
    "a list": (['["0", "A"]'], ["Line 1", "`id` and `prediction`", '["0", "A"]']),
    "no prediction": ([GOOD[0], '{"id": "1", "unreadable": "cut"}'], ["Line 2", "`prediction`", "unreadable"]),
    "a number": (['{"id": "0", "prediction": 3}'], ["Line 1", "`prediction`", "3"]),
    "no id": (['{"id": null, "prediction": "A"}'], ["Line 1", "`id`", "null"]),
    "twice": ([*GOOD, GOOD[1]], ["Line 4", "question 1"]),
    "other questions": ([*GOOD, *FOREIGN], ["1,200", "x0, x1, x2, x3, x4, …"]),
    "too few": (GOOD[1:2], ["2 of 3", "0, 2"]),
}


@pytest.mark.parametrize("lines, tokens", REFUSED.values(), ids=REFUSED)
def test_predictions_that_cannot_be_scored_are_refused(lines, tokens, tmp_path):
    with refused(*tokens):
        read_predictions(written(tmp_path, *lines), THREE)


def test_files_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00\x81")
    with refused("weights.bin`", "UTF-8"):
        read_predictions(tmp_path / "weights.bin", THREE)
