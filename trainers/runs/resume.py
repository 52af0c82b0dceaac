"""Runs that can be killed at any moment and continue from their last complete checkpoint."""

import math
import shutil
from pathlib import Path

from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ...data_scripts.common.images import UnreadableFrame
from .marks import find_damage, find_unreadable_file, is_complete, mark_complete

logger = logging.get_logger(__name__)


def require_whole(checkpoint: Path) -> Path:
    """Return a checkpoint, or say that it is damaged and where the run can go on.

    Raises:
        ValueError: If it is damaged.
    """
    damage = find_damage(checkpoint)
    if damage is not None:
        raise ValueError(describe_damage(checkpoint, damage))
    return checkpoint


def describe_damage(checkpoint: Path, damage: str) -> str:
    """A sentence that names a damaged checkpoint and the one to go back to."""
    others = sorted(_checkpoints(checkpoint.parent).items(), reverse=True)
    whole = [
        folder for _, folder in others if folder != checkpoint and is_complete(folder) and not find_damage(folder)
    ]
    back = f"the same command then goes on from {whole[0]}" if whole else "no other is whole, so the run starts anew"
    return f"The checkpoint {checkpoint} is damaged ({damage}): remove it; {back}."


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
        ValueError: If the named checkpoint is missing or incomplete, or the one to continue from is damaged.
    """
    named = args.resume_from_checkpoint
    if named is None or str(named).lower() == "true":
        last = last_complete_checkpoint(args.output_dir)
        return None if last is None else require_whole(last)
    if not is_complete(Path(named)):
        raise ValueError(
            f"`resume_from_checkpoint` must name a complete checkpoint, got `{named}`: give the folder of one, or "
            "`true` for the last one of the output folder."
        )
    return require_whole(Path(named))


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


class _NoteStart(TrainerCallback):
    """Whether a run got as far as its first step, before which it reads a checkpoint."""

    def __init__(self):
        self.has_begun = False

    def on_step_begin(self, args, state, control, **kwargs):
        self.has_begun = True


def train(trainer: Trainer, checkpoint: str | Path | None):
    """Train until the last step of a run, from a checkpoint if there is one.

    A run that was killed after its last checkpoint takes no step; the Trainer would take one more if the last step
    lies within an epoch.

    Raises:
        ValueError: If data or the checkpoint are damaged; says where the run can go on.
        KeyboardInterrupt: On Ctrl-C; says the same.
        RuntimeError: From another `ValueError` or `ImportError` during training, which is no user's input but a bug.
    """
    start = _NoteStart()
    trainer.add_callback(start)
    if checkpoint is not None:
        logger.warning(f"Continuing from {checkpoint}.")
        trainer.add_callback(_StopAfterLastStep())
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except _NothingLeftToTrain:
        logger.warning("All steps were taken before.")
    except KeyboardInterrupt:
        last = last_complete_checkpoint(trainer.args.output_dir)
        kept = "there is no checkpoint yet; the same command starts again"
        raise KeyboardInterrupt(kept if last is None else f"the same command goes on from {last}") from None
    except UnreadableFrame as error:
        last = describe_last_checkpoint(trainer.args.output_dir)
        raise UnreadableFrame(
            f"{str(error).rstrip('.')}; {last}. Repair it, and run the same command again."
        ) from error
    except Exception as error:
        if checkpoint is not None and not start.has_begun and (damage := find_unreadable_file(Path(checkpoint))):
            raise ValueError(describe_damage(Path(checkpoint), damage)) from error
        if not isinstance(error, ValueError | ImportError):
            raise
        last = describe_last_checkpoint(trainer.args.output_dir)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")
        # What an option needs and is not installed is no error of the program.
        kind = ImportError if isinstance(error, ImportError) else RuntimeError
        raise kind(f"Training failed at step {trainer.state.global_step} ({reason}); {last}.") from error
