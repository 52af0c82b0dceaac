"""Train the teachers themselves: VGGT on scenes with depth and cameras, vision transformers on scenes with categories.

    spa3r teach --config teach-geometry-rooms
    spa3r teach --config teach-semantic-rooms

Spa3R learns from frozen teachers, and published ones know nothing of small pictures of rendered rooms. These commands
make teachers that do. `geometry` trains VGGT by its own objectives; the released one may be tuned with --start_from.
`semantic` trains the DINOv3 of --preset, and `vision` the vision tower of its Qwen2.5-VL, to tell which categories
each patch shows. The tokens of a vision tower then get mean 0 and deviation 1 over the held-out scenes. The same
command, run again, continues from the last complete checkpoint. The final model is in <output_dir>/model.
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from ...data_scripts.common.command_line import is_asked_for_help
from ..runs.recipes import COMMON, show_help
from ..runs.scene_views_options import SceneViewsOptions


@dataclass
class TeacherArguments:
    """The teacher to train, and the scenes it learns from."""

    teacher: Literal["geometry", "semantic", "vision"] = field(
        default="geometry",
        metadata={"help": "geometry: VGGT; semantic: DINOv3; vision: Qwen2.5-VL's vision tower"},
    )
    preset: str = field(default="spa3-vlm-nano", metadata={"help": "architecture: a preset, or a config.json"})
    start_from: str | None = field(default=None, metadata={"help": "weights to start from: folder or Hub name"})
    attn_implementation: str | None = field(default=None, metadata={"help": "such as eager, the fastest on CPUs"})
    scenes: list[str] = field(default_factory=list, metadata={"help": "KIND:FOLDER[@LOW-HIGH], an interval of frames"})
    exclude: str | None = field(default=None, metadata={"help": "file of scene ids to leave out, one a line"})
    held_out_scenes: int = field(default=32, metadata={"help": "scenes kept for evaluation"})
    image_width: int = field(default=112, metadata={"help": "width in pixels that images are resized to"})


@dataclass
class TeachingOptions(SceneViewsOptions):
    """
    What only teaching has.

    Args:
        normalize_scenes (`bool`, *optional*, defaults to `True`):
            Divide lengths by the size of the scene, as VGGT does. Without, they stay in meters.
        correspondence_weight (`float`, *optional*, defaults to 0):
            Weight of the loss by which attention learns true correspondences.
        correspondence_layers (`list[int]`, *optional*, defaults to `[1, 2]`):
            Layers whose global attention learns them.
        dense_share (`float`, *optional*, defaults to 1):
            Share of the views of a batch, drawn at random, whose depth and points are predicted. On small models the
            dense heads cost as much as all else.
        color_weight (`float`, *optional*, defaults to 1):
            Weight of the loss by which a vision transformer learns the color of each patch. Without it, features tell
            categories alone, and are easier to predict for an unseen view.
        curriculum (`list[str]`, *optional*):
            `STEP:VIEWS`, such as `0:2 300:4`: from that step on, the views of a scene are cut into groups of so many
            neighbours, each a scene of its own; at first cameras are close to each other. `STEP:0` ends it.
    """

    normalize_scenes: bool = field(default=True, metadata={"help": "lengths in sizes of the scene, not in meters"})
    correspondence_weight: float = field(default=0.0, metadata={"help": "weight of taught correspondences"})
    correspondence_layers: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "layers to teach them"})
    dense_share: float = field(default=1.0, metadata={"help": "share of views whose depth and points are predicted"})
    color_weight: float = field(default=1.0, metadata={"help": "weight of the colors of patches"})
    curriculum: list[str] = field(default_factory=list, metadata={"help": "STEP:VIEWS, groups of neighbouring views"})


def main(arguments: list[str] | None = None):
    """Run `spa3r teach`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if is_asked_for_help(arguments):
        show_help("teach", (TeacherArguments, TeachingOptions), COMMON, __doc__)
    from .teach import main as run  # here, so that --help does not wait for it

    run(arguments)
