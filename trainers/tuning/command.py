"""Instruction-tune Spa3-VLM with TRL's SFTTrainer.

    spa3r sft --config spa3-vlm-nano
    accelerate launch --config_file configuration/accelerate/zero2.yaml sft.py \\
        --config spa3-vlm-vsi590k --instructions data/vsi590k --output_dir runs/spa3-vlm

A recipe sets any of the options; the command line wins. The adapter and the language model (its LoRA layers with
--use_peft) are trained on the tokens of the answers; both encoders stay frozen (Sec. 4.2). FOLDER@0.25 takes a quarter
of an instruction set, FOLDER@2 takes it twice; with --streaming true, it may be an address, such as hf://datasets/...
The same command, run again, continues from the last complete checkpoint. The final model is in <output_dir>/model.
"""

import sys
from dataclasses import dataclass, field

from ...data_scripts.common.command_line import is_asked_for_help
from ..runs.recipes import COMMON, show_help

# Options of TRL that --help lists, with its defaults.
LISTED = {
    "model_name_or_path": ("Spa3-VLM to start from: folder or Hub name", None),
    "dtype": ("of the weights: auto, bfloat16, float16 or float32", "float32"),
    "attn_implementation": ("such as flash_attention_2", None),
    "use_peft": ("train LoRA layers of the language model", False),
    "load_in_4bit": ("quantise the frozen weights (QLoRA)", False),
    "lora_r": ("rank of LoRA", 16),
    "lora_alpha": ("scale of LoRA", 32),
    "max_steps": ("optimizer steps, instead of epochs", -1),
    "num_train_epochs": ("passes over the instructions", 3.0),
    "per_device_train_batch_size": ("records in a batch of one device", 8),
    "learning_rate": ("peak learning rate", 2e-05),
    "activation_checkpointing": ("recompute activations in the backward pass (default: true)", None),
    "bf16": ("train in bfloat16 (default: true)", None),
    "logging_steps": ("steps between two logs", 10),
}


@dataclass
class InstructionArguments:
    """The instruction sets to train on."""

    instructions: list[str] = field(
        default_factory=list, metadata={"help": "instruction sets: FOLDER or FOLDER@WEIGHT"}
    )
    eval_instructions: list[str] = field(default_factory=list, metadata={"help": "sets for the evaluation loss"})
    without_images: bool = field(default=False, metadata={"help": "train on the text alone: what do words give away?"})
    scene_latents: str | None = field(default=None, metadata={"help": "train from latents of `spa3r encode-scenes`"})
    streaming: bool = field(default=False, metadata={"help": "read sets while training"})


@dataclass
class TuningOptions:
    """No limit on the length of a record, Muon, grounding, and only the final model published."""

    max_length: int | None = field(default=None, metadata={"help": "refuse records of more tokens; none is cut"})
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "train matrices of the language model by Muon: small models from nothing"}
    )
    grounding_weight: float = field(
        default=0.0,
        metadata={"help": "small models: weight of what text must tell"},
    )
    grounding_only_names: bool = field(default=False, metadata={"help": "names tell places, nothing else tells"})

    # With `every_save`, TRL's default, each checkpoint pushes the whole output folder, logs included.
    hub_strategy: str = field(default="end", metadata={"help": "when to upload; end: the final model alone"})


def main(arguments: list[str] | None = None):
    """Run `spa3r sft`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if is_asked_for_help(arguments):
        show_help("sft", (InstructionArguments, TuningOptions), COMMON | LISTED, __doc__)
    from .sft import main as run  # here, so that --help does not wait for it

    run(arguments)
