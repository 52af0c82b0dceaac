"""Options of `spa3r align`: the model, the scenes and their points, and the training itself."""

import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments

from ..runs.recipes import parse_options


@dataclass
class AlignmentArguments:
    """The model to start from, the scenes, and where the points come from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Spa3-VLM to start from: folder or Hub name"}
    )
    scenes: list[str] = field(
        default_factory=list,
        # The kinds are those of `data_scripts.scenes.index`.
        metadata={"help": "KIND:FOLDER[@LOW-HIGH], an interval of frames"},
    )
    exclude: str | None = field(default=None, metadata={"help": "file of scene ids to leave out, one a line"})
    held_out_scenes: int = field(default=8, metadata={"help": "scenes kept for evaluation"})
    targets: Literal["depth", "vggt"] = field(
        default="depth", metadata={"help": "points from known depth and cameras, or from vggt: no labels"}
    )
    geometry: str | None = field(default=None, metadata={"help": "VGGT with its point head, for the targets vggt"})


@dataclass
class AlignmentTrainingArguments(TrainingArguments):
    """
    `transformers.TrainingArguments`, with defaults for alignment.

    Args:
        min_views, max_views (`int`, *optional*, defaults to 4 and 12):
            Views of a scene; their number is drawn for each batch.
        images_per_device (`int`, *optional*, defaults to 96):
            Images in a batch of one device, which holds as many scenes as fit. Replaces
            `per_device_train_batch_size`.
        eval_views (`int`, *optional*, defaults to 8):
            Views of each held-out scene in evaluation.
        distinct_passes (`int`, *optional*, defaults to 0):
            Passes over the scenes that draw frames of their own. Later ones repeat these batches, whose encodings are
            kept in the output folder until the run ends: a step then costs a small part. With 0 all passes are
            distinct, and nothing is kept.
    """

    min_views: int = field(default=4, metadata={"help": "fewest views of a scene in a batch"})
    max_views: int = field(default=12, metadata={"help": "most views of a scene in a batch"})
    images_per_device: int = field(default=96, metadata={"help": "images in a batch of one device"})
    eval_views: int = field(default=8, metadata={"help": "views of each held-out scene in evaluation"})
    distinct_passes: int = field(default=0, metadata={"help": "later passes repeat their kept encodings; 0: none do"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    weight_decay: float = field(default=1e-2, metadata={"help": "weight decay, except of biases and norms"})
    max_steps: int = field(default=600, metadata={"help": "optimizer steps"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "norm that gradients are clipped to"})
    save_total_limit: int = field(default=3, metadata={"help": "checkpoints to keep, at least 2"})
    ddp_find_unused_parameters: bool = field(default=False, metadata={"help": SUPPRESS})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": SUPPRESS})

    # With `every_save`, the library's default, each checkpoint pushes the whole output folder, logs included.
    hub_strategy: str = field(default="end", metadata={"help": SUPPRESS})

    def __post_init__(self):
        super().__post_init__()
        for name in ("per_device_train_batch_size", "dataloader_drop_last", "auto_find_batch_size"):
            if (value := getattr(self, name)) != self.__dataclass_fields__[name].default:
                raise ValueError(f"`{name}` has no effect here, got {value}: set `images_per_device` instead.")
        if not 2 <= self.min_views <= self.max_views:
            raise ValueError(
                f"`min_views` must be at least 2 and at most `max_views`, got {self.min_views} and {self.max_views}."
            )
        if self.images_per_device < self.max_views:
            raise ValueError(
                f"`images_per_device` must hold a scene of `max_views`={self.max_views}, got {self.images_per_device}."
            )
        if self.distinct_passes < 0:
            raise ValueError(f"`distinct_passes` must not be negative, got {self.distinct_passes}; 0 keeps nothing.")
        if self.n_gpu > 1:
            raise ValueError(
                f"One process cannot train on {self.n_gpu} GPUs: start one process for each with `accelerate launch "
                f"--config_file configuration/accelerate/ddp.yaml --num_processes {self.n_gpu} -m spa3r align ...`, "
                "or choose a single GPU with CUDA_VISIBLE_DEVICES."
            )

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer pickles its arguments beside each checkpoint and publishes them with `push_to_hub`.
        return self.__dict__ | {"hub_token": None}


def parse_arguments(
    arguments: list[str] | None = None, description: str = ""
) -> tuple[AlignmentArguments, AlignmentTrainingArguments]:
    """Read the command line, over the recipe that it names, over the defaults.

    Raises:
        ValueError: If there is no such recipe, or a key or an option is unknown.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    dataclasses = (AlignmentArguments, AlignmentTrainingArguments)
    return tuple(parse_options("align", arguments, dataclasses, {}, description)[0])
