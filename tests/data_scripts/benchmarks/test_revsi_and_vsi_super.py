"""ReVSI and VSI-SUPER: recorded outputs of lmms-eval, their files, and frames that answers hold for."""

import json

import pytest
from refusals import refused
from scoring_cases import agrees, outcome, recorded
from tiny_videos import write_video

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.reader import read_benchmark
from spa3r.trainers.benchmark.command import main

NAME = "revsi_vsisuper"
REVSI, COUNT, STREAMING, RECALL = (
    BENCHMARKS[name].protocol()
    for name in ("revsi-32", "vsi-super-count", "vsi-super-count-streaming", "vsi-super-recall")
)


def test_scores_of_revsi_are_the_recorded_ones():
    for kind, truth, prediction, expected in recorded(NAME, "revsi")["cases"]:
        record = {"question_type": kind, "ground_truth": truth}
        assert agrees(outcome(REVSI.score, record, prediction), expected), (kind, truth, prediction)


def test_prompts_of_revsi_are_the_recorded_ones():
    for kind, question, options, expected in recorded(NAME, "revsi")["prompts"]:
        assert REVSI.prompt({"question_type": kind, "question": question, "options": options}) == expected


def test_averages_of_revsi_are_the_recorded_ones():
    for case in recorded(NAME, "revsi")["aggregates"]:
        scores = {}
        for kind, score in case["answers"]:
            scores.setdefault(kind, []).append(score)
        means = {kind: sum(each) / len(each) for kind, each in scores.items()}
        columns = REVSI.average(means, {kind: len(each) for kind, each in scores.items()})
        assert columns.keys() == {name.removesuffix("_acc") for name in case["result"]}
        assert all(agrees(columns[name.removesuffix("_acc")], value) for name, value in case["result"].items())


@pytest.mark.parametrize(
    ("kind", "protocol", "truth"),
    [("vsisuper_count", COUNT, "answer"), ("vsisuper_recall", RECALL, "answer")]
    + [("vsisuper_count_streaming", STREAMING, "answers")],
)
def test_scores_of_vsi_super_are_the_recorded_ones(kind, protocol, truth):
    for right, prediction, expected in recorded(NAME, kind):
        assert agrees(outcome(protocol.score, {truth: right}, prediction), expected), (right, prediction)


def test_prompts_of_vsi_super_are_the_recorded_ones():
    prompts = recorded(NAME, "prompts_super")
    count = {"question": "How many chairs?"}
    assert COUNT.prompt(count) == prompts["count"] and STREAMING.prompt(count) == prompts["streaming"]
    assert RECALL.prompt({"question": "Which order?", "options": ["A. x", "B. y"]}) == prompts["recall"]


# Where official code does something that nobody would guess.
QUIRKS = [
    (REVSI, {"question_type": "object_counting_single", "ground_truth": "0"}, "0", 0.0),
    (REVSI, {"question_type": "object_abs_distance", "ground_truth": "2"}, " 2. meters", 1.0),
    (COUNT, {"answer": 0}, "none", 1.0),
    (COUNT, {"answer": 10}, "room-10", 0.0),
    (STREAMING, {"answers": [3, 9]}, "[3]", 1.0),
    (STREAMING, {"answers": [1]}, "[true]", 1.0),
    (STREAMING, {"answers": [3]}, '["3"]', 1.0),
    (RECALL, {"answer": "B"}, "Based on it: A", 1.0),
]


@pytest.mark.parametrize(("protocol", "record", "prediction", "expected"), QUIRKS)
def test_quirks_of_the_official_code_are_kept(protocol, record, prediction, expected):
    assert protocol.score(record, prediction) == expected


def write_lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def revsi_record(budget, **changes):
    record = {"num_frames": budget, "scene_id": "scene0011_00", "question_type": "route_planning"}
    return record | {"question": "Q?", "options": ["A. x", "B. y"], "ground_truth": "A"} | changes


@pytest.mark.parametrize("budget", ["16", "32", "64", "all"])
def test_each_frame_budget_of_revsi_has_its_own_questions_and_videos(tmp_path, budget):
    for each in ("16", "32", "64", "all"):
        write_lines(tmp_path / f"{each}_frame" / "test.jsonl", revsi_record(each, ground_truth=f"of {each}"))
    write_video(tmp_path / f"{budget}_frame" / "scene0011_00.mp4", 3)
    data = read_benchmark(f"revsi-{budget}", tmp_path)
    (question,) = data.questions
    assert question.record["ground_truth"] == f"of {budget}" and question.scene_id == "scene0011_00"
    assert data.missing_media() == [] and len(data.load_images(question.media, 32)) == 3


def test_questions_about_another_number_of_frames_are_refused(tmp_path):
    write_lines(tmp_path / "16_frame" / "test.jsonl", revsi_record(64))
    with refused("64 frames", "`revsi-64`"):
        read_benchmark("revsi-16", tmp_path)


def test_frames_that_the_answers_do_not_hold_for_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--benchmark", "revsi-64", "--data", "any", "--model", "any", "--frames", "32"])
    assert "64 frames" in capsys.readouterr().err


def test_splits_of_vsi_super_count_are_told_apart(tmp_path):
    plain = {"video_path": "10mins/a.mp4", "question": "Q?", "split": "10mins", "answer": 3, "answers": None}
    streaming = plain | {"split": "10mins_streaming", "answer": None, "answers": [1, 3]}
    write_lines(tmp_path / "test.jsonl", plain, streaming, plain)
    records = [
        [question.record["split"] for question in read_benchmark(name, tmp_path).questions]
        for name in ("vsi-super-count", "vsi-super-count-streaming")
    ]
    assert records == [["10mins", "10mins"], ["10mins_streaming"]]
