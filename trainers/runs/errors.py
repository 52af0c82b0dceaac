"""How commands fail: one sentence on the standard error, and an exit code that scripts can rely on."""

import errno
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import Trainer

from ...data_scripts.common.command_line import DEBUG
from .marks import is_complete
from .resume import checkpoint_folder, describe_last_checkpoint

# Error numbers of a full disk, a used-up quota and a file above the allowed size; and of places without permission.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
# What wrong input and broken surroundings raise. Anything else is a bug, or damage that nothing recognised.
EXPECTED = (
    *(ValueError, OSError, ImportError, StrictDataclassError, SafetensorError, FloatingPointError),
    *(MemoryError, torch.OutOfMemoryError),
)
# How safetensors tells an error of the operating system.
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
INTERRUPTED = 130
# What torch says in processes that wait for one that has ended.
LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer")
# Within which all processes of a launch fail for one reason.
SECONDS_OF_A_FAILURE = 60


@contextmanager
def errors_as_sentences(
    program: str, arguments: Sequence[str] = (), debug: bool = False, after_interrupt: str = ""
) -> Iterator[None]:
    """End the process with `program: sentence` and status 1 on an error, and with status 130 on Ctrl-C.

    The traceback of an error that is not foreseen goes to a file, which the sentence names. Of several processes that
    end with the same sentence on one machine, one writes it.

    Args:
        program (`str`): The command, such as `spa3r ask`.
        arguments (`list[str]`): Its arguments, which name the output folder where an error does not.
        debug (`bool`, *optional*, defaults to `False`): Whether to show tracebacks.
        after_interrupt (`str`, *optional*):
            What Ctrl-C leaves and how to go on; for where the `KeyboardInterrupt` itself does not say it.
    """
    try:
        yield
    except EXPECTED as error:
        _end(f"{program}: {_describe(error, arguments)}", 1, debug)
    except KeyboardInterrupt as interrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would end in a traceback while Python exits
        rest = _words_of(interrupt) or after_interrupt
        _end(f"{program}: interrupted{f'; {rest}' if rest else ''}.", INTERRUPTED, debug)
    except Exception as error:
        sentence = _describe(error, arguments) if _is_out_of_memory(error) else _describe_unforeseen(error, debug)
        _end(f"{program}: {sentence}", 1, debug)


def _words_of(interrupt: BaseException | None) -> str:
    """What an interrupt says of the run; a second Ctrl-C, while the first one is heeded, says nothing of its own."""
    while interrupt is not None:
        if isinstance(interrupt, KeyboardInterrupt) and str(interrupt):
            return str(interrupt)
        interrupt = interrupt.__context__
    return ""


def take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, and whether it was there.

    The library's trainer has an option of this name, too, which takes a value.
    """
    places = {
        index
        for index, word in enumerate(arguments)
        if word == DEBUG and (index == 0 or index + 1 == len(arguments) or arguments[index + 1].startswith("-"))
    }
    return [word for index, word in enumerate(arguments) if index not in places], bool(places)


def run_module(main: Callable[[Sequence[str]], None], module: str):
    """Run the `main` of a module that is a program of its own, `python -m MODULE`, with errors as sentences."""
    arguments, debug = take_debug(sys.argv[1:])
    with errors_as_sentences(module, arguments, debug):
        main(arguments)


def _end(sentence: str, status: int, debug: bool):
    if debug:
        traceback.print_exc()
    is_alone = int(os.environ.get("WORLD_SIZE", 1)) < 2
    if is_alone and status == 1:
        sys.exit(sentence)  # Python writes it
    # A launcher ends the other processes as soon as one has ended.
    if is_alone or not _was_said(sentence):
        print(sentence, file=sys.stderr, flush=True)
    sys.exit(status)


def _was_said(sentence: str) -> bool:
    """Whether another process of the same launch on this machine has just said this; they share parent and port."""
    launch = f"{os.getppid()} {os.environ.get('MASTER_PORT')} {os.environ.get('TORCHELASTIC_RUN_ID')}"
    name = hashlib.sha256(f"{launch} {sentence}".encode()).hexdigest()[:16]
    mark = Path(tempfile.gettempdir(), f"spa3r-{name}.said")
    try:
        if mark.exists() and time.time() - mark.stat().st_mtime > SECONDS_OF_A_FAILURE:
            mark.unlink(missing_ok=True)  # of an earlier launch
        mark.touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:
        pass  # better twice than not at all
    return False


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU, torch raises a plain `RuntimeError`.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _describe(error: BaseException, arguments: Sequence[str]) -> str:
    if isinstance(error, StrictDataclassError):
        error = error.__cause__ or error  # the library wraps what a configuration class says
    if isinstance(error, SafetensorError) and (found := SYSTEM_ERROR.search(str(error))):
        number = int(found[1])
        if number in (*DISK_FULL, *READ_ONLY):  # it was to be written
            error = OSError(number, os.strerror(number))
    if isinstance(error, SafetensorError):
        return f"A file of weights is damaged ({first_line(error)}): copy the checkpoint again."
    if _is_out_of_memory(error):
        return f"Memory ran out ({first_line(error)}): use smaller batches, fewer views or another device."
    outputs = [value for name, value in pairwise(arguments) if name in ("--output", "--output_dir")]
    number = getattr(error, "errno", None)
    if number in DISK_FULL:
        place = error.filename or next(iter(outputs), None)
        what = f"`{place}`" if place else "the output"
        return f"There is no room to write {what} ({error.strerror}): make room, and run the same command again."
    if number in READ_ONLY and (place := error.filename or next(iter(outputs), None)):
        return f"`{place}` may not be used ({error.strerror}): change its permissions, or choose another path."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"`{error.filename}` cannot be used ({error.strerror}): check the path."
    if isinstance(error, OSError | ImportError):
        return first_line(error)
    return " ".join(_of_worker(str(error)).split())


def _of_worker(text: str) -> str:
    """The message alone of an error that torch passes on from a process that reads data, with its traceback."""
    if "Original Traceback" not in text:
        return text
    return text.strip().splitlines()[-1].partition(": ")[2] or text


def _describe_unforeseen(error: Exception, debug: bool) -> str:
    """What happened and where, for an error that is a bug or comes from damage that nothing recognised."""
    if any(words in str(error) for words in LOST_CONNECTION) and "WORLD_SIZE" in os.environ:
        return "Another process of this launch has ended; what it says is the reason."
    origin = error
    while (earlier := origin.__cause__) is not None:
        origin = earlier
    places = traceback.extract_tb(origin.__traceback__)
    where = f" in {Path(places[-1].filename).name}, line {places[-1].lineno}" if places else ""
    reason = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
    if debug:
        return f"{reason}{where}."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="spa3r-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write("".join(traceback.format_exception(error)))
        kept = f"`{log.name}` has the traceback, and `--debug` shows it"
    except OSError:
        kept = "`--debug` shows the traceback"
    return f"{reason}{where}. This is an error of the program, or damaged input that it did not recognise; {kept}."


def first_line(error: BaseException) -> str:
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
