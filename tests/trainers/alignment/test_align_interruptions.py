"""Alignment that is killed resumes to the bit, whether it keeps encodings or not."""

import json
import subprocess
import sys

import pytest
import torch
from killed_run import run_until_killed
from safetensors.torch import load_file
from tiny_alignment import command_line

from spa3r.trainers.runs.resume import last_complete_checkpoint


def start_process(arguments, log):
    return subprocess.Popen([sys.executable, "-m", "spa3r", "align", *arguments], stdout=log, stderr=log)


def losses(checkpoint):
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: (entry["loss"], entry["point_error"]) for entry in history if "loss" in entry}


@pytest.mark.parametrize("distinct_passes", [0, 2])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(distinct_passes, vlm, geometry, rooms, tmp_path):
    steps = 40
    options = {"max_steps": steps, "save_steps": 3, "save_total_limit": 20, "held_out_scenes": 0}
    options |= {
        "targets": "vggt",
        "geometry": geometry,
        "dataloader_num_workers": 1,
        "distinct_passes": distinct_passes,
    }
    whole, killed, log_file = tmp_path / "whole", tmp_path / "killed", tmp_path / "log.txt"
    with log_file.open("w") as log:
        uninterrupted = start_process(command_line(vlm, rooms, whole, **options), log)
        run_until_killed(
            [sys.executable], killed / "checkpoint-6", 8, ["align", *command_line(vlm, rooms, killed, **options)]
        )
        resumed_from = int(last_complete_checkpoint(killed).name.split("-")[1])
        second = start_process(command_line(vlm, rooms, killed, **options), log)
        assert second.wait() == 0 and uninterrupted.wait() == 0, log_file.read_text()
    assert 0 < resumed_from < steps
    last = [output / f"checkpoint-{steps}" for output in (killed, whole)]
    assert losses(last[0]) == losses(last[1])
    weights = [load_file(output / "model" / "model.safetensors") for output in (killed, whole)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
