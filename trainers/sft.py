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
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import AutoProcessor, TrainerCallback, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config

from ..modeling_spa3r.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from .checkpointing import MarkCompleteCheckpoints, last_complete_checkpoint
from .instructions import load_instructions
from .scene_latents import CachedLatentsCollator, SceneLatents, encoder_fingerprint, with_scene_keys

__all__ = ["build_trainer", "main"]

logger = logging.get_logger(__name__)


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
    """Ends a run whose loss is no number, before a checkpoint of it is written."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            checkpoint = last_complete_checkpoint(args.output_dir)
            last = f"the last complete checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
            raise FloatingPointError(f"The loss is not finite ({loss}) at step {state.global_step}; {last}.")


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


def run(trainer: SFTTrainer):
    """Train, and save model and processor to `<output_dir>/model`."""
    checkpoint = last_complete_checkpoint(trainer.args.output_dir)
    if checkpoint is not None:
        logger.warning(f"Continuing from {checkpoint}.")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    final = str(Path(trainer.args.output_dir) / "model")
    trainer.save_model(final)
    trainer.accelerator.print(f"The model is in {final}.")


def main(arguments: list[str] | None = None):
    """Entry point of `spa3r-sft`."""
    try:
        trainer = build_trainer(*parse_arguments(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"spa3r-sft: {error}")
    try:
        run(trainer)
    except FloatingPointError as error:
        sys.exit(f"spa3r-sft: {error}")


if __name__ == "__main__":
    main()
