"""Write a scene in the formats that viewers and reconstruction tools read.

Cameras and points keep the frame of `SceneGeometry`, OpenCV axes, except in GLB files, whose format has y up.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...data_scripts.common.files import write_bytes, write_text
from ...modeling_spa3r.geometry import rotation_to_quaternion
from .scene_geometry import PointCloud, SceneGeometry

FIRST_COLOR, OTHER_COLOR = (255, 127, 14), (31, 119, 180)
# From OpenCV's axes (y down, z forward) to glTF's (y up, z backward).
GLTF_AXES = np.diag([1.0, -1.0, -1.0, 1.0])


def import_trimesh():
    """The module `trimesh`; raises an `ImportError` that says how to install it."""
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise ImportError(
            "Writing GLB and PLY needs trimesh: `pip install trimesh`, or the extra `demo` of spa3r."
        ) from error
    return trimesh


def upright(geometry: SceneGeometry) -> np.ndarray:
    """The transform `(4, 4)` from the first view's frame to glTF axes, turned so that the photos' mean up is up."""
    up = -geometry.poses[:, :3, 1].mean(0)
    right = np.cross(-up, [0.0, 0.0, 1.0])
    if np.linalg.norm(right) < 1e-3:  # the photos agree on no up, or the first one looks along it
        return GLTF_AXES
    up, right = up / np.linalg.norm(up), right / np.linalg.norm(right)
    level = np.eye(4)
    level[:3, :3] = np.stack([right, -up, np.cross(right, -up)])
    return GLTF_AXES @ level


def write_glb(path: str | os.PathLike, geometry: SceneGeometry, cloud: PointCloud):
    """Write points and cameras as a glTF binary; the first camera is orange."""
    trimesh = import_trimesh()
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.PointCloud(cloud.positions, colors=_linear(cloud.colors)), geom_name="points")
    # The sides of a frustum end where a typical patch of floor would begin.
    length = 0.06 * float(np.median(geometry.depth))
    for view, (pose, intrinsics) in enumerate(zip(geometry.poses, geometry.intrinsics, strict=True)):
        frustum = _frustum(trimesh, intrinsics, geometry.image_size, length, FIRST_COLOR if view == 0 else OTHER_COLOR)
        scene.add_geometry(frustum, transform=pose, geom_name=f"camera {view}")
    scene.apply_transform(upright(geometry))
    write_bytes(path, scene.export(file_type="glb"))


def _frustum(trimesh, intrinsics: np.ndarray, size: tuple[int, int], length: float, color: tuple[int, int, int]):
    """The edges of a camera's pyramid, and the triangle above its picture that says where up is, as thin bars."""
    height, width = size
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], float)
    corners = corners @ np.linalg.inv(intrinsics).T * length
    tip = np.array([0.0, 1.35 * corners[0, 1], length])
    centre = np.zeros(3)
    bars = [(centre, corner) for corner in corners] + list(zip(corners, np.roll(corners, -1, axis=0), strict=True))
    bars += [(corners[0], tip), (tip, corners[1])]
    meshes = [trimesh.creation.cylinder(0.035 * length, segment=np.stack(bar), sections=5) for bar in bars]
    frustum = trimesh.util.concatenate(meshes)
    frustum.visual = trimesh.visual.ColorVisuals(frustum, vertex_colors=[*_linear(color), 255])
    return frustum


def _linear(colors: np.ndarray) -> np.ndarray:
    """Bytes of sRGB as bytes of linear light, which glTF prescribes for the colours of vertices."""
    shares = np.asarray(colors) / 255
    return (
        (np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) * 255).round().astype(np.uint8)
    )


def write_ply(path: str | os.PathLike, cloud: PointCloud):
    """Write the points, with their colours, as a binary PLY."""
    write_bytes(path, import_trimesh().PointCloud(cloud.positions, colors=cloud.colors).export(file_type="ply"))


def write_npz(path: str | os.PathLike, geometry: SceneGeometry, names: Sequence[str]):
    """Write `names` of the photos and all arrays of a `SceneGeometry`."""
    with open(path, "wb") as file:
        np.savez_compressed(file, names=np.array(names), **vars(geometry))


def write_colmap(folder: Path, geometry: SceneGeometry, cloud: PointCloud, names: Sequence[str]):
    """Write a COLMAP text model to `sparse/0`, and the views that its cameras describe to `images`.

    Each view has a camera of its own, of model PINHOLE, because focal lengths are estimated view by view. Each point
    has a track of one: the pixel that it comes from.

    Args:
        folder (`Path`): An existing folder.
        geometry (`SceneGeometry`): The scene.
        cloud (`PointCloud`): Its points.
        names (`Sequence[str]`): Name of each view, without a suffix.
    """
    images, model = folder / "images", folder / "sparse" / "0"
    images.mkdir(parents=True)
    model.mkdir(parents=True)
    for name, pixels in zip(names, geometry.images, strict=True):
        Image.fromarray(pixels).save(images / f"{name}.png")
    height, width = geometry.image_size
    cameras = [
        f"{view} PINHOLE {width} {height} {_numbers(matrix[[0, 1, 0, 1], [0, 1, 2, 2]])}"
        for view, matrix in enumerate(geometry.intrinsics, start=1)
    ]
    write_text(model / "cameras.txt", _lines("CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY", cameras))
    write_text(
        model / "images.txt", _lines("IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", _poses(geometry, cloud, names))
    )
    places = _places_in_views(cloud)
    points = [
        f"{number} {_numbers(position)} {' '.join(map(str, color))} 0 {pixel[0] + 1} {place}"
        for number, (position, color, pixel, place) in enumerate(
            zip(cloud.positions, cloud.colors, cloud.pixels, places, strict=True), start=1
        )
    ]
    write_text(model / "points3D.txt", _lines("POINT3D_ID X Y Z R G B ERROR TRACK[] (IMAGE_ID POINT2D_IDX)", points))


def _poses(geometry: SceneGeometry, cloud: PointCloud, names: Sequence[str]) -> list[str]:
    """Two lines for each view: its pose, and the pixels of its points with the points' numbers."""
    quaternions = rotation_to_quaternion(torch.from_numpy(geometry.extrinsics[:, :3, :3])).numpy()[:, [3, 0, 1, 2]]
    lines = []
    for view, name in enumerate(names):
        translation = geometry.extrinsics[view, :3, 3]
        numbers = _numbers([*quaternions[view], *translation])
        lines.append(f"{view + 1} {numbers} {view + 1} {name}.png")
        of_view = np.flatnonzero(cloud.pixels[:, 0] == view)
        # Pixel centres are at half-integers, as in COLMAP.
        seen = ((cloud.pixels[point, 2] + 0.5, cloud.pixels[point, 1] + 0.5, point + 1) for point in of_view)
        lines.append(" ".join(f"{x} {y} {number}" for x, y, number in seen))
    return lines


def _places_in_views(cloud: PointCloud) -> np.ndarray:
    """Where each point stands in the list of its view's points."""
    places = np.zeros(len(cloud.pixels), int)
    for view in np.unique(cloud.pixels[:, 0]):
        of_view = np.flatnonzero(cloud.pixels[:, 0] == view)
        places[of_view] = np.arange(len(of_view))
    return places


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _lines(header: str, lines: Sequence[str]) -> str:
    return "\n".join([f"# {header}", *lines]) + "\n"
