"""Runs that can be killed at any moment and go on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

__all__ = [
    "MarkCompleteCheckpoints",
    "check_same_run",
    "flatten",
    "is_complete",
    "last_complete_checkpoint",
    "mark_complete",
    "replace_folder",
    "write_json",
    "write_text",
]

logger = logging.get_logger(__name__)

MARK = "complete.json"
SETTINGS = "run.json"


def write_text(path: Path, content: str):
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: dict[str, Any]):
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def replace_folder(new: Path, old: Path):
    """Put a folder that was written to its end in the place of another, if there is one."""
    if old.exists():
        shutil.rmtree(old)
    os.replace(new, old)


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

    The Trainer writes a checkpoint file by file, and a run can be killed between any two of them.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        mark_complete(folder, self.accelerator, state.global_step)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (checkpoint / MARK).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end, or `None`.

    Args:
        output_dir (`str` or `Path`): Folder of the run.
    """
    checkpoints = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdigit():
            checkpoints[int(step)] = folder
    for _, folder in sorted(checkpoints.items(), reverse=True):
        if is_complete(folder):
            return folder
        logger.warning(f"{folder} was not written to its end and is passed over.")
    return None


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Bring `{"a": {"b": value}}` to `{"a.b": value}`."""
    flat = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
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
    settings = json.loads(json.dumps(settings))
    file = Path(output_dir) / SETTINGS
    if file.is_file() and last_complete_checkpoint(output_dir) is not None:
        before = json.loads(file.read_text())
        different = sorted(key for key in before | settings if before.get(key) != settings.get(key))
        if different:
            shown = "; ".join(f"`{key}` was {before.get(key)}, is {settings.get(key)}" for key in different[:3])
            raise ValueError(
                f"{output_dir} holds a run with other settings ({shown}): go on with the same ones, or choose another "
                "`--output_dir`."
            )
    elif is_main_process:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
