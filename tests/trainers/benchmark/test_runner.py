"""Asking all questions of a benchmark: how often scenes are encoded, in which batches, what a killed run keeps."""

import json
from dataclasses import dataclass, field

import pytest
from tiny_spa3_vlm import fresh_answer, photo, tiny_model, tiny_processor

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.reader import BenchmarkQuestion
from spa3r.trainers.benchmark.answers import Answers
from spa3r.trainers.benchmark.runner import ask_all, plan_scenes

PROTOCOL = BENCHMARKS["vsi-bench"].protocol("official")
TEXTS = ("How many chairs are there?", "How many?", "Is the sofa near?", "Why?", "How large is the room, in meters?")


@dataclass
class Photos:
    """A benchmark whose scenes have three random photos each, or cannot be read."""

    name: str = "photos"
    broken: set = field(default_factory=set)
    loaded: list = field(default_factory=list)

    def load_images(self, media, num_frames):
        self.loaded.append(media)
        if media in self.broken:
            raise ValueError(f"The images of {media} cannot be read.")
        return [photo(10 * int(media) + view) for view in range(3)]


def question(scene, text, number=0):
    record = {"question_type": "object_counting", "question": text, "options": None, "ground_truth": "1"}
    return BenchmarkQuestion(id=f"{scene}-{number}", scene_id=scene, media=scene, record=record)


# Scenes in turn, as in files sorted by type.
QUESTIONS = [question(scene, text, number) for number, text in enumerate(TEXTS) for scene in ("1", "2", "3")]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def ask(model, folder, benchmark=None, questions=QUESTIONS, batch_size=2, **options):
    what = (benchmark or Photos(), questions, PROTOCOL)
    return ask_all(model, tiny_processor(), *what, Answers(folder), num_frames=3, batch_size=batch_size, **options)


def test_questions_about_the_same_images_are_grouped_in_the_order_of_the_images():
    scenes = plan_scenes(QUESTIONS, batch_size=2)
    assert [scene.media for scene in scenes] == ["1", "2", "3"]
    assert [[each.id for each in batch] for batch in scenes[1].batches] == [["2-0", "2-1"], ["2-2", "2-3"], ["2-4"]]


def test_answers_are_those_of_fresh_calls(model, tmp_path):
    answers = ask(model, tmp_path)
    for asked in QUESTIONS:
        views = Photos().load_images(asked.media, 3)
        fresh = fresh_answer(model, views, PROTOCOL.prompt(asked.record), PROTOCOL.max_new_tokens)
        assert answers[asked.id] == {"prediction": fresh}


def test_each_scene_is_encoded_once(model, tmp_path):
    calls = []
    hook = model.model.spatial_encoder.register_forward_hook(lambda *_: calls.append(1))
    benchmark = Photos()
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
    benchmark = Photos()
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
    back = Photos()
    assert ask(model, tmp_path, back) == whole and not back.loaded


def test_scenes_that_could_not_be_read_are_tried_again_unless_told_otherwise(model, tmp_path):
    first = ask(model, tmp_path, Photos(broken={"2"}))
    unreadable = {
        name for name, answer in first.items() if answer == {"unreadable": "The images of 2 cannot be read."}
    }
    assert unreadable == {question.id for question in QUESTIONS if question.media == "2"}
    left_out, repaired = Photos(), Photos()
    ask(model, tmp_path, left_out, retry_unreadable=False)
    answers = ask(model, tmp_path, repaired)
    assert (left_out.loaded, repaired.loaded) == ([], ["2"])
    assert all("prediction" in answer for answer in answers.values())
