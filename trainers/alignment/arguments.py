"""Options of `spa3r align`: the model, the scenes and their points, and the training itself."""

import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field
from typing import Literal

from ..runs.recipes import parse_options
from ..runs.scene_views_arguments import SceneViewsArguments


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
class AlignmentTrainingArguments(SceneViewsArguments):
    """
    The arguments of a run over views of scenes, with defaults for alignment.

    Args:
        eval_views (`int`, *optional*, defaults to 8):
            Views of each held-out scene in evaluation.
        distinct_passes (`int`, *optional*, defaults to 0):
            Passes over the scenes that draw frames of their own. Later ones repeat these batches, whose encodings are
            kept in the output folder until the run ends: a step then costs a small part. With 0 all passes are
            distinct, and nothing is kept.
    """

    images_per_device: int = field(default=96, metadata={"help": "images in a batch of one device"})
    eval_views: int = field(default=8, metadata={"help": "views of each held-out scene in evaluation"})
    distinct_passes: int = field(default=0, metadata={"help": "later passes repeat their kept encodings; 0: none do"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    weight_decay: float = field(default=1e-2, metadata={"help": "weight decay, except of biases and norms"})
    max_steps: int = field(default=600, metadata={"help": "optimizer steps"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "norm that gradients are clipped to"})

    # With `every_save`, the library's default, each checkpoint pushes the whole output folder, logs included.
    hub_strategy: str = field(default="end", metadata={"help": SUPPRESS})

    def __post_init__(self):
        super().__post_init__()
        if self.distinct_passes < 0:
            raise ValueError(f"`distinct_passes` must not be negative, got {self.distinct_passes}; 0 keeps nothing.")


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
