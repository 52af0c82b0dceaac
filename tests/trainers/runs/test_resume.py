"""Checkpoints that count, and settings that a run must keep."""

import json

from spa3r.trainers.runs.resume import last_complete_checkpoint
from spa3r.trainers.runs.settings import check_same_run


def test_an_incomplete_checkpoint_is_skipped(tmp_path):
    for step, is_marked in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if is_marked:
            (tmp_path / f"checkpoint-{step}" / "complete.json").write_text("{}")
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-10"
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_a_run_without_a_checkpoint_may_change_its_settings(tmp_path):
    check_same_run(tmp_path, {"seed": 0}, is_main_process=True)
    check_same_run(tmp_path, {"seed": 1}, is_main_process=True)
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 1}
