"""What can be said with certainty about a rendered room: what is seen, what a name can only mean, how far, how large.

World frame and units are those of the rooms' `scene.json`: meters, z up. Angles here are degrees, counter-clockwise
seen from above, so that left is positive.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

# Share of an image's pixels from which a thing is clearly seen in it.
CLEAR_SHARE = 0.005
# What else a name may be taken for: beside an armchair, "the chair" is not certain.
ALSO_CALLED = {
    "cabinet": {"nightstand", "wardrobe", "sink"},
    "chair": {"armchair"},
    "monitor": {"tv"},
    "plant": {"vase"},
    "table": {"coffee table", "desk"},
    "tv": {"monitor"},
}
# Their outlines from above are circles within their boxes; so are those of tables with equal sides.
ROUND = {"ball", "lamp", "plant", "stool", "trash can", "vase"}
_CIRCLE = np.arange(32) * math.pi / 16
_NEAR = 0.1


@dataclass(frozen=True, eq=False)
class Thing:
    """A piece of furniture, door, window or picture.

    Args:
        instance_id (`int`): Its id in `scene.json`.
        category (`str`): Its name.
        center (`np.ndarray` of shape `(3,)`), size (`np.ndarray` of shape `(3,)`), yaw (`float`): Its box, radians.
        stands_on (`int`): Instance id of what carries it; 0 for the floor, -1 for things on a wall.
        pixels (`np.ndarray` of shape `(num_views,)`): Its visible pixels in each given view.
    """

    instance_id: int
    category: str
    center: np.ndarray
    size: np.ndarray
    yaw: float
    stands_on: int
    pixels: np.ndarray

    @cached_property
    def footprint(self) -> np.ndarray:
        """Its convex outline from above, `(num_corners, 2)`, counter-clockwise."""
        if self.category in ROUND or (self.category == "table" and self.size[0] == self.size[1]):
            local = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], axis=-1) / 2
        else:
            local = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
        return self._place(local)

    @cached_property
    def spots(self) -> np.ndarray:
        """Nine points of its box seen from above: center, corners and middles of the sides, `(9, 2)`."""
        return self._place(np.array([[x, y] for x in (-0.5, 0.0, 0.5) for y in (-0.5, 0.0, 0.5)]))

    @cached_property
    def corners(self) -> np.ndarray:
        """Corners of its box, `(8, 3)`."""
        outline = self._place(np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]))
        bottom, top = self.center[2] - self.size[2] / 2, self.center[2] + self.size[2] / 2
        return np.array([[*corner, z] for corner in outline for z in (bottom, top)])

    def _place(self, local: np.ndarray) -> np.ndarray:
        """From shares of the box's sides, `(n, 2)`, to the world."""
        x, y = (local * self.size[:2]).T
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1) + self.center[:2]


@dataclass(frozen=True, eq=False)
class RoomFacts:
    """A room as it is, and as some of its views show it.

    Args:
        description (`dict`): What `scene.json` holds.
        views (`Sequence[int]`): The given views, as positions in `description["frames"]`, in the order shown.
        poses (`np.ndarray` of shape `(num_views, 4, 4)`): Camera-to-world of the given views.
        intrinsics (`np.ndarray` of shape `(3, 3)`): In pixels.
    """

    description: dict
    views: Sequence[int]
    poses: np.ndarray
    intrinsics: np.ndarray

    @cached_property
    def things(self) -> list[Thing]:
        """All things of the room, seen or not."""
        frames = [self.description["frames"][view]["visible_pixels"] for view in self.views]
        return [
            Thing(
                item["instance_id"],
                item["category"],
                np.array(item["center"]),
                np.array(item["size"]),
                item["yaw"],
                item.get("stands_on", -1),
                np.array([frame.get(str(item["instance_id"]), 0) for frame in frames]),
            )
            for item in (*self.description["furniture"], *self.description["wall_objects"])
        ]

    @cached_property
    def outline(self) -> np.ndarray:
        """Floor polygon, `(num_corners, 2)`, counter-clockwise."""
        return np.array(self.description["outline"])

    @property
    def clear_pixels(self) -> float:
        """Number of pixels from which a thing is clearly seen in a view."""
        width, height = self.description["size"]
        return CLEAR_SHARE * width * height

    def is_clear(self, thing: Thing) -> bool:
        """Whether at least one given view shows the thing clearly."""
        return bool((thing.pixels >= self.clear_pixels).any())

    def is_certain(self, category: str) -> bool:
        """Whether nothing else in the room, seen or not, may be meant by the name."""
        return not any(thing.category in ALSO_CALLED.get(category, ()) for thing in self.things)

    def of_category(self, category: str) -> list[Thing]:
        """All things of a category."""
        return [thing for thing in self.things if thing.category == category]

    @cached_property
    def named(self) -> list[Thing]:
        """Things clearly seen that their names single out in the whole room."""
        return [
            thing
            for thing in self.things
            if self.is_clear(thing) and len(self.of_category(thing.category)) == 1 and self.is_certain(thing.category)
        ]

    def shows_whole(self, thing: Thing) -> bool:
        """Whether each corner of the thing's box lies within a given view that shows the thing clearly."""
        clear = thing.pixels >= self.clear_pixels
        return bool(self._inside_images(thing.corners)[clear].any(axis=0).all())

    def shows_outline(self) -> bool:
        """Whether the given views show all corners of the room, at any height, past the room's own walls."""
        heights = np.linspace(0.0, self.description["height"], 13)
        for corner in self.outline:
            inside = self._inside_images(np.array([[*corner, z] for z in heights])).any(axis=1)
            cameras = self.poses[inside, :2, 3]
            if not any(self.is_open(camera, corner + 0.02 * (camera - corner)) for camera in cameras):
                return False
        return True

    def is_open(self, start: np.ndarray, end: np.ndarray) -> bool:
        """Whether the straight line between two points, `(2,)` each, of the floor crosses no wall."""
        a, b = self.outline, np.roll(self.outline, -1, axis=0)
        apart = _cross(end - start, a - start) * _cross(end - start, b - start) < 0
        across = _cross(b - a, start - a) * _cross(b - a, end - a) < 0
        return not (apart & across).any()

    def _inside_images(self, points: np.ndarray) -> np.ndarray:
        """Which views' images contain which points, whatever stands between: `(num_views, num_points)`."""
        rotation, position = self.poses[:, :3, :3], self.poses[:, :3, 3]
        camera = np.einsum("vji,vpj->vpi", rotation, points[None] - position[:, None])
        depth = np.maximum(camera[..., 2:], _NEAR)
        pixels = camera[..., :2] / depth * self.intrinsics[[0, 1], [0, 1]] + self.intrinsics[:2, 2]
        size = np.array(self.description["size"])
        return (camera[..., 2] > _NEAR) & (pixels >= 0).all(axis=-1) & (pixels <= size).all(axis=-1)


def read_description(room: str | os.PathLike) -> dict:
    """What the `scene.json` of a room's folder holds.

    Raises:
        ValueError: If it is missing or damaged.
    """
    path = Path(room) / "scene.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read `{path}` ({error}): render the rooms again with spa3r rooms.") from error


def read_facts(room: str | os.PathLike, description: dict, views: Sequence[int]) -> RoomFacts:
    """Read the cameras of a room's given views (positions in `description["frames"]`)."""
    room = Path(room)
    frames = [description["frames"][view]["frame"] for view in views]
    poses = np.stack([np.loadtxt(room / "pose" / f"{frame}.txt") for frame in frames])
    return RoomFacts(description, views, poses, np.loadtxt(room / "intrinsic" / "intrinsic_color.txt")[:3, :3])


def closest_distance(first: Thing, second: Thing) -> float:
    """Distance in meters between the nearest points of two upright prisms over the things' footprints."""
    reach = (first.size[2] + second.size[2]) / 2
    gap = max(0.0, abs(float(first.center[2] - second.center[2])) - reach)
    return math.hypot(_polygon_distance(first.footprint, second.footprint), gap)


def bearing(standing: np.ndarray, facing: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How far one who stands at a point and faces another has to turn to face a third, in degrees, left positive.

    The points broadcast: their last dimension is 2.
    """
    ahead, there = facing - standing, target - standing
    return np.degrees(np.arctan2(_cross(ahead, there), (ahead * there).sum(axis=-1)))


def crossing(start: np.ndarray, end: np.ndarray, polygon: np.ndarray) -> tuple[float, float] | None:
    """The part of the segment from `start` to `end` inside a convex polygon, as shares of it; `None` if outside."""
    sides = np.roll(polygon, -1, axis=0) - polygon
    # Inside of a side where `begin + share * change` is not negative.
    begin, change = _cross(sides, start - polygon), _cross(sides, end - start)
    shares = -begin / np.where(change == 0, 1.0, change)
    low = max(0.0, float(np.max(shares, where=change > 0, initial=0.0)))
    high = min(1.0, float(np.min(shares, where=change < 0, initial=1.0)))
    return (low, high) if low < high and not (begin[change == 0] < 0).any() else None


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _polygon_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between two convex polygons, counter-clockwise; 0 where they overlap."""
    if not (_is_separated(first, second) or _is_separated(second, first)):
        return 0.0
    return min(_corners_to_sides(first, second), _corners_to_sides(second, first))


def _is_separated(polygon: np.ndarray, other: np.ndarray) -> bool:
    """Whether all of `other` lies on the outer side of one side of `polygon`."""
    sides = np.roll(polygon, -1, axis=0) - polygon
    return bool((_cross(sides[:, None], other[None] - polygon[:, None]) < 0).all(axis=1).any())


def _corners_to_sides(corners: np.ndarray, polygon: np.ndarray) -> float:
    sides = np.roll(polygon, -1, axis=0) - polygon  # (sides, 2)
    offsets = corners[:, None] - polygon[None]  # (corners, sides, 2)
    along = np.clip((offsets * sides).sum(axis=-1) / (sides**2).sum(axis=-1), 0, 1)
    nearest = offsets - along[..., None] * sides
    return float(np.hypot(nearest[..., 0], nearest[..., 1]).min())
