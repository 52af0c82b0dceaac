"""Runs of instruction tuning that end, or go on, as if nothing had happened; and what they refuse for that."""

import math
from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback
from trl import ModelConfig, SFTTrainer

from ..runs.resume import check_same_run, checkpoint_to_resume, flatten, say_where_to_go_on
from .instruction_data import digest_instructions

__all__ = ["StopAtLostLoss", "check_can_go_on"]


class StopAtLostLoss(TrainerCallback):
    """Ends a run whose loss or gradient is no number, before a checkpoint of it is written."""

    def on_step_end(self, args, state, control, **kwargs):
        # Logs come before checkpoints. And means begin anew with each log: a run that goes on logs the same ones.
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True

    on_epoch_end = on_step_end

    def on_log(self, args, state, control, logs=None, **kwargs):
        # In half precision, steps with a gradient that overflows are left out, and its scale is lowered.
        names = {"loss": "loss"} if args.fp16 else {"loss": "loss", "grad_norm": "norm of the gradient"}
        for name, what in names.items():
            if not math.isfinite(value := float((logs or {}).get(name, 0.0))):
                last = say_where_to_go_on(args.output_dir)
                raise FloatingPointError(f"The {what} is not finite ({value}) at step {state.global_step}; {last}.")


def settings_of_run(trainer: SFTTrainer, data_args: Any, model_args: ModelConfig) -> dict[str, Any]:
    """What decides the weights that a run ends with, by flat names such as `model.lora_r`."""
    args = trainer.args
    names = (
        "seed data_seed per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps "
        "dataloader_drop_last train_sampling_strategy learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon "
        "lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm optim optim_args loss_type "
        "neftune_noise_alpha world_size"
    )
    settings = {name: getattr(args, name) for name in names.split()}
    settings |= {name: str(settings[name]) for name in ("lr_scheduler_type", "optim")}
    # A launch file has a say in this, too.
    settings |= {precision: args.mixed_precision == precision for precision in ("bf16", "fp16")}
    settings["distributed_type"] = trainer.accelerator.distributed_type.value
    settings |= {"instructions": data_args.instructions, "scene_latents": data_args.scene_latents}
    settings["training_records"] = {
        "number": len(trainer.train_dataset),
        "sha256": digest_instructions(data_args.instructions),
    }
    # What a library adds stays at its default.
    defaults = asdict(ModelConfig())
    settings["model"] = {name: value for name, value in asdict(model_args).items() if value != defaults[name]}
    return flatten(settings)


def check_can_go_on(trainer: SFTTrainer, data_args: Any, model_args: ModelConfig):
    """Refuse a run that could not go on after being killed, or that would go on as another one.

    Raises:
        ValueError: In these cases, and if the checkpoint to continue from is not a complete one.
    """
    args = trainer.args
    if args.save_total_limit is not None and args.save_total_limit < 2:
        raise ValueError(
            f"`save_total_limit` must be at least 2, got {args.save_total_limit}: with one, a run that is killed "
            "while it saves has nothing to resume from."
        )
    for name in ("save_only_model", "ignore_data_skip", "dataloader_persistent_workers"):
        if getattr(args, name):
            raise ValueError(
                f"With `{name}` a run that was killed could not go on as if it had not been: leave it out."
            )
    checkpoint_to_resume(args)
    check_same_run(args.output_dir, settings_of_run(trainer, data_args, model_args), args.process_index == 0)
