"""Instruction-tune Spa3-VLM with TRL's SFTTrainer.

    spa3r sft --config spa3-vlm-rooms-cpu
    accelerate launch --config_file configuration/accelerate/zero2.yaml sft.py \\
        --config spa3-vlm-vsi590k --instructions data/vsi590k --output_dir runs/spa3-vlm

A recipe is a YAML file with any of the options; options on the command line win. The spatial encoder and the vision
tower stay frozen; the adapter and the language model, or with `--use_peft` LoRA layers of it, are trained (paper 4.2),
on the tokens of the answers alone. The same command, run again, continues from the last complete checkpoint of its
output folder. The final model is in <output_dir>/model.
"""

import argparse
import multiprocessing
import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoProcessor, set_seed
from transformers.utils import logging
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...modeling_spa3r.checkpoints.loading import load_spa3_vlm, require_checkpoint
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ..runs.recipes import (
    find_recipe,
    hide_rare_options,
    read_recipe,
    refuse_unknown_options,
    set_recipe,
    split_config,
)
from ..runs.resume import (
    MarkCompleteCheckpoints,
    UnwrittenError,
    checkpoint_to_resume,
    first_line,
    say_what_was_not_written,
    train,
    write_whole,
)
from .instruction_data import check_lengths, load_instructions
from .save import make_repository, push_tuned_model, save_tuned_model
from .scene_cache import CachedLatentsCollator, SceneLatents, with_scene_keys
from .sft_runs import StopAtLostLoss, check_can_go_on
from .sharding import prepare_for_sharding

__all__ = ["build_trainer", "main"]

logger = logging.get_logger(__name__)

COMMON_OPTIONS = set(
    "model_name_or_path dtype attn_implementation use_peft lora_r lora_alpha output_dir max_length max_steps "
    "num_train_epochs per_device_train_batch_size gradient_accumulation_steps learning_rate warmup_steps bf16 "
    "activation_checkpointing logging_steps eval_strategy eval_steps save_steps seed dataloader_num_workers report_to "
    "use_cpu push_to_hub hub_model_id resume_from_checkpoint".split()
)


@dataclass
class InstructionArguments:
    """What is trained on."""

    instructions: list[str] = field(
        default_factory=list,
        metadata={"help": "Instruction sets: FOLDER, or FOLDER@WEIGHT: 0.25 takes a quarter of it, 2 takes it twice."},
    )
    eval_instructions: list[str] = field(
        default_factory=list, metadata={"help": "Instruction sets for the loss during training, likewise."}
    )
    scene_latents: str | None = field(
        default=None,
        metadata={"help": "Folder of `spa3r encode-scenes`: train from the latents there, and encode no scene."},
    )


@dataclass
class TuningArguments(SFTConfig):
    """TRL's, with a limit that nobody has to set, and nothing published but the final model."""

    max_length: int | None = field(
        default=None,
        metadata={"help": "Refuse records of more tokens; none is ever cut. By default there is no limit."},
    )

    hub_strategy: str = field(
        default="end",
        metadata={"help": "With `every_save` the whole output folder is pushed with each checkpoint, logs and all."},
    )

    def __getstate__(self):
        # The Trainer pickles its arguments beside each checkpoint and publishes them with `push_to_hub`.
        return self.__dict__ | {"hub_token": None}


def parse_arguments(arguments: list[str] | None = None) -> tuple[InstructionArguments, TuningArguments, ModelConfig]:
    """Read the command line, over the recipe that it names, over the defaults.

    Raises:
        ValueError: For a recipe that does not exist, or a key or an option that is unknown.
    """
    name, arguments = split_config(sys.argv[1:] if arguments is None else arguments)
    parser = TrlParser(
        (InstructionArguments, TuningArguments, ModelConfig),
        prog="spa3r sft",
        usage="spa3r sft [--config RECIPE] [--OPTION VALUE ...]",
        description=__doc__,
        epilog="Every other option of trl.SFTConfig and trl.ModelConfig is understood as well.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="Recipe: a YAML file, or the name of one in configuration/recipes.")
    hide_rare_options(parser, {option.name for option in fields(InstructionArguments)} | COMMON_OPTIONS)
    if name is not None:
        recipe = read_recipe(find_recipe(name, of_tuning=True))
        environment = recipe.pop("env", {})
        if not isinstance(environment, dict):
            raise ValueError(f"`env` in the recipe `{name}` must map names to values, got `{environment}`.")
        os.environ.update({key: str(value) for key, value in environment.items()})
        set_recipe(recipe, parser, name)
    *parsed, unknown = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    refuse_unknown_options(unknown, parser)
    return tuple(parsed[:3])


def _load_data(
    data_args: InstructionArguments, args: TuningArguments, processor: Spa3VLMProcessor
) -> tuple[Dataset, Dataset | None]:
    """What to train on and, if there is any, what to evaluate on."""
    with args.main_process_first(desc="instruction sets"):  # which leaves what it made for the others
        train = load_instructions(data_args.instructions, args.seed)
        evaluation = load_instructions(data_args.eval_instructions, args.seed) if data_args.eval_instructions else None
        if args.max_length is not None:
            for data in filter(None, (train, evaluation)):
                check_lengths(data, processor, args.max_length)
        if data_args.scene_latents is not None:
            train, evaluation = (data and with_scene_keys(data) for data in (train, evaluation))
    if len(train) < args.world_size:
        raise ValueError(
            f"There are more processes, {args.world_size}, than records to train on, {len(train)}: start as many with "
            "`--num_processes`, or give more `--instructions`."
        )
    if evaluation is None and args.eval_strategy != "no":
        raise ValueError("There is nothing to evaluate on: give `--eval_instructions` or set `eval_strategy: no`.")
    return train, evaluation


def build_trainer(data_args: InstructionArguments, args: TuningArguments, model_args: ModelConfig) -> SFTTrainer:
    """Everything that can be refused before training begins."""
    if model_args.model_name_or_path is None:
        raise ValueError("There is no model to train: give `--model_name_or_path`, a Spa3-VLM.")
    if not data_args.instructions:
        raise ValueError("There is nothing to train on: give `--instructions FOLDER`.")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(args, name)}.")
    require_checkpoint(model_args.model_name_or_path)
    Spa3VLMConfig.from_pretrained(model_args.model_name_or_path)  # refuses a model of another kind
    if args.push_to_hub and args.process_index == 0:
        make_repository(args)
    set_seed(args.seed)
    processor = AutoProcessor.from_pretrained(model_args.model_name_or_path)
    train, evaluation = _load_data(data_args, args, processor)
    # The whole answer is learnt, and nothing else; a sequence is never cut; a lost loss is shown.
    args.assistant_only_loss, args.max_length, args.logging_nan_inf_filter = True, None, False
    options = {"attn_implementation": model_args.attn_implementation, "dtype": model_args.dtype}
    options = {name: value for name, value in options.items() if value is not None}
    model = load_spa3_vlm(model_args.model_name_or_path, **options)
    model.freeze_encoders()
    if model_args.use_peft and args.bf16 and model.model.fusion is not None:
        model.model.fusion.float()  # as peft keeps LoRA layers: in bfloat16 most updates are rounded away
    prepare_for_sharding(model)
    collator = None
    if data_args.scene_latents is not None:
        latents = SceneLatents(data_args.scene_latents, model, processor)
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
    has_copy = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if not has_copy and any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in model.parameters()):
        logger.warning(
            f"Weights are trained in bfloat16 without a copy in float32: at a learning rate of {args.learning_rate:g} "
            "most updates are rounded away. Launch with ZeRO or FSDP2, which keep one, or give `--dtype float32`."
        )
    return trainer


def run(trainer: SFTTrainer, instructions: list[str]):
    """Train, save the self-contained model to `<output_dir>/model`, and push it where asked to."""
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
        write_whole(trainer, final, lambda folder: save_tuned_model(trainer, instructions, folder))
    trainer.accelerator.print(f"The model is in {final}.")
    if args.push_to_hub:
        push_tuned_model(trainer, final)


def main(arguments: list[str] | None = None):
    """Entry point of `spa3r sft`."""
    try:
        data_args, args, model_args = parse_arguments(arguments)
        trainer = build_trainer(data_args, args, model_args)
        check_can_go_on(trainer, data_args, model_args)
    except (OSError, ImportError) as error:
        sys.exit(f"spa3r sft: {first_line(error)}")
    except (ValueError, StrictDataclassError) as error:
        sys.exit(f"spa3r sft: {' '.join(str(error).split())}")
    try:
        run(trainer, data_args.instructions)
    except (FloatingPointError, UnwrittenError) as error:
        sys.exit(f"spa3r sft: {error}")


if __name__ == "__main__":
    main()
