"""The command `spa3r ask`: photos or a video in, answers out, each question after the first from what was kept."""

import io
import shutil
import sys

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_spa3_vlm import conversation, photo, prepare, tiny_model, tiny_processor
from transformers import GenerationConfig

from spa3r import Spa3RModel
from spa3r.trainers.integrations.ask import main


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
    assert "? How many chairs?\n" in capfd.readouterr().err


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
    assert "Saw 4 views" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_computes_in_the_type_asked_for(checkpoint, photos, dtype, monkeypatch):
    types = set()
    forward = Spa3RModel.forward
    monkeypatch.setattr(Spa3RModel, "forward", lambda self, *args: types.add(self.dtype) or forward(self, *args))
    options = ["--question", "Why?", "--max-new-tokens", "1", "--device", "cpu", "--dtype", dtype]
    main(["--model", str(checkpoint), "--images", *photos, *options])
    assert types == {getattr(torch, dtype)}


def test_a_missing_photo_is_named_in_one_line(checkpoint, photos):
    with pytest.raises(SystemExit, match="^spa3r ask: .*`nowhere.jpg`"):
        main(["--model", str(checkpoint), "--images", *photos, "nowhere.jpg", "--device", "cpu"])


def test_a_model_of_another_kind_is_refused(tmp_path, photos):
    tiny_model().model.spatial_encoder.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="holds a `spa3r` model, not `spa3_vlm`"):
        main(["--model", str(tmp_path), "--images", *photos, "--device", "cpu"])


def test_a_missing_model_is_named(photos, tmp_path):
    with pytest.raises(SystemExit, match="There is no checkpoint at `.*nothing-here`"):
        main(["--model", str(tmp_path / "nothing-here"), "--images", *photos, "--device", "cpu"])


def test_damaged_weights_are_named(checkpoint, photos, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.truncate(100000)
    with pytest.raises(SystemExit, match="^spa3r ask: the weights in `.*model` are damaged"):
        main(["--model", str(tmp_path / "model"), "--images", *photos, "--device", "cpu"])


def test_a_device_that_is_not_there_is_named(checkpoint, photos):
    with pytest.raises(SystemExit, match="^spa3r ask: The device `cuda:99` cannot be used here"):
        main(["--model", str(checkpoint), "--images", *photos, "--device", "cuda:99"])


@pytest.mark.parametrize("option", ["--frames", "--max-new-tokens"])
def test_numbers_below_one_are_refused_before_anything_is_loaded(option, capsys):
    with pytest.raises(SystemExit):
        main(["--model", "nowhere", "--video", "room.mp4", option, "0"])
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


def test_a_number_of_frames_without_a_video_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--model", "nowhere", "--images", "door.jpg", "--frames", "4"])
    assert "--frames is for a --video" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
def test_files_that_a_model_lacks_are_named(checkpoint, photos, tmp_path, name):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(SystemExit, match=f"^spa3r ask: The folder `.*model` lacks {name}"):
        main(["--model", str(tmp_path / "model"), "--images", *photos, "--device", "cpu"])


def change_weights(checkpoint, folder, change):
    """A copy of a checkpoint whose weights `change` has made other ones."""
    shutil.copytree(checkpoint, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_a_model_whose_scene_encoder_is_incomplete_is_refused(checkpoint, photos, tmp_path):
    def change(weights):
        return {name: weight for name, weight in weights.items() if ".spatial_encoder.encoder." not in name}

    model = change_weights(checkpoint, tmp_path / "model", change)
    with pytest.raises(SystemExit, match="are missing or of another shape, such as `model.spatial_encoder.encoder"):
        main(["--model", model, "--images", *photos, "--device", "cpu"])


def test_a_model_whose_weights_have_another_shape_is_refused(checkpoint, photos, tmp_path):
    def change(weights):
        return weights | {"lm_head.weight": weights["lm_head.weight"][:-1].clone()}

    model = change_weights(checkpoint, tmp_path / "model", change)
    with pytest.raises(SystemExit, match="1 are missing or of another shape, such as `lm_head.weight`"):
        main(["--model", model, "--images", *photos, "--device", "cpu"])


def test_a_model_without_adapter_is_asked_as_it_is(checkpoint, photos, tmp_path, capfd):
    def change(weights):
        return {name: weight for name, weight in weights.items() if ".fusion." not in name}

    model = change_weights(checkpoint, tmp_path / "model", change)
    options = ["--question", "Why?", "--max-new-tokens", "1", "--device", "cpu"]
    main(["--model", model, "--images", *photos, *options])
    assert "Answered in" in capfd.readouterr().err


def test_a_question_that_is_refused_ends_nothing_at_the_terminal(checkpoint, photos, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is <|image_pad|>?\nWhy?\n"))
    main(["--model", str(checkpoint), "--images", *photos, "--max-new-tokens", "6", "--device", "cpu"])
    output = capfd.readouterr()
    assert output.out == f"{expected_answer(photos, 'Why?', 6)}\n"
    assert "`<|image_pad|>`" in output.err
