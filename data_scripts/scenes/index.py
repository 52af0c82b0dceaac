"""Index scenes on disk as one `datasets.Dataset` with a row for each scene, and read their frames, cameras and depth.

    scannet     <root>/scene*/color/*.jpg; pose/, intrinsic/intrinsic_color.txt and depth/ are optional
    scannetpp   <root>/data/<scene>/dslr/undistorted_images/*, the scenes of <root>/splits/nvs_sem_train.txt
    rooms       as scannet, under any folder name
    folders     <root>/<scene>/*.jpg
    videos      <root>/*.mp4, each video a scene

A row names files without opening them: the index of a million frames takes some twenty megabytes.
"""

import functools
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from PIL import Image
from torch import Tensor

from ..common.exclusions import count_found, find_excluded, read_excluded, summarize_exclusion
from ..common.files import blame_file, natural_key
from ..common.images import HEIC_HINT, HEIC_SUFFIXES, IMAGE_SUFFIXES, UnreadableFrame, open_image
from ..common.scene_ids import SCANNET_SCAN
from ..common.videos import VIDEO_SUFFIXES, import_av, index_video, read_frames_at
from .raw_downloads import how_to_prepare

logger = logging.getLogger(__name__)

# Where frames are, for messages, and the smallest and largest step between drawn frames: the official code's for
# ScanNet and ScanNet++, ours for the others.
KINDS = {
    "scannet": ("scene*/color/*.jpg", [2, 6]),
    "scannetpp": ("data/<scene>/dslr/undistorted_images/*.JPG", [20, 60]),
    "rooms": ("<scene>/color/*.jpg", [1, 4]),
    "folders": ("<scene>/*.jpg", [1, 4]),
    "videos": ("*.mp4", [10, 30]),
}
# Cameras and depth relative to a scene's folder; `{stem}` stands for a frame's name without suffix.
SCANNET_FILES = {
    "poses": "pose/{stem}.txt",
    "intrinsics": "intrinsic/intrinsic_color.txt",
    "depths": "depth/{stem}.png",
}
# Cameras of ScanNet++'s undistorted images, and of the original ones.
TRANSFORMS = ("nerfstudio/transforms_undistorted.json", "nerfstudio/transforms.json")
UNDISTORTED_FOLDERS = ("undistorted_images", "resized_undistorted_images")
SCANNETPP_SPLIT = "nvs_sem_train"
MILLIMETERS_PER_METER = 1000
MIN_FRAMES = 2
MAX_NAMED = 5
FRAME_FILES = {
    "scannet": SCANNET_FILES,
    "rooms": SCANNET_FILES | {"labels": "label-filt/{stem}.png"},
    "scannetpp": {"transforms": TRANSFORMS[0]},
}
MAX_LABEL = 255
# Rotations in text files are orthonormal up to rounding.
RIGID_TOLERANCE = 1e-2
# Distance of a principal point from the image's center, as a share of the image's sides. Real cameras' is below 0.03;
# intrinsics of half the size are off by 0.25, those of a 4:3 picture on its side by 0.17.
CENTER_TOLERANCE = 0.1

FEATURES = Features(
    dict.fromkeys(("scene_id", "source", "directory"), Value("string"))
    # Relative to the directory, sorted by the numbers in their names.
    | {"frames": List(Value("string")), "num_frames": Value("int64")}
    # The entries of FRAME_FILES that the scene has.
    | dict.fromkeys(("poses", "intrinsics", "depths", "labels", "transforms"), Value("string"))
    # Instead of `frames`: the video, and the timestamps of its frames and key frames.
    | {"video": Value("string"), "timestamps": List(Value("int64")), "key_frames": List(Value("int64"))}
)


def load_scenes(
    kind: str,
    root: str | os.PathLike,
    exclude: str | os.PathLike | Iterable[str] | None = None,
    interval: Sequence[int] | None = None,
) -> Dataset:
    """Index the scenes of one folder, without those of fewer than 2 frames.

    Args:
        kind (`str`): Layout: `scannet`, `scannetpp`, `rooms`, `folders` or `videos`.
        root (`str` or `os.PathLike`): The folder.
        exclude (`str`, `os.PathLike` or `Iterable[str]`, *optional*):
            Scenes to leave out, such as those of a benchmark: a file as for `read_excluded`, or ids, which match as
            in `find_excluded`. A scan of ScanNet excludes all scans of its room: scene0011_00 excludes scene0011_01
            too.
        interval (`Sequence[int]`, *optional*):
            Smallest and largest step between drawn frames. Defaults to the official [2, 6] for ScanNet and [20, 60]
            for ScanNet++.

    Returns:
        `datasets.Dataset`: A row for each scene, sorted by the numbers in their ids.

    Raises:
        FileNotFoundError: If the folder does not exist, or no scene is left in it.
        ValueError: If `kind` is unknown, or `interval` is not [low, high] with 1 <= low <= high.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown `kind` of scenes `{kind}`; choose one of {', '.join(KINDS)}.")
    pattern, default_interval = KINDS[kind]
    interval = list(default_interval if interval is None else interval)
    if not (len(interval) == 2 and 1 <= interval[0] <= interval[1]):
        raise ValueError(f"`interval` must read [low, high] with 1 <= low <= high, got {interval}.")
    root = Path(root).expanduser().absolute()
    listed = _read_listed(exclude)
    folders = _scene_folders(kind, root)
    excluded = _find_listed(folders, listed)
    if excluded:
        logger.warning(f"In {root} {_summarize([folders], [excluded], listed)}.")
    kept = {scene_id: folder for scene_id, folder in folders.items() if scene_id not in excluded}
    scenes = _index_videos(kept) if kind == "videos" and kept else _index_folders(kept, kind)
    _log_skipped(kind, root, kept)
    scenes = scenes.add_column("interval", [interval] * len(scenes), feature=List(Value("int64"), length=2))
    filled = [row for row, num_frames in enumerate(scenes["num_frames"]) if num_frames >= MIN_FRAMES]
    short = sorted(set(kept) - set(scenes.select(filled)["scene_id"]), key=natural_key)
    remedy = how_to_prepare(kind, root, kept, short) if short or not folders else ""
    if not filled:
        raise FileNotFoundError(
            f"No {kind} scenes are left in `{root}`: of {len(folders)} scenes found as `{pattern}`, "
            f"{len(excluded)} are excluded and {len(short)} have fewer than {MIN_FRAMES} frames.{remedy}"
        )
    if short:
        named = ", ".join(short[:MAX_NAMED]) + (", ..." if len(short) > MAX_NAMED else "")
        logger.warning(
            f"{len(short)} of {len(folders)} scenes in {root} have fewer than {MIN_FRAMES} frames and are dropped: "
            f"{named}.{remedy}"
        )
    return scenes.select(filled)


def load_scene_sources(
    sources: Sequence[str],
    exclude: str | os.PathLike | Iterable[str] | None = None,
    exclude_may_match_nothing: bool = False,
) -> Dataset:
    """Index several folders as one data set, and log how many scenes are left out.

    Args:
        sources (`Sequence[str]`):
            `KIND:FOLDER` each, or `KIND:FOLDER@LOW-HIGH` with a frame interval other than the kind's default; see
            `load_scenes`.
        exclude (`str`, `os.PathLike` or `Iterable[str]`, *optional*): Scenes to leave out of all folders.
        exclude_may_match_nothing (`bool`, *optional*, defaults to `False`):
            Whether `exclude` may leave out no scene, as where the folders hold training scenes alone.

    Returns:
        `datasets.Dataset`: As from `load_scenes`.

    Raises:
        ValueError: If a source is malformed, or `exclude` leaves out no scene and need not be so.
    """
    listed, parsed = _read_listed(exclude), [_parse_source(source) for source in sources]
    if listed:
        folders = [_scene_folders(source["kind"], Path(source["root"]).expanduser().absolute()) for source in parsed]
        excluded = [_find_listed(each, listed) for each in folders]
        summary = _summarize(folders, excluded, listed)
        if not any(excluded) and not exclude_may_match_nothing:
            raise ValueError(
                f"`exclude` does nothing: {summary}, such as {min(listed)!r}. Check the list and the folders, or set "
                "`exclude_may_match_nothing` to true if they hold none of these scenes."
            )
        logger.warning(f"{summary}.")
    return concatenate_datasets([load_scenes(**source, exclude=listed) for source in parsed])


def _summarize(folders: Sequence[Mapping[str, Path]], excluded: Sequence[Mapping[str, str]], listed: frozenset[str]):
    """How many scenes of several sources a list leaves out."""
    found = [scene for each in excluded for scene in each.values()]
    return summarize_exclusion(len(found), sum(map(len, folders)), count_found(found, listed), len(listed))


def _parse_source(source: str) -> dict[str, Any]:
    """Arguments of `load_scenes`."""
    match = re.fullmatch(r"([^:]+):(.+?)(?:@(\d+)-(\d+))?", source)
    if match is None:
        raise ValueError(
            f"A source of scenes must be KIND:FOLDER or KIND:FOLDER@LOW-HIGH, as in scannet:data/scannet@2-6; got "
            f"`{source}`."
        )
    kind, root, low, high = match.groups()
    return {"kind": kind, "root": root} | ({} if low is None else {"interval": [int(low), int(high)]})


def split_scenes(scenes: Dataset, num_held_out: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Hold scenes out for evaluation.

    Args:
        scenes (`datasets.Dataset`): Scenes.
        num_held_out (`int`):
            Smallest number of scenes to hold out; all scans of a ScanNet room are held out together. The choice
            depends on the ids and the seed, not on the order of the scenes.
        seed (`int`, *optional*, defaults to 0): Seed of the choice.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: Scenes to train on, and scenes held out.
    """
    if num_held_out < 0:
        raise ValueError(f"`num_held_out` must not be negative, got {num_held_out}.")
    ids = scenes["scene_id"][:]
    rooms: dict[str, set[str]] = {}
    for scene_id, kind in zip(ids, scenes["source"][:], strict=True):
        rooms.setdefault(_room(scene_id, kind), set()).add(scene_id)
    ranked = sorted(rooms, key=lambda room: hashlib.sha256(f"{seed}/{room}".encode()).digest())
    chosen: set[str] = set()
    while len(chosen) < num_held_out and ranked:
        chosen |= rooms[ranked.pop(0)]
    if len(chosen) >= len(set(ids)):
        remedy = "--held_out_scenes 1" if len(rooms) > 1 else "--held_out_scenes 0 --eval_strategy no"
        raise ValueError(
            f"Holding out {num_held_out} of {len(set(ids))} scenes leaves none to train on: give more scenes, or hold "
            f"out fewer, as with `{remedy}`."
        )
    held_out = np.array([scene_id in chosen for scene_id in ids])
    return scenes.select(np.flatnonzero(~held_out)), scenes.select(np.flatnonzero(held_out))


def frame_path(scene: Mapping[str, Any], frame: int) -> str:
    """Path of a frame; for a video, its path and the frame's number, for messages."""
    if scene["video"]:
        return f"{os.path.join(scene['directory'], scene['video'])} (frame {frame})"
    return os.path.join(scene["directory"], scene["frames"][frame])


def read_images(
    scene: Mapping[str, Any], frames: Iterable[int]
) -> Iterator[tuple[int, Image.Image | np.ndarray | UnreadableFrame]]:
    """Read frames of a scene one at a time, in the order of their indices.

    Args:
        scene (`Mapping`): Row from `load_scenes`.
        frames (`Iterable[int]`): Indices of frames.

    Yields:
        The index of a frame and its image: a `PIL.Image.Image`, RGB bytes of shape `(height, width, 3)` from a video,
        or an `UnreadableFrame` error instead of an image.
    """
    frames = sorted(set(frames))
    if scene["video"]:
        yield from _read_video(scene, frames)
        return
    for frame in frames:
        try:
            yield frame, open_image(frame_path(scene, frame))
        except UnreadableFrame as error:
            yield frame, error


def _read_video(scene: Mapping[str, Any], frames: Sequence[int]) -> Iterator[tuple[int, np.ndarray | UnreadableFrame]]:
    missing = {scene["timestamps"][frame]: frame for frame in frames}
    reason = "cannot be decoded"
    try:
        path = os.path.join(scene["directory"], scene["video"])
        for timestamp, image in read_frames_at(path, list(missing), scene["key_frames"]):
            yield missing.pop(timestamp), image
    except UnreadableFrame as error:
        reason = str(error)
    for frame in missing.values():
        yield frame, UnreadableFrame(f"{frame_path(scene, frame)}: {reason}")


def read_camera(scene: Mapping[str, Any], frame: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Read the camera of a frame, in OpenCV's axes (x right, y down, z forward).

    Args:
        scene (`Mapping`): Row from `load_scenes`.
        frame (`int`): Index of the frame.
        size (`tuple[int, int]`): Height and width of the frame's image.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: World-to-camera of shape `(4, 4)`, and intrinsics in pixels of shape
        `(3, 3)`, both in float64.

    Raises:
        UnreadableFrame: If there is no camera, its pose is not a rigid motion, its focal lengths are not positive and
            finite, or it is one of another image size: its principal point is far from the image's center.
    """
    path = frame_path(scene, frame)
    if scene["transforms"]:
        file = os.path.join(scene["directory"], scene["transforms"])
        intrinsics, poses, named_size = _read_transforms(file)
        if named_size not in (None, size):
            raise UnreadableFrame(
                f"{path}: {file} is for images of {named_size[1]} x {named_size[0]}, not {size[1]} x {size[0]}"
            )
        if os.path.basename(path) not in poses:
            raise UnreadableFrame(f"{path}: has no camera in {file}")
        camera_to_world = poses[os.path.basename(path)]
    else:
        file = _beside(scene, "intrinsics", frame)
        camera_to_world = _read_matrix(_beside(scene, "poses", frame))
        intrinsics = _read_matrix(file)[:3, :3]
    if camera_to_world.shape != (4, 4) or not np.isfinite(camera_to_world).all():
        raise UnreadableFrame(f"{path}: its pose is not a 4 x 4 matrix of finite values")
    rotation = camera_to_world[:3, :3]
    is_rotation = np.linalg.det(rotation) > 0 and np.allclose(rotation @ rotation.T, np.eye(3), atol=RIGID_TOLERANCE)
    if not is_rotation or not np.allclose(camera_to_world[3], [0, 0, 0, 1]):
        raise UnreadableFrame(f"{path}: its pose is not a rigid motion")
    if not np.isfinite(intrinsics).all() or min(intrinsics[0, 0], intrinsics[1, 1]) <= 0:
        raise UnreadableFrame(
            f"{path}: its intrinsics in {file} are not finite with positive focal lengths, got {intrinsics.tolist()}"
        )
    height, width = size
    center = intrinsics[0, 2] / width, intrinsics[1, 2] / height
    if max(abs(place - 0.5) for place in center) > CENTER_TOLERANCE:
        raise UnreadableFrame(
            f"{path}: its intrinsics, centered at ({intrinsics[0, 2]:g}, {intrinsics[1, 2]:g}), are those of another "
            f"image size than {width} x {height}"
        )
    return torch.from_numpy(np.linalg.inv(camera_to_world)), torch.from_numpy(intrinsics)


def read_depth(scene: Mapping[str, Any], frame: int) -> Tensor:
    """Read the depth map of a frame at its own resolution.

    Returns:
        `torch.Tensor`: Meters in float32, of shape `(height, width)`; 0 means unknown. Files hold 16-bit millimeters.

    Raises:
        UnreadableFrame: If the map is missing or broken, or does not have one channel of 16 bits.
    """
    path = _beside(scene, "depths", frame)
    image = open_image(path)
    # Pillow calls some 16-bit files `I`.
    if not (image.mode == "I" or image.mode.startswith("I;16")):
        raise UnreadableFrame(
            f"{path}: a depth map has one channel of 16 bits, in millimeters, but this file has mode `{image.mode}`"
        )
    depth = np.array(image)
    return torch.from_numpy(depth.astype(np.float32)) / MILLIMETERS_PER_METER


def read_labels(scene: Mapping[str, Any], frame: int) -> Tensor:
    """Read the category of each pixel of a frame.

    Returns:
        `torch.Tensor`: Bytes of shape `(height, width)`; 0 means unknown.

    Raises:
        UnreadableFrame: If the file is missing or broken, or has several channels or values above 255.
    """
    path = _beside(scene, "labels", frame)
    labels = np.array(open_image(path))
    if labels.ndim != 2 or labels.max() > MAX_LABEL:
        raise UnreadableFrame(
            f"{path}: categories have one channel and lie in [0, {MAX_LABEL}], got shape {labels.shape} and "
            f"{labels.max()}"
        )
    return torch.from_numpy(labels.astype(np.uint8))


def _scene_folders(kind: str, root: Path) -> dict[str, Path]:
    """Folders, or video files, by scene id."""
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder `{root}` to read {kind} scenes from; check the path.")
    if kind == "scannetpp":
        split = root / "splits" / f"{SCANNETPP_SPLIT}.txt"
        if not split.is_file():
            raise FileNotFoundError(f"`{split}`, which lists the scenes of ScanNet++, is missing; download it.")
        with blame_file(split, "download it again"):
            scenes = {line.strip() for line in split.read_text(encoding="utf-8-sig").splitlines()} - {""}
        if odd := sorted(scene for scene in scenes if Path(scene).name != scene or scene == ".." or "\0" in scene):
            raise ValueError(f"`{split}` names {odd[0]!r:.100}, which is no folder in `{root / 'data'}`: remove it.")
        return {scene: root / "data" / scene / "dslr" for scene in sorted(scenes, key=natural_key)}
    entries = [root / name for name in sorted(_visible(root), key=natural_key)]
    if kind == "videos":
        videos = [entry for entry in entries if entry.suffix.lower() in VIDEO_SUFFIXES]
        scenes = {entry.stem: entry for entry in videos}
        if len(scenes) < len(videos):
            raise ValueError(f"Two videos in `{root}` differ only in their suffix; rename one of them.")
        return scenes
    prefix = "scene" if kind == "scannet" else ""
    return {entry.name: entry for entry in entries if entry.is_dir() and entry.name.startswith(prefix)}


def _find_listed(folders: Mapping[str, Path], listed: frozenset[str]) -> dict[str, str]:
    """The scenes to leave out, each with the id as its name or path has it."""
    paths = [scene for scene in listed if "/" in scene]
    found = {}
    for scene_id, folder in folders.items():
        place = str(folder if folder.is_dir() else folder.with_suffix(""))
        listed_path = next((path for path in paths if f"/{place}".endswith(f"/{path.removeprefix('/')}")), None)
        if match := find_excluded([scene_id], listed) or listed_path:
            found[scene_id] = match
    return found


def _room(scene_id: str, kind: str) -> str:
    """The part of a scene id that all scans of one room share: in ScanNet `scene0011`, elsewhere the whole id."""
    match = SCANNET_SCAN.fullmatch(scene_id)
    return match[1] if match and kind == "scannet" else scene_id


def _visible(folder: Path) -> list[str]:
    """Names in a folder, without hidden files such as desktops create; none if there is no folder."""
    return [name for name in os.listdir(folder) if not name.startswith(".")] if folder.is_dir() else []


def _index_folders(folders: Mapping[str, Path], kind: str) -> Dataset:
    rows = [_image_row(scene_id, folder, kind) for scene_id, folder in folders.items()]
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in FEATURES}, features=FEATURES)


def _image_row(scene_id: str, directory: Path, kind: str) -> dict[str, Any]:
    """The frames of a scene, and its files of cameras and depth."""
    image_folder = _image_folder(kind, directory)
    names = _visible(directory / image_folder)
    frames = {name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES}
    if kind == "scannetpp":
        frames -= _bad_frames(directory)
    files = FRAME_FILES.get(kind, {})
    # Whether a scene has files per frame shows in their folder.
    places = {name: directory / (os.path.dirname(file) if "{" in file else file) for name, file in files.items()}
    return {
        "scene_id": scene_id,
        "source": kind,
        "directory": str(directory),
        "frames": [os.path.join(image_folder, name) for name in sorted(frames, key=natural_key)],
        "num_frames": len(frames),
        **{name: file for name, file in files.items() if places[name].exists()},
    }


def _image_folder(kind: str, directory: Path) -> str:
    """Where the frames of a scene are, relative to its directory."""
    names = {"folders": ("",), "scannetpp": UNDISTORTED_FOLDERS}.get(kind, ("color",))
    return next((name for name in names if (directory / name).is_dir()), names[-1])


def _log_skipped(kind: str, root: Path, folders: Mapping[str, Path]):
    """Say how many files that lie where frames do are not read, by their suffixes."""
    places = [root] if kind == "videos" else [folder / _image_folder(kind, folder) for folder in folders.values()]
    read = VIDEO_SUFFIXES if kind == "videos" else IMAGE_SUFFIXES
    skipped: Counter[str] = Counter()
    for place in filter(Path.is_dir, places):
        with os.scandir(place) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if (entry.name.startswith(".") or suffix not in read) and entry.is_file():
                    # What desktops write beside files, such as ._1.jpg, is a kind of its own.
                    skipped["._*" if entry.name.startswith("._") else suffix or entry.name] += 1
    if skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(skipped.items()))
        hint = f"; {HEIC_HINT}" if HEIC_SUFFIXES & skipped.keys() and kind != "videos" else ""
        logger.warning(f"In {root} {sum(skipped.values())} files are skipped: {kinds}{hint}.")


def _index_videos(videos: Mapping[str, Path]) -> Dataset:
    """Decode each video once; `datasets` caches the index until a file changes."""
    import_av()  # inside the generator, `datasets` would wrap the error
    stats = {scene_id: path.stat() for scene_id, path in videos.items()}
    files = [(scene_id, str(videos[scene_id]), stat.st_size, stat.st_mtime_ns) for scene_id, stat in stats.items()]
    return Dataset.from_generator(_video_rows, gen_kwargs={"files": files}, features=FEATURES)


def _video_rows(files: Sequence[tuple[str, str, int, int]]) -> Iterator[dict[str, Any]]:
    for scene_id, path, _size, _modified in files:
        try:
            timestamps, key_frames = index_video(path)
        except UnreadableFrame as error:
            logger.warning(str(error))
            timestamps, key_frames = [], []
        row = {"scene_id": scene_id, "source": "videos", "directory": os.path.dirname(path)}
        row |= {"video": os.path.basename(path), "num_frames": len(timestamps)}
        row |= {"timestamps": timestamps, "key_frames": key_frames}
        yield {name: row.get(name) for name in FEATURES}


def _read_listed(scenes: str | os.PathLike | Iterable[str] | None) -> frozenset[str]:
    """Scene ids, as given or from a file."""
    if isinstance(scenes, (str, os.PathLike)):
        return read_excluded([scenes])
    return frozenset(scene.strip() for scene in scenes or ()) - {""}


def _beside(scene: Mapping[str, Any], kind: str, frame: int) -> str:
    """Path of the pose, intrinsics or depth of a frame."""
    stem = os.path.splitext(os.path.basename(frame_path(scene, frame)))[0]
    return os.path.join(scene["directory"], scene[kind].replace("{stem}", stem))


def _read_matrix(path: str) -> np.ndarray:
    try:
        matrix = np.loadtxt(path)
    except (OSError, ValueError) as error:
        raise UnreadableFrame(f"{path}: {error}") from error
    if matrix.shape not in ((4, 4), (3, 3)):
        raise UnreadableFrame(f"{path}: is not a 4 x 4 or 3 x 3 matrix, got shape {matrix.shape}")
    return matrix


def _bad_frames(directory: Path) -> set[str]:
    """Names of the images that ScanNet++ marks as bad, such as blurred ones."""
    file = next((file for name in TRANSFORMS if (file := directory / name).is_file()), None)
    if file is None:
        return set()
    try:
        transforms = json.loads(file.read_text(encoding="utf-8"))
        frames = transforms["frames"] + transforms.get("test_frames", [])
        return {os.path.basename(frame["file_path"]) for frame in frames if frame.get("is_bad")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`{file}`, which says which images of its scene are bad, cannot be read ({error!r}): download it again."
        ) from error


@functools.lru_cache(maxsize=8)
def _read_transforms(path: str) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[int, int] | None]:
    """Read the cameras of a scene from nerfstudio's JSON (OpenGL's axes: y up, z backward).

    Returns:
        `tuple`: Intrinsics, camera-to-world by image name, and height and width of the images if the file says them.
    """
    try:
        transforms = json.loads(Path(path).read_text(encoding="utf-8"))
        focal_x, focal_y, center_x, center_y = (float(transforms[name]) for name in ("fl_x", "fl_y", "cx", "cy"))
        frames = transforms["frames"] + transforms.get("test_frames", [])
        opencv_from_opengl = np.diag([1.0, -1.0, -1.0, 1.0])
        poses = {
            os.path.basename(frame["file_path"]): np.array(frame["transform_matrix"]) @ opencv_from_opengl
            for frame in frames
        }
        named_size = (int(transforms["h"]), int(transforms["w"])) if {"h", "w"} <= transforms.keys() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableFrame(f"{path}: {error!r}") from error
    intrinsics = np.array([[focal_x, 0, center_x], [0, focal_y, center_y], [0, 0, 1]])
    return intrinsics, poses, named_size
