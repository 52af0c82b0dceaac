"""The command `spa3r ask`: photos or a video in, answers out, each question after the first from what was kept."""

import io
import shutil
import sys

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from terminal import verb
from tiny_spa3_vlm import conversation, photo, prepare, tiny_model, tiny_processor
from transformers import GenerationConfig

from spa3r import Spa3RModel

main = verb("ask")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ask") / "spa3-vlm-tiny"
    model = tiny_model()
    model.generation_config = GenerationConfig(eos_token_id=258, pad_token_id=256)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        photo(index).save(folder / f"{index}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def expected_answer(images, question, max_new_tokens):
    processor = tiny_processor()
    inputs = prepare(processor, conversation(images, question))
    tokens = tiny_model().generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=258)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_answers_alone_go_to_the_standard_output_in_the_order_of_the_questions(checkpoint, photos, capfd):
    questions = ["How many chairs?", "Why?"]
    options = [part for question in questions for part in ("--question", question)]
    main(["--model", str(checkpoint), "--images", *photos, *options, "--max-new-tokens", "6", "--device", "cpu"])
    expected = "".join(f"{expected_answer(photos, question, 6)}\n" for question in questions)
    assert capfd.readouterr().out == expected


def test_questions_given_as_options_are_repeated_on_the_standard_error(checkpoint, photos, capfd):
    options = ["--question", "How many chairs?", "--max-new-tokens", "1", "--device", "cpu"]
    main(["--model", str(checkpoint), "--images", *photos, *options])
    assert "How many chairs?" in capfd.readouterr().err


def test_the_second_question_does_not_encode_the_scene_again(checkpoint, photos, monkeypatch):
    calls = []
    forward = Spa3RModel.forward
    monkeypatch.setattr(Spa3RModel, "forward", lambda *args: calls.append(1) or forward(*args))
    options = ["--question", "How many?", "--question", "Why?", "--max-new-tokens", "2", "--device", "cpu"]
    main(["--model", str(checkpoint), "--images", *photos, *options])
    assert len(calls) == 1


def test_questions_are_read_from_the_standard_input(checkpoint, photos, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.StringIO("How many chairs?\nWhy?\n"))
    main(["--model", str(checkpoint), "--images", *photos, "--max-new-tokens", "6", "--device", "cpu"])
    expected = "".join(f"{expected_answer(photos, question, 6)}\n" for question in ("How many chairs?", "Why?"))
    assert capfd.readouterr().out == expected


def test_a_video_is_seen_in_as_many_frames_as_asked_for(checkpoint, tmp_path, capfd):
    with av.open(str(tmp_path / "room.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=48, pix_fmt="yuv420p")
        for index in range(9):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * index, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    options = ["--frames", "4", "--question", "Why?", "--max-new-tokens", "1", "--device", "cpu"]
    main(["--model", str(checkpoint), "--video", str(tmp_path / "room.mp4"), *options])
    assert "4 views" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_computes_in_the_type_asked_for(checkpoint, photos, dtype, monkeypatch):
    types = set()
    forward = Spa3RModel.forward
    monkeypatch.setattr(Spa3RModel, "forward", lambda self, *args: types.add(self.dtype) or forward(self, *args))
    options = ["--question", "Why?", "--max-new-tokens", "1", "--device", "cpu", "--dtype", dtype]
    main(["--model", str(checkpoint), "--images", *photos, *options])
    assert types == {getattr(torch, dtype)}


def refused(capsys, model, *options):
    """The sentence that ends the command."""
    with pytest.raises(SystemExit) as ended:
        main(["--model", model, "--device", "cpu", *options])
    message = str(ended.value) if ended.value.code != 2 else capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("spa3r ask: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param(["--images", "nowhere.jpg"], "`nowhere.jpg`", id="missing photo"),
        pytest.param(["--images", "door.jpg", "--device", "cuda:99"], "`cuda:99`", id="missing device"),
        pytest.param(["--images", "door.jpg", "--model", "./nowhere"], "`./nowhere`", id="missing model"),
        pytest.param(["--video", "room.mp4", "--frames", 0], "--frames", id="no frames"),
        pytest.param(["--video", "room.mp4", "--max-new-tokens", 0], "--max-new-tokens", id="no tokens"),
        pytest.param(["--images", "door.jpg", "--frames", 4], "--frames", id="frames of photos"),
    ],
)
def test_wrong_options_are_refused_by_name(options, named, checkpoint, capsys):
    assert named in refused(capsys, checkpoint, *options)


def test_a_model_of_another_kind_is_refused(tmp_path, photos, capsys):
    tiny_model().model.spatial_encoder.save_pretrained(tmp_path)
    assert "`spa3r`" in refused(capsys, tmp_path, "--images", *photos)


def damage(model, part):
    """Damage a part of a checkpoint."""
    file = model / "model.safetensors"
    if part.endswith(".json"):
        (model / part).unlink()
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
        pytest.param("end", "`{model}`", id="truncated weights"),
        pytest.param(".spatial_encoder.encoder.", "`model.spatial_encoder.encoder", id="missing weights"),
        pytest.param("lm_head.weight", "`lm_head.weight`", id="other shape"),
    ],
)
def test_a_damaged_model_is_refused_by_the_damaged_part(part, named, checkpoint, photos, tmp_path, capsys):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    damage(model, part)
    assert named.format(model=model) in refused(capsys, model, "--images", *photos)


def test_a_model_without_adapter_is_asked_as_it_is(checkpoint, photos, tmp_path, capfd):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    damage(model, ".fusion.")
    main(["--model", model, "--images", *photos, "--question", "Why?", "--max-new-tokens", 1, "--device", "cpu"])
    assert "Answered" in capfd.readouterr().err


def test_a_question_that_is_refused_ends_nothing_at_the_terminal(checkpoint, photos, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is <|image_pad|>?\nWhy?\n"))
    main(["--model", str(checkpoint), "--images", *photos, "--max-new-tokens", "6", "--device", "cpu"])
    output = capfd.readouterr()
    assert output.out == f"{expected_answer(photos, 'Why?', 6)}\n"
    assert "`<|image_pad|>`" in output.err
