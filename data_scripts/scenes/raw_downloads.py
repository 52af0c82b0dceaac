"""Say what a raw download of ScanNet or ScanNet++ needs before its scenes can be read."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from .sens import list_recordings


def how_to_prepare(kind: str, root: Path, folders: Mapping[str, Path], empty: Iterable[str]) -> str:
    """A sentence about the scenes without frames, with a space before it; empty if they are no raw download.

    Args:
        kind (`str`): Layout; see `load_scenes`.
        root (`Path`): The folder that was given.
        folders (`Mapping[str, Path]`): The folders of its scenes, by their ids.
        empty (`Iterable[str]`): Ids of the scenes without frames.
    """
    empty = list(empty)
    if kind == "scannetpp":
        return _prepare_scannetpp([folders[scene_id] for scene_id in empty])
    raw = next((file for file in list_recordings(root) if not folders or file.stem in empty), None)
    if raw is None:
        return ""
    return (
        f" `{raw}` is a raw recording of ScanNet: export all of them with `spa3r scenes export-scannet --input {root} "
        "--output FOLDER`, and give scannet:FOLDER."
    )


def _prepare_scannetpp(folders: Iterable[Path]) -> str:
    """What scenes of ScanNet++ need; their folders are those of the DSLR."""
    for dslr in folders:
        for photos in (dslr / "resized_images", dslr / "original_images"):
            if photos.is_dir():
                return (
                    f" `{photos}` holds photos with the distortion of their lens: undistort them with "
                    "dslr/undistort.py of github.com/scannetpp/scannetpp, which writes dslr/undistorted_images and "
                    "dslr/nerfstudio/transforms_undistorted.json."
                )
        for video in (dslr.parent / "iphone" / "rgb.mkv", dslr.parent / "iphone" / "rgb.mp4"):
            if video.exists():
                return (
                    f" `{video}` is the video of the iPhone, and only photos of the DSLR are read here: link the "
                    "videos into one folder, each under the name of its scene, and give videos:FOLDER."
                )
    return ""
