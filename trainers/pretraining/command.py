"""Pre-train Spa3R by Predictive Spatial Field Modeling.

    spa3r pretrain --config spa3r-rooms
    accelerate launch --config_file configuration/accelerate/ddp.yaml pretrain.py --config spa3r-paper \\
        --scenes scannet:data/scannet scannetpp:data/scannetpp --output_dir runs/spa3r

A recipe sets any of the options; the command line wins. The same command, run again, continues from the last complete
checkpoint. The final model is in <output_dir>/model. Kinds of scenes: scannet, scannetpp, rooms, folders, videos.
"""

import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field

from ...data_scripts.common.command_line import is_asked_for_help
from ..runs.recipes import COMMON, show_help
from ..runs.scene_views_options import SceneViewsOptions

# Options of the library that --help lists besides `COMMON`.
LISTED = {"gradient_checkpointing": ("recompute activations in the backward pass (default: false)", None)}


@dataclass
class ModelArguments:
    """The architecture, and the weights to start from."""

    preset: str = field(default="spa3r-base", metadata={"help": "architecture: a preset, or a config.json"})
    overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "KEY=VALUE changes to it, dots for nesting"},
    )
    start_from: str | None = field(default=None, metadata={"help": "Spa3R to start from: folder or Hub name"})
    # Allows random teachers, for tests.
    untrained_teachers: bool = field(default=False, metadata={"help": SUPPRESS})


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
class PretrainingOptions(SceneViewsOptions):
    """
    The paper's settings (Sec. 4.1) as defaults, and those of PSFM.

    Args:
        eval_views (`int`, *optional*, defaults to 8):
            Views of each held-out scene in evaluation.
        object_weight (`float`, *optional*, defaults to 1):
            Weight in the loss of a patch that shows nothing but objects; walls, floors and ceilings weigh 1. Above 1,
            it needs scenes with categories. Where there are none, see `distinct_patch_weight` in the configuration.
        compile_blocks (`bool`, *optional*, defaults to `False`):
            Compile all blocks, teachers included; see `spa3r.compile_blocks`. A resumed run may round differently.
        bf16_teachers (`bool`, *optional*, defaults to `False`):
            Hold the weights of the frozen backbones in bfloat16 while training by autocast. It saves memory and
            memory traffic, and rounds the targets more; see docs/performance. Saved models hold the rounded weights
            as float32.
    """

    object_weight: float = field(default=1.0, metadata={"help": "weight of patches that show objects"})
    eval_views: int = field(default=8, metadata={"help": "views of each held-out scene in evaluation"})
    compile_blocks: bool = field(default=False, metadata={"help": "compile all blocks: faster on a GPU"})
    bf16_teachers: bool = field(default=False, metadata={"help": "hold frozen weights in bfloat16; needs bf16"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    weight_decay: float = field(default=1e-4, metadata={"help": "weight decay, except of biases and norms"})
    max_steps: int = field(default=80_000, metadata={"help": "optimizer steps"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "norm that gradients are clipped to"})


def main(arguments: list[str] | None = None):
    """Run `spa3r pretrain`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if is_asked_for_help(arguments):
        show_help("pretrain", (ModelArguments, DataArguments, PretrainingOptions), COMMON | LISTED, __doc__)
    from .pretrain import main as run  # here, so that --help does not wait for it

    run(arguments)
