"""Runs that can be killed at any moment and go on."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ...data_scripts.common.files import require_same_settings, unfinished_path, write_json

__all__ = [
    "MarkCompleteCheckpoints",
    "UnwrittenError",
    "check_same_run",
    "checkpoint_to_resume",
    "first_line",
    "flatten",
    "is_complete",
    "last_complete_checkpoint",
    "mark_complete",
    "say_what_was_not_written",
    "say_where_to_go_on",
    "train",
    "write_whole",
]

logger = logging.get_logger(__name__)

MARK = "complete.json"
SETTINGS = "run.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(trainer: Trainer, folder: Path, write: Callable[[str], None]):
    """Write a folder whole or not at all, in the place of another, if there is one; every process must call it.

    Args:
        trainer (`Trainer`): Of the run.
        folder (`Path`): The folder.
        write (`Callable`): Writes to the folder that it is given, in every process.
    """
    temporary = unfinished_path(folder)
    if trainer.args.should_save:
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    write(str(temporary))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    trainer.accelerator.wait_for_everyone()


def mark_complete(folder: str | Path, accelerator: Accelerator, global_step: int):
    """Mark a checkpoint once every process has written its part; every process must call it.

    Args:
        folder (`str` or `Path`): The checkpoint.
        accelerator (`Accelerator`): Of the run.
        global_step (`int`): Optimizer step of the checkpoint.
    """
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(Path(folder) / MARK, {"global_step": global_step, "world_size": accelerator.num_processes})


class MarkCompleteCheckpoints(TrainerCallback):
    """Marks checkpoints that were written to their end.

    The Trainer writes a checkpoint file by file, and a run can be killed between any two of them. What was left so is
    removed when the run goes on: the Trainer counts it when it deletes old checkpoints, and would keep it in the place
    of a complete one.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_train_begin(self, args, state, control, **kwargs):
        for step, folder in _checkpoints(args.output_dir).items():
            if self.accelerator.is_main_process and step > state.global_step and not is_complete(folder):
                shutil.rmtree(folder)

    def on_save(self, args, state, control, **kwargs):
        mark_complete(_checkpoint(args.output_dir, state.global_step), self.accelerator, state.global_step)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (checkpoint / MARK).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end, or `None`.

    Args:
        output_dir (`str` or `Path`): Folder of the run.
    """
    for _, folder in sorted(_checkpoints(output_dir).items(), reverse=True):
        if is_complete(folder):
            return folder
        logger.warning_once(f"{folder} was not written to its end and is passed over.")
    return None


def _checkpoint(output_dir: str | Path, global_step: int) -> Path:
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{global_step}"


def _checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """All checkpoints of a run by their steps, complete or not."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    folders = {folder.name.removeprefix(prefix): folder for folder in Path(output_dir).glob(f"{prefix}*")}
    return {int(step): folder for step, folder in folders.items() if step.isdigit()}


def checkpoint_to_resume(args: TrainingArguments) -> Path | None:
    """The checkpoint to continue from: the last complete one of the run, unless another is named.

    Raises:
        ValueError: If the checkpoint that is named is not a complete one.
    """
    named = args.resume_from_checkpoint
    if named is None or str(named).lower() == "true":
        return last_complete_checkpoint(args.output_dir)
    if not is_complete(Path(named := str(named))):
        raise ValueError(
            f"`resume_from_checkpoint` names no complete checkpoint, got `{named}`: give the folder of one, or `true` "
            "for the last one of the output folder."
        )
    return Path(named)


class _AtTheEnd(Exception):
    """All steps of a run were taken before."""


class _StopAtTheEnd(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise _AtTheEnd


def train(trainer: Trainer, checkpoint: str | Path | None):
    """Train to the end of a run, from a checkpoint if there is one.

    A run that was killed after its last checkpoint takes no step: the Trainer would take one more where the steps end
    within an epoch.
    """
    if checkpoint is not None:
        logger.warning(f"Continuing from {checkpoint}.")
        trainer.add_callback(_StopAtTheEnd())
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except _AtTheEnd:
        logger.warning("All steps were taken before.")


def say_where_to_go_on(output_dir: str | Path) -> str:
    """What is left of a run that ends early, as the end of a sentence."""
    checkpoint = last_complete_checkpoint(output_dir)
    return f"the last complete checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"


def first_line(error: Exception) -> str:
    """What an error says, without the pages of help that errors of the Hub add."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UnwrittenError(Exception):
    """A run could not write what it must keep."""


@contextmanager
def say_what_was_not_written(trainer: Trainer, folder: Path | None = None):
    """Bring the errors of a disk that is full, of which each library has its own, to one sentence.

    Args:
        trainer (`Trainer`): Of the run.
        folder (`Path`, *optional*): What is written; by default, the checkpoints of the run.

    Raises:
        UnwrittenError: If a folder was not written to its end.
    """
    try:
        yield
    # OSError from Python and datasets, RuntimeError from torch.save.
    except (OSError, RuntimeError, SafetensorError) as error:
        output_dir = trainer.args.output_dir
        if folder is None:
            folder = _checkpoint(output_dir, trainer.state.global_step)
            if not folder.is_dir() or is_complete(folder):
                if getattr(error, "errno", None) not in NO_ROOM:
                    raise
                folder = output_dir  # logs, or a model card
        room = shutil.disk_usage(output_dir).free / 1e9
        raise UnwrittenError(
            f"{folder} could not be written ({first_line(error)}; {room:.1f} GB are free there); "
            f"{say_where_to_go_on(output_dir)}. Make room, and run the same command again."
        ) from error


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Bring `{"a": {"b": value}}` to `{"a.b": value}`."""
    flat = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def check_same_run(output_dir: str | Path, settings: dict[str, Any], is_main_process: bool):
    """Refuse to continue a run with settings that would make it another run.

    Args:
        output_dir (`str` or `Path`): Folder of the run; the settings of its first start are kept there.
        settings (`dict[str, Any]`): Whatever decides the result, as JSON types.
        is_main_process (`bool`): Whether this process writes.

    Raises:
        ValueError: If the folder holds a checkpoint that was made with other settings; names the first that differ.
    """
    file = Path(output_dir) / SETTINGS
    if file.is_file() and last_complete_checkpoint(output_dir) is not None:
        require_same_settings(file.parent, json.loads(file.read_text()), json.loads(json.dumps(settings)))
    elif is_main_process:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
