"""The command `spa3r ask`: photos or a video in, answers out, each question after the first from what was kept."""

import io
import shutil
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from terminal import refusal, verb
from tiny_spa3_vlm import answering_model, fresh_answer, photo, save_tiny_vlm, tiny_model
from tiny_videos import write_video

from spa3r import Spa3RModel

QUESTIONS = ["How many chairs?", "Why?"]
# A question, when it does not matter which.
ONE = ["--question", "Why?", "--max-new-tokens", 1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("ask") / "spa3-vlm-tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("photos") / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        photo(index).save(path)
    return paths


def ask(checkpoint, *options):
    verb("ask")(["--model", checkpoint, "--device", "cpu", *options])


def expected_lines(photos, *questions):
    return "".join(f"{fresh_answer(answering_model(), photos, question, 6)}\n" for question in questions)


@pytest.mark.parametrize("source", ["options", "standard input"])
def test_answers_alone_go_to_the_standard_output_in_the_order_of_the_questions(
    source, checkpoint, photos, monkeypatch, capfd
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(QUESTIONS)))
    options = [part for question in QUESTIONS for part in ("--question", question)] if source == "options" else []
    ask(checkpoint, "--images", *photos, *options, "--max-new-tokens", 6)
    output = capfd.readouterr()
    assert output.out == expected_lines(photos, *QUESTIONS)
    # At the terminal they are on the screen already.
    assert all((question in output.err) == (source == "options") for question in QUESTIONS)


def test_the_second_question_does_not_encode_the_scene_again(checkpoint, photos, monkeypatch):
    calls = []
    forward = Spa3RModel.forward
    monkeypatch.setattr(Spa3RModel, "forward", lambda *args, **options: calls.append(1) or forward(*args, **options))
    ask(checkpoint, "--images", *photos, "--question", "How many?", *ONE)
    assert len(calls) == 1


def test_a_video_is_read_in_the_requested_number_of_frames(checkpoint, tmp_path, capfd):
    ask(checkpoint, "--video", write_video(tmp_path / "room.mp4", 9), "--frames", 4, *ONE)
    assert "4 views" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_computes_in_the_type_asked_for(checkpoint, photos, dtype, monkeypatch):
    types = set()
    forward = Spa3RModel.forward
    monkeypatch.setattr(
        Spa3RModel, "forward", lambda self, *args, **options: types.add(self.dtype) or forward(self, *args, **options)
    )
    ask(checkpoint, "--images", *photos, *ONE, "--dtype", dtype)
    assert types == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param(["--images", "nowhere.jpg"], "`nowhere.jpg`", id="missing photo"),
        pytest.param(["--images", "door.jpg", "--device", "cuda:99"], "`cuda:99`", id="missing device"),
        pytest.param(["--images", "door.jpg", "--model", "./nowhere"], "`./nowhere`", id="missing model"),
        pytest.param(["--images", "door.jpg", "--model", "owner/nowhere"], "`owner/nowhere`", id="not on the Hub"),
        pytest.param(["--images", "door.jpg", "--model", __file__], "test_ask.py`", id="file as model"),
        pytest.param(["--video", "room.mp4", "--frames", 0], "--frames", id="no frames"),
        pytest.param(["--video", "room.mp4", "--max-new-tokens", 0], "--max-new-tokens", id="no tokens"),
        pytest.param(["--images", "door.jpg", "--frames", 4], "--frames", id="frames of photos"),
    ],
)
def test_wrong_options_are_refused_by_name(options, named, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert named in refusal(capsys, "ask", "--model", checkpoint, *options)


def test_a_model_of_another_kind_is_refused(tmp_path, photos, capsys):
    tiny_model().model.spatial_encoder.save_pretrained(tmp_path)
    assert "`spa3r`" in refusal(capsys, "ask", "--model", tmp_path, "--images", *photos)


def damage(model, part):
    """Damage a part of a checkpoint."""
    file = model / "model.safetensors"
    if part.endswith(".json"):
        (model / part).unlink()
    elif part == "file":
        file.unlink()
    elif part == "end":
        with file.open("r+b") as content:
            content.truncate(100000)
    else:
        weights = load_file(file)
        if part == "lm_head.weight":
            weights[part] = weights[part][:-1].clone()
        else:
            weights = {name: weight for name, weight in weights.items() if part not in name}
        save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "named"),
    [
        pytest.param("config.json", "config.json", id="config"),
        pytest.param("processor_config.json", "processor_config.json", id="processor"),
        pytest.param("tokenizer.json", "tokenizer.json", id="tokenizer"),
        pytest.param("file", "`{model}`", id="no weights"),
        pytest.param("end", "`{model}`", id="truncated weights"),
        pytest.param(".spatial_encoder.encoder.", "`model.spatial_encoder.encoder", id="missing weights"),
        pytest.param("lm_head.weight", "`lm_head.weight`", id="other shape"),
    ],
)
def test_a_damaged_model_is_refused_by_the_damaged_part(part, named, checkpoint, photos, tmp_path, capsys):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    damage(model, part)
    assert named.format(model=model) in refusal(capsys, "ask", "--model", model, "--images", *photos)


def test_a_model_without_adapter_is_asked_as_it_is(checkpoint, photos, tmp_path, capfd):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    damage(model, ".fusion.")
    ask(model, "--images", *photos, *ONE)
    assert "Answered" in capfd.readouterr().err


def test_a_question_that_is_refused_ends_nothing_at_the_terminal(checkpoint, photos, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is <|image_pad|>?\nWhy?\n"))
    ask(checkpoint, "--images", *photos, "--max-new-tokens", 6)
    output = capfd.readouterr()
    assert output.out == expected_lines(photos, "Why?")
    assert "`<|image_pad|>`" in output.err


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(question, checkpoint, photos, capsys):
    message = refusal(capsys, "ask", "--model", checkpoint, "--images", *photos, "--question", question)
    assert "--question" in message and "empty" in message
