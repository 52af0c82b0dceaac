"""Checkpoints that were complete: damage is named, with the checkpoint to go back to."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from refusals import refused
from safetensors.torch import save_file

from spa3r.trainers.runs import marks
from spa3r.trainers.runs.marks import find_damage, find_unreadable_file, mark_complete
from spa3r.trainers.runs.resume import checkpoint_to_resume


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, one of which has a part in a folder."""
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "shards").mkdir(parents=True)
        save_file({"weight": torch.zeros(4)}, folder / "model.safetensors")
        torch.save({"step": torch.tensor(step)}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (folder / "shards" / "0.distcp").write_bytes(b"weights")
        mark_complete(folder, Accelerator(cpu=True), step)
    return tmp_path


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def change(file):
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def delete(file):
    file.unlink()


DAMAGE = [
    pytest.param(name, damage, id=f"{damage.__name__} {name}")
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json", "shards/0.distcp")
    for damage in (truncate, change, delete)
]


def resume(run, **options):
    return checkpoint_to_resume(SimpleNamespace(**{"output_dir": run, "resume_from_checkpoint": None} | options))


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_damaged_checkpoint_is_refused_with_its_file_and_the_one_to_go_back_to(run, name, damage):
    damage(run / "checkpoint-4" / name)
    with refused(f"`{name}`", str(run / "checkpoint-4"), str(run / "checkpoint-2")):
        resume(run)
    shutil.rmtree(run / "checkpoint-4")
    assert resume(run) == run / "checkpoint-2"


def test_a_named_damaged_checkpoint_is_refused_too(run):
    truncate(run / "checkpoint-2" / "optimizer.pt")
    with refused("`optimizer.pt`", str(run / "checkpoint-4")):
        resume(run, resume_from_checkpoint=str(run / "checkpoint-2"))


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"files": {"optimizer.pt": 3}}'])
def test_a_damaged_mark_is_damage(run, content):
    (run / "checkpoint-4" / "complete.json").write_text(content)
    assert "complete.json" in find_damage(run / "checkpoint-4")


def test_a_mark_without_files_is_of_an_older_version(run):
    (run / "checkpoint-4" / "complete.json").write_text('{"global_step": 4}')
    assert find_damage(run / "checkpoint-4") is None


def test_only_small_files_are_compared_by_content(run, monkeypatch):
    monkeypatch.setattr(marks, "MAX_HASHED_BYTES", 10)
    mark_complete(run / "checkpoint-4", Accelerator(cpu=True), 4)
    change(run / "checkpoint-4" / "optimizer.pt")
    assert find_damage(run / "checkpoint-4") is None
    change(run / "checkpoint-4" / "shards" / "0.distcp")
    assert "shards/0.distcp" in find_damage(run / "checkpoint-4")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_file_that_cannot_be_read_is_found_by_looking_into_it(run, name):
    assert find_unreadable_file(run / "checkpoint-4") is None
    truncate(run / "checkpoint-4" / name)
    assert f"`{name}`" in find_unreadable_file(run / "checkpoint-4")
