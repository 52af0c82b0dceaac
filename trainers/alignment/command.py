"""Align Spa3-VLM's adapter before instruction tuning: it learns to find 3-D in the latents.

    spa3r align --config spa3-vlm-align-rooms
    accelerate launch --config_file configuration/accelerate/gpu.yaml -m spa3r align --config spa3-vlm-align \\
        --scenes videos:data/videos --output_dir runs/spa3-vlm-align

Each fused image token predicts the points that its patches show, in the first view's frame, by a head that is thrown
away afterwards. Adapter and head are trained; the vision-language model and the spatial encoder stay frozen. Points
come from known depth and cameras, or from VGGT's point head, which needs no labels. With --grounding the language
model is trained, too, to find the places of named objects. This stage is not the paper's. The
same command, run again, continues from the last complete checkpoint. The final model is in <output_dir>/model.
Kinds of scenes: scannet, scannetpp, rooms, folders, videos.
"""

import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field
from typing import Literal

from ...data_scripts.common.command_line import is_asked_for_help
from ..runs.recipes import COMMON, show_help
from ..runs.scene_views_options import SceneViewsOptions


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
class AlignmentOptions(SceneViewsOptions):
    """
    Defaults for alignment, and options of its own.

    Args:
        eval_views (`int`, *optional*, defaults to 8):
            Views of each held-out scene in evaluation.
        grounding (`bool`, *optional*, defaults to `False`):
            Whether to train the language model, too: after the images it reads the names of objects, and each name
            must tell, by a head that is thrown away, where its object is. Needs rendered rooms, whose objects are
            known.
        distinct_passes (`int`, *optional*, defaults to 0):
            Passes over the scenes that draw frames of their own. Later ones repeat these batches, whose encodings are
            kept in the output folder until the run ends: a step then costs a small part. With 0 all passes are
            distinct, and nothing is kept.
    """

    images_per_device: int = field(default=96, metadata={"help": "images in a batch of one device"})
    eval_views: int = field(default=8, metadata={"help": "views of each held-out scene in evaluation"})
    grounding: bool = field(
        default=False, metadata={"help": "train the language model, too: names tell where objects are (rooms)"}
    )
    distinct_passes: int = field(default=0, metadata={"help": "later passes repeat their kept encodings; 0: none do"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    weight_decay: float = field(default=1e-2, metadata={"help": "weight decay, except of biases and norms"})
    max_steps: int = field(default=600, metadata={"help": "optimizer steps"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning rate schedule"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "norm that gradients are clipped to"})

    # With `every_save`, the library's default, each checkpoint pushes the whole output folder, logs included.
    hub_strategy: str = field(default="end", metadata={"help": SUPPRESS})


def main(arguments: list[str] | None = None):
    """Run `spa3r align`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if is_asked_for_help(arguments):
        show_help("align", (AlignmentArguments, AlignmentOptions), COMMON, __doc__)
    from .align import main as run  # here, so that --help does not wait for it

    run(arguments)
