"""Asking all questions of a benchmark: how often scenes are encoded, in which batches, what a killed run keeps."""

import json
from dataclasses import dataclass, field

import pytest
from tiny_spa3_vlm import fresh_answer, photo, tiny_model, tiny_processor
from transformers import GenerationConfig

from spa3r import SceneSession
from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.reader import BenchmarkQuestion
from spa3r.trainers.benchmark import runner
from spa3r.trainers.benchmark.answers import Answers
from spa3r.trainers.benchmark.runner import ask_all, plan_groups

PROTOCOL = BENCHMARKS["vsi-bench"].protocol("official")
TEXTS = ("How many chairs are there?", "How many?", "Is the sofa near?", "Why?", "How large is the room, in meters?")


@dataclass
class Photos:
    """A benchmark whose scenes have one to three random photos each, of different heights, or cannot be read."""

    questions: list
    name: str = "photos"
    broken: set = field(default_factory=set)
    loaded: list = field(default_factory=list)

    def load_images(self, media, num_frames):
        self.loaded.append(media)
        if media in self.broken:
            raise ValueError(f"The images of {media} cannot be read.")
        number = int(media)
        return [photo(10 * number + view, height=32 + 16 * number) for view in range(1 + number % 3)]


def question(scene, text, number=0):
    record = {"question_type": "object_counting", "question": text, "options": None, "ground_truth": "1"}
    return BenchmarkQuestion(id=f"{scene}-{number}", scene_id=scene, media=scene, record=record)


# Scenes in turn, as in files sorted by type.
QUESTIONS = [question(scene, text, number) for number, text in enumerate(TEXTS) for scene in ("1", "2", "3")]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def ask(model, folder, benchmark=None, questions=QUESTIONS, batch_size=2, **options):
    what = (benchmark or Photos(QUESTIONS), questions, PROTOCOL)
    return ask_all(model, tiny_processor(), *what, Answers(folder), num_frames=3, batch_size=batch_size, **options)


def asked_together(groups):
    return [[[each.id for each in batch] for batch in group] for group in groups]


def test_questions_about_the_same_images_are_grouped_in_the_order_of_the_images():
    groups = plan_groups(QUESTIONS, batch_size=2)
    assert [group[0][0].media for group in groups] == ["1", "2", "3"]
    assert asked_together(groups)[1] == [["2-0", "2-1"], ["2-2", "2-3"], ["2-4"]]


# Questions about each scene, and the scenes whose questions are answered together.
NEIGHBOURS = {
    "one question each": ([1, 1, 1, 1, 1], [["0", "1", "2", "3"], ["4"]]),
    "several that fit": ([2, 2, 3, 1], [["0", "1"], ["2", "3"]]),
    "no part of a scene": ([3, 2, 2], [["0"], ["1", "2"]]),
    "one with many in between": ([1, 5, 1, 1], [["0"], ["1"], ["2", "3"]]),
}


@pytest.mark.parametrize("case", NEIGHBOURS)
def test_neighbours_share_a_batch_that_has_room_for_all_their_questions(case):
    numbers, shared = NEIGHBOURS[case]
    asked = [question(str(scene), "?", number) for scene, count in enumerate(numbers) for number in range(count)]
    groups = plan_groups(asked, batch_size=4)
    assert [list(dict.fromkeys(each.media for batch in group for each in batch)) for group in groups] == shared
    assert [each for group in groups for batch in group for each in batch] == asked


def fresh_answers(model, questions):
    answers = {}
    for asked in questions:
        views, prompt = Photos(questions).load_images(asked.media, 3), PROTOCOL.prompt(asked.record)
        answers[asked.id] = {"prediction": fresh_answer(model, views, prompt, PROTOCOL.max_new_tokens)}
    return answers


def test_answers_are_those_of_fresh_calls(model, tmp_path):
    assert ask(model, tmp_path) == fresh_answers(model, QUESTIONS)


@pytest.fixture
def rows(model, monkeypatch):
    """Rows of each call of `generate`."""
    counts, generate = [], model.generate
    monkeypatch.setattr(
        model, "generate", lambda **options: counts.append(len(options["input_ids"])) or generate(**options)
    )
    return counts


# One question about each of five scenes, of different lengths.
SINGLE = [question(str(scene), text) for scene, text in enumerate(TEXTS)]


def test_scenes_in_one_generate_have_the_answers_of_fresh_calls(model, tmp_path, rows, monkeypatch):
    # A token with which all these answers but one end, each at another place.
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=15, pad_token_id=256))
    answers = ask(model, tmp_path, Photos(SINGLE), SINGLE, batch_size=16)
    assert rows == [5]
    assert answers == fresh_answers(model, SINGLE)


def test_scenes_share_a_generate_up_to_a_number_of_tokens(model, tmp_path, rows, monkeypatch):
    lengths = [SceneSession(model, tiny_processor(), Photos(SINGLE).load_images(str(scene), 3)) for scene in range(3)]
    longest = max(scene.prefix_inputs["input_ids"].shape[1] for scene in lengths)
    monkeypatch.setattr(runner, "MAX_SHARED_TOKENS", 3 * longest)
    ask(model, tmp_path, Photos(SINGLE), SINGLE, batch_size=16)
    assert rows == [3, 2]


def test_a_scene_that_cannot_be_read_loses_no_answer_of_the_others_in_its_batch(model, tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "broken").mkdir()
    whole = ask(model, tmp_path / "whole", Photos(SINGLE), SINGLE, batch_size=16)
    answers = ask(model, tmp_path / "broken", Photos(SINGLE, broken={"1"}), SINGLE, batch_size=16)
    assert answers == whole | {"1-0": {"unreadable": "The images of 1 cannot be read."}}
    repaired = Photos(SINGLE)
    assert ask(model, tmp_path / "broken", repaired, SINGLE, batch_size=16) == whole
    assert repaired.loaded == ["0", "1", "2", "3", "4"]  # the whole batch, as if nothing had been broken


def test_what_shares_a_batch_depends_on_all_questions_of_the_benchmark(model, tmp_path, rows):
    present = [each for each in SINGLE if each.media != "0"]
    ask(model, tmp_path, Photos(SINGLE), present, batch_size=2)
    assert rows == [1, 2, 1]


def test_each_scene_is_encoded_once(model, tmp_path):
    calls = []
    hook = model.model.spatial_encoder.register_forward_hook(lambda *_: calls.append(1))
    benchmark = Photos(QUESTIONS)
    ask(model, tmp_path, benchmark)
    hook.remove()
    assert benchmark.loaded == ["1", "2", "3"] and len(calls) == 3


def test_spaces_around_an_answer_are_kept(model, tmp_path, monkeypatch):
    processor = tiny_processor()
    monkeypatch.setattr(type(processor), "batch_decode", lambda self, tokens, **kwargs: [" 3 \n"] * len(tokens))
    assert ask(model, tmp_path, questions=QUESTIONS[:1]) == {"1-0": {"prediction": " 3 \n"}}


@pytest.mark.parametrize("text", ["one\u2028two", "one\x85two", "half \ud800"], ids=ascii)
def test_answers_of_any_characters_are_kept(text, tmp_path):
    answers = Answers(tmp_path)
    answers.append(0, {"1-0": {"prediction": text}})
    answers.merge(QUESTIONS)
    assert answers.read() == {"1-0": {"prediction": text}}


def test_answers_are_kept_batch_by_batch_and_a_cut_line_is_skipped(model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = ask(model, tmp_path / "a")
    content = (tmp_path / "a" / "predictions.jsonl").read_text()
    # Killed in the second scene's second batch, while its first answer was being written.
    lines = {line["id"]: json.dumps(line) + "\n" for line in map(json.loads, content.splitlines())}
    kept = "".join(lines[f"1-{number}"] for number in range(5)) + lines["2-0"] + lines["2-1"] + lines["2-2"][:-9]
    (tmp_path / "b" / "predictions-00000.jsonl").write_text(kept)
    benchmark = Photos(QUESTIONS)
    assert ask(model, tmp_path / "b", benchmark) == whole
    assert benchmark.loaded == ["2", "3"]
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["predictions.jsonl"]
    assert (tmp_path / "b" / "predictions.jsonl").read_text() == content


def test_a_batch_that_lacks_an_answer_is_asked_again_as_a_whole(model, tmp_path, monkeypatch):
    ask(model, tmp_path)
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if '"1-3"' not in line))
    appended = []
    monkeypatch.setattr(Answers, "append", lambda self, process_index, batch: appended.append(set(batch)))
    ask(model, tmp_path)
    assert appended == [{"1-2", "1-3"}]


def test_answers_about_images_that_are_gone_are_kept_until_they_are_back(model, tmp_path):
    whole = ask(model, tmp_path)
    fewer = [question for question in QUESTIONS if question.media != "2"]
    assert ask(model, tmp_path, questions=fewer).keys() == {question.id for question in fewer}
    back = Photos(QUESTIONS)
    assert ask(model, tmp_path, back) == whole and not back.loaded


def test_scenes_that_could_not_be_read_are_tried_again_unless_told_otherwise(model, tmp_path):
    first = ask(model, tmp_path, Photos(QUESTIONS, broken={"2"}))
    unreadable = {
        name for name, answer in first.items() if answer == {"unreadable": "The images of 2 cannot be read."}
    }
    assert unreadable == {question.id for question in QUESTIONS if question.media == "2"}
    left_out, repaired = Photos(QUESTIONS), Photos(QUESTIONS)
    ask(model, tmp_path, left_out, retry_unreadable=False)
    answers = ask(model, tmp_path, repaired)
    assert (left_out.loaded, repaired.loaded) == ([], ["2"])
    assert all("prediction" in answer for answer in answers.values())
