"""Instruction tuning of Spa3-VLM with TRL's SFTTrainer: what `spa3r sft` does."""

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging
from trl import ModelConfig, SFTConfig, SFTTrainer

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...data_scripts.common.locks import only_run_in
from ...modeling_spa3r.checkpoints.loading import load_config, load_processor, require_checkpoint
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ..runs.distributed import end_run
from ..runs.optimizers import MuonWithAdamW, split_for_muon
from ..runs.publish import make_repository
from ..runs.recipes import parse_options
from ..runs.resume import MarkCompleteCheckpoints, StopOnNonFiniteLoss, checkpoint_to_resume
from ..runs.settings import flatten, training_settings
from .command import InstructionArguments, TuningOptions
from .grounding import OBJECTS_COLUMN, GroundedCollator, GroundedSFTTrainer, attach_heads, check_objects
from .image_bytes import ImageBytesTrainer, with_image_bytes
from .instruction_data import (
    InstructionCollator,
    check_lengths,
    digest_instructions,
    leave_images_out,
    load_instructions,
)
from .lora import check_frozen, load_to_tune, lora_config, train_in_float32
from .run import check_tuning, tune_and_publish
from .save import HOW
from .scene_cache import CachedLatentsCollator, SceneLatents, with_scene_keys
from .sharding import prepare_for_sharding
from .streaming import count_records, digest_stream, stream_instructions
from .token_count import KeepTokenCount

logger = logging.get_logger(__name__)


@dataclass
class TuningArguments(TuningOptions, SFTConfig):
    """TRL's arguments, with `TuningOptions`."""

    assistant_only_loss: bool = field(default=True, metadata={"help": "always: answers alone are learnt"})

    def __getstate__(self):
        # The Trainer pickles its arguments beside each checkpoint and publishes them with `push_to_hub`.
        return self.__dict__ | {"hub_token": None}


def parse_arguments(arguments: list[str] | None = None) -> tuple[InstructionArguments, TuningArguments, ModelConfig]:
    """Read the command line, over the recipe that it names, over the defaults.

    Raises:
        ValueError: If there is no such recipe, or a key or an option is unknown.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    dataclasses = (InstructionArguments, TuningArguments, ModelConfig)
    return tuple(parse_options("sft", arguments, dataclasses)[0])


def _load_data(
    data_args: InstructionArguments, args: TuningArguments, processor: Spa3VLMProcessor
) -> tuple[Dataset | IterableDataset, Dataset | None]:
    """The records to train on and, if there are any, those to evaluate on."""
    with args.main_process_first(desc="instruction sets"):  # the others read its cache
        if data_args.streaming:
            train = stream_instructions(data_args.instructions, args)
        else:
            columns = (OBJECTS_COLUMN,) if args.grounding_weight else ()
            train = load_instructions(data_args.instructions, args.seed, columns)
        evaluation = load_instructions(data_args.eval_instructions, args.seed) if data_args.eval_instructions else None
        if data_args.without_images:
            train, evaluation = (data and leave_images_out(data) for data in (train, evaluation))
        if args.max_length is not None:
            for data in filter(None, (train, evaluation)):
                check_lengths(data, processor, args.max_length)
        if data_args.scene_latents is not None:
            train, evaluation = (data and with_scene_keys(data) for data in (train, evaluation))
    num_records = count_records(train, data_args.instructions, args.seed)
    if num_records < args.world_size:
        raise ValueError(
            f"`instructions` hold {num_records} records for {args.world_size} processes: give more records, or launch "
            "fewer processes with `--num_processes`."
        )
    if data_args.streaming and args.max_steps <= 0:
        records_of_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.max_steps = math.ceil(args.num_train_epochs * num_records / records_of_step)
    if evaluation is None and args.eval_strategy != "no":
        raise ValueError(
            f"`eval_strategy` {args.eval_strategy.value} needs `--eval_instructions`; give some, or set it to no."
        )
    return train, evaluation


def build_trainer(data_args: InstructionArguments, args: TuningArguments, model_args: ModelConfig) -> SFTTrainer:
    """Build the trainer; wrong input is refused here, before training."""
    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing: give a Spa3-VLM, a folder or a Hub name.")
    if not data_args.instructions:
        raise ValueError("`instructions` is empty: give `--instructions FOLDER`.")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(args, name)}.")
    if not args.assistant_only_loss:
        raise ValueError("`assistant_only_loss` must be true, got false: answers alone are learnt; leave it out.")
    if data_args.without_images and data_args.scene_latents is not None:
        raise ValueError(
            f"`without_images` leaves nothing to take from `scene_latents`, got `{data_args.scene_latents}`; give one "
            "of the two."
        )
    check_grounding(data_args, args, model_args)
    for name, value in (
        ("without_images", data_args.without_images),
        ("scene_latents", data_args.scene_latents),
        ("max_length", args.max_length),
        ("grounding_weight", args.grounding_weight),
    ):
        if data_args.streaming and value:
            raise ValueError(
                f"`{name}` needs all records before training, got {value} with `streaming`: leave one out."
            )
    if args.muon_learning_rate is not None and model_args.use_peft:
        raise ValueError(
            f"`muon_learning_rate` trains whole matrices, got {args.muon_learning_rate:g} with `use_peft`; leave one "
            "out."
        )
    require_checkpoint(model_args.model_name_or_path)
    load_config(Spa3VLMConfig, model_args.model_name_or_path)  # refuses a model of another kind
    make_repository(args)
    set_seed(args.seed)
    processor = load_processor(model_args.model_name_or_path)
    train, evaluation = _load_data(data_args, args, processor)
    # Never cut a record, and show a loss that is not finite.
    args.max_length, args.logging_nan_inf_filter = None, False
    model = load_to_tune(model_args, args.bf16)
    prepare_for_sharding(model)
    carrier = with_image_bytes(processor)
    collator = InstructionCollator(carrier, assistant_only_loss=True, pad_to_multiple_of=args.pad_to_multiple_of)
    if data_args.scene_latents is not None:
        latents = SceneLatents(data_args.scene_latents, model, processor)
        for data in filter(None, (train, evaluation)):
            latents.check_complete(data["scene_key"])
        args.remove_unused_columns = False
        collator = CachedLatentsCollator(latents, processor=carrier, assistant_only_loss=True)
    trainer_class = ImageBytesTrainer
    if args.grounding_weight:
        args.remove_unused_columns = False
        args.ddp_find_unused_parameters = False  # the loss calls the heads, which DDP would take for unused
        check_objects(train)
        attach_heads(model, args.grounding_only_names)
        collator = GroundedCollator(collator, processor.tokenizer, train)
        trainer_class = partial(GroundedSFTTrainer, grounding_weight=args.grounding_weight)
    trainer = trainer_class(
        model,
        args,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        peft_config=lora_config(model_args, model),
        optimizers=(_muon(model, args), None),
        callbacks=[StopOnNonFiniteLoss()],
    )
    check_frozen(trainer.model)
    if getattr(model, "is_quantized", False):
        train_in_float32(trainer.model)
    trainer.add_callback(KeepTokenCount(trainer))
    trainer.add_callback(MarkCompleteCheckpoints(trainer.accelerator))
    has_copy = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if not has_copy and any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in model.parameters()):
        logger.warning(
            f"Weights are trained in bfloat16 without a copy in float32: at a learning rate of {args.learning_rate:g} "
            "most updates are rounded away. Launch with ZeRO or FSDP2, which keep one, or give `--dtype float32`."
        )
    return trainer


def check_grounding(data_args: InstructionArguments, args: TuningArguments, model_args: ModelConfig):
    """Refuse grounding where the hidden states of names, or the head that reads them, cannot be had."""
    weight = args.grounding_weight
    if weight < 0:
        raise ValueError(f"`grounding_weight` must not be negative, got {weight:g}; 0 trains on answers alone.")
    if args.grounding_only_names and not weight:
        raise ValueError(
            "`grounding_only_names` chooses what `grounding_weight` teaches, got true with a weight of 0: give a "
            "weight, or leave the option out."
        )
    for name, value in (
        ("without_images", data_args.without_images),
        ("use_peft", model_args.use_peft),
        ("activation_checkpointing", args.activation_checkpointing),
    ):
        if weight and value:
            raise ValueError(
                f"`grounding_weight` trains a head on the hidden states of whole, small models, got {weight:g} with "
                f"`{name}`; set one of the two to its default, 0 or false."
            )


def _muon(model: PreTrainedModel, args: TuningArguments) -> MuonWithAdamW | None:
    """Muon for small models that learn from nothing; by default the optimizer that the Trainer builds."""
    if args.muon_learning_rate is None:
        return None
    matrices, others = split_for_muon(model)
    return MuonWithAdamW(matrices, others, args.learning_rate, args.muon_learning_rate, args.weight_decay)


def settings_of_run(
    trainer: SFTTrainer, data_args: InstructionArguments, model_args: ModelConfig
) -> dict[str, object]:
    """Settings that decide the final weights of a run, by flat names such as `model.lora_r`."""
    names = (
        "per_device_train_batch_size num_train_epochs dataloader_drop_last train_sampling_strategy adam_beta1 "
        "adam_beta2 adam_epsilon optim_args loss_type neftune_noise_alpha"
    )
    # Only what differs from the defaults, so that a new option of the library does not make another run.
    defaults = asdict(ModelConfig())
    # Left out of the settings where they are off, as in earlier runs.
    chosen = {
        "without_images": data_args.without_images or None,
        "muon_learning_rate": trainer.args.muon_learning_rate,
        "grounding_weight": trainer.args.grounding_weight or None,
        "grounding_only_names": trainer.args.grounding_only_names or None,
        # Workers have row groups of their own.
        "streaming_workers": trainer.args.dataloader_num_workers if data_args.streaming else None,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    sources, seed = data_args.instructions, trainer.args.seed
    settings = (
        training_settings(trainer.args, names.split())
        | chosen
        | {
            "distributed_type": trainer.accelerator.distributed_type.value,
            "instructions": sources,
            "scene_latents": data_args.scene_latents,
            "training_records": {
                "number": count_records(trainer.train_dataset, sources, seed),
                "sha256": digest_stream(sources, seed) if data_args.streaming else digest_instructions(sources),
            },
            "model": {name: value for name, value in asdict(model_args).items() if value != defaults[name]},
        }
    )
    return flatten(settings)


def check_run(trainer: SFTTrainer, data_args: InstructionArguments, model_args: ModelConfig):
    """See `check_tuning`."""
    check_tuning(trainer.args, settings_of_run(trainer, data_args, model_args))


def run(trainer: SFTTrainer, instructions: list[str], without_images: bool = False):
    """See `tune_and_publish`."""
    checkpoint = checkpoint_to_resume(trainer.args)
    if checkpoint is not None and isinstance(trainer.train_dataset, IterableDataset):
        steps = json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["global_step"]
        trainer.train_dataset = stream_instructions(instructions, trainer.args, skip_steps=steps)
    tune_and_publish(trainer, instructions, checkpoint, without_images=without_images, how=_how(trainer.args))


def _how(args: TuningArguments) -> str:
    """How a model was trained, for its card."""
    if not args.grounding_weight:
        return HOW
    steps = "" if args.grounding_only_names else " and the steps from them to the answers"
    return (
        "supervised fine-tuning on the answers and, with weight "
        f"{args.grounding_weight:g}, on the places of named objects{steps}"
    )


def main(arguments: list[str] | None = None):
    """Run `spa3r sft`."""
    data_args, args, model_args = parse_arguments(arguments)
    with only_run_in(args.output_dir, args.process_index == 0):
        trainer = build_trainer(data_args, args, model_args)
        check_run(trainer, data_args, model_args)
        run(trainer, data_args.instructions, data_args.without_images)
        end_run(trainer)
