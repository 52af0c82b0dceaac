"""Export ScanNet's raw recordings (.sens) as folders of frames, for `spa3r pretrain --scenes scannet:FOLDER`.

    spa3r scenes export-scannet --input ScanNet --every 10 --output data/scannet
    spa3r scenes export-scannet --input ScanNet --scenes scannetv2_train.txt --output data/scannet

Recordings may lie in --input itself or up to two folders below, as in scans/scene0000_00/scene0000_00.sens. Each
becomes what ScanNet's own exporter writes, named by the numbers of its frames:

    <scene>/color/<frame>.jpg     RGB, the bytes of the recording
    <scene>/depth/<frame>.png     16 bit, millimeters
    <scene>/pose/<frame>.txt      camera-to-world 4x4, meters; infinite where tracking was lost
    <scene>/intrinsic/{intrinsic,extrinsic}_{color,depth}.txt   4x4, pixels

A scene's folder appears once it is complete, so a killed export is continued by the same command. Recordings that are
damaged are named at the end; all others are exported.
"""

import argparse
import json
import os
from collections.abc import Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..common.command_line import OneLineHelp
from ..common.files import blame_file, claim_folder, natural_key, replace_when_complete
from ..common.images import UnreadableFrame
from ..common.locks import only_run_in
from ..common.processes import call_in_processes
from .sens import CAMERAS, RecordedFrame, list_recordings, read_frames, read_recording

SETTINGS = "export.json"
MAX_NAMED = 3


def find_recordings(root: str | os.PathLike) -> dict[str, Path]:
    """The recordings in a download of ScanNet, by the ids of their scenes.

    Raises:
        ValueError: If a scene has several recordings.
    """
    recordings: dict[str, Path] = {}
    for file in sorted(list_recordings(root), key=lambda file: natural_key(file.name)):
        if file.stem in recordings:
            raise ValueError(f"`{recordings[file.stem]}` and `{file}` are of the same scene; move one elsewhere.")
        recordings[file.stem] = file
    return recordings


def export_scannet(
    root: str | os.PathLike,
    output: str | os.PathLike,
    every: int = 1,
    scenes: Collection[str] | None = None,
    workers: int = 1,
) -> list[Path]:
    """Export every n-th frame of recordings, and keep the scenes that `output` already holds.

    Args:
        root (`str` or `os.PathLike`): Folder of the recordings; see `find_recordings`.
        output (`str` or `os.PathLike`): Folder of the scenes; created if it is missing.
        every (`int`, *optional*, defaults to 1): Step between frames.
        scenes (`Collection[str]`, *optional*): Ids of the scenes to export; all by default.
        workers (`int`, *optional*, defaults to 1): Number of processes, each of which exports a scene at a time.

    Returns:
        `list[Path]`: The scenes' folders, in order.

    Raises:
        FileNotFoundError: If there is no recording, or none of a scene that is asked for.
        ValueError: If a number is out of range, `output` holds an export with another step, or recordings are
            damaged; the others are exported.
    """
    for name, value in (("every", every), ("workers", workers)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    recordings = find_recordings(root)
    if not recordings:
        raise FileNotFoundError(
            f"There is no .sens file in `{root}` or up to two folders below: give the folder of ScanNet's download."
        )
    if missing := sorted(set(scenes or ()) - set(recordings), key=natural_key):
        raise FileNotFoundError(
            f"{len(missing)} of {len(scenes)} scenes have no .sens file in `{root}`, such as {missing[0]}: download "
            "them, or list those that you have."
        )
    wanted = {scene: file for scene, file in recordings.items() if scenes is None or scene in scenes}
    output = Path(output)
    claim_folder(output / SETTINGS, json.dumps({"every": every}))
    to_do = {scene: file for scene, file in wanted.items() if not (output / scene).exists()}
    errors = []
    with tqdm(total=len(wanted), initial=len(wanted) - len(to_do), desc="Exporting", unit="scene") as progress:
        export = partial(_export_scene, every=every)
        calls = ((file, output / scene) for scene, file in to_do.items())
        for error in call_in_processes(export, calls, max(min(workers, len(to_do)), 1)):
            errors += [error] if error else []
            progress.update()
    if errors:
        others = f" And {len(errors) - MAX_NAMED} more." if len(errors) > MAX_NAMED else ""
        raise ValueError(
            f"{len(errors)} of {len(wanted)} recordings could not be exported: {' '.join(errors[:MAX_NAMED])}{others}"
        )
    return [output / scene for scene in wanted]


def _export_scene(file: Path, folder: Path, every: int) -> str | None:
    """Export a recording; returns why it cannot be read, if so. The folder appears once it is complete."""
    try:
        recording = read_recording(file)
        with replace_when_complete(folder) as temporary:
            for part in ("color", "depth", "pose", "intrinsic"):
                (temporary / part).mkdir(parents=True)
            for name in CAMERAS:
                _write_matrix(temporary / "intrinsic" / f"{name}.txt", recording.cameras[name])
            for frame in read_frames(recording, every):
                _write_frame(temporary, frame)
    except UnreadableFrame as error:
        return str(error)
    return None


def _write_frame(folder: Path, frame: RecordedFrame) -> None:
    (folder / "color" / f"{frame.index}.jpg").write_bytes(frame.color)
    Image.fromarray(frame.depth).save(folder / "depth" / f"{frame.index}.png", compress_level=1)
    _write_matrix(folder / "pose" / f"{frame.index}.txt", frame.pose)


def _write_matrix(path: Path, matrix: np.ndarray) -> None:
    np.savetxt(path, matrix, fmt="%.9g")  # all digits of float32


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `spa3r scenes`."""
    parser = argparse.ArgumentParser(prog="spa3r scenes", description="Prepare scenes for pre-training.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "export-scannet", help=__doc__.partition("\n")[0], description=__doc__, formatter_class=OneLineHelp
    )
    command.add_argument("--input", type=Path, required=True, help="folder of ScanNet's download")
    command.add_argument("--output", type=Path, required=True, help="folder of the scenes; a killed run resumes")
    command.add_argument("--every", type=int, default=1, help="export every n-th frame (default: %(default)s)")
    command.add_argument("--scenes", type=Path, metavar="FILE", help="list of the scenes to export, one a line")
    command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    scenes = None
    if options.scenes is not None:
        with blame_file(options.scenes, "write a list of scenes, one a line, in UTF-8"):
            scenes = options.scenes.read_text(encoding="utf-8-sig").split()
    try:
        with only_run_in(options.output):
            folders = export_scannet(options.input, options.output, options.every, scenes, options.workers)
    except BrokenProcessPool as error:
        raise OSError(
            f"A worker process ended abruptly, perhaps because memory ran out with `--workers` {options.workers}; run "
            "the command again with fewer to resume."
        ) from error
    print(f"{len(folders)} scenes are in {options.output}: give `--scenes scannet:{options.output}` to pre-training.")
