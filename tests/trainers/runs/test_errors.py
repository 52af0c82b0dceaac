"""Errors of commands, as one sentence and an exit code."""

import errno
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError

from spa3r.trainers.runs.errors import errors_as_sentences, take_debug

OF_WORKER = """Caught UnreadableFrame in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 349, in _worker_loop
spa3r.data_scripts.common.images.UnreadableFrame: The image `a.jpg` cannot be read."""


def ended_by(error):
    """How a command ends that raises an error: the code or sentence of its exit."""
    with pytest.raises(SystemExit) as ended, errors_as_sentences("spa3r verb"):
        raise error
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "named"),
    [
        pytest.param(ValueError("`seed` must be\n a number."), "`seed` must be a number.", id="value"),
        pytest.param(OSError("401 of `user/model`\n\nPages of help"), "401 of `user/model`", id="hub"),
        pytest.param(ImportError("No module named 'av'"), "'av'", id="import"),
        pytest.param(SafetensorError("header too short"), "header too short", id="damaged weights"),
        pytest.param(FloatingPointError("loss = nan"), "loss = nan", id="lost loss"),
        pytest.param(OSError(errno.ENOSPC, "No space left", "run/a.bin"), "`run/a.bin`", id="full disk"),
        pytest.param(
            SafetensorError("I/O error: No space (os error 28)"), "no room to write", id="full disk, weights"
        ),
        pytest.param(FileNotFoundError(errno.ENOENT, "No such file", "run/b.bin"), "`run/b.bin`", id="missing file"),
        pytest.param(OSError(errno.EROFS, "Read-only file system", "run/c"), "`run/c`", id="read-only folder"),
        pytest.param(PermissionError(errno.EACCES, "Permission denied", "run/d"), "`run/d`", id="no permission"),
        pytest.param(MemoryError("of 3 TB"), "of 3 TB", id="memory"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory", id="memory of a device"),
        pytest.param(RuntimeError("DefaultCPUAllocator: no 3 TB"), "Memory ran out", id="memory of the CPU"),
        pytest.param(ValueError(OF_WORKER), "The image `a.jpg` cannot be read.", id="worker that reads data"),
        pytest.param(FileExistsError(errno.EEXIST, "File exists", "run"), "`run`", id="file instead of folder"),
        pytest.param(
            StrictDataclassFieldValidationError("num_latents", TypeError("expected int, got `many`")),
            "`many`",
            id="configuration",
        ),
    ],
)
def test_wrong_input_ends_a_command_with_one_sentence(error, named):
    sentence = ended_by(error)
    assert sentence.startswith("spa3r verb: ") and named in sentence and "\n" not in sentence


def test_debug_shows_the_traceback_before_the_sentence(capsys):
    with pytest.raises(SystemExit, match="`seed` is 3"), errors_as_sentences("spa3r verb", debug=True):
        raise ValueError("`seed` is 3")
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_second_interrupt_says_what_the_first_one_said(capsys):
    with pytest.raises(SystemExit) as ended, errors_as_sentences("spa3r verb", after_interrupt="all is lost"):
        try:
            raise KeyboardInterrupt("it goes on from checkpoint-3") from None
        finally:
            raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "spa3r verb: interrupted; it goes on from checkpoint-3.\n"


def test_an_interrupt_while_python_exits_changes_nothing():
    program = """
import atexit, os, signal, time
from spa3r.trainers.runs.errors import errors_as_sentences
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.01)))
with errors_as_sentences("spa3r verb"):
    raise KeyboardInterrupt
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "spa3r verb: interrupted.\n")


def test_processes_of_a_launch_say_a_sentence_once(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [ended_by(ValueError(text)) for text in ("same", "same", "other")] == [1, 1, 1]
    assert capsys.readouterr().err.splitlines() == ["spa3r verb: same", "spa3r verb: other"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ask", "--debug"], (["ask"], True)),
        (["--debug", "ask"], (["ask"], True)),
        (["sft", "--debug", "--seed", "1"], (["sft", "--seed", "1"], True)),
        (["sft", "--debug", "underflow_overflow"], (["sft", "--debug", "underflow_overflow"], False)),
        (["sft"], (["sft"], False)),
    ],
)
def test_debug_is_taken_unless_it_is_the_option_of_the_trainer(arguments, expected):
    assert take_debug(arguments) == expected


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [(KeyboardInterrupt(), "interrupted; all is kept."), (KeyboardInterrupt("step 3"), "interrupted; step 3.")],
)
def test_an_interrupted_command_says_in_one_line_what_is_kept(interrupt, line, capsys):
    with pytest.raises(SystemExit), errors_as_sentences("spa3r verb", after_interrupt="all is kept"):
        raise interrupt
    assert capsys.readouterr().err == f"spa3r verb: {line}\n"


def test_an_interrupted_command_ends_with_the_code_of_shells():
    assert ended_by(KeyboardInterrupt()) == 130


def test_a_bug_is_one_sentence_that_names_the_file_of_its_traceback():
    sentence = ended_by(KeyError("seed"))
    assert "KeyError: 'seed'" in sentence and "\n" not in sentence
    (log,) = re.findall("`([^`]+[.]log)`", sentence)
    assert Path(log).read_text().rstrip().endswith("KeyError: 'seed'")
    Path(log).unlink()
