"""The final model of a run: trained, written completely, and uploaded without ever losing the run."""

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments

from ...data_scripts.common.files import unfinished_path
from .errors import explain_failed_write, first_line
from .resume import train


def final_folder(args: TrainingArguments) -> Path:
    """Where the final, self-contained model of a run belongs."""
    return Path(args.output_dir) / "model"


def train_and_save(trainer: Trainer, checkpoint: Path | None, write: Callable[[str], None]) -> Path:
    """Train until the last step and write the final model; every process must call it.

    Args:
        trainer (`Trainer`): The trainer of the run.
        checkpoint (`Path`, *optional*): The checkpoint to continue from.
        write (`Callable`): Writes the model to the folder that it is called with.

    Returns:
        `Path`: The folder of the final model.

    Raises:
        NotWrittenError: If a checkpoint or the final model does not fit on the disk.
    """
    folder = final_folder(trainer.args)
    with explain_failed_write(trainer):
        train(trainer, checkpoint)
    with explain_failed_write(trainer, folder):
        replace_folder(trainer, folder, write)
    return folder


def replace_folder(trainer: Trainer, folder: Path, write: Callable[[str], None]):
    """Write a folder completely or not at all, and replace an older one; every process must call it.

    Args:
        trainer (`Trainer`): The trainer of the run.
        folder (`Path`): The folder.
        write (`Callable`): Called in every process with the folder to write to.
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


def make_repository(args: TrainingArguments):
    """Make the repository of a run with `push_to_hub`, before anything is loaded or trained.

    Raises:
        ValueError: If that fails for any reason.
    """
    if not args.push_to_hub or args.process_index > 0:
        return
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    try:
        HfApi(token=args.hub_token).create_repo(name, private=args.hub_private_repo, exist_ok=True)
    # Without a network, the HTTP library below huggingface_hub raises errors of its own.
    except Exception as error:
        raise ValueError(
            f"`push_to_hub` cannot make the repository `{name}` ({first_line(error)}): log in with `hf auth login`, "
            "choose another `--hub_model_id`, or train without `--push_to_hub` and upload the model later."
        ) from error


def push_final_model(trainer: Trainer, upload: Callable[[], Any]):
    """Upload the final model from the main process.

    Raises:
        OSError: If the upload fails for any reason; says where the model is and how to upload it later.
    """
    if not trainer.args.push_to_hub or not trainer.is_world_process_zero():
        return
    folder = final_folder(trainer.args)
    try:
        upload()
    # The Hub, the network, the token: whatever failed, the model is safe.
    except Exception as error:
        raise OSError(
            f"the model is trained and lies in {folder}, but uploading it failed ({first_line(error)}); do it later "
            f"with: hf upload {trainer.hub_model_id} {shlex.quote(str(folder))} ."
        ) from error
    print(f"It is on the Hub, too: {trainer.hub_model_id}")
