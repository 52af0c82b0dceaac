"""Settings that must not change when a run resumes, and settings that would make exact resuming impossible."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ...data_scripts.common.files import read_json_object, require_same_settings, write_json
from .resume import last_complete_checkpoint

SETTINGS = "run.json"
# Those of `transformers.TrainingArguments` that decide the weights of every run.
NAMES = (
    "seed data_seed max_steps learning_rate weight_decay lr_scheduler_type lr_scheduler_kwargs warmup_steps "
    "gradient_accumulation_steps max_grad_norm optim world_size"
).split()


def training_settings(args: TrainingArguments, names: Iterable[str]) -> dict[str, Any]:
    """The settings of the Trainer that decide the weights of a run.

    Args:
        args (`TrainingArguments`): The arguments of the run.
        names (`Iterable[str]`): Arguments that matter for this kind of run, besides those that matter for all.
    """
    settings = {name: getattr(args, name) for name in (*NAMES, *names)}
    settings |= {name: str(settings[name]) for name in ("lr_scheduler_type", "optim")}
    # Launch files set the precision, too.
    return settings | {precision: args.mixed_precision == precision for precision in ("bf16", "fp16")}


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn `{"a": {"b": value}}` into `{"a.b": value}`."""
    flat = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def check_same_run(output_dir: str | Path, settings: dict[str, Any], is_main_process: bool):
    """Refuse to continue a run with settings that would make it another run.

    Args:
        output_dir (`str` or `Path`): Folder of the run, where the settings of its first start are kept.
        settings (`dict[str, Any]`): Flat names and JSON values of all that decides the result.
        is_main_process (`bool`): Whether this process writes.

    Raises:
        ValueError: If the folder has a checkpoint that was made with other settings.
    """
    file = Path(output_dir) / SETTINGS
    if file.is_file() and last_complete_checkpoint(output_dir) is not None:
        before = read_json_object(file, "choose another output folder, or remove it if the run is yours")
        now = json.loads(json.dumps(settings))
        require_same_settings(file.parent, before, now)
    elif is_main_process:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_json(file, settings)


def check_resumable(args: TrainingArguments, harmful: Iterable[str] = ("save_only_model", "ignore_data_skip")):
    """Refuse arguments with which a killed run could not end with the weights of an uninterrupted one.

    Args:
        args (`TrainingArguments`): The arguments of the run.
        harmful (`Iterable[str]`): Arguments that must not be set.

    Raises:
        ValueError: If one is set, or a single checkpoint is kept.
    """
    if args.save_total_limit is not None and args.save_total_limit < 2:
        raise ValueError(
            f"`save_total_limit` must be at least 2, got {args.save_total_limit}: with one, a run that is killed "
            "while it saves has nothing to resume from."
        )
    for name in harmful:
        if value := getattr(args, name):
            raise ValueError(f"`{name}` must not be set, got {value}: a killed run could not resume exactly.")
