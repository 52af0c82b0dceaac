"""The command `spa3r benchmark`: what it asks and refuses, and that a killed run ends with the same report."""

import errno
import json
import shutil
import signal
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from terminal import refusal, verb
from tiny_spa3_vlm import save_tiny_vlm, tiny_model, tiny_processor
from tiny_videos import write_video
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from two_processes import REPOSITORY, launch

from spa3r import Spa3RModel
from spa3r.trainers.benchmark.answers import Answers
from spa3r.trainers.benchmark.models import fingerprint_checkpoint
from spa3r.trainers.benchmark.runner import MAX_SHARED_TOKENS

main = verb("benchmark")

NUMBER = {"question_type": "object_counting", "question": "How many chair(s) are in this room?", "options": None}
SIZE = NUMBER | {"question_type": "room_size_estimation"}
CHOICE = {
    "question_type": "object_rel_direction_easy",
    "question": "Is the sofa to the left or the right of the door?",
    "options": ["A. left", "B. right"],
}
REPORT = ("report.md", "report.json", "report.png", "answers.jsonl", "predictions.jsonl")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small VSI-Bench: three questions about each of three videos."""
    folder = tmp_path_factory.mktemp("data") / "VSI-Bench"
    (folder / "scannet").mkdir(parents=True)
    rows = []
    for scene in "abc":
        write_video(folder / "scannet" / f"{scene}.mp4", num_frames=6)
        for question, truth in ((NUMBER, "2"), (CHOICE, "A"), (SIZE, "9")):
            where = {"id": len(rows), "dataset": "scannet", "scene_name": scene, "ground_truth": truth}
            rows.append(where | question)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def scoring(data, file, *more):
    return ["--predictions", file, "--benchmark", "vsi-bench", "--data", data, *more]


def command(model, data, output, *more):
    return ["--model", model, "--benchmark", "vsi-bench", "--data", data, "--output", output, "--frames", 2, *more]


@pytest.fixture(scope="module")
def reported(vlm, data, tmp_path_factory):
    """An uninterrupted run. The first two scenes share a batch."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    main(command(vlm, data, output, "--batch-size", 6))
    return output


def contents(folder):
    return {name: (folder / name).read_bytes() for name in REPORT}


def refused(capsys, *options):
    return refusal(capsys, "benchmark", *options)


def provenance(folder):
    return json.loads((folder / "report.json").read_text())["provenance"]


def test_the_report_holds_what_was_run(reported):
    run = provenance(reported)
    assert (run["protocol"], run["num_frames"], run["batch_size"], run["dtype"]) == ("official", 2, 6, "float32")
    assert run["max_shared_tokens"] == MAX_SHARED_TOKENS
    assert {"torch", "transformers", "spa3r"} <= set(run["versions"])
    assert len(run["model_fingerprint"]) == len(run["data_fingerprint"]) == 64
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    assert run["commit"] is None or run["commit"].removesuffix("-dirty") == head


def test_the_fingerprint_of_a_model_changes_with_one_weight_but_not_with_its_card(reported, vlm, tmp_path):
    other = shutil.copytree(vlm, tmp_path / "other")
    (other / "card.json").write_text("{}")
    assert fingerprint_checkpoint(str(other)) == provenance(reported)["model_fingerprint"]
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint_checkpoint(str(other)) != provenance(reported)["model_fingerprint"]


# Is killed once the answers of its first batch are on disk.
KILLED_AFTER_A_BATCH = """
import os, signal, sys
from spa3r.trainers.benchmark.answers import Answers
from spa3r.trainers.integrations.cli import main

def append(self, *arguments, append=Answers.append):
    append(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)

Answers.append = append
main(["benchmark", *sys.argv[1:]])
"""


def test_killed_and_started_again_it_ends_with_the_report_of_an_uninterrupted_run(vlm, data, reported, tmp_path):
    output = tmp_path / "killed"
    arguments = command(vlm, data, output, "--batch-size", 6)
    call = [sys.executable, "-c", KILLED_AFTER_A_BATCH, *map(str, arguments)]
    killed = subprocess.run(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=REPOSITORY, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (output / "predictions-00000.jsonl").read_text()
    main(arguments)
    assert contents(output) == contents(reported)


def test_two_processes_end_with_the_report_of_one(vlm, data, reported, tmp_path):
    output = tmp_path / "two"
    process = launch("benchmark", command(vlm, data, output, "--batch-size", 6), tmp_path / "log")
    assert process.wait() == 0, (tmp_path / "log").read_text()
    assert contents(output) == contents(reported)


def copied(data, tmp_path, before="", after=""):
    """Copy a benchmark, and replace a text in its questions once."""
    folder = shutil.copytree(data, tmp_path / data.name)
    content = (folder / "test.jsonl").read_text()
    assert before in content
    (folder / "test.jsonl").write_text(content.replace(before, after, 1))
    return folder


def without_b(data, tmp_path):
    folder = copied(data, tmp_path)
    (folder / "scannet" / "b.mp4").unlink()
    return folder


def test_other_settings_in_the_same_folder_are_refused(vlm, data, reported, tmp_path, capsys):
    assert "`batch_size`" in refused(capsys, *command(vlm, data, reported, "--batch-size", 1))
    changed = copied(data, tmp_path, '"ground_truth": "9"', '"ground_truth": "8"')
    assert "`data_fingerprint`" in refused(capsys, *command(vlm, changed, reported, "--batch-size", 6))


def break_a(videos):
    (videos / "a.mp4").write_bytes(b"broken")


def flatten_b(videos):
    write_video(videos / "b.mp4", num_frames=6, size=(1600, 16))


BROKEN = {
    "unreadable": (break_a, ["a.mp4"], {"0", "1", "2"}),
    "of a shape that no model accepts": (flatten_b, ["b.mp4", "1600 x 16"], {"3", "4", "5"}),
}


@pytest.mark.parametrize("damage, tokens, left_out", BROKEN.values(), ids=BROKEN)
def test_a_broken_video_is_named_after_all_others_were_asked_or_left_out(
    damage, tokens, left_out, vlm, data, tmp_path, capsys
):
    partial = copied(data, tmp_path)
    damage(partial / "scannet")
    message = refused(capsys, *command(vlm, partial, tmp_path / "run"))
    assert all(token in message for token in ["3 questions", "--skip-missing", *tokens]) and ".." not in message
    answers = map(json.loads, (tmp_path / "run" / "predictions.jsonl").read_text().splitlines())
    assert sum("prediction" in answer for answer in answers) == 6
    (partial / "scannet" / "c.mp4").unlink()
    main(command(vlm, partial, tmp_path / "run", "--skip-missing"))
    run = provenance(tmp_path / "run")
    assert set(run["unreadable"]) == left_out and run["missing"] == ["scannet/c.mp4"] and run["num_questions"] == 3


UNUSABLE = {
    "unknown type": ("room_size_estimation", "roof_size_estimation", "`roof_size_estimation`"),
    "a truth of zero": ('"ground_truth": "9"', '"ground_truth": "0"', "ZeroDivisionError"),
    "a truth that is no text": ('"ground_truth": "A"', '"ground_truth": 1', "Question 1 "),
    "no options": ('"options": ["A. left", "B. right"]', '"options": null', "Question 1 "),
    "no truth": ('"ground_truth": "2"', '"ground_truth": null', "`ground_truth`"),
    "no question": ('"question": "How many chair(s) are in this room?"', '"question": null', "`question`"),
    "half a character": ("the left or the right", "the left \\ud83d", "UnicodeEncodeError"),
}


@pytest.mark.parametrize("before, after, token", UNUSABLE.values(), ids=UNUSABLE)
def test_questions_that_cannot_be_asked_or_scored_are_refused_before_any_is_asked(
    before, after, token, vlm, data, tmp_path, capsys
):
    changed = copied(data, tmp_path, before, after)
    assert token in refused(capsys, *command(vlm, changed, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def append_without_one(self, index, batch, append=Answers.append):
    append(self, index, {name: answer for name, answer in batch.items() if name != "4"})


def append_to_full_disk(self, index, batch):
    raise OSError(errno.ENOSPC, "No space left on device")


LOSSES = {"another run took one": (append_without_one, "(4)"), "a full disk": (append_to_full_disk, "No space left")}


@pytest.mark.parametrize("append, token", LOSSES.values(), ids=LOSSES)
def test_lost_answers_are_reported_with_the_folder(append, token, vlm, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Answers, "append", append)
    message = refused(capsys, *command(vlm, data, tmp_path / "run"))
    assert token in message and f"`{tmp_path / 'run'}`" in message
    assert not (tmp_path / "run" / "report.json").exists()


def spa3r_alone(vlm, folder):
    Spa3RModel(tiny_model().config.spatial_config).save_pretrained(folder)


def pickled(vlm, folder):
    shutil.copytree(vlm, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


MODELS = {
    "nowhere": ("./nowhere", None, "nowhere"),
    "not on the Hub": ("no/where", None, "`no/where`"),
    "empty": ("empty", lambda vlm, folder: folder.mkdir(), "lacks weights"),
    "another kind": ("spa3r", spa3r_alone, "`spa3r`"),
    "pickled weights": ("pickled", pickled, "model.safetensors"),
}


@pytest.mark.parametrize("name, write, token", MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_asked_are_refused(name, write, token, vlm, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if write is not None:
        write(vlm, tmp_path / name)
    model = name if write is None else tmp_path / name
    assert token in refused(capsys, *command(model, data, tmp_path / "run"))


def test_a_model_in_the_current_folder_is_labelled_with_its_name(vlm, data, tmp_path, monkeypatch):
    monkeypatch.chdir(vlm)
    main(command(".", data, tmp_path / "run", "--limit", 1))
    assert provenance(tmp_path / "run")["label"] == "/".join(vlm.parts[-2:])


def test_a_plain_qwen_is_asked_as_a_spa3_vlm_without_fusion(vlm, data, tmp_path):
    qwen = tmp_path / "qwen"
    model = tiny_model(fusion="none")
    plain = Qwen2_5_VLForConditionalGeneration(model.config.vlm_config)
    plain.model, plain.lm_head = model.model.vlm, model.lm_head
    plain.save_pretrained(qwen)
    AutoTokenizer.from_pretrained(vlm).save_pretrained(qwen)
    ours = tmp_path / "ours"
    model.save_pretrained(ours)
    main(command(qwen, data, tmp_path / "plain"))
    # Images of the same width.
    processor = tiny_processor()
    processor.image_processor.image_width = 518
    processor.save_pretrained(ours)
    main(command(ours, data, tmp_path / "none"))
    assert (tmp_path / "plain" / "answers.jsonl").read_bytes() == (tmp_path / "none" / "answers.jsonl").read_bytes()


def test_answers_of_other_programs_are_scored_the_same(data, reported, tmp_path):
    main(scoring(data, reported / "predictions.jsonl", "--output", tmp_path / "scored"))
    assert (tmp_path / "scored" / "answers.jsonl").read_bytes() == (reported / "answers.jsonl").read_bytes()


def test_files_of_the_same_name_are_reported_in_their_own_folders(data, reported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        shutil.copy(reported / "predictions.jsonl", name)
        main(scoring(data, f"{name}/predictions.jsonl"))
    reports = tmp_path / "runs" / "benchmarks" / "vsi-bench" / "official"
    labels = [provenance(folder)["label"] for folder in sorted(reports.iterdir())]
    assert labels == ["first/predictions", "second/predictions"]


def test_the_report_of_a_model_is_not_overwritten_by_that_of_a_file(data, reported, capsys):
    message = refused(capsys, *scoring(data, reported / "predictions.jsonl", "--output", reported))
    assert f"`{reported}`" in message and "--output" in message


def test_a_run_that_left_questions_out_is_scored_by_another_protocol(vlm, data, tmp_path, capsys):
    main(command(vlm, without_b(data, tmp_path), tmp_path / "run", "--skip-missing"))
    answers, output = tmp_path / "run" / "answers.jsonl", tmp_path / "scored"
    given = scoring(data, answers, "--protocol", "lmms-eval-2026", "--output", output)
    assert "3 of 9" in refused(capsys, *given)
    main([*given, "--skip-missing"])
    run = provenance(tmp_path / "scored")
    assert (run["num_questions"], run["missing"]) == (6, ["scannet/b.mp4"])


def test_runs_are_compared(reported, tmp_path, capsys):
    main(["--compare", reported, reported, "--output", tmp_path])
    assert capsys.readouterr().out.strip() == (tmp_path / "comparison.md").read_text().strip()
    assert json.loads((tmp_path / "comparison.json").read_text())


def test_videos_that_came_later_are_asked_in_the_same_folder(vlm, data, reported, tmp_path):
    partial, output = copied(data, tmp_path), tmp_path / "run"
    (partial / "scannet" / "b.mp4").rename(tmp_path / "b.mp4")
    main(command(vlm, partial, output, "--batch-size", 6, "--skip-missing"))
    (tmp_path / "b.mp4").rename(partial / "scannet" / "b.mp4")
    main(command(vlm, partial, output, "--batch-size", 6))
    assert contents(output) == contents(reported)


def test_missing_videos_are_counted_and_named(vlm, data, tmp_path, capsys):
    message = refused(capsys, *command(vlm, without_b(data, tmp_path), tmp_path / "run"))
    assert all(token in message for token in ("1 of 3", "vsi-bench", "b.mp4", "--skip-missing"))


def test_runs_of_another_protocol_are_refused_beside_before_anything_is_asked(vlm, data, reported, tmp_path, capsys):
    options = ["--protocol", "lmms-eval-2026", "--beside", reported]
    message = refused(capsys, *command(vlm, data, tmp_path / "run", *options))
    assert f"`{reported}`" in message and "`protocol`" in message
    assert not (tmp_path / "run").exists()


ASK = ["--model", "m", "--benchmark", "vsi-bench", "--data", "d"]
OPTIONS = {
    "useless for a comparison": (["--compare", "a", "b", "--protocol", "official"], ["--protocol", "--compare"]),
    "useless for a file": (["--predictions", "a", "--dtype", "float32"], ["--dtype", "--predictions"]),
    "no benchmark": (["--model", "m", "--data", "d"], ["--benchmark"]),
    "no data": (["--model", "m", "--benchmark", "vsi-bench"], ["--data"]),
    "unknown protocol": ([*ASK, "--protocol", "mine"], ["`mine`", "official, lmms-eval-2026"]),
    "no frames": ([*ASK, "--frames", "0"], ["--frames", "0"]),
    "no batch": ([*ASK, "--batch-size", "0"], ["--batch-size", "0"]),
    "negative limit": ([*ASK, "--limit", "-1"], ["--limit", "-1"]),
}


@pytest.mark.parametrize("options, tokens", OPTIONS.values(), ids=OPTIONS)
def test_wrong_options_are_refused_by_name(options, tokens, capsys):
    message = refused(capsys, *options)
    assert all(token in message for token in tokens), message
