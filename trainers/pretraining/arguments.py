"""Options of `spa3r pretrain`: the architecture, the scenes, and the training itself."""

import sys
from dataclasses import dataclass, field

from ..runs.recipes import merge, parse_options, parse_overrides
from ..runs.scene_views_arguments import SceneViewsArguments


@dataclass
class ModelArguments:
    """The architecture, and the weights to start from."""

    preset: str = field(default="spa3r-base", metadata={"help": "architecture: a preset, or a config.json"})
    overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "KEY=VALUE changes to it, dots for nesting"},
    )
    start_from: str | None = field(default=None, metadata={"help": "Spa3R to start from: folder or Hub name"})
    untrained_teachers: bool = field(default=False, metadata={"help": "allow random teachers, for tests"})


@dataclass
class DataArguments:
    """The scenes, and how views are taken from them."""

    scenes: list[str] = field(
        default_factory=list,
        # The kinds are those of `data_scripts.scenes.index`.
        metadata={"help": "KIND:FOLDER[@LOW-HIGH], an interval of frames"},
    )
    exclude: list[str] | None = field(
        default=None, metadata={"help": "files of scenes to leave out: lists, or benchmarks' own files"}
    )
    exclude_may_match_nothing: bool = field(default=False, metadata={"help": "go on if `exclude` leaves out no scene"})
    held_out_scenes: int = field(default=8, metadata={"help": "scenes kept for evaluation"})
    image_width: int = field(default=518, metadata={"help": "width in pixels that images are resized to"})
    context_ratio: float = field(default=0.5, metadata={"help": "share of views that are encoded"})
    cameras: bool = field(default=False, metadata={"help": "use the scenes' cameras, not VGGT's estimates"})
    depth: bool = field(default=False, metadata={"help": "train the depth probe on the scenes' depth"})
    figures: int = field(default=4, metadata={"help": "held-out scenes drawn at each evaluation"})


@dataclass
class Spa3RTrainingArguments(SceneViewsArguments):
    """
    The arguments of a run with the paper's settings (Sec. 4.1) as defaults, and those of PSFM.

    Args:
        eval_views (`int`, *optional*, defaults to 8):
            Views of each held-out scene in evaluation.
        object_weight (`float`, *optional*, defaults to 1):
            Weight in the loss of a patch that shows nothing but objects; walls, floors and ceilings weigh 1. Above 1,
            it needs scenes with categories. Where there are none, see `distinct_patch_weight` in the configuration.
        compile_blocks (`bool`, *optional*, defaults to `False`):
            Compile all blocks, teachers included; see `spa3r.compile_blocks`. A resumed run may round differently.
    """

    compile_blocks: bool = field(default=False, metadata={"help": "compile all blocks: faster on a GPU"})
    object_weight: float = field(default=1.0, metadata={"help": "weight of patches that show objects"})
    eval_views: int = field(default=8, metadata={"help": "views of each held-out scene in evaluation"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    weight_decay: float = field(default=1e-4, metadata={"help": "weight decay, except of biases and norms"})
    max_steps: int = field(default=80_000, metadata={"help": "optimizer steps"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "norm that gradients are clipped to"})

    def __post_init__(self):
        if self.load_best_model_at_end and self.metric_for_best_model in (None, "loss", "eval_loss"):
            raise ValueError(
                f"`load_best_model_at_end` needs a metric of the evaluation, got {self.metric_for_best_model}: set "
                "`metric_for_best_model: geometry_cosine_own` and `greater_is_better: true`."
            )
        super().__post_init__()


def parse_arguments(
    arguments: list[str] | None = None, description: str = ""
) -> tuple[ModelArguments, DataArguments, Spa3RTrainingArguments]:
    """Read the command line, over the recipe that it names, over the defaults.

    The overrides of the architecture come back as one mapping: those of the recipe, with those of the command line
    merged over them.

    Raises:
        ValueError: If there is no such recipe, a key or an option is unknown, or an override cannot be read.
    """
    (model_args, data_args, training_args), recipe = parse_options(
        "pretrain",
        sys.argv[1:] if arguments is None else arguments,
        (ModelArguments, DataArguments, Spa3RTrainingArguments),
        {"gradient_checkpointing": "recompute activations in the backward pass"},
        description,
    )
    model_args.overrides = merge(recipe.get("overrides", {}), parse_overrides(model_args.overrides))
    return model_args, data_args, training_args
