"""How commands fail: one sentence on the standard error, and an exit code that scripts can rely on."""

import errno
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import Trainer
from transformers.utils import logging

from .resume import checkpoint_folder, describe_last_checkpoint, is_complete

logger = logging.get_logger(__name__)

# Error numbers of a full disk, a used-up quota and a file above the allowed size.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What wrong input and broken surroundings raise. Anything else is a bug and keeps its traceback.
EXPECTED = (ValueError, OSError, ImportError, StrictDataclassError, SafetensorError, FloatingPointError)
INTERRUPTED = 130


@contextmanager
def errors_as_sentences(program: str, arguments: Sequence[str] = ()) -> Iterator[None]:
    """End the process with `program: sentence` and status 1 on wrong input, and with status 130 on Ctrl-C.

    Tracebacks are logged at level debug (`TRANSFORMERS_VERBOSITY=debug`).

    Args:
        program (`str`): The command, such as `spa3r ask`.
        arguments (`list[str]`): Its arguments, which name the output folder where an error does not.
    """
    try:
        yield
    except EXPECTED as error:
        logger.debug("Traceback:", exc_info=True)
        sys.exit(f"{program}: {_describe(error, arguments)}")
    except KeyboardInterrupt:
        print(f"{program}: interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _describe(error: Exception, arguments: Sequence[str]) -> str:
    if isinstance(error, StrictDataclassError):
        error = error.__cause__ or error  # the library wraps what a configuration class says
    if isinstance(error, SafetensorError):
        return f"A file of weights is damaged ({first_line(error)}): copy the checkpoint again."
    if getattr(error, "errno", None) in DISK_FULL:
        outputs = [value for name, value in pairwise(arguments) if name in ("--output", "--output_dir")]
        place = error.filename or next(iter(outputs), "the output folder")
        return f"There is no room to write `{place}` ({error.strerror}): make room, and run the same command again."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"`{error.filename}` cannot be used ({error.strerror}): check the path."
    if isinstance(error, OSError | ImportError):
        return first_line(error)
    return " ".join(str(error).split())


def first_line(error: Exception) -> str:
    """The message of an error without the pages of help that errors of the Hub add."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class NotWrittenError(OSError):
    """A run could not write what it must keep."""


@contextmanager
def explain_failed_write(trainer: Trainer, folder: Path | None = None) -> Iterator[None]:
    """Turn the errors that libraries raise on a full disk into one sentence.

    Args:
        trainer (`Trainer`): The trainer that writes.
        folder (`Path`, *optional*): The folder that is written; by default the next checkpoint of the run.

    Raises:
        NotWrittenError: If the folder is incomplete.
    """
    try:
        yield
    # OSError from Python and datasets, RuntimeError from torch.save.
    except (OSError, RuntimeError, SafetensorError) as error:
        output_dir = trainer.args.output_dir
        if folder is None:
            folder = checkpoint_folder(output_dir, trainer.state.global_step)
            if not folder.is_dir() or is_complete(folder):
                if getattr(error, "errno", None) not in DISK_FULL:
                    raise
                folder = output_dir  # logs, or a model card
        free = shutil.disk_usage(output_dir).free / 1e9
        raise NotWrittenError(
            f"{folder} could not be written ({first_line(error)}; {free:.1f} GB are free there); "
            f"{describe_last_checkpoint(output_dir)}. Make room, and run the same command again."
        ) from error
