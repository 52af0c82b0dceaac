"""Instruction-tune Spa3-VLM with TRL's SFTTrainer.

    spa3r-sft --config configuration/recipes/rooms-sft-cpu.yaml
    accelerate launch --config_file configuration/accelerate/zero2.yaml sft.py \\
        --config configuration/recipes/spa3-vlm-vsi590k.yaml --instructions data/vsi590k --output_dir runs/spa3-vlm

A recipe is a YAML file with any of the options; options on the command line win. The spatial encoder and the vision
tower stay frozen; the adapter and the language model, or with `--use_peft` LoRA layers of it, are trained (paper 4.2),
on the tokens of the answers alone. The same command, run again, continues from the last complete checkpoint of its
output folder. The final model is in <output_dir>/model.
"""

import math
import multiprocessing
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import AutoProcessor, TrainerCallback, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config

from ..modeling_spa3r.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from .checkpointing import (
    MarkCompleteCheckpoints,
    UnwrittenError,
    check_same_run,
    checkpoint_to_resume,
    flatten,
    say_what_was_not_written,
    say_where_to_go_on,
    train,
    write_whole,
)
from .instructions import digest_instructions, load_instructions
from .scene_latents import CachedLatentsCollator, SceneLatents, encoder_fingerprint, with_scene_keys

__all__ = ["build_trainer", "main"]


@dataclass
class InstructionArguments:
    """What is trained on."""

    instructions: list[str] = field(
        default_factory=list,
        metadata={"help": "Instruction sets: FOLDER, or FOLDER@SHARE to take that share of it, drawn by the seed."},
    )
    eval_instructions: list[str] = field(
        default_factory=list, metadata={"help": "Instruction sets for the loss during training, likewise."}
    )
    scene_latents: str | None = field(
        default=None,
        metadata={"help": "Folder of `spa3r-encode-scenes`: train from the latents there, and encode no scene."},
    )


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


def parse_arguments(arguments: list[str] | None = None) -> tuple[InstructionArguments, SFTConfig, ModelConfig]:
    """Read the command line, over the recipe that it names, over the defaults."""
    parser = TrlParser((InstructionArguments, SFTConfig, ModelConfig), prog="spa3r-sft", description=__doc__)
    return parser.parse_args_and_config(arguments)


def _prepare_for_sharding(model: Spa3VLMForConditionalGeneration):
    """What ZeRO-3 and FSDP2 must be told of processes whose batches differ, and of a head that is never called."""
    if is_deepspeed_zero3_enabled() and model.model.spatial_encoder is not None:
        from deepspeed.utils import set_z3_leaf_modules

        # Gathered whole: processes with other scenes would gather its layers another number of times.
        set_z3_leaf_modules(model, [type(model.model.spatial_encoder)])

    def gather_head(*_):
        head = model.get_output_embeddings()
        if isinstance(head, FSDPModule) and torch.is_grad_enabled():
            head.unshard()

    # TRL reads the head's weight without calling the head; of a sharded one, the gradient is of this process alone.
    model.model.register_forward_pre_hook(gather_head)


def build_trainer(data_args: InstructionArguments, args: SFTConfig, model_args: ModelConfig) -> SFTTrainer:
    """Everything that can be refused before training begins."""
    if model_args.model_name_or_path is None:
        raise ValueError("There is no model to train: give `--model_name_or_path`, a Spa3-VLM.")
    if not data_args.instructions:
        raise ValueError("There is nothing to train on: give `--instructions FOLDER`.")
    set_seed(args.seed)
    train = load_instructions(data_args.instructions, args.seed)
    evaluation = load_instructions(data_args.eval_instructions, args.seed) if data_args.eval_instructions else None
    # The whole answer is learnt, and nothing else; a sequence is never cut; a lost loss is shown.
    args.assistant_only_loss, args.max_length, args.logging_nan_inf_filter = True, None, False
    options = {"attn_implementation": model_args.attn_implementation, "dtype": model_args.dtype}
    model = Spa3VLMForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path, **{name: value for name, value in options.items() if value is not None}
    )
    model.freeze_encoders()
    _prepare_for_sharding(model)
    processor = AutoProcessor.from_pretrained(model_args.model_name_or_path)
    collator = None
    if data_args.scene_latents is not None:
        latents = SceneLatents(data_args.scene_latents, encoder_fingerprint(model, processor))
        train, evaluation = (data and with_scene_keys(data) for data in (train, evaluation))
        for data in filter(None, (train, evaluation)):
            latents.check_complete(data["scene_key"])
        args.remove_unused_columns = False
        collator = CachedLatentsCollator(latents, processor=processor, assistant_only_loss=True)
    trainer = SFTTrainer(
        model,
        args,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
        callbacks=[StopAtLostLoss()],
    )
    trainer.add_callback(MarkCompleteCheckpoints(trainer.accelerator))
    return trainer


def settings_of_run(trainer: SFTTrainer, data_args: InstructionArguments, model_args: ModelConfig) -> dict[str, Any]:
    """What decides the weights that a run ends with, by flat names such as `model.lora_r`."""
    args = trainer.args
    names = (
        "seed data_seed per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps "
        "dataloader_drop_last train_sampling_strategy learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon "
        "lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm optim optim_args loss_type "
        "neftune_noise_alpha bf16 fp16 world_size"
    )
    settings = {name: getattr(args, name) for name in names.split()}
    settings |= {name: str(settings[name]) for name in ("lr_scheduler_type", "optim")}
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


def check_can_go_on(trainer: SFTTrainer, data_args: InstructionArguments, model_args: ModelConfig):
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


def run(trainer: SFTTrainer):
    """Train, and save model and processor to `<output_dir>/model`."""
    args = trainer.args
    if args.dataloader_num_workers:
        # A process with threads can deadlock in a fork: workers come from a clean server, which has imported what they
        # need before it makes the first.
        multiprocessing.set_forkserver_preload([SceneLatents.__module__])
        args.dataloader_multiprocessing_context = args.dataloader_multiprocessing_context or "forkserver"
    with say_what_was_not_written(trainer):
        train(trainer, checkpoint_to_resume(args))
    final = Path(args.output_dir) / "model"
    with say_what_was_not_written(trainer, final):
        write_whole(trainer, final, lambda folder: trainer.save_model(folder, _internal_call=True))
    trainer.accelerator.print(f"The model is in {final}.")
    if args.push_to_hub:
        trainer.push_to_hub()


def main(arguments: list[str] | None = None):
    """Entry point of `spa3r-sft`."""
    try:
        data_args, args, model_args = parse_arguments(arguments)
        trainer = build_trainer(data_args, args, model_args)
        check_can_go_on(trainer, data_args, model_args)
    except (ValueError, OSError) as error:
        sys.exit(f"spa3r-sft: {error}")
    try:
        run(trainer)
    except (FloatingPointError, UnwrittenError) as error:
        sys.exit(f"spa3r-sft: {error}")


if __name__ == "__main__":
    main()
