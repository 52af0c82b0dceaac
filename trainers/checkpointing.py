"""Runs that can be killed at any moment and go on."""

import json
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

__all__ = ["MarkCompleteCheckpoints", "check_same_run", "last_complete_checkpoint", "write_json"]

logger = logging.get_logger(__name__)

MARK = "complete.json"
SETTINGS = "run.json"


def write_json(path: Path, content: dict[str, Any]):
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, path)


class MarkCompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint once every process has written its part.

    The Trainer writes a checkpoint file by file, and a run can be killed between any two of them.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_save(self, args, state, control, **kwargs):
        self.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_json(folder / MARK, {"global_step": state.global_step, "world_size": args.world_size})


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
        if (folder / MARK).is_file():
            return folder
        logger.warning(f"{folder} was not written to its end and is passed over.")
    return None


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
