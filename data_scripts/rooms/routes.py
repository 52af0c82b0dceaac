"""Collision-free routes of a robot through a room, from object to object."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from .ground_truth import RoomGroundTruth, RoomObject, bearing, clip_segment, is_within

# A robot turns left or right by 45 to 135 degrees, and back by more: `TURN_LIMITS`. `TURNS` keep a margin from them.
TURNS = {"Turn Left": (60, 120), "Turn Right": (-120, -60), "Turn Back": (150, 210)}
TURN_LIMITS = {"Turn Left": (45, 135), "Turn Right": (-135, -45), "Turn Back": (135, 225)}
# Meters; the shortest straight part of a route, and the robot's radius.
MIN_LEG, ROBOT_RADIUS = 0.5, 0.1


@dataclass(frozen=True)
class _Route:
    """Objects to visit in order, and the robot's last two positions `(2,)`."""

    objects: tuple[RoomObject, ...]
    previous: np.ndarray
    position: np.ndarray


class RouteFinder:
    """Finds routes whose stops are unambiguous objects on the floor or doors.

    Args:
        room (`RoomGroundTruth`): The room.
    """

    def __init__(self, room: RoomGroundTruth):
        self.room = room
        on_floor = [item for item in room.objects if item.stands_on == 0 and item.category != "rug"]
        self.obstacles = [(item, _expanded(item.footprint, ROBOT_RADIUS)) for item in on_floor]
        # A circle around each obstacle, to pass over those that are out of the way.
        self._centers = np.array([item.center[:2] for item, _ in self.obstacles]).reshape(-1, 2)
        self._radii = np.array(
            [np.linalg.norm(polygon - item.center[:2], axis=1).max() for item, polygon in self.obstacles]
        )
        self.stops = [item for item in room.unique_objects if item in on_floor or item.category == "door"]

    def find(self, turns: Sequence[str]) -> list[tuple[RoomObject, ...]]:
        """All routes on which the robot makes the turns (names of `TURNS`), one at each stop between the ends."""
        routes = []
        for first, second in permutations(self.stops, 2):
            start, target = first.center[:2], second.center[:2]
            inside = clip_segment(start, target, first.footprint)
            if inside is None:
                continue
            arrival = self._drive(start + inside[1] * (target - start), first, second)
            if arrival is not None:
                routes.append(_Route((first, second), start, arrival))
        for turn in turns:
            routes = [longer for route in routes for longer in self._extend(route, turn)]
        return [route.objects for route in routes]

    def _extend(self, route: _Route, turn: str) -> list[_Route]:
        """All routes that continue `route` with `turn` and one more stop."""
        longer = []
        for stop in self.stops:
            if stop in route.objects:
                continue
            # The answer must be the same for a robot that stops at the edge of an object and for one that drives from
            # center to center.
            driven = bearing(route.position, 2 * route.position - route.previous, stop.center[:2])
            before, here = (item.center[:2] for item in route.objects[-2:])
            between_centers = bearing(here, 2 * here - before, stop.center[:2])
            if not (is_within(driven, TURNS[turn]) and is_within(between_centers, TURN_LIMITS[turn])):
                continue
            arrival = self._drive(route.position, route.objects[-1], stop)
            if arrival is not None:
                longer.append(_Route((*route.objects, stop), route.position, arrival))
        return longer

    def _drive(self, start: np.ndarray, origin: RoomObject, goal: RoomObject) -> np.ndarray | None:
        """Where a robot reaches `goal` from `start`, at the edge of `origin`; `None` if something is in the way."""
        target = goal.center[:2]
        inside = clip_segment(start, target, goal.footprint)
        if inside is None:
            return None
        end = start + inside[0] * (target - start)
        length = np.linalg.norm(end - start)
        if length < MIN_LEG or not self.room.has_line_of_sight(start, end):
            return None
        for index in np.flatnonzero(self._distances_to(start, end) <= self._radii):
            item, expanded = self.obstacles[index]
            if item is goal:
                continue
            # The robot starts at the edge of its origin, so only the footprint itself blocks it there.
            blocked = clip_segment(start, end, item.footprint if item is origin else expanded)
            if blocked is not None and (blocked[1] - blocked[0]) * length > 0.01:
                return None
        return end

    def _distances_to(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Distance from the center of each obstacle to the segment."""
        change, offsets = end - start, self._centers - start
        along = np.clip((offsets * change).sum(axis=1) / (change**2).sum(), 0, 1)
        return np.linalg.norm(offsets - along[:, None] * change, axis=1)


def _expanded(polygon: np.ndarray, margin: float) -> np.ndarray:
    """Scale a convex polygon around its center so that each side moves outward by `margin` or more."""
    center = polygon.mean(axis=0)
    offsets = polygon - center
    sides = np.roll(polygon, -1, axis=0) - polygon
    normals = np.stack([sides[:, 1], -sides[:, 0]], axis=-1) / np.linalg.norm(sides, axis=-1, keepdims=True)
    return center + offsets * (1 + margin / (normals * offsets).sum(axis=-1).min())
