"""Show what a Spa3R checkpoint has learnt, on scenes or on your own photos.

    spa3r inspect --model runs/quickstart/model --scenes rooms:runs/quickstart/held_out_rooms --cameras
    spa3r inspect --model runs/quickstart/model --images sofa.jpg window.jpg door.jpg table.jpg

Writes report.md and report.json, which compare predictions of unseen views with those of simpler methods, and a figure
of each scene. Checkpoints of a run also work. Kinds of scenes: scannet, scannetpp, rooms, folders, videos.
"""

import argparse
from pathlib import Path

from ...data_scripts.common.command_line import verb_parser


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Define and read the command line."""
    parser = verb_parser("inspect", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="Spa3R: a folder or Hub name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--scenes",
        metavar="KIND:FOLDER",
        help="scenes on disk",
    )
    source.add_argument(
        "--images", nargs="+", type=Path, metavar="FILE", help="photos of one scene, the reference first"
    )
    source.add_argument("--video", type=Path, metavar="FILE", help="video of one scene (needs PyAV)")
    add("--num-views", type=int, default=8, help="views of a scene (default: %(default)s)")
    add("--num-scenes", type=int, default=8, help="first scenes to use (default: %(default)s)")
    add("--num-figures", type=int, default=4, help="first scenes to draw (default: %(default)s)")
    add("--held-out-scenes", type=int, metavar="N", help="use those that training held out")
    add("--seed", type=int, default=0, help="seed of that training (default: %(default)s)")
    add("--context-ratio", type=float, default=0.5, help="1 - the paper's mask ratio (default: %(default)s)")
    add("--image-width", type=int, default=518, help="width in pixels (default: %(default)s)")
    add("--cameras", action="store_true", help="use the scenes' cameras and depth")
    add(
        "--output",
        type=Path,
        default=Path("runs/inspect"),
        metavar="DIR",
        help="for the report (default: %(default)s)",
    )
    add("--device", help="such as cpu (default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="float32 (default) or bfloat16")
    add(
        "--require-scene-specific",
        action="store_true",
        help="fail if latents tell no scenes apart",
    )
    args = parser.parse_args(arguments)
    if args.num_views < 2 or args.num_scenes < 1:
        parser.error("--num-views must be at least 2 (one to see, one to predict) and --num-scenes at least 1.")
    if not 0 < args.context_ratio < 1:
        parser.error(f"--context-ratio must lie between 0 and 1, got {args.context_ratio}.")
    if args.scenes is None and (args.cameras or args.held_out_scenes is not None):
        parser.error("--cameras and --held-out-scenes are for --scenes; photos and videos have no cameras.")
    return args


def main(arguments: list[str] | None = None):
    """Run `spa3r inspect`."""
    args = parse_arguments(arguments)
    from .inspect import inspect  # here, so that --help does not wait for it

    inspect(args)
