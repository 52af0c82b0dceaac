"""Runs that can be killed at any moment and continue from their last complete checkpoint."""

import math
import shutil
from pathlib import Path

from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ...data_scripts.common.files import write_json

logger = logging.get_logger(__name__)

MARK = "complete.json"


def mark_complete(folder: str | Path, accelerator: Accelerator, global_step: int):
    """Mark a checkpoint once every process has written its part; every process must call it."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(Path(folder) / MARK, {"global_step": global_step, "world_size": accelerator.num_processes})


class MarkCompleteCheckpoints(TrainerCallback):
    """Mark each checkpoint when all of it is written, and remove incomplete ones when a run continues.

    The Trainer writes a checkpoint file by file, and a run can be killed between any two of them. When it deletes old
    checkpoints it counts incomplete ones, and would keep one instead of a complete one.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_train_begin(self, args, state, control, **kwargs):
        for step, folder in _checkpoints(args.output_dir).items():
            if self.accelerator.is_main_process and step > state.global_step and not is_complete(folder):
                shutil.rmtree(folder)

    def on_save(self, args, state, control, **kwargs):
        mark_complete(checkpoint_folder(args.output_dir, state.global_step), self.accelerator, state.global_step)


def is_complete(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written."""
    return (checkpoint / MARK).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or `None`."""
    for _, folder in sorted(_checkpoints(output_dir).items(), reverse=True):
        if is_complete(folder):
            return folder
        logger.warning_once(f"{folder} is incomplete and is skipped.")
    return None


def describe_last_checkpoint(output_dir: str | Path) -> str:
    """Where a run that ended early can continue, as the end of a sentence."""
    checkpoint = last_complete_checkpoint(output_dir)
    return f"the last complete checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"


def checkpoint_folder(output_dir: str | Path, global_step: int) -> Path:
    """The folder of a run's checkpoint."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{global_step}"


def _checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """All checkpoints of a run by their steps, complete or not."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    folders = {folder.name.removeprefix(prefix): folder for folder in Path(output_dir).glob(f"{prefix}*")}
    return {int(step): folder for step, folder in folders.items() if step.isdigit()}


def checkpoint_to_resume(args: TrainingArguments) -> Path | None:
    """The checkpoint to continue from: the one that is named, or else the last complete one of the run.

    Raises:
        ValueError: If the named checkpoint is missing or incomplete.
    """
    named = args.resume_from_checkpoint
    if named is None or str(named).lower() == "true":
        return last_complete_checkpoint(args.output_dir)
    if not is_complete(Path(named)):
        raise ValueError(
            f"`resume_from_checkpoint` must name a complete checkpoint, got `{named}`: give the folder of one, or "
            "`true` for the last one of the output folder."
        )
    return Path(named)


class StopOnNonFiniteLoss(TrainerCallback):
    """End a run whose loss or gradient is not finite before its weights reach a checkpoint.

    Raises:
        FloatingPointError: In every process.
    """

    def on_step_end(self, args, state, control, **kwargs):
        # The Trainer logs before it saves. Logged means restart at each log, so a resumed run logs the same ones.
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True

    on_epoch_end = on_step_end

    def on_log(self, args, state, control, logs=None, **kwargs):
        # Half precision skips steps whose gradient overflows, and lowers its scale.
        watched = ("loss",) if args.fp16 else ("loss", "grad_norm")
        values = {name: float(value) for name, value in (logs or {}).items() if name.startswith(watched)}
        if lost := [f"`{name}` = {value}" for name, value in values.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"Training is not finite at step {state.global_step} ({', '.join(lost)}); "
                f"{describe_last_checkpoint(args.output_dir)}. Lower the learning rate or check the data."
            )


class _NothingLeftToTrain(Exception):
    """All steps of a run were taken before."""


class _StopAfterLastStep(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise _NothingLeftToTrain


def train(trainer: Trainer, checkpoint: str | Path | None):
    """Train until the last step of a run, from a checkpoint if there is one.

    A run that was killed after its last checkpoint takes no step; the Trainer would take one more if the last step
    lies within an epoch.

    Raises:
        RuntimeError: From a `ValueError` or `ImportError` during training, which is no user's input but a bug.
    """
    if checkpoint is not None:
        logger.warning(f"Continuing from {checkpoint}.")
        trainer.add_callback(_StopAfterLastStep())
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except _NothingLeftToTrain:
        logger.warning("All steps were taken before.")
    except (ValueError, ImportError) as error:
        last = describe_last_checkpoint(trainer.args.output_dir)
        raise RuntimeError(f"Training failed at step {trainer.state.global_step}; {last}.") from error
