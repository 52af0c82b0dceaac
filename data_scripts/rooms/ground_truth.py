"""Exact geometry of a rendered room: which objects its views show, which names are unambiguous, distances and sizes.

The world frame and units are those of a room's `scene.json`: meters, z up. Bearings are in degrees, counter-clockwise
seen from above, so left is positive.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

# The default of `min_visible_share`.
MIN_VISIBLE_SHARE = 0.005
# Categories that a name may also refer to: next to an armchair, "the chair" is ambiguous.
CONFUSABLE = {
    "cabinet": {"nightstand", "wardrobe", "sink"},
    "chair": {"armchair"},
    "monitor": {"tv"},
    "plant": {"vase"},
    "table": {"coffee table", "desk"},
    "tv": {"monitor"},
}
# Categories whose footprint is an ellipse inscribed in the box; a table with equal sides has one, too.
ROUND = {"ball", "lamp", "plant", "stool", "trash can", "vase"}
_ANGLES = np.arange(32) * math.pi / 16
_UNIT_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1) / 2
_UNIT_SQUARE = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
_UNIT_GRID = np.array([[x, y] for x in (-0.5, 0.0, 0.5) for y in (-0.5, 0.0, 0.5)])
# Meters; points closer to the camera than this are not projected.
_NEAR = 0.1


@dataclass(frozen=True, eq=False)
class RoomObject:
    """A piece of furniture, door, window or picture.

    Args:
        instance_id (`int`): Its id in `scene.json`.
        category (`str`): Its name.
        color (`str`): Name of its color, or of its wood.
        center (`np.ndarray` of shape `(3,)`): Center of its box.
        size (`np.ndarray` of shape `(3,)`): Full extents of its box, along the box's own axes.
        yaw (`float`): Rotation of its box about z, radians.
        stands_on (`int`): Instance id of the piece below it; 0 for the floor, -1 for objects on a wall.
        pixels (`np.ndarray` of shape `(num_views,)`): Number of its pixels in each given view.
    """

    instance_id: int
    category: str
    color: str
    center: np.ndarray
    size: np.ndarray
    yaw: float
    stands_on: int
    pixels: np.ndarray

    @cached_property
    def footprint(self) -> np.ndarray:
        """Its convex outline from above, `(num_corners, 2)`, counter-clockwise."""
        is_round = self.category in ROUND or (self.category == "table" and self.size[0] == self.size[1])
        return self._to_world(_UNIT_CIRCLE if is_round else _UNIT_SQUARE)

    @cached_property
    def sample_points(self) -> np.ndarray:
        """Nine points of its box from above: the center, the corners and the middles of the sides, `(9, 2)`."""
        return self._to_world(_UNIT_GRID)

    @cached_property
    def corners(self) -> np.ndarray:
        """Corners of its box, `(8, 3)`."""
        bottom, top = self.center[2] - self.size[2] / 2, self.center[2] + self.size[2] / 2
        return np.array([[*corner, z] for corner in self._to_world(_UNIT_SQUARE) for z in (bottom, top)])

    def distance_range(self, point: np.ndarray) -> tuple[float, float]:
        """Distances in meters from a point `(3,)` to the nearest and to the farthest point of its box."""
        offset = self.center - point
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        local = np.array([cos * offset[0] + sin * offset[1], cos * offset[1] - sin * offset[0], offset[2]])
        nearest = np.maximum(np.abs(local) - self.size / 2, 0.0)
        return float(np.linalg.norm(nearest)), float(np.linalg.norm(np.abs(local) + self.size / 2))

    def _to_world(self, points: np.ndarray) -> np.ndarray:
        """Move points `(n, 2)` from the box, scaled to a unit square around the origin, to the world."""
        x, y = (points * self.size[:2]).T
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1) + self.center[:2]


class NamedObject(NamedTuple):
    """
    What a name tells of the objects that some views clearly show.

    name (`str`): A category.
    place (`list[float]`, *optional*):
        Center of the object, in meters in the first view's frame; `None` if the name fits several objects.
    first_view (`float`): When a view first shows one, from 0, the first view, to 1, the last.
    """

    name: str
    place: list[float] | None
    first_view: float


@dataclass(frozen=True, eq=False)
class RoomGroundTruth:
    """A room, and what some of its views show of it.

    Args:
        description (`dict`): The contents of `scene.json`.
        views (`Sequence[int]`): The given views, as positions in `description["frames"]`, in the order shown.
        poses (`np.ndarray` of shape `(num_views, 4, 4)`): Camera-to-world of the given views.
        intrinsics (`np.ndarray` of shape `(3, 3)`): In pixels.
        min_visible_share (`float`): A view clearly shows an object that covers at least this share of its pixels.
    """

    description: dict
    views: Sequence[int]
    poses: np.ndarray
    intrinsics: np.ndarray
    min_visible_share: float = MIN_VISIBLE_SHARE

    @cached_property
    def objects(self) -> list[RoomObject]:
        """All objects in the room, visible or not."""
        frames = [self.description["frames"][view]["visible_pixels"] for view in self.views]
        return [
            RoomObject(
                instance_id=item["instance_id"],
                category=item["category"],
                color=item["color"],
                center=np.array(item["center"]),
                size=np.array(item["size"]),
                yaw=item["yaw"],
                stands_on=item.get("stands_on", -1),
                pixels=np.array([frame.get(str(item["instance_id"]), 0) for frame in frames]),
            )
            for item in (*self.description["furniture"], *self.description["wall_objects"])
        ]

    @cached_property
    def outline(self) -> np.ndarray:
        """Floor polygon, `(num_corners, 2)`, counter-clockwise."""
        return np.array(self.description["outline"])

    @property
    def min_visible_pixels(self) -> float:
        """Number of pixels from which a view clearly shows an object."""
        width, height = self.description["size"]
        return self.min_visible_share * width * height

    def is_visible(self, item: RoomObject) -> bool:
        """Whether at least one given view clearly shows the object."""
        return bool((item.pixels >= self.min_visible_pixels).any())

    def is_unambiguous(self, category: str) -> bool:
        """Whether the name fits no object of another category in the room, visible or not."""
        return not any(item.category in CONFUSABLE.get(category, ()) for item in self.objects)

    def of_category(self, category: str) -> list[RoomObject]:
        return [item for item in self.objects if item.category == category]

    @cached_property
    def unique_objects(self) -> list[RoomObject]:
        """Visible objects whose name fits no other object in the room."""
        visible = [item for item in self.objects if self.is_visible(item) and self.is_unambiguous(item.category)]
        return [item for item in visible if len(self.of_category(item.category)) == 1]

    @property
    def named_objects(self) -> list[NamedObject]:
        """The objects that the views clearly show, each name once, in alphabetical order."""
        unique = {item.category: item for item in self.unique_objects}
        last, found = max(len(self.views) - 1, 1), []
        for name in sorted({item.category for item in self.objects if self.is_visible(item)}):
            clear = np.stack([item.pixels >= self.min_visible_pixels for item in self.of_category(name)])
            place = self.in_cameras(unique[name].center[None])[0, 0].tolist() if name in unique else None
            found.append(NamedObject(name, place, int(clear.any(axis=0).argmax()) / last))
        return found

    def distance(self, first: RoomObject, second: RoomObject) -> float:
        """`closest_distance` of two objects of this room, computed once."""
        pair = first.instance_id, second.instance_id
        if pair not in self._distances:
            self._distances[pair] = self._distances[pair[::-1]] = closest_distance(first, second)
        return self._distances[pair]

    @cached_property
    def _distances(self) -> dict[tuple[int, int], float]:
        return {}

    def is_fully_visible(self, item: RoomObject) -> bool:
        """Whether each corner of the object's box lies within a given view that clearly shows the object."""
        clear = item.pixels >= self.min_visible_pixels
        return bool(self._inside_images(item.corners)[clear].any(axis=0).all())

    def is_outline_visible(self) -> bool:
        """Whether the given views show all corners of the room, at some height, with no wall in between."""
        heights = np.linspace(0.0, self.description["height"], 13)
        for corner in self.outline:
            inside = self._inside_images(np.array([[*corner, z] for z in heights])).any(axis=1)
            cameras = self.poses[inside, :2, 3]
            if not any(self.has_line_of_sight(camera, corner + 0.02 * (camera - corner)) for camera in cameras):
                return False
        return True

    def has_line_of_sight(self, start: np.ndarray, end: np.ndarray) -> bool:
        """Whether the segment between two points of the floor, `(2,)` each, crosses no wall."""
        a, b = self.outline, np.roll(self.outline, -1, axis=0)
        apart = _cross(end - start, a - start) * _cross(end - start, b - start) < 0
        across = _cross(b - a, start - a) * _cross(b - a, end - a) < 0
        return not (apart & across).any()

    def _inside_images(self, points: np.ndarray) -> np.ndarray:
        """Whether each point projects into each view's image, hidden or not: `(num_views, num_points)`."""
        camera = self.in_cameras(points)
        pixels = self._project(camera)
        size = np.array(self.description["size"])
        return (camera[..., 2] > _NEAR) & (pixels >= 0).all(axis=-1) & (pixels <= size).all(axis=-1)

    def in_cameras(self, points: np.ndarray) -> np.ndarray:
        """Points `(num_points, 3)` of the world in each given view's camera frame: `(num_views, num_points, 3)`.

        Axes are x right, y down, z forward; units are meters.
        """
        rotation, position = self.poses[:, :3, :3], self.poses[:, :3, 3]
        return np.einsum("vji,vpj->vpi", rotation, points[None] - position[:, None])

    def position_in_image(self, point: np.ndarray, view: int = 0) -> np.ndarray | None:
        """Where a point `(3,)` lies in one of the given views: x and y as shares of the width and the height.

        Returns:
            `np.ndarray` of shape `(2,)`, *optional*: `None` if it lies outside the image.
        """
        if not self._inside_images(point[None])[view, 0]:
            return None
        return self._project(self.in_cameras(point[None]))[view, 0] / np.array(self.description["size"])

    def _project(self, camera: np.ndarray) -> np.ndarray:
        """Pixels of points `(..., 3)` in camera frames; those behind the camera come out anywhere."""
        depth = np.maximum(camera[..., 2:], _NEAR)
        return camera[..., :2] / depth * self.intrinsics[[0, 1], [0, 1]] + self.intrinsics[:2, 2]


def read_description(room: str | os.PathLike) -> dict:
    """Read the `scene.json` in a room's folder.

    Raises:
        ValueError: If it is missing or damaged.
    """
    path = Path(room) / "scene.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read `{path}` ({error}): render the rooms again with spa3r rooms.") from error
    if not isinstance(description, dict):
        raise ValueError(f"`{path}` holds no JSON object: render the rooms again with spa3r rooms.")
    return description


def read_ground_truth(
    room: str | os.PathLike, description: dict, views: Sequence[int], min_visible_share: float = MIN_VISIBLE_SHARE
) -> RoomGroundTruth:
    """Read the cameras of some views of a room (positions in `description["frames"]`)."""
    room = Path(room)
    frames = [int(description["frames"][view]["frame"]) for view in views]
    poses = np.stack([np.loadtxt(room / "pose" / f"{frame}.txt") for frame in frames])
    intrinsics = np.loadtxt(room / "intrinsic" / "intrinsic_color.txt")[:3, :3]
    return RoomGroundTruth(description, views, poses, intrinsics, min_visible_share)


def closest_distance(first: RoomObject, second: RoomObject) -> float:
    """Distance in meters between the nearest points of two objects, taken as upright prisms over their footprints."""
    reach = (first.size[2] + second.size[2]) / 2
    gap = max(0.0, abs(float(first.center[2] - second.center[2])) - reach)
    return math.hypot(_polygon_distance(first.footprint, second.footprint), gap)


def bearing(position: np.ndarray, facing: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Angle in degrees from the direction `position` to `facing` to the direction `position` to `target`.

    Left is positive. The points, with last dimension 2, broadcast.
    """
    ahead, there = facing - position, target - position
    return np.degrees(np.arctan2(_cross(ahead, there), (ahead * there).sum(axis=-1)))


def is_within(angle: np.ndarray, interval: tuple[float, float]) -> np.ndarray:
    """Whether an angle lies in an interval, both in degrees, modulo full turns."""
    low, high = interval
    return (angle - low) % 360 < high - low


def clip_segment(start: np.ndarray, end: np.ndarray, polygon: np.ndarray) -> tuple[float, float] | None:
    """The part of the segment from `start` to `end` inside a convex polygon, in [0, 1]; `None` if it lies outside."""
    sides = _sides(polygon)
    # At `share` of the way, a point is on the inner side of a side where `begin + share * change >= 0`.
    begin, change = _cross(sides, start - polygon), _cross(sides, end - start)
    shares = -begin / np.where(change == 0, 1.0, change)
    low = max(0.0, float(np.max(shares, where=change > 0, initial=0.0)))
    high = min(1.0, float(np.min(shares, where=change < 0, initial=1.0)))
    return (low, high) if low < high and not (begin[change == 0] < 0).any() else None


def _sides(polygon: np.ndarray) -> np.ndarray:
    """Vectors from each corner to the next one."""
    return np.concatenate([polygon[1:], polygon[:1]]) - polygon


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _polygon_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Distance between two convex polygons, both counter-clockwise; 0 if they overlap."""
    if not (_is_separated(first, second) or _is_separated(second, first)):
        return 0.0
    return min(_corners_to_sides(first, second), _corners_to_sides(second, first))


def _is_separated(polygon: np.ndarray, other: np.ndarray) -> bool:
    """Whether all of `other` lies on the outer side of one side of `polygon`."""
    sides = _sides(polygon)
    return bool((_cross(sides[:, None], other[None] - polygon[:, None]) < 0).all(axis=1).any())


def _corners_to_sides(corners: np.ndarray, polygon: np.ndarray) -> float:
    """Least distance from a corner to a side of the polygon."""
    sides = _sides(polygon)  # (sides, 2)
    offsets = corners[:, None] - polygon[None]  # (corners, sides, 2)
    along = np.clip((offsets * sides).sum(axis=-1) / (sides**2).sum(axis=-1), 0, 1)
    nearest = offsets - along[..., None] * sides
    return float(np.hypot(nearest[..., 0], nearest[..., 1]).min())
