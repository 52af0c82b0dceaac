"""Questions written to disk: columns, manifest, resuming, seeds and refusals."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Features, Image, List, Value, load_dataset
from terminal import verb

from spa3r.data_scripts.benchmarks.vsi_bench import parse_prompt
from spa3r.data_scripts.rooms import write_questions as room_questions
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.rooms.ground_truth import read_description, read_ground_truth
from spa3r.data_scripts.rooms.question_options import GROUPS, QuestionOptions
from spa3r.data_scripts.rooms.question_types import QUESTION_TYPES
from spa3r.data_scripts.rooms.write_questions import training_views, write_questions
from spa3r.trainers.tuning.instruction_data import load_instructions

main = verb("room-questions")


@pytest.fixture(scope="module")
def other_rooms(tmp_path_factory) -> Path:
    """Two rooms of another seed."""
    root = tmp_path_factory.mktemp("other_rooms")
    render_rooms(root, 2, 24, (56, 42), seed=1, workers=1)
    return root


@pytest.fixture(scope="module")
def instruction_set(rooms, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("instruction_set")
    write_questions(rooms, folder, QuestionOptions(questions_per_room=40))
    return folder


@pytest.fixture(scope="module")
def benchmark(other_rooms, instruction_set, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_questions(other_rooms, folder, QuestionOptions("benchmark", questions_per_room=60), instruction_set)
    return folder


def load(folder):
    return load_dataset("parquet", data_files=str(folder / "data" / "*.parquet"), split="train")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def folder_bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_instruction_set_has_the_columns_of_vision_conversations(instruction_set):
    text = Value("string")
    assert load(instruction_set).features == Features(
        {
            "id": text,
            "images": List(Image()),
            "messages": List({"role": text, "content": List({"type": text, "text": text})}),
            "scene_id": text,
            "question_type": text,
            "source": text,
            "objects": List({"name": text, "place": List(Value("float32")), "first_view": Value("float32")}),
        }
    )


def test_a_record_tells_where_the_objects_are_that_its_views_show(rooms, instruction_set):
    for row in load(instruction_set).select_columns(["scene_id", "objects"]):
        folder = rooms / row["scene_id"].removesuffix("_seed0")
        room = read_ground_truth(folder, read_description(folder), [0, 2, 4, 7])
        shown = {item.category for item in room.objects if room.is_visible(item)}
        assert {each["name"] for each in row["objects"]} == shown
        places = {each["name"]: each["place"] for each in row["objects"]}
        unique = {item.category: item for item in room.unique_objects}
        assert {name for name, place in places.items() if place is not None} == unique.keys()
        for name, item in unique.items():
            expected = np.linalg.inv(room.poses[0]) @ [*item.center, 1]
            np.testing.assert_allclose(places[name], expected[:3], atol=1e-4)


def test_a_record_tells_which_of_its_views_first_shows_an_object(rooms, instruction_set):
    for row in load(instruction_set).select_columns(["scene_id", "objects"]):
        folder = rooms / row["scene_id"].removesuffix("_seed0")
        room = read_ground_truth(folder, read_description(folder), [0, 2, 4, 7])
        for each in row["objects"]:
            first = round(3 * each["first_view"])
            clear = [(item.pixels >= room.min_visible_pixels) for item in room.of_category(each["name"])]
            assert any(views[first] for views in clear) and not any(views[:first].any() for views in clear)


def test_a_record_shows_the_views_and_asks_with_the_official_prompt(rooms, instruction_set):
    for row in load(instruction_set).cast_column("images", List(Image(decode=False))):
        room = row["scene_id"].removesuffix("_seed0")
        # Four of eight frames are given.
        paths = [str(rooms / room / "color" / f"{frame}.jpg") for frame in (0, 2, 4, 7)]
        assert row["images"] == [{"bytes": None, "path": path} for path in paths]
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"], row["source"]) == ("user", "assistant", "rooms")
        assert [part["type"] for part in user["content"]] == ["image"] * 4 + ["text"]
        question, options = parse_prompt(user["content"][-1]["text"])
        assert question
        (answer,) = [part["text"] for part in assistant["content"]]
        assert answer in [option[0] for option in options] if options else float(answer) > 0


def test_images_are_named_not_stored(rooms, instruction_set):
    assert load(instruction_set)[0]["images"][0].size == (56, 42)
    colors = sum(path.stat().st_size for path in rooms.glob("*/color/*.jpg"))
    assert (instruction_set / "data" / "00000.parquet").stat().st_size < colors / 2


@pytest.fixture(scope="module")
def multi_turn(rooms, tmp_path_factory) -> Path:
    """The instruction set with up to three questions in a record."""
    folder = tmp_path_factory.mktemp("multi_turn")
    write_questions(rooms, folder, QuestionOptions(questions_per_room=40, turns=3))
    return folder


def test_a_record_of_several_turns_shows_the_images_once_before_the_first_question(multi_turn):
    for row in load(multi_turn).cast_column("images", List(Image(decode=False))):
        types = [[part["type"] for part in message["content"]] for message in row["messages"]]
        assert types == [["image"] * 4 + ["text"], *[["text"]] * (len(types) - 1)]
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * len(row["question_type"].split(","))


def test_records_have_as_many_turns_as_asked_for_where_the_room_has_questions(multi_turn):
    counts = Counter(row["question_type"].count(",") + 1 for row in load(multi_turn))
    assert set(counts) <= {1, 2, 3} and counts[3] > counts.total() / 2


def test_records_of_several_turns_are_fit_for_training(multi_turn):
    assert len(load_instructions([str(multi_turn)], seed=0)) == len(load(multi_turn))


def test_a_question_shows_as_many_views_as_asked_for_evenly_spaced(rooms, tmp_path):
    write_questions(rooms, tmp_path, QuestionOptions(views_per_question=5))
    for row in load(tmp_path).cast_column("images", List(Image(decode=False))):
        assert [Path(image["path"]).stem for image in row["images"]] == ["0", "1", "3", "5", "7"]


def test_questions_about_images_show_each_view_before_any_is_shown_again(rooms, tmp_path):
    write_questions(rooms, tmp_path, QuestionOptions(questions_per_room=32, families=("2d",), turns=4))
    shown = {}
    for row in load(tmp_path).cast_column("images", List(Image(decode=False))):
        (image,) = row["images"]
        shown.setdefault(row["scene_id"], []).append(Path(image["path"]).stem)
    # Eight records of four questions for eight views, less those without a question.
    assert all(len(set(views)) == len(views) for views in shown.values())
    assert len({tuple(views) for views in shown.values()}) > 1
    assert sum(map(len, shown.values())) > 36


def test_lettered_questions_are_the_plain_ones_with_options_whose_letter_gives_the_plain_answer(rooms, tmp_path):
    asked = {}
    for share in (0.0, 1.0):
        options = QuestionOptions(families=("closer", "color", "view_count"), turns=4, lettered_share=share)
        write_questions(rooms, tmp_path / str(share), options)
        turns = [message["content"][-1]["text"] for row in load(tmp_path / str(share)) for message in row["messages"]]
        asked[share] = list(zip(turns[::2], turns[1::2], strict=True))
    lettered = 0
    for (plain, answer), (question, letter) in zip(asked[0.0], asked[1.0], strict=True):
        text, _, choice = question.partition("\nOptions:\n")
        assert text == plain
        if choice:
            options = dict(line.split(". ", 1) for line in choice.splitlines()[:-1])
            assert options[letter] == answer and len(set(options.values())) == len(options) > 1
            lettered += 1
    assert 0 < lettered < len(asked[0.0])  # a count is among no known few


def test_the_manifest_counts_and_scores_each_family(rooms, tmp_path):
    write_questions(rooms, tmp_path, QuestionOptions(questions_per_room=75, families=("3d",), turns=6))
    manifest = read_manifest(tmp_path)
    types = [name for row in load(tmp_path) for name in row["question_type"].split(",")]
    assert manifest["questions"] == {name: types.count(name) for name in GROUPS["3d"]}
    assert all(manifest["questions"][name] + manifest["without_case"][name] == 30 for name in GROUPS["3d"])
    for scores in (manifest["frequency_baseline"], manifest["blind_bound"]):
        assert len(scores) > 10 and set(scores) <= set(GROUPS["3d"])
        assert all(0 <= score <= 1 for score in scores.values())


def test_objects_below_the_share_for_clear_visibility_are_not_asked_about(rooms, tmp_path):
    write_questions(
        rooms, tmp_path, QuestionOptions(questions_per_room=40, families=("camera_distance",), min_visible_share=0.05)
    )
    asked = 0
    for row in load(tmp_path).cast_column("images", List(Image(decode=False))):
        room = json.loads((rooms / row["scene_id"].removesuffix("_seed0") / "scene.json").read_text())
        name = row["messages"][0]["content"][-1]["text"].removeprefix("How many meters is the ").partition(" from")[0]
        items = [item for item in (*room["furniture"], *room["wall_objects"]) if item["category"] == name]
        frames = [room["frames"][frame]["visible_pixels"] for frame in (0, 2, 4, 7)]
        assert max(frame.get(str(items[0]["instance_id"]), 0) for frame in frames) >= 0.05 * 56 * 42
        asked += 1
    assert asked > 6


@pytest.mark.parametrize("format", ["train", "benchmark"])
def test_two_workers_write_the_same_bytes_as_one(rooms, tmp_path, monkeypatch, format):
    monkeypatch.setattr(room_questions, "ROOMS_PER_SHARD", 2)
    for workers in (1, 2):
        write_questions(rooms, tmp_path / str(workers), QuestionOptions(format), workers=workers)
    assert folder_bytes(tmp_path / "1") == folder_bytes(tmp_path / "2")


@pytest.mark.parametrize("num_frames, views", [(1, [0]), (8, [0, 2, 4, 7]), (15, [0, 2, 4, 6, 8, 10, 12, 14])])
def test_training_views_are_those_of_official_training(num_frames, views):
    assert training_views(num_frames) == views


def test_a_benchmark_has_the_columns_of_vsi_bench(other_rooms, benchmark):
    rows = read_lines(benchmark / "test.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) > 20
    for row in rows:
        assert list(row) == ["id", "dataset", "scene_name", "question_type", "question", "ground_truth", "options"]
        assert isinstance(row["id"], int) and row["dataset"] == "rooms"
        assert (other_rooms / row["scene_name"] / "color").is_dir()
        if row["options"] is None:
            assert float(row["ground_truth"]) > 0
        else:
            assert row["ground_truth"] in [option[0] for option in row["options"]]


def test_a_benchmark_has_every_type_and_no_question_twice(benchmark):
    rows = read_lines(benchmark / "test.jsonl")
    assert {row["question_type"] for row in rows} == set(QUESTION_TYPES)
    assert max(Counter((row["scene_name"], row["question"]) for row in rows).values()) == 1


def test_the_manifest_counts_the_questions_and_names_the_rooms(instruction_set):
    manifest, types = read_manifest(instruction_set), list(load(instruction_set)["question_type"])
    assert manifest["rooms"] == {"seed": 0, "views": 8, "size": [56, 42]}
    assert manifest["questions"] == {name: types.count(name) for name in QUESTION_TYPES}
    assert manifest["num_questions"] == len(types)
    # Six rooms with forty questions each, of ten types in turn.
    assert all(manifest["questions"][name] + manifest["without_case"][name] == 24 for name in QUESTION_TYPES)


def test_rooms_without_questions_are_listed(rooms, tmp_path):
    shutil.copytree(rooms, tmp_path / "rooms")
    scene = tmp_path / "rooms" / "room_000002" / "scene.json"
    description = json.loads(scene.read_text())
    for frame in description["frames"]:
        frame["visible_pixels"] = {}
    scene.write_text(json.dumps(description))
    write_questions(
        tmp_path / "rooms", tmp_path / "questions", QuestionOptions(questions_per_room=3)
    )  # the fourth asks for room size
    rejected = read_lines(tmp_path / "questions" / "rejected.jsonl")
    assert "room_000002" in [room["scene_name"] for room in rejected if room["reason"]]


@pytest.mark.parametrize("format", ["train", "benchmark"])
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(rooms, tmp_path, format):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_questions(rooms, tmp_path / name, QuestionOptions(format, seed))
    first, again, other = (folder_bytes(tmp_path / name) for name in "abc")
    assert first == again
    data = "data/00000.parquet" if format == "train" else "test.jsonl"
    assert first[data] != other[data]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("format, asked_again", [("train", 4), ("benchmark", 6)])  # the first shard of two is kept
def test_a_killed_run_is_resumed_to_the_same_bytes(rooms, tmp_path, monkeypatch, format, asked_again):
    monkeypatch.setattr(room_questions, "ROOMS_PER_SHARD", 2)
    write_questions(rooms, tmp_path / "whole", QuestionOptions(format))
    read, asked = room_questions.read_ground_truth, []

    def ask_some(folder, *arguments):
        if folder.name == "room_000003":
            raise Killed
        return read(folder, *arguments)

    def ask_and_note(folder, *arguments):
        asked.append(folder.name)
        return read(folder, *arguments)

    monkeypatch.setattr(room_questions, "read_ground_truth", ask_some)
    with pytest.raises(Killed):
        write_questions(rooms, tmp_path / "resumed", QuestionOptions(format))
    assert not (tmp_path / "resumed" / "manifest.json").exists()
    (tmp_path / "resumed" / ".test.jsonl.1.partial").touch()
    monkeypatch.setattr(room_questions, "read_ground_truth", ask_and_note)
    write_questions(rooms, tmp_path / "resumed", QuestionOptions(format))
    assert folder_bytes(tmp_path / "resumed") == folder_bytes(tmp_path / "whole")
    assert len(asked) == asked_again


def test_a_benchmark_is_scored_by_answers_learned_from_the_training_set(instruction_set, benchmark):
    learned = [row["messages"] for row in load(instruction_set) if row["question_type"] == "object_counting"]
    answers = [messages[1]["content"][0]["text"] for messages in learned]
    best = float(max(dict.fromkeys(answers), key=answers.count))
    rows = read_lines(benchmark / "test.jsonl")
    truths = [float(row["ground_truth"]) for row in rows if row["question_type"] == "object_counting"]
    scores = [sum(abs(best - truth) / truth <= 0.5 - 0.05 * k + 1e-12 for k in range(10)) / 10 for truth in truths]
    found = read_manifest(benchmark)["frequency_baseline"]["object_counting"]
    assert found == pytest.approx(sum(scores) / len(scores), abs=1e-4)


def test_a_folder_with_other_questions_is_refused(rooms, instruction_set):
    with pytest.raises(ValueError, match="`questions_per_room` was 40, is 3"):
        write_questions(rooms, instruction_set, QuestionOptions(questions_per_room=3))


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--questions-per-room", "0"], ["questions_per_room", "0"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--workers", "0"], ["workers", "0"]),
        (["--turns", "0"], ["turns", "0"]),
        (["--views-per-question", "9"], ["views_per_question", "9", "8 views"]),
        (["--families", "3d", "colour"], ["families", "`colour`"]),
        (["--families", "grounding", "--format", "benchmark"], ["`grounding`", "benchmark"]),
        (["--train", "x"], ["`train`", "`x`", "benchmark"]),
        (["--train", "x", "--format", "benchmark"], ["`x`", "manifest.json"]),
        (["--train", "{benchmark}", "--format", "benchmark"], ["{benchmark}", "rooms", "benchmark"]),
        (["--train", "{instruction_set}", "--format", "benchmark"], ["{instruction_set}", "seed 0"]),
        (["--rooms", "nowhere"], ["nowhere", "spa3r rooms"]),
        (["--rooms", "{mixed}"], ["room_000077", "seed 1", "seed 0"]),
    ],
    ids=" ".join,
)
def test_wrong_input_is_refused_by_name_and_value(
    rooms, other_rooms, instruction_set, benchmark, tmp_path, monkeypatch, arguments, named
):
    shutil.copytree(rooms, tmp_path / "mixed")
    shutil.copytree(other_rooms / "room_000000", tmp_path / "mixed" / "room_000077")
    folders = {"instruction_set": instruction_set, "benchmark": benchmark, "mixed": tmp_path / "mixed"}
    arguments, named = ([word.format(**folders) for word in words] for words in (arguments, named))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        main(["--rooms", rooms, "--output", tmp_path / "questions", *arguments])
    assert all(word in str(refusal.value) for word in named)
    assert not (tmp_path / "questions").exists()


DAMAGED_ROOMS = {
    "no JSON": lambda room: (room / "scene.json").write_text("{"),
    "no object": lambda room: (room / "scene.json").write_text("[]"),
    "a value is missing": lambda room: change_room(room, size=...),
    "a value of another type": lambda room: change_room(room, furniture=3),
    "no pose": lambda room: (room / "pose" / "0.txt").write_text(""),
    "half a pose": lambda room: (room / "pose" / "0.txt").write_text("1 0 0 0\n0 1"),
    "frames elsewhere": lambda room: change_room(room, frames=[{"frame": "../../escape", "visible_pixels": {}}]),
}


def change_room(room, **changes):
    description = json.loads((room / "scene.json").read_text()) | changes
    kept = {name: value for name, value in description.items() if value is not ...}
    (room / "scene.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("damage", DAMAGED_ROOMS.values(), ids=DAMAGED_ROOMS)
def test_a_damaged_room_is_refused_by_name(rooms, tmp_path, damage):
    shutil.copytree(rooms, tmp_path / "rooms")
    damage(tmp_path / "rooms" / "room_000001")
    with pytest.raises(SystemExit) as refusal:
        main(["--rooms", tmp_path / "rooms", "--output", tmp_path / "questions", "--workers", "1"])
    assert str(tmp_path / "rooms" / "room_000001") in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_command_prints_a_row_for_each_type(rooms, tmp_path, capsys):
    main(["--rooms", rooms, "--output", tmp_path, "--questions-per-room", "20"])
    head, *lines = capsys.readouterr().out.splitlines()
    questions = read_manifest(tmp_path)["questions"]
    assert [(line.split()[0], int(line.split()[1])) for line in lines] == list(questions.items())


@pytest.fixture(scope="module")
def several_turns(rooms, tmp_path_factory):
    """The records of an instruction set with six turns each."""
    folder = tmp_path_factory.mktemp("several_turns")
    write_questions(rooms, folder, QuestionOptions(questions_per_room=60, turns=6))
    return load(folder).select_columns(["messages", "question_type"]).to_list()


def test_letters_in_a_record_of_several_turns_differ(several_turns):
    answers = [
        [message["content"][0]["text"] for message in record["messages"] if message["role"] == "assistant"]
        for record in several_turns
    ]
    letters = [[answer for answer in record if answer in "ABCD"] for record in answers]
    several = [record for record in letters if len(record) >= 3]
    assert several
    # Letters that are drawn one by one are all equal in fewer than one record in nine.
    assert sum(len(set(record)) > 1 for record in several) > 0.6 * len(several)


def test_each_family_comes_first_in_some_record_of_several_turns(several_turns):
    assert len({record["question_type"].split(",")[0] for record in several_turns}) > 4
