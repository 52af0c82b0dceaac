"""The command that writes rooms' questions: files, resuming, seeds, and what wrong input is told."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Features, Image, List, Value, load_dataset
from terminal import verb

from spa3r.data_scripts.benchmarks.vsi_bench import parse_prompt
from spa3r.data_scripts.rooms import write_questions as room_questions
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.rooms.question_types import QUESTION_TYPES
from spa3r.data_scripts.rooms.write_questions import given_views, write_questions

main = verb("room-questions")


@pytest.fixture(scope="module")
def test_rooms(tmp_path_factory) -> Path:
    """Two rooms of another seed."""
    root = tmp_path_factory.mktemp("test_rooms")
    render_rooms(root, 2, 24, (56, 42), seed=1, workers=1)
    return root


def load(folder):
    return load_dataset("parquet", data_files=str(folder / "data" / "*.parquet"), split="train")


def records(folder):
    return [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]


def folder_bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_instruction_set_has_the_columns_of_vision_conversations(rooms, tmp_path):
    write_questions(rooms, tmp_path)
    text = Value("string")
    assert load(tmp_path).features == Features(
        {
            "id": text,
            "images": List(Image()),
            "messages": List({"role": text, "content": List({"type": text, "text": text})}),
            "scene_id": text,
            "question_type": text,
            "source": text,
        }
    )


def test_a_record_shows_the_views_and_asks_with_the_official_prompt(rooms, tmp_path):
    write_questions(rooms, tmp_path)
    for row in load(tmp_path).cast_column("images", List(Image(decode=False))):
        room = row["scene_id"].removesuffix("_seed0")
        # Eight frames a second apart: four of them are given.
        assert row["images"] == [
            {"bytes": None, "path": str(rooms / room / "color" / f"{frame}.jpg")} for frame in (0, 2, 4, 7)
        ]
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"], row["source"]) == ("user", "assistant", "rooms")
        assert [part["type"] for part in user["content"]] == ["image"] * 4 + ["text"]
        question, options = parse_prompt(user["content"][-1]["text"])
        assert question
        (answer,) = [part["text"] for part in assistant["content"]]
        assert answer in [option[0] for option in options] if options else float(answer) > 0


def test_images_are_named_not_stored(rooms, tmp_path):
    write_questions(rooms, tmp_path)
    image = load(tmp_path)[0]["images"][0]
    assert image.size == (56, 42)
    colors = sum(path.stat().st_size for path in rooms.glob("*/color/*.jpg"))
    assert (tmp_path / "data" / "00000.parquet").stat().st_size < colors / 2


@pytest.mark.parametrize("num_frames, views", [(1, [0]), (8, [0, 2, 4, 7]), (15, [0, 2, 4, 6, 8, 10, 12, 14])])
def test_given_views_are_those_of_official_training(num_frames, views):
    assert given_views(num_frames) == views


def test_a_benchmark_has_the_columns_of_vsi_bench(test_rooms, tmp_path):
    write_questions(test_rooms, tmp_path, questions_per_room=30, format="benchmark")
    rows = records(tmp_path)
    assert len({row["id"] for row in rows}) == len(rows) > 20
    for row in rows:
        assert list(row) == ["id", "dataset", "scene_name", "question_type", "question", "ground_truth", "options"]
        assert isinstance(row["id"], int) and row["dataset"] == "rooms"
        assert (test_rooms / row["scene_name"] / "color").is_dir()
        if row["options"] is None:
            assert float(row["ground_truth"]) > 0
        else:
            assert row["ground_truth"] in [option[0] for option in row["options"]]


def test_every_type_is_in_a_benchmark(test_rooms, tmp_path):
    manifest = write_questions(test_rooms, tmp_path, questions_per_room=60, format="benchmark")
    assert all(manifest["questions"][name] > 0 for name in QUESTION_TYPES)


def test_no_question_of_a_room_is_asked_twice(test_rooms, tmp_path):
    write_questions(test_rooms, tmp_path, questions_per_room=60, format="benchmark")
    asked = [(row["scene_name"], row["question"]) for row in records(tmp_path)]
    assert len(set(asked)) == len(asked)


def test_the_manifest_counts_what_was_written(rooms, tmp_path):
    manifest = write_questions(rooms, tmp_path, questions_per_room=20)
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    types = load(tmp_path)["question_type"]
    assert manifest["questions"] == {name: list(types).count(name) for name in QUESTION_TYPES}
    assert manifest["num_questions"] == len(types)
    assert {name: manifest["questions"][name] + manifest["without_case"][name] for name in QUESTION_TYPES} == {
        name: 12 for name in QUESTION_TYPES
    }


def test_rooms_of_which_nothing_is_asked_are_listed(rooms, tmp_path):
    shutil.copytree(rooms, tmp_path / "rooms")
    scene = tmp_path / "rooms" / "room_000002" / "scene.json"
    description = json.loads(scene.read_text())
    for frame in description["frames"]:
        frame["visible_pixels"] = {}
    scene.write_text(json.dumps(description))
    write_questions(tmp_path / "rooms", tmp_path / "questions", questions_per_room=3)  # room sizes come fourth
    rejected = [json.loads(line) for line in (tmp_path / "questions" / "rejected.jsonl").read_text().splitlines()]
    assert {"scene_name": "room_000002", "reason": "no question with a certain answer"} in rejected


@pytest.mark.parametrize("format", ["train", "benchmark"])
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(rooms, tmp_path, format):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_questions(rooms, tmp_path / name, seed, format=format)
    first, again, other = (folder_bytes(tmp_path / name) for name in "abc")
    assert first == again
    data = "data/00000.parquet" if format == "train" else "test.jsonl"
    assert first[data] != other[data]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("format", ["train", "benchmark"])
def test_a_killed_run_is_resumed_to_the_same_bytes(rooms, tmp_path, monkeypatch, format):
    monkeypatch.setattr(room_questions, "ROOMS_PER_SHARD", 2)
    write_questions(rooms, tmp_path / "whole", format=format)
    ask = room_questions.ask_room

    def ask_some(folder, *arguments):
        if folder.name == "room_000003":
            raise Killed
        return ask(folder, *arguments)

    monkeypatch.setattr(room_questions, "ask_room", ask_some)
    with pytest.raises(Killed):
        write_questions(rooms, tmp_path / "resumed", format=format)
    assert not (tmp_path / "resumed" / "manifest.json").exists()
    (tmp_path / "resumed" / ".test.jsonl.1.partial").touch()
    asked = []
    monkeypatch.setattr(
        room_questions, "ask_room", lambda folder, *rest: asked.append(folder.name) or ask(folder, *rest)
    )
    write_questions(rooms, tmp_path / "resumed", format=format)
    assert folder_bytes(tmp_path / "resumed") == folder_bytes(tmp_path / "whole")
    assert len(asked) == (4 if format == "train" else 6)  # the first shard is kept


def test_a_benchmark_is_scored_by_what_is_learnt_from_the_training_set(rooms, test_rooms, tmp_path):
    write_questions(rooms, tmp_path / "train", questions_per_room=40)
    manifest = write_questions(test_rooms, tmp_path / "test", 0, 40, "benchmark", tmp_path / "train")
    learnt = [list(row["messages"]) for row in load(tmp_path / "train") if row["question_type"] == "object_counting"]
    answers = [messages[1]["content"][0]["text"] for messages in learnt]
    best = float(max(dict.fromkeys(answers), key=answers.count))
    truths = [
        float(row["ground_truth"]) for row in records(tmp_path / "test") if row["question_type"] == "object_counting"
    ]
    scores = [sum(abs(best - truth) / truth <= 0.5 - 0.05 * k + 1e-12 for k in range(10)) / 10 for truth in truths]
    assert manifest["frequency_baseline"]["object_counting"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)


def test_a_benchmark_of_the_training_rooms_is_refused(rooms, tmp_path):
    write_questions(rooms, tmp_path / "train")
    with pytest.raises(ValueError, match="both made with seed 0, so they are the same rooms"):
        write_questions(rooms, tmp_path / "test", format="benchmark", train=tmp_path / "train")
    assert not (tmp_path / "test").exists()


def test_the_manifest_says_which_rooms_were_used(rooms, tmp_path):
    assert write_questions(rooms, tmp_path)["rooms"] == {"seed": 0, "views": 8, "size": [56, 42]}


def test_rooms_of_several_seeds_in_one_folder_are_refused(rooms, test_rooms, tmp_path):
    shutil.copytree(rooms, tmp_path / "rooms")
    shutil.copytree(test_rooms / "room_000000", tmp_path / "rooms" / "room_000077")
    with pytest.raises(ValueError, match="room_000077. was made with seed 1, but the rooms beside it with 0"):
        write_questions(tmp_path / "rooms", tmp_path / "questions")


def test_a_folder_with_other_questions_is_refused(rooms, tmp_path):
    write_questions(rooms, tmp_path, questions_per_room=2)
    with pytest.raises(ValueError, match="`questions_per_room` was 2, is 3"):
        write_questions(rooms, tmp_path, questions_per_room=3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--questions-per-room", "0"], "questions per room must be at least 1, got 0"),
        (["--seed", "-1"], "seed must not be negative, got -1"),
        (["--train", "x"], "A training set to learn from belongs to a benchmark"),
        (["--train", "x", "--format", "benchmark"], "`x` holds no finished instruction set of rooms"),
        (["--rooms", "nowhere"], "There are no rooms in `.*nowhere`: make some with spa3r rooms --output"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(rooms, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(["--rooms", str(rooms), "--output", str(tmp_path / "questions"), *arguments])
    assert not (tmp_path / "questions").exists()


def test_the_command_prints_a_table_of_all_types(rooms, tmp_path, capsys):
    main(["--rooms", str(rooms), "--output", str(tmp_path), "--questions-per-room", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["type", "questions", "no", "case", "frequency", "blind"]
    assert [line.split()[0] for line in lines[1:]] == list(QUESTION_TYPES)
