"""Export a scene's cameras, depth and points, as VGGT estimates them from its photos.

    spa3r export room/color --output room-3d
    spa3r export room --model checkpoints/vggt-1b --output room-3d

FOLDER holds photos of one place, or a subfolder `color` with them. The first one, in natural order, is the reference:
its camera is the world's frame, with OpenCV axes (x right, y down, z forward). Lengths are in the model's own scale.
The output folder gets

    scene.glb             points and cameras for 3-D viewers, y up, the first camera orange
    points.ply            the points with their colors
    images/*.png          the views that the model saw: the photos, resized and cropped
    sparse/0/*.txt        a COLMAP text model of these views: a pinhole camera and a pose each, and the points
    scene.npz             names, images, extrinsics (world to camera), intrinsics (pixels), depth and its confidence

Without --model, the nano model that ships with the package is used: it knows rendered rooms, not photos.
"""

from collections.abc import Sequence
from pathlib import Path

from ...data_scripts.common.command_line import verb_parser


def main(arguments: Sequence[str] | None = None):
    """Run `spa3r export`."""
    parser = verb_parser("export", __doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="folder of photos of one place")
    add("--output", type=Path, required=True, metavar="DIR", help="new folder to write")
    add("--model", metavar="DIR", help="Spa3R or VGGT: a folder or Hub name (default: the shipped nano model)")
    add("--num-views", type=int, default=32, help="photos to use at most, spread evenly (default: %(default)s)")
    add("--image-width", type=int, help="width in pixels (default: the model's)")
    add("--keep", type=float, default=0.9, help="share of the pixels that become points (default: %(default)s)")
    add("--max-points", type=int, default=500_000, help="points at most (default: %(default)s)")
    add("--device", help="such as cpu (default: an accelerator)")
    options = parser.parse_args(arguments)
    if options.num_views < 1 or options.max_points < 1:
        parser.error("--num-views and --max-points must be at least 1")
    if not 0 < options.keep <= 1:
        parser.error(f"--keep must be more than 0 and at most 1, got {options.keep}")
    from .export import export  # here, so that --help does not wait for it

    export(options)
