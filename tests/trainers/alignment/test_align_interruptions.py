"""Alignment that is killed resumes to the bit, whether it keeps encodings or not."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_alignment import command_line
from two_processes import ready_on_cpu

from spa3r.trainers.runs.resume import last_complete_checkpoint


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    with ready_on_cpu(1, tmp_path_factory.mktemp("process") / "process") as process:
        yield process


def losses(checkpoint):
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: (entry["loss"], entry["point_error"]) for entry in history if "loss" in entry}


@pytest.mark.parametrize("distinct_passes", [0, 2])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    distinct_passes, process, vlm, geometry, rooms, tmp_path
):
    steps = 40
    options = {"max_steps": steps, "save_steps": 3, "save_total_limit": 20, "held_out_scenes": 0}
    options |= {
        "targets": "vggt",
        "geometry": geometry,
        "distinct_passes": distinct_passes,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(output, log, num_workers=1, kill=None):
        arguments = command_line(vlm, rooms, output, dataloader_num_workers=num_workers, **options)
        return process.start(["align", *arguments], tmp_path / log, kill=kill)

    # What workers read ahead changes no step.
    uninterrupted = start(whole, "log_of_whole.txt", num_workers=0)
    first = start(killed, "log_of_killed.txt", kill=(killed / "checkpoint-6", 8))
    assert first.wait() == -signal.SIGKILL, first.log.read_text()
    resumed_from = int(last_complete_checkpoint(killed).name.split("-")[1])
    for run in (start(killed, "log.txt"), uninterrupted):
        assert run.wait() == 0, run.log.read_text()
    assert 0 < resumed_from < steps
    last = [output / f"checkpoint-{steps}" for output in (killed, whole)]
    assert losses(last[0]) == losses(last[1])
    weights = [load_file(output / "model" / "model.safetensors") for output in (killed, whole)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
