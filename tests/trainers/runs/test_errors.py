"""Errors of commands, as one sentence and an exit code."""

import errno

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError

from spa3r.trainers.runs.errors import errors_as_sentences


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
        pytest.param(FileNotFoundError(errno.ENOENT, "No such file", "run/b.bin"), "`run/b.bin`", id="missing file"),
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


def test_an_interrupted_command_ends_with_the_code_of_shells():
    assert ended_by(KeyboardInterrupt()) == 130


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), errors_as_sentences("spa3r verb"):
        raise KeyError("seed")
