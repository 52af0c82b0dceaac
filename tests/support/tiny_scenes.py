"""Small scenes in the layout of ScanNet, whose images, cameras and depth tell the number of their frame."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, names: Iterable[str], size: tuple[int, int] = (40, 30)) -> None:
    """Images of one color each; the red channel is the number of the image."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (number, 100, 200)).save(folder / name)


def write_scene(root: Path, scene_id: str, num_frames: int = 3, size: tuple[int, int] = (40, 30)) -> None:
    """A scene whose camera moves along x, one meter a frame; depth is 1000 mm, and one more in each frame."""
    scene = root / scene_id
    write_images(scene / "color", [f"{frame}.png" for frame in range(num_frames)], size)
    for part in ("pose", "intrinsic", "depth"):
        (scene / part).mkdir()
    intrinsics = [[50, 0, size[0] / 2, 0], [0, 51, size[1] / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.savetxt(scene / "intrinsic/intrinsic_color.txt", intrinsics)
    for frame in range(num_frames):
        np.savetxt(scene / f"pose/{frame}.txt", [[1, 0, 0, frame], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        Image.new("I;16", size, 1000 + frame).save(scene / f"depth/{frame}.png")
