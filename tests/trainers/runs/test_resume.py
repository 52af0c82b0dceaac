"""Checkpoints that count, and settings that a run must keep."""

import json
from types import SimpleNamespace

import pytest
from refusals import refused

from spa3r.data_scripts.common.images import UnreadableFrame
from spa3r.trainers.runs.resume import last_complete_checkpoint, train
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


def ending(output_dir, error):
    """Train with a trainer whose training ends with an error."""

    def fail(resume_from_checkpoint):
        raise error

    state = SimpleNamespace(global_step=3)
    train(SimpleNamespace(train=fail, add_callback=id, args=SimpleNamespace(output_dir=output_dir), state=state), None)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "complete.json").write_text("{}")
    return tmp_path


ERRORS = [
    pytest.param(KeyboardInterrupt(), KeyboardInterrupt, [], id="Ctrl-C"),
    pytest.param(UnreadableFrame("The image `a.jpg` is broken."), UnreadableFrame, ["`a.jpg`"], id="damaged image"),
    pytest.param(ValueError("a bug"), RuntimeError, ["step 3", "a bug"], id="a bug"),
]


@pytest.mark.parametrize(("error", "kind", "named"), ERRORS)
def test_training_that_ends_early_says_where_it_can_go_on(run, error, kind, named):
    with refused(str(run / "checkpoint-2"), *named, error=kind):
        ending(run, error)


def test_an_interrupt_before_the_first_checkpoint_says_so(tmp_path):
    with refused("no checkpoint", error=KeyboardInterrupt):
        ending(tmp_path, KeyboardInterrupt())
