"""Render furnished procedural rooms, with known cameras, depth and objects, in ScanNet's export layout.

    spa3r rooms --scenes 20 --views 32 --size 224x168 --output runs/rooms

Each scene is a folder `room_<number>`:

    color/<frame>.jpg                    RGB
    depth/<frame>.png                    depth along the optical axis, 16 bit, millimeters
    pose/<frame>.txt                     camera-to-world 4x4, meters, OpenCV axes (x right, y down, z forward), z up
    label-filt/<frame>.png               category of each pixel, 8 bit, see `data_scripts.rooms.labels`
    intrinsic/intrinsic_{color,depth}.txt   4x4, pixels; pixel centers lie at half-integer coordinates
    intrinsic/extrinsic_{color,depth}.txt   identity, as color and depth share one camera
    scene.json                           the objects in the room, and which of them each frame shows

scene.json has the room's `kind`, `outline` (floor polygon, counter-clockwise), `height` and `area`; `furniture`, each
piece with `instance_id`, `category`, `color`, oriented box (`center`, `size` along its own axes, `yaw`; its front is
its y axis) and `stands_on` (the instance id of the piece below, 0 for the floor); `wall_objects` (doors, windows,
pictures) with the same keys except `stands_on`; and `frames`, each with the number of `visible_pixels` by instance id.
Lengths are meters, angles radians.

As in ScanNet, frame names are not zero-padded. The same seed gives the same bytes for any number of workers. To extend
a folder, ask for more scenes; finished scenes are kept.
"""

import argparse
import json
import math
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..benchmarks.rooms import OPTIONS_FILE
from ..common.command_line import verb_parser
from ..common.files import claim_folder, replace_when_complete
from ..common.locks import only_run_in
from ..common.processes import call_in_processes
from .camera_walk import draw_walk
from .layout import ROOM_KINDS, Piece, Room, WallObject, draw_room
from .rendering import RoomRenderer

JPEG_QUALITY = 92


def render_rooms(
    output: str | os.PathLike,
    num_scenes: int,
    num_views: int,
    size: tuple[int, int],
    seed: int = 0,
    workers: int = 1,
    every: int = 1,
) -> list[Path]:
    """Render `num_scenes` rooms into `output`, and keep the scenes that it already holds.

    Args:
        output (`str` or `os.PathLike`): Folder of the scenes; created if it is missing.
        num_scenes (`int`): Number of rooms, at least 1.
        num_views (`int`): Views of each room, at least 1.
        size (`tuple[int, int]`): Width and height of the images in pixels.
        seed (`int`): Scene `i` depends only on `(seed, i)`, `num_views`, `size` and `every`.
        workers (`int`): Number of processes; 1 renders in the current process.
        every (`int`): Take every n-th view of the walk; with 2, about 15 views go once around the room.

    Returns:
        `list[Path]`: The scenes' folders, in order.

    Raises:
        ValueError: If a number is out of range, or `output` holds rooms that were made with other options.
    """
    for name, value in (("scenes", num_scenes), ("views", num_views), ("workers", workers), ("every", every)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}; ask for more.")
    if min(size) < 16:
        raise ValueError(f"`size` must be at least 16x16 pixels, got {size[0]}x{size[1]}; ask for larger images.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}; choose another seed.")
    output = Path(output)
    made_with = {"seed": seed, "views": num_views, "size": list(size)} | ({"every": every} if every > 1 else {})
    claim_folder(output / OPTIONS_FILE, json.dumps(made_with))
    scenes = [output / f"room_{index:06d}" for index in range(num_scenes)]
    missing = [index for index, scene in enumerate(scenes) if not scene.exists()]
    render = partial(_write_scene, output=output, num_views=num_views, size=tuple(size), seed=seed, every=every)
    with tqdm(total=num_scenes, initial=num_scenes - len(missing), desc="Rendering rooms", unit="room") as progress:
        if len(missing) < num_scenes:
            progress.write(f"Keeping {num_scenes - len(missing)} of {num_scenes} rooms, which are already finished.")
        calls = ((index,) for index in missing)
        for _ in call_in_processes(render, calls, max(min(workers, len(missing)), 1)):
            progress.update()
    return scenes


def draw_scene(
    index: int, num_views: int, size: tuple[int, int], seed: int, every: int = 1
) -> tuple[RoomRenderer, np.ndarray]:
    """Draw scene `index`: the renderer of its room, and its poses (see `draw_walk`)."""
    rng = np.random.default_rng([seed, index])
    # The kind is drawn once; otherwise kinds whose rooms often have no good walk would be rarer.
    kind = str(rng.choice(list(ROOM_KINDS)))
    poses = None
    while poses is None:
        room = draw_room(kind, rng)
        poses = draw_walk(room, (num_views - 1) * every + 1, rng)
    field_of_view = math.radians(rng.uniform(60, 70))
    focal_length = round(size[0] / 2 / math.tan(field_of_view / 2), 3)
    return RoomRenderer(room, rng, size, focal_length), poses[::every]


def _write_scene(index: int, output: Path, num_views: int, size: tuple[int, int], seed: int, every: int) -> None:
    """Render scene `index`; its folder appears once it is complete."""
    name = f"room_{index:06d}"
    renderer, poses = draw_scene(index, num_views, size, seed, every)
    with replace_when_complete(output / name) as folder:
        for part in ("color", "depth", "label-filt", "pose", "intrinsic"):
            (folder / part).mkdir(parents=True)
        intrinsics = np.eye(4)
        intrinsics[0, 0] = intrinsics[1, 1] = renderer.focal_length
        intrinsics[:2, 2] = size[0] / 2, size[1] / 2
        for camera in ("color", "depth"):
            _write_matrix(folder / "intrinsic" / f"intrinsic_{camera}.txt", intrinsics)
            _write_matrix(folder / "intrinsic" / f"extrinsic_{camera}.txt", np.eye(4))
        frames = [_write_frame(folder, frame, renderer, pose) for frame, pose in enumerate(poses)]
        identity = {"scene": name, "seed": seed, "index": index, "size": list(size)}
        description = {**identity, **_describe(renderer.room), "frames": frames}
        (folder / "scene.json").write_text(json.dumps(description, indent=1) + "\n")


def _write_frame(folder: Path, frame: int, renderer: RoomRenderer, pose: np.ndarray) -> dict:
    """Render one frame and return its entry in `scene.json`."""
    color, depth, instances, labels = renderer.render(pose)
    Image.fromarray(color).save(folder / "color" / f"{frame}.jpg", quality=JPEG_QUALITY)
    millimeters = (depth * 1000 + 0.5).astype(np.uint16)
    Image.fromarray(millimeters).save(folder / "depth" / f"{frame}.png", compress_level=1)
    Image.fromarray(labels).save(folder / "label-filt" / f"{frame}.png", compress_level=1)
    _write_matrix(folder / "pose" / f"{frame}.txt", pose)
    pixels = np.bincount(instances.ravel())
    visible = {str(instance): int(pixels[instance]) for instance in np.flatnonzero(pixels) if instance}
    return {"frame": frame, "visible_pixels": visible}


def _write_matrix(path: Path, matrix: np.ndarray) -> None:
    path.write_text("".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in matrix))


def _describe(room: Room) -> dict:
    """The room's part of `scene.json`; lengths in meters, yaw in radians about z."""

    def describe(item: Piece | WallObject, category: str, color: str) -> dict:
        return {
            "instance_id": item.instance_id,
            "category": category,
            "color": color,
            "center": item.box.center.round(6).tolist(),
            "size": item.box.size.round(6).tolist(),
            "yaw": round(math.remainder(item.box.yaw, 2 * math.pi), 6),
        }

    furniture = [
        {**describe(piece, piece.furniture.category, piece.furniture.color_name), "stands_on": piece.stands_on}
        for piece in room.pieces
    ]
    wall_objects = [describe(item, item.category, item.color_name) for item in room.wall_objects]
    return {
        "kind": room.kind,
        "outline": room.outline.round(6).tolist(),
        "height": room.size[2],
        "area": round(room.area, 6),
        "furniture": furniture,
        "wall_objects": wall_objects,
    }


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels; give for example 224x168")
    return int(match[1]), int(match[2])


def main(arguments: list[str] | None = None) -> None:
    """Run `spa3r rooms`."""
    parser = verb_parser("rooms", __doc__)
    parser.add_argument("--scenes", type=int, default=20, help="number of rooms (default: %(default)s)")
    parser.add_argument("--views", type=int, default=32, help="views of each room (default: %(default)s)")
    parser.add_argument(
        "--size", type=_parse_size, default=(224, 168), help="WIDTHxHEIGHT in pixels (default: 224x168)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the rooms (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="take every n-th view of the walk (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the scenes; a killed run resumes")
    options = parser.parse_args(arguments)
    with only_run_in(options.output):
        render_rooms(
            options.output, options.scenes, options.views, options.size, options.seed, options.workers, options.every
        )
