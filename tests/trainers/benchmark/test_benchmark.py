"""The command of benchmarks: what it asks, what it refuses, and that a killed run ends with the same report."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_spa3_vlm import tiny_model, tiny_processor
from tiny_videos import write_video
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from two_processes import REPOSITORY, launch

from spa3r import Spa3RModel
from spa3r.trainers.benchmark.benchmark import main
from spa3r.trainers.benchmark.models import fingerprint_checkpoint
from spa3r.trainers.benchmark.runner import Answers

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
    folder = tmp_path_factory.mktemp("vlm") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def write_data(folder, scenes=("a", "b", "c")):
    """VSI-Bench in small: three questions about each of some videos."""
    (folder / "scannet").mkdir(parents=True)
    rows = []
    for scene in scenes:
        write_video(folder / "scannet" / f"{scene}.mp4", num_frames=6)
        for question, truth in ((NUMBER, "2"), (CHOICE, "A"), (SIZE, "9")):
            where = {"id": len(rows), "dataset": "scannet", "scene_name": scene, "ground_truth": truth}
            rows.append(where | question)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "VSI-Bench")


def command(model, data, output, *more):
    options = ["--model", model, "--benchmark", "vsi-bench", "--data", data, "--output", output, "--frames", 2, *more]
    return [str(option) for option in options]


@pytest.fixture(scope="module")
def reported(vlm, data, tmp_path_factory):
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    main(command(vlm, data, output, "--batch-size", 2))
    return output


def contents(folder):
    return {name: (folder / name).read_bytes() for name in REPORT}


def refused(capsys, *options):
    """What the command says of options, in one line."""
    with pytest.raises(SystemExit) as ended:
        main([str(option) for option in options])
    message = str(ended.value) if ended.value.code != 2 else capsys.readouterr().err.splitlines()[-1]
    assert "\n" not in message
    return message


def test_the_report_tells_what_was_run(reported, vlm):
    report = json.loads((reported / "report.json").read_text())
    provenance = report["provenance"]
    assert provenance["protocol"] == "official" and provenance["num_frames"] == 2 and provenance["dtype"] == "float32"
    assert {"torch", "transformers", "spa3r"} <= set(provenance["versions"])
    assert len(provenance["model_fingerprint"]) == len(provenance["data_fingerprint"]) == 64
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    assert provenance["commit"] is None or provenance["commit"].removesuffix("-dirty") == head


def test_the_fingerprint_of_a_model_changes_with_one_weight(reported, vlm, data, tmp_path):
    other = shutil.copytree(vlm, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    main(command(other, data, tmp_path / "run", "--limit", 1))
    first, second = (
        json.loads((folder / "report.json").read_text())["provenance"]["model_fingerprint"]
        for folder in (reported, tmp_path / "run")
    )
    assert first != second


def test_the_fingerprint_of_a_model_ignores_its_card(vlm, tmp_path):
    other = shutil.copytree(vlm, tmp_path / "other")
    (other / "card.json").write_text("{}")
    assert fingerprint_checkpoint(str(other)) == fingerprint_checkpoint(str(vlm))


def test_killed_and_started_again_it_ends_with_the_report_of_an_uninterrupted_run(vlm, data, reported, tmp_path):
    output = tmp_path / "killed"
    call = [sys.executable, "-m", "spa3r", "benchmark", *command(vlm, data, output, "--batch-size", 2)]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    answers = output / "predictions-00000.jsonl"
    while process.poll() is None and not (answers.exists() and answers.read_text()):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "report.json").exists(), "it had ended before it was killed"
    main(command(vlm, data, output, "--batch-size", 2))
    assert contents(output) == contents(reported)


def test_two_processes_end_with_the_report_of_one(vlm, data, reported, tmp_path):
    output = tmp_path / "two"
    process = launch("ddp", "benchmark", command(vlm, data, output, "--batch-size", 2), tmp_path / "log")
    assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert contents(output) == contents(reported)


def test_other_settings_in_the_same_folder_are_refused(vlm, data, reported, capsys):
    message = refused(capsys, *command(vlm, data, reported, "--batch-size", 1))
    assert "holds a run with other settings (`batch_size` was 2, is 1)" in message


def test_other_questions_in_the_same_folder_are_refused(vlm, data, reported, tmp_path, capsys):
    changed = shutil.copytree(data, tmp_path / data.name)
    questions = changed / "test.jsonl"
    questions.write_text(questions.read_text().replace('"ground_truth": "9"', '"ground_truth": "8"', 1))
    assert "`data_fingerprint` was" in refused(capsys, *command(vlm, changed, reported, "--batch-size", 2))


def test_missing_videos_are_counted_and_named(vlm, data, tmp_path, capsys):
    partial = shutil.copytree(data, tmp_path / data.name)
    (partial / "scannet" / "b.mp4").unlink()
    message = refused(capsys, *command(vlm, partial, tmp_path / "run"))
    assert "1 of 3 videos or images of vsi-bench are not there" in message and "b.mp4" in message
    assert "--skip-missing" in message


def test_what_is_skipped_is_said_in_the_report(vlm, data, tmp_path):
    partial = shutil.copytree(data, tmp_path / data.name)
    (partial / "scannet" / "b.mp4").unlink()
    (partial / "scannet" / "c.mp4").write_bytes(b"broken")
    main(command(vlm, partial, tmp_path / "run", "--skip-missing"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["provenance"]["num_questions"] == 3 and len(report["provenance"]["missing"]) == 1
    assert set(report["provenance"]["unreadable"]) == {"6", "7", "8"}


def test_a_broken_video_is_named_after_all_others_were_asked(vlm, data, tmp_path, capsys):
    partial = shutil.copytree(data, tmp_path / data.name)
    (partial / "scannet" / "a.mp4").write_bytes(b"broken")
    message = refused(capsys, *command(vlm, partial, tmp_path / "run"))
    assert "3 questions have images that cannot be read" in message and "a.mp4" in message and ".." not in message
    answers = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert sum("prediction" in answer for answer in answers) == 6


def test_an_unknown_type_is_refused_before_anything_is_asked(vlm, data, tmp_path, capsys):
    changed = shutil.copytree(data, tmp_path / data.name)
    questions = changed / "test.jsonl"
    questions.write_text(questions.read_text().replace("room_size_estimation", "roof_size_estimation", 1))
    assert "roof_size_estimation" in refused(capsys, *command(vlm, changed, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "before, after",
    [
        ('"ground_truth": "9"', '"ground_truth": "0"'),
        ('"ground_truth": "A"', '"ground_truth": 1'),
        ('"options": ["A. left", "B. right"]', '"options": null'),
        ('"ground_truth": "2"', '"ground_truth": null'),
        ('"question": "How many chair(s) are in this room?"', '"question": null'),
        ("the left or the right", "the left \\ud83d"),
    ],
)
def test_a_question_that_cannot_be_asked_or_scored_is_refused_before_any_is_asked(
    before, after, vlm, data, tmp_path, capsys
):
    changed = shutil.copytree(data, tmp_path / data.name)
    questions = changed / "test.jsonl"
    questions.write_text(questions.read_text().replace(before, after, 1))
    message = refused(capsys, *command(vlm, changed, tmp_path / "run"))
    assert "Question" in message and "cannot be asked or scored" in message
    assert not (tmp_path / "run").exists()


def test_an_image_that_no_model_can_be_given_is_left_out_like_a_broken_one(vlm, data, tmp_path, capsys):
    partial = shutil.copytree(data, tmp_path / data.name)
    write_video(partial / "scannet" / "b.mp4", num_frames=6, size=(1600, 16))
    message = refused(capsys, *command(vlm, partial, tmp_path / "run"))
    assert (
        "3 questions have images that cannot be read" in message
        and "b.mp4: Image 0 of scene 0 is 1600 x 16" in message
    )
    main(command(vlm, partial, tmp_path / "run", "--skip-missing"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["provenance"]["unreadable"]) == {"3", "4", "5"}


def test_answers_that_another_run_took_away_are_missed(vlm, data, tmp_path, capsys, monkeypatch):
    append = Answers.append
    monkeypatch.setattr(
        Answers, "append", lambda self, index, batch: append(self, index, {k: v for k, v in batch.items() if k != "4"})
    )
    message = refused(capsys, *command(vlm, data, tmp_path / "run"))
    assert "The answers to 1 questions were lost (4): another run writes to" in message
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_full_disk_is_told_with_the_folder(vlm, data, tmp_path, capsys, monkeypatch):
    def append(self, process_index, batch):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Answers, "append", append)
    message = refused(capsys, *command(vlm, data, tmp_path / "run"))
    assert f"there is no room to write in `{tmp_path / 'run'}`" in message


@pytest.mark.parametrize(
    "name, reason",
    [("./nowhere", "There is no checkpoint"), ("no/where", "There is no folder `no/where`, and the Hub")],
)
def test_a_model_that_is_nowhere_is_refused_by_its_name(name, reason, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert reason in refused(capsys, *command(name, data, tmp_path / "run"))


def test_a_model_that_is_no_vlm_is_refused(data, tmp_path, capsys):
    Spa3RModel(tiny_model().config.spatial_config).save_pretrained(tmp_path / "spa3r")
    message = refused(capsys, *command(tmp_path / "spa3r", data, tmp_path / "run"))
    assert "holds a `spa3r`; a benchmark asks a `spa3_vlm` or a plain `qwen2_5_vl`" in message


def test_weights_in_a_pickle_are_refused(vlm, data, tmp_path, capsys):
    pickled = shutil.copytree(vlm, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "model.safetensors" in refused(capsys, *command(pickled, data, tmp_path / "run"))


def test_a_model_in_the_current_folder_is_called_by_its_name(vlm, data, tmp_path, monkeypatch):
    monkeypatch.chdir(vlm)
    main(command(".", data, tmp_path / "run", "--limit", 1))
    label = json.loads((tmp_path / "run" / "report.json").read_text())["label"]
    assert label == "/".join(vlm.parts[-2:])


def test_a_plain_qwen_is_asked_too(vlm, data, tmp_path):
    qwen = tmp_path / "qwen"
    model = tiny_model(fusion="none")
    plain = Qwen2_5_VLForConditionalGeneration(model.config.vlm_config)
    plain.model, plain.lm_head = model.model.vlm, model.lm_head
    plain.save_pretrained(qwen)
    AutoTokenizer.from_pretrained(vlm).save_pretrained(qwen)
    ours = tmp_path / "ours"
    model.save_pretrained(ours)
    main(command(qwen, data, tmp_path / "plain"))
    # A Spa3-VLM without fusion, whose processor prepares images of the same width.
    processor = tiny_processor()
    processor.image_processor.image_width = 518
    processor.save_pretrained(ours)
    main(command(ours, data, tmp_path / "none"))
    assert (tmp_path / "plain" / "answers.jsonl").read_bytes() == (tmp_path / "none" / "answers.jsonl").read_bytes()


def test_answers_of_others_are_scored_the_same(vlm, data, reported, tmp_path):
    given = ["--predictions", reported / "predictions.jsonl", "--benchmark", "vsi-bench", "--data", data]
    main([str(option) for option in [*given, "--output", tmp_path / "scored"]])
    assert (tmp_path / "scored" / "answers.jsonl").read_bytes() == (reported / "answers.jsonl").read_bytes()


def test_answers_of_two_files_of_one_name_are_reported_in_two_folders(data, reported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        shutil.copy(reported / "predictions.jsonl", name)
        main(["--predictions", f"{name}/predictions.jsonl", "--benchmark", "vsi-bench", "--data", str(data)])
    reports = tmp_path / "runs" / "benchmarks" / "vsi-bench" / "official"
    labels = [json.loads((folder / "report.json").read_text())["label"] for folder in sorted(reports.iterdir())]
    assert labels == ["first/predictions", "second/predictions"]


def test_the_report_of_a_model_is_not_overwritten_by_that_of_a_file(data, reported, capsys):
    given = ["--predictions", reported / "predictions.jsonl", "--benchmark", "vsi-bench", "--data", data]
    assert "holds a run of a model" in refused(capsys, *given, "--output", reported)


@pytest.mark.parametrize(
    "options, refusal",
    [
        (["--compare", "a", "b", "--protocol", "official"], "--protocol has no use with --compare"),
        (["--predictions", "a", "--dtype", "float32"], "--dtype has no use with --predictions"),
    ],
)
def test_options_without_use_are_refused(options, refusal, capsys):
    assert refusal in refused(capsys, *options)


def test_a_run_that_left_questions_out_is_scored_by_another_protocol(vlm, data, tmp_path, capsys):
    partial = shutil.copytree(data, tmp_path / data.name)
    (partial / "scannet" / "b.mp4").unlink()
    main(command(vlm, partial, tmp_path / "run", "--skip-missing"))
    given = ["--predictions", tmp_path / "run" / "answers.jsonl", "--benchmark", "vsi-bench", "--data", data]
    given += ["--protocol", "lmms-eval-2026", "--output", tmp_path / "scored"]
    assert "lacks the answers to 3 of 9 questions" in refused(capsys, *given)
    main([str(option) for option in [*given, "--skip-missing"]])
    provenance = json.loads((tmp_path / "scored" / "report.json").read_text())["provenance"]
    assert (provenance["num_questions"], provenance["missing"]) == (6, ["scannet/b.mp4"])


def test_runs_are_compared(reported, tmp_path, capsys):
    main(["--compare", str(reported), str(reported), "--output", str(tmp_path)])
    assert capsys.readouterr().out.strip() == (tmp_path / "comparison.md").read_text().strip()
    assert json.loads((tmp_path / "comparison.json").read_text())


def test_videos_that_came_later_are_asked_in_the_same_folder(vlm, data, reported, tmp_path):
    partial, output = shutil.copytree(data, tmp_path / data.name), tmp_path / "run"
    (partial / "scannet" / "b.mp4").rename(tmp_path / "b.mp4")
    main(command(vlm, partial, output, "--batch-size", 2, "--skip-missing"))
    (tmp_path / "b.mp4").rename(partial / "scannet" / "b.mp4")
    main(command(vlm, partial, output, "--batch-size", 2))
    assert contents(output) == contents(reported)


def test_runs_of_another_protocol_are_refused_beside_before_anything_is_asked(vlm, data, reported, tmp_path, capsys):
    options = ["--protocol", "lmms-eval-2026", "--beside", reported]
    message = refused(capsys, *command(vlm, data, tmp_path / "run", *options))
    assert "cannot stand beside this one, as its protocol is `official`" in message
    assert not (tmp_path / "run").exists()


def test_an_unknown_protocol_is_refused_with_the_known_ones(vlm, data, tmp_path, capsys):
    message = refused(capsys, *command(vlm, data, tmp_path / "run", "--protocol", "mine"))
    assert "has no protocol 'mine'; choose from official" in message


def test_no_frames_are_refused(vlm, data, tmp_path, capsys):
    options = ["--model", vlm, "--benchmark", "vsi-bench", "--data", data, "--frames", "0"]
    assert "--frames must be at least 1, got 0" in refused(capsys, *options)
