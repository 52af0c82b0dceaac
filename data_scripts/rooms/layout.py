"""Layout of a procedural room: its outline, doors, windows and pictures, and the places of its furniture.

World frame: z up, the floor at z = 0, the room's bounding rectangle from (0, 0) to (width, depth). Lengths are meters,
angles radians.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from .furniture import FURNITURE, Style, draw_style
from .materials import COLORS, Material, paint, wood
from .solids import Furniture, Solid, box, cylinder, ellipsoid, yaw_rotation

MIN_PIECES, MAX_PIECES = 6, 16
# Free space around each piece, and behind pieces that stand against a wall.
CLEARANCE, WALL_GAP = 0.04, 0.03
DOOR_SIZE, DOOR_CLEARANCE = (0.9, 2.05), 0.9
PLACEMENT_TRIES = 40


@dataclass(frozen=True)
class OrientedBox:
    """An upright box: `center` `(3,)`, full extents `size` `(3,)`, rotated by `yaw` about z."""

    center: np.ndarray
    size: np.ndarray
    yaw: float

    def corners(self) -> np.ndarray:
        """Corners of the footprint, `(4, 2)`, counter-clockwise."""
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        turn = yaw_rotation(self.yaw)[:2, :2]
        return (turn[None] * (signs * self.size[:2] / 2)[:, None, :]).sum(axis=-1) + self.center[:2]

    def expanded(self, margin: float) -> "OrientedBox":
        """The box with `margin` added on its four sides; its height stays the same."""
        return OrientedBox(self.center, self.size + np.array([2 * margin, 2 * margin, 0.0]), self.yaw)

    def overlaps(self, other: "OrientedBox") -> bool:
        """Whether the interiors intersect: separating axes for the footprints, intervals for the heights."""
        if abs(self.center[2] - other.center[2]) >= (self.size[2] + other.size[2]) / 2 - 1e-6:
            return False
        mine, theirs = self.corners(), other.corners()
        for yaw in (self.yaw, self.yaw + math.pi / 2, other.yaw, other.yaw + math.pi / 2):
            axis = np.array([math.cos(yaw), math.sin(yaw)])
            a, b = (mine * axis).sum(axis=1), (theirs * axis).sum(axis=1)
            if a.max() <= b.min() or b.max() <= a.min():
                return False
        return True


@dataclass(frozen=True)
class Piece:
    """A placed piece of furniture; `stands_on` is the `instance_id` of the piece below it, 0 for the floor."""

    instance_id: int
    furniture: Furniture
    box: OrientedBox
    stands_on: int

    @property
    def solids(self) -> tuple[Solid, ...]:
        """The solids in the world frame."""
        underside = self.box.center - [0.0, 0.0, self.box.size[2] / 2]
        return tuple(solid.placed(underside, self.box.yaw) for solid in self.furniture.solids)


@dataclass(frozen=True)
class WallObject:
    """A door, window or picture on a wall; its solids are in the world frame."""

    instance_id: int
    category: str
    color_name: str
    box: OrientedBox
    solids: tuple[Solid, ...]


@dataclass(frozen=True)
class Wall:
    """A wall from `start` to `end`, `(2,)` each, with the room on its left; `normal` points into the room."""

    start: np.ndarray
    end: np.ndarray

    @property
    def length(self) -> float:
        return float(np.abs(self.end - self.start).sum())

    @property
    def direction(self) -> np.ndarray:
        return (self.end - self.start) / self.length

    @property
    def normal(self) -> np.ndarray:
        x, y = self.direction
        return np.array([-y, x])

    @property
    def yaw(self) -> float:
        """The yaw of a piece whose front (its y axis) faces the room."""
        x, y = self.normal
        return math.atan2(-x, y)


@dataclass
class Room:
    """A furnished room.

    Args:
        size (`np.ndarray` of shape `(3,)`): Width (x), depth (y) and height of the bounding box.
        outline (`np.ndarray` of shape `(num_corners, 2)`): Floor polygon, counter-clockwise, 4 or 6 corners.
        notch (`OrientedBox`, *optional*): The block that is cut out of an L-shaped room.
        kind (`str`): One of `ROOM_KINDS`.
    """

    size: np.ndarray
    outline: np.ndarray
    notch: OrientedBox | None
    kind: str
    style: Style
    wall_objects: list[WallObject] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    @property
    def walls(self) -> list[Wall]:
        return [Wall(start, end) for start, end in zip(self.outline, np.roll(self.outline, -1, axis=0), strict=True)]

    @property
    def area(self) -> float:
        """Floor area in square meters."""
        x, y = self.outline.T
        return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)

    def contains(self, box: OrientedBox) -> bool:
        """Whether the footprint of `box` lies between the walls."""
        corners = box.corners()
        if corners.min() < 0 or (corners > self.size[:2]).any():
            return False
        return self.notch is None or not box.overlaps(self.notch)


# Pieces that are placed together, as (builder, relation, probability). The first piece of a group stands at a "wall",
# in a "corner" or "anywhere". Later pieces stand "facing", "beside" or "before" the first one, "on" the latest piece
# that supports others, or on their own.
GROUPS = {
    "bed": (
        ("bed", "wall", 1.0),
        ("nightstand", "beside", 0.9),
        ("table lamp", "on", 0.8),
        ("nightstand", "beside", 0.6),
    ),
    "sofa": (("sofa", "wall", 1.0), ("coffee table", "before", 0.75), ("vase", "on", 0.6)),
    "tv": (("cabinet", "wall", 1.0), ("tv", "on", 1.0)),
    "dining": (
        ("table", "anywhere", 1.0),
        ("chair", "facing", 1.0),
        ("chair", "facing", 0.9),
        ("vase", "on", 0.7),
        ("chair", "facing", 0.6),
        ("chair", "facing", 0.5),
    ),
    "desk": (
        ("desk", "wall", 1.0),
        ("monitor", "on", 0.85),
        ("chair", "facing", 0.95),
        ("table lamp", "on", 0.5),
        ("trash can", "wall", 0.3),
    ),
    "microwave": (("cabinet", "wall", 1.0), ("microwave", "on", 1.0)),
    "sideboard": (("cabinet", "wall", 1.0), ("table lamp", "on", 0.5), ("vase", "on", 0.5)),
    **{
        piece: ((piece, relation, 1.0),)
        for relation, pieces in {
            "corner": ("armchair", "floor lamp", "plant"),
            "anywhere": ("ball", "stool", "rug"),
            "wall": (
                *("bathtub", "bookshelf", "box", "chair", "refrigerator", "sink", "stove", "toilet", "trash can"),
                *("wardrobe", "washing machine"),
            ),
        }.items()
        for piece in pieces
    },
}
# The groups that each kind of room always gets, and those that it may get.
ROOM_KINDS = {
    "bedroom": (
        ("bed", "wardrobe"),
        ("desk", "bookshelf", "floor lamp", "plant", "armchair", "tv", "ball", "box", "stool", "sideboard", "rug"),
    ),
    "living room": (
        ("sofa", "tv"),
        ("armchair", "armchair", "bookshelf", "floor lamp", "plant", "dining", "ball", "plant", "sideboard", "rug"),
    ),
    "kitchen": (
        ("refrigerator", "stove", "sink", "dining"),
        ("microwave", "trash can", "plant", "stool", "stool", "washing machine", "box", "sideboard", "chair"),
    ),
    "office": (
        ("desk", "bookshelf"),
        ("desk", "bookshelf", "sofa", "dining", "sideboard", "plant", "floor lamp", "trash can", "box", "box", "rug"),
    ),
    "bathroom": (
        ("bathtub", "toilet", "sink"),
        ("washing machine", "sideboard", "trash can", "stool", "plant", "box", "chair", "rug", "wardrobe"),
    ),
    "studio": (
        ("bed", "sofa", "refrigerator"),
        ("desk", "tv", "stove", "dining", "wardrobe", "bookshelf", "microwave", "plant", "ball", "stool", "rug"),
    ),
}
_FILLERS = ("plant", "box", "stool", "ball", "trash can", "chair")


def draw_room(kind: str, rng: np.random.Generator) -> Room:
    """Draw a room of a `kind` of `ROOM_KINDS`: its outline, then doors, windows and pictures, then furniture.

    A room with fewer than `MIN_PIECES` pieces is dropped and drawn again with the same generator.
    """
    while True:
        room = _draw_outline(kind, rng)
        _add_wall_objects(room, rng)
        _Furnisher(room, rng).furnish()
        if len(room.pieces) >= MIN_PIECES:
            first = len(room.pieces) + 1
            room.wall_objects = [replace(item, instance_id=first + i) for i, item in enumerate(room.wall_objects)]
            return room


def _draw_outline(kind: str, rng: np.random.Generator) -> Room:
    longest = 5.0 if kind == "bathroom" else 8.0
    width, depth = (round(float(rng.uniform(3.0, longest)), 2) for _ in range(2))
    height = round(float(rng.uniform(2.4, 3.0)), 2)
    size, style = np.array([width, depth, height]), draw_style(rng)
    rectangle = np.array([[0.0, 0.0], [width, 0.0], [width, depth], [0.0, depth]])
    if min(width, depth) < 4.5 or rng.random() < 0.5:
        return Room(size, rectangle, None, kind, style)
    cut_x, cut_y = (round(float(rng.uniform(0.25, 0.45)) * side, 2) for side in (width, depth))
    inner = [[width, depth - cut_y], [width - cut_x, depth - cut_y], [width - cut_x, depth]]
    outline = np.array([[0, 0], [width, 0], *inner, [0, depth]])
    center = np.array([width - cut_x / 2, depth - cut_y / 2])
    for axis in range(2):  # mirroring moves the notch to another corner and reverses the outline
        if rng.random() < 0.5:
            outline[:, axis] = size[axis] - outline[:, axis]
            outline = outline[::-1]
            center[axis] = size[axis] - center[axis]
    notch = OrientedBox(np.array([*center, height / 2]), np.array([cut_x, cut_y, height]), 0.0)
    return Room(size, outline, notch, kind, style)


def _add_wall_objects(room: Room, rng: np.random.Generator) -> None:
    """Add one or two doors, one to four windows and up to three pictures, on walls where they fit."""
    wanted = ["door"] * int(rng.integers(1, 3)) + ["window"] * int(rng.integers(1, 5))
    wanted += ["picture"] * int(rng.integers(0, 4))
    door_color, frame_color = (str(rng.choice(["white", "brown", "beige", "gray"])) for _ in range(2))
    for category in wanted:
        for _ in range(PLACEMENT_TRIES):
            if category == "door":
                size, bottom, color = np.array([DOOR_SIZE[0], 0.05, DOOR_SIZE[1]]), 0.0, door_color
            elif category == "window":
                size, bottom, color = np.array([rng.uniform(0.5, 2.4), 0.05, rng.uniform(0.5, 1.3)]), 0.95, frame_color
            else:
                size, bottom = np.array([rng.uniform(0.3, 1.4), 0.04, rng.uniform(0.3, 0.8)]), rng.uniform(1.3, 1.45)
                color = str(rng.choice(["black", "brown", "white"]))
            place = _place_on_wall(room, rng, size.round(2), round(bottom, 2))
            if place is not None and not any(place.expanded(0.12).overlaps(other.box) for other in room.wall_objects):
                underside = place.center - [0.0, 0.0, place.size[2] / 2]
                solids = _build_wall_object(category, place.size, color, rng)
                solids = tuple(solid.placed(underside, place.yaw) for solid in solids)
                room.wall_objects.append(WallObject(-1, category, color, place, solids))
                break


def _place_on_wall(room: Room, rng: np.random.Generator, size: np.ndarray, bottom: float) -> OrientedBox | None:
    wall = room.walls[int(rng.integers(len(room.walls)))]
    slack = wall.length - size[0] - 0.5
    if slack < 0 or bottom + size[2] > room.size[2] - 0.1:
        return None
    along = size[0] / 2 + 0.25 + float(rng.uniform(0, slack))
    x, y = wall.start + along * wall.direction + size[1] / 2 * wall.normal
    return OrientedBox(np.array([x, y, bottom + size[2] / 2]), size, wall.yaw)


def _build_wall_object(category: str, size: np.ndarray, color: str, rng: np.random.Generator) -> list[Solid]:
    """A frame with what it holds, in its own frame: origin at the center of the underside, y into the room."""
    width, depth, height = size
    rim = 0.03 if category == "picture" else 0.07
    solids = [box(side * (width - rim) / 2, 0, 0, rim, depth, height, paint(color)) for side in (-1, 1)]
    solids.append(box(0, 0, height - rim, width, depth, rim, paint(color)))
    if category == "door":
        leaf = wood("walnut", period=1.0) if color == "brown" else Material(COLORS[color], None, "plaster", 3.0)
        panel = Material(tuple(0.88 * c for c in COLORS[color]))
        brass = Material((0.75, 0.72, 0.6))
        solids.append(box(0, -depth / 2 + 0.015, 0.0, width - 2 * rim, 0.03, height - rim, leaf))
        solids += [box(0, 0, z, width - 0.36, 0.024, 0.75, panel) for z in (0.2, 1.1)]
        solids.append(cylinder(width / 2 - 0.16, 0.0, 1.0, 0.03, 0.05, brass, axis="y"))
        solids.append(ellipsoid(width / 2 - 0.2, 0.015, 0.995, 0.13, 0.02, 0.03, brass))
        return solids
    if category == "window":
        view = Material((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "landscape", period=0.0, glow=0.95)
    else:
        light, dark = rng.uniform(0.7, 1.0, 3), rng.uniform(0.0, 0.45, 3)
        view = Material(tuple(light), tuple(dark), "painting", period=0.0)
    solids.append(box(0, 0, 0, width, depth, rim, paint(color)))
    solids.append(box(0, -depth / 2 + 0.015, rim, width - 2 * rim, 0.03, height - 2 * rim, view))
    if category == "window":
        solids.append(box(0, 0, 0, 0.05, depth - 0.01, height, paint(color)))  # mullion
    return solids


class _Furnisher:
    """Places furniture in a room, group by group, at random places that fit."""

    def __init__(self, room: Room, rng: np.random.Generator):
        self.room, self.rng = room, rng
        # No piece may stand in a doorway, or cover a window or picture.
        self.blocked = [self._clearance(wall_object) for wall_object in room.wall_objects]

    @staticmethod
    def _clearance(wall_object: WallObject) -> OrientedBox:
        reach = 2 * DOOR_CLEARANCE if wall_object.category == "door" else 0.6
        size = wall_object.box.size
        return OrientedBox(wall_object.box.center, np.array([size[0] + 0.1, reach, size[2]]), wall_object.box.yaw)

    def furnish(self) -> None:
        """Place between `MIN_PIECES` and as many pieces as the room's area allows."""
        most = int(np.clip(5 + self.room.area / 2, MIN_PIECES + 1, MAX_PIECES))
        wanted = int(self.rng.integers(max(MIN_PIECES, round(0.7 * most)), most + 1))
        required, optional = ROOM_KINDS[self.room.kind]
        order = [optional[i] for i in self.rng.permutation(len(optional))]
        fillers = [_FILLERS[i] for i in self.rng.permutation(len(_FILLERS))]
        for group in (*required, *order, *fillers):
            self._place_group(GROUPS[group], wanted)

    def _place_group(self, group: tuple[tuple[str, str, float], ...], wanted: int) -> None:
        members: list[Piece] = []
        for builder, relation, probability in group:
            if len(self.room.pieces) >= wanted or self.rng.random() >= probability:
                return
            furniture = FURNITURE[builder](self.rng, self.room.style)
            piece = self._find_place(furniture, relation, members)
            if piece is not None:
                members.append(piece)
                self.room.pieces.append(piece)
            elif not members:
                return

    def _find_place(self, furniture: Furniture, relation: str, members: list[Piece]) -> Piece | None:
        tops = [piece for piece in members if piece.furniture.support_size is not None]
        if relation == "on" and not tops:
            return None
        for _ in range(PLACEMENT_TRIES):
            stands_on = 0
            if relation == "on":
                candidate, stands_on = self._on_top(furniture, tops[-1]), tops[-1].instance_id
            elif relation in ("facing", "beside", "before"):
                candidate = self._next_to(furniture, relation, members[0])
            else:
                candidate = self._on_its_own(furniture, relation)
            if candidate is not None and self._fits(candidate):
                return Piece(len(self.room.pieces) + 1, furniture, candidate, stands_on)
        return None

    def _fits(self, candidate: OrientedBox) -> bool:
        expanded = candidate.expanded(CLEARANCE)
        occupied = (*(piece.box for piece in self.room.pieces), *self.blocked)
        return self.room.contains(candidate) and not any(expanded.overlaps(other) for other in occupied)

    def _stand(self, furniture: Furniture, position: np.ndarray, yaw: float, floor: float = 0.0) -> OrientedBox:
        center = np.array([position[0], position[1], floor + furniture.size[2] / 2])
        return OrientedBox(center, furniture.size, yaw)

    def _on_its_own(self, furniture: Furniture, relation: str) -> OrientedBox | None:
        if relation == "anywhere":
            position = self.rng.uniform(0.3, self.room.size[:2] - 0.3)
            return self._stand(furniture, position, float(self.rng.integers(4)) * math.pi / 2)
        walls = self.room.walls
        lengths = np.array([wall.length for wall in walls])
        wall = walls[int(self.rng.choice(len(walls), p=lengths / lengths.sum()))]
        slack = wall.length - furniture.size[0] - 0.1
        if slack < 0:
            return None
        if relation == "corner":
            offset = float(self.rng.uniform(0, 0.15)) * slack
            offset = offset if self.rng.random() < 0.5 else slack - offset
        else:
            offset = float(self.rng.uniform(0, slack))
        along = furniture.size[0] / 2 + 0.05 + offset
        inward = furniture.size[1] / 2 + WALL_GAP
        return self._stand(furniture, wall.start + along * wall.direction + inward * wall.normal, wall.yaw)

    def _next_to(self, furniture: Furniture, relation: str, anchor: Piece) -> OrientedBox:
        """A place beside, before or facing the anchor."""
        width, depth = anchor.box.size[:2]
        turn = 0.0
        if relation == "beside":
            side = 1 if self.rng.random() < 0.5 else -1
            local = [side * (width / 2 + furniture.size[0] / 2 + 0.06), (furniture.size[1] - depth) / 2]
        elif relation == "before":
            local = [self.rng.uniform(-0.2, 0.2), depth / 2 + furniture.size[1] / 2 + self.rng.uniform(0.3, 0.45)]
        else:
            # The chair of a desk stands in front; those of a table on all sides, mostly the long ones.
            side = 0 if anchor.furniture.category == "desk" else int(self.rng.choice(4, p=[0.35, 0.15, 0.35, 0.15]))
            reach = (depth, width)[side % 2] / 2 + furniture.size[1] / 2 + self.rng.uniform(0.05, 0.15)
            slide = self.rng.uniform(-0.25, 0.25) * (width, depth)[side % 2]
            local = [[slide, reach], [reach, slide], [slide, -reach], [-reach, slide]][side]
            turn = [math.pi, math.pi / 2, 0.0, -math.pi / 2][side]
        direction = yaw_rotation(anchor.box.yaw)[:2, :2]
        position = anchor.box.center[:2] + (direction * np.array(local)).sum(axis=1)
        return self._stand(furniture, position, anchor.box.yaw + turn)

    def _on_top(self, furniture: Furniture, support: Piece) -> OrientedBox | None:
        """A place on top of `support`, with the same yaw; screens stand at the middle of the back."""
        slack = (np.array(support.furniture.support_size) - furniture.size[:2]) / 2
        if (slack < 0).any():
            return None
        if furniture.category in ("tv", "monitor"):
            local = np.array([self.rng.uniform(-0.2, 0.2) * slack[0], -0.6 * slack[1]])
        else:
            local = self.rng.uniform(-slack, slack)
        turn = yaw_rotation(support.box.yaw)[:2, :2]
        position = support.box.center[:2] + (turn * local).sum(axis=1)
        top = support.box.center[2] + support.box.size[2] / 2
        return self._stand(furniture, position, support.box.yaw, top)
