"""Train Spa3-VLM by rewards with TRL's GRPOTrainer: the benchmarks' own scorers judge its answers.

    spa3r grpo --config spa3-vlm-nano-grpo
    accelerate launch grpo.py --config spa3-vlm-grpo --instructions data/vsi590k --output_dir runs/grpo

Each question of the instruction sets is answered several times, and answers that score above the mean of their group
become more likely. What trains is as in `spa3r sft`: adapter and language model, or LoRA layers with --use_peft; both
encoders stay frozen, and each scene is encoded once. TYPE@0.5 halves the rewards of a question type.
The same command, run again, continues from the last complete checkpoint. The final model is in <output_dir>/model.
"""

import sys
from dataclasses import dataclass, field

from ...data_scripts.common.command_line import is_asked_for_help
from ..runs.recipes import COMMON, show_help
from .command import LISTED as LISTED_OF_SFT

# Options of TRL that --help lists, with its defaults.
LISTED = LISTED_OF_SFT | {
    "per_device_train_batch_size": ("answers in a batch of one device", 8),
    "num_generations": ("answers to each question", 8),
    "num_train_epochs": ("passes over the questions", 3.0),
    "learning_rate": ("peak learning rate", 1e-06),
    "beta": ("weight of the divergence from the first model", 0.0),
    "temperature": ("of the answers", 1.0),
    "scale_rewards": ("divide advantages by the deviation of a group, of the batch, or by none", "group"),
}


@dataclass
class QuestionArguments:
    """The questions to answer, and what an answer is worth."""

    instructions: list[str] = field(
        default_factory=list, metadata={"help": "instruction sets: FOLDER or FOLDER@WEIGHT"}
    )
    question_types: list[str] = field(
        default_factory=list, metadata={"help": "types to ask: TYPE or TYPE@WEIGHT (default: all)"}
    )
    protocol: str = field(default="official", metadata={"help": "protocol of vsi-bench that scores answers"})
    format_weight: float = field(default=0.1, metadata={"help": "reward of a letter or a number and nothing else"})
    scene_latents: str | None = field(default=None, metadata={"help": "train from latents of `spa3r encode-scenes`"})

    def __post_init__(self):
        if self.format_weight < 0:
            raise ValueError(f"`format_weight` must be 0 or more, got {self.format_weight}; 0 turns this reward off.")


@dataclass
class GRPOOptions:
    """Answers as long as a benchmark's, and only the final model published."""

    max_completion_length: int | None = field(default=16, metadata={"help": "most tokens of an answer"})
    hub_strategy: str = field(default="end", metadata={"help": "when to upload; end: the final model alone"})


def main(arguments: list[str] | None = None):
    """Run `spa3r grpo`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if is_asked_for_help(arguments):
        show_help("grpo", (QuestionArguments, GRPOOptions), COMMON | LISTED, __doc__)
    from .grpo import main as run  # here, so that --help does not wait for it

    run(arguments)
