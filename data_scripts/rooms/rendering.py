"""Renders furnished rooms: casts the rays of a view, then shades each hit once.

A room has a ceiling lamp, daylight from a window, ambient light that fades in corners, and soft shadows on the floor.
"""

import math
from dataclasses import dataclass

import numpy as np

from .labels import label_of
from .layout import Piece, Room
from .materials import COLORS, WOODS, Material, paint, wood
from .ray_casting import BOX, CYLINDER, SolidTable, cast_rays
from .solids import Solid, box
from .textures import sample_textures

# Meters; the floor's shadows are computed on a grid of this spacing.
_SHADOW_CELL = 0.04


@dataclass(frozen=True)
class Lighting:
    """Two lights, the ceiling lamp and daylight, and how much of their light reaches the floor."""

    position: np.ndarray  # (2, 3) meters, world
    color: np.ndarray  # (2, 3) RGB strength
    ambient: np.ndarray  # (3,) RGB strength of the light that comes from all sides
    floor_light: np.ndarray  # (2, rows, columns) share of each light that reaches a cell of the floor
    floor_ambient: np.ndarray  # (rows, columns) share of the ambient light that does


class RoomRenderer:
    """Renders views of one room.

    Args:
        room (`Room`): The furnished room.
        rng (`np.random.Generator`): Draws the finishes of walls and floor, and the lighting.
        size (`tuple[int, int]`): Width and height of the images in pixels.
        focal_length (`float`): In pixels, for both axes. The principal point is the image center; pixel centers lie at
            half-integer coordinates.
    """

    def __init__(self, room: Room, rng: np.random.Generator, size: tuple[int, int], focal_length: float):
        width, height = size
        self.room, self.focal_length = room, focal_length
        solids = [(0, solid) for solid in _build_shell(room, rng)]
        labels = [label_of("floor"), label_of("ceiling"), *[label_of("wall")] * (len(solids) - 2)]
        for item in (*room.pieces, *room.wall_objects):
            category = item.furniture.category if isinstance(item, Piece) else item.category
            labels += [label_of(category)] * len(item.solids)
            solids += [(item.instance_id, solid) for solid in item.solids]
        self.labels = np.array(labels, np.uint8)
        self.table = SolidTable.build(solids)
        self.u = (np.arange(width) + 0.5 - width / 2) / focal_length
        self.v = (np.arange(height) + 0.5 - height / 2) / focal_length
        self.lighting = _draw_lighting(room, self.table, rng)

    def render(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Render one view.

        Args:
            pose (`np.ndarray` of shape `(4, 4)`): Camera-to-world, OpenCV axes.

        Returns:
            `(np.ndarray, np.ndarray, np.ndarray, np.ndarray)`: Colors `(height, width, 3)` uint8, depth along the
            optical axis `(height, width)` float32 in meters, instance ids `(height, width)`, 0 for walls, floor and
            ceiling, and categories `(height, width)` uint8, see `LABELS`.
        """
        origin, basis = pose[:3, 3], pose[:3, :3]
        inverse, rows = cast_rays(self.table, origin, basis, self.u, self.v)
        grid_u, grid_v = (grid.ravel() for grid in np.broadcast_arrays(self.u[None, :], self.v[:, None]))
        colors = self._shade(rows.ravel(), inverse.ravel(), grid_u, grid_v, origin, basis).reshape(*rows.shape, 3)
        self._smooth_edges(colors, rows, inverse, origin, basis)
        image = (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)
        return image, 1 / inverse, self.table.instance[rows], self.labels[rows]

    def _smooth_edges(
        self, colors: np.ndarray, rows: np.ndarray, inverse: np.ndarray, origin: np.ndarray, basis: np.ndarray
    ) -> None:
        """Where surfaces meet, blend the color of a pixel with the colors at its four corners, in place."""
        step = 1 / self.focal_length
        u = np.append(self.u - step / 2, self.u[-1] + step / 2)
        v = np.append(self.v - step / 2, self.v[-1] + step / 2)
        corner_inverse, corner_rows = cast_rays(self.table, origin, basis, u, v)
        windows = [(slice(dy, dy + rows.shape[0]), slice(dx, dx + rows.shape[1])) for dy in (0, 1) for dx in (0, 1)]
        # On a flat face, the inverse depth at the center is the mean of those at the corners.
        bend = sum(corner_inverse[window] for window in windows) - 4 * inverse
        mixed = np.abs(bend) > 4e-4 * inverse
        for window in windows:
            mixed |= corner_rows[window] != rows
        needed = np.zeros(corner_rows.shape, bool)
        for window in windows:
            needed[window] |= mixed
        corner_colors = np.zeros((*corner_rows.shape, 3), np.float32)
        picked = np.nonzero(needed)
        corner_colors[picked] = self._shade(
            corner_rows[picked], corner_inverse[picked], u[picked[1]], v[picked[0]], origin, basis
        )
        blend = sum(np.minimum(corner_colors[window][mixed], 1) for window in windows) / 8
        colors[mixed] = np.minimum(colors[mixed], 1) / 2 + blend

    def _shade(
        self,
        rows: np.ndarray,
        inverse: np.ndarray,
        u: np.ndarray,
        v: np.ndarray,
        origin: np.ndarray,
        basis: np.ndarray,
    ) -> np.ndarray:
        """Colors `(samples, 3)` of the hits at depth `1 / inverse` along `(u, v, 1)`."""
        table = self.table
        u, v, depth = u.astype(np.float32), v.astype(np.float32), 1 / inverse
        basis = basis.astype(np.float32)
        ray = [basis[axis, 0] * u + basis[axis, 1] * v + basis[axis, 2] for axis in range(3)]
        point = [np.float32(origin[axis]) + depth * ray[axis] for axis in range(3)]
        normal, texture_u, texture_v = self._surface(rows, point)

        facing = np.abs(sum(ray[axis] * normal[axis] for axis in range(3)))
        distance = np.sqrt(u * u + v * v + 1)
        # At a slant, a pixel covers a long stretch of the surface; the root keeps the texture sharp across it.
        slant = np.sqrt(distance / np.maximum(facing, np.float32(0.02)))
        footprint = depth * slant * (table.texture_scale[rows, 0] / np.float32(self.focal_length))
        blend = sample_textures(table.texture[rows], texture_u, texture_v, footprint)
        dark = table.dark_color[rows]
        albedo = dark + (table.color[rows] - dark) * blend
        light = self._light(rows, point, normal)
        glow = table.glow[rows][:, None]
        return albedo * (light * (1 - glow) + glow)

    def _surface(self, rows: np.ndarray, point: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """World normals (three arrays) and texture coordinates at the points."""
        table = self.table
        center = table.center.astype(np.float32)[rows]
        rotation = table.rotation.astype(np.float32).reshape(-1, 9)[rows]
        half = table.half_size.astype(np.float32)[rows]
        offset = [point[axis] - center[:, axis] for axis in range(3)]
        local = [sum(rotation[:, 3 * row + axis] * offset[row] for row in range(3)) for axis in range(3)]
        unit = [local[axis] / half[:, axis] for axis in range(3)]

        size_x, size_y, size_z = (np.abs(value) for value in unit)
        along_x = (size_x >= size_y) & (size_x >= size_z)
        along_z = ~along_x & (size_z > size_y)
        along = [along_x, ~along_x & ~along_z, along_z]
        normal = [np.where(along[axis], np.sign(unit[axis]), np.float32(0)) for axis in range(3)]
        curved = np.flatnonzero(table.shape[rows] != BOX)
        if len(curved):
            self._bend_normals(normal, unit, half, rows, curved)
        scale, shift = table.texture_scale[rows], table.texture_offset[rows]
        # The texture of a face follows the face's own two axes; on a wall it stands upright.
        texture_u = np.where(along_x, local[1] * scale[:, 1], local[0] * scale[:, 0]) + shift
        texture_v = np.where(along_z, local[1] * scale[:, 1], local[2] * scale[:, 2]) + shift
        world = [sum(rotation[:, 3 * row + axis] * normal[axis] for axis in range(3)) for row in range(3)]
        return world, texture_u, texture_v

    def _bend_normals(
        self, normal: list[np.ndarray], unit: list[np.ndarray], half: np.ndarray, rows: np.ndarray, curved: np.ndarray
    ) -> None:
        """Replace the normals of the cube by those of cylinders and ellipsoids, in place."""
        picked = rows[curved]
        x, y, z = (unit[axis][curved] for axis in range(3))
        radii = self.table.radii.astype(np.float32)[picked]
        cylinder = self.table.shape[picked] == CYLINDER
        # A point belongs to an end of a cylinder if it is closer to the end than to the side.
        radius = (radii[:, 0] + radii[:, 1]) / 2 + (radii[:, 1] - radii[:, 0]) / 2 * z
        end = cylinder & (1 - np.abs(z) < np.abs(radius - np.sqrt(x * x + y * y)))
        gradient = [x / half[curved, 0], y / half[curved, 1], np.where(cylinder, 0, z) / half[curved, 2]]
        length = np.sqrt(sum(value * value for value in gradient)) + np.float32(1e-9)
        flat = (np.float32(0), np.float32(0), np.sign(z))
        for axis in range(3):
            normal[axis][curved] = np.where(end, flat[axis], gradient[axis] / length)

    def _light(self, rows: np.ndarray, point: list[np.ndarray], normal: list[np.ndarray]) -> np.ndarray:
        """Light `(samples, 3)` at the points: ambient light, darker in corners, and two Lambertian lights."""
        lighting, size = self.lighting, self.room.size
        closed = np.ones_like(point[0])
        for axis in range(3):
            gap = np.maximum(np.minimum(point[axis], np.float32(size[axis]) - point[axis]), 0)
            # A wall darkens no surface that lies on it or is parallel to it.
            closed *= 1 - np.float32(0.32) * (1 - np.abs(normal[axis])) * np.exp(gap * np.float32(-1 / 0.22))
        on_floor = np.flatnonzero(rows == 0)
        cell_x, cell_y = (
            np.clip((point[axis][on_floor] * np.float32(1 / _SHADOW_CELL)).astype(np.int32), 0, limit - 1)
            for axis, limit in ((0, lighting.floor_ambient.shape[1]), (1, lighting.floor_ambient.shape[0]))
        )
        closed[on_floor] *= lighting.floor_ambient[cell_y, cell_x]
        # Level surfaces face the bright ceiling or the lit floor.
        ambient = closed * (np.float32(1.0) + np.float32(0.08) * np.abs(normal[2]))
        strengths = [ambient]
        for index in range(len(lighting.position)):
            towards = [np.float32(lighting.position[index, axis]) - point[axis] for axis in range(3)]
            square = sum(value * value for value in towards)
            lambert = sum(towards[axis] * normal[axis] for axis in range(3)) / np.sqrt(square)
            # Bounced light: the Lambertian term wraps around a little and falls off more slowly than in the open.
            strength = np.maximum(lambert * np.float32(0.75) + np.float32(0.25), 0) / (1 + square * np.float32(0.03))
            strength *= np.float32(0.5) + np.float32(0.5) * closed
            strength[on_floor] *= lighting.floor_light[index, cell_y, cell_x]
            strengths.append(strength)
        colors = (lighting.ambient, *lighting.color)
        light = [
            sum(strength * np.float32(color[channel]) for strength, color in zip(strengths, colors, strict=True))
            for channel in range(3)
        ]
        return np.stack(light, axis=-1)


def _build_shell(room: Room, rng: np.random.Generator) -> list[Solid]:
    """Floor, ceiling, walls, the notch of an L-shaped room, and skirting boards, in this order."""
    width, depth, height = room.size
    floor, wall, skirting = _draw_finishes(room, rng)
    ceiling = Material((0.95, 0.94, 0.92), (0.86, 0.85, 0.83), "plaster", 2.0)
    x, y, thick = width / 2, depth / 2, 0.3
    outer_width, outer_depth, outer_height = width + 2 * thick, depth + 2 * thick, height + 2 * thick
    solids = [
        box(x, y, -thick, outer_width, outer_depth, thick, floor),
        box(x, y, height, outer_width, outer_depth, thick, ceiling),
    ]
    for wall_x in (-thick / 2, width + thick / 2):
        solids.append(box(wall_x, y, -thick, thick, outer_depth, outer_height, wall))
    for wall_y in (-thick / 2, depth + thick / 2):
        solids.append(box(x, wall_y, -thick, outer_width, thick, outer_height, wall))
    if room.notch is not None:
        solids.append(box(*room.notch.center[:2], 0.0, *room.notch.size[:2], height, wall))
    for side in room.walls:
        middle = (side.start + side.end) / 2
        board = box(0, 0.0075, 0, side.length, 0.015, 0.09, skirting)
        solids.append(board.placed(np.array([*middle, 0.0]), side.yaw))
    return solids


def _draw_finishes(room: Room, rng: np.random.Generator) -> tuple[Material, Material, Material]:
    """Draw materials of floor, walls and skirting boards that suit the kind of room."""
    tiled = room.kind in ("kitchen", "bathroom")
    floor_kinds = ("tiles", "checker", "planks") if tiled else ("planks", "parquet", "carpet", "planks")
    floor_kind = str(rng.choice(floor_kinds))
    if floor_kind in ("planks", "parquet"):
        floor = wood(str(rng.choice(list(WOODS))), floor_kind, 1.2)
    elif floor_kind == "carpet":
        base = np.array(COLORS[str(rng.choice(["gray", "beige", "blue", "green", "red", "brown"]))])
        floor = Material(tuple(0.75 * base + 0.2), tuple(0.7 * base + 0.08), floor_kind, 0.7)
    else:
        tint = rng.uniform(0.72, 0.92) * np.array([1.0, rng.uniform(0.94, 1.0), rng.uniform(0.86, 1.0)])
        grout = 0.25 * tint if floor_kind == "checker" else 0.68 * tint
        floor = Material(tuple(tint), tuple(grout), floor_kind, 1.6)
    hues = ((0.93, 0.91, 0.86), (0.80, 0.87, 0.92), (0.93, 0.87, 0.74), (0.80, 0.89, 0.80), (0.93, 0.82, 0.78))
    hues += ((0.84, 0.82, 0.90), (0.75, 0.78, 0.80), (0.95, 0.94, 0.92))
    base = np.array(hues[int(rng.integers(len(hues)))])
    kinds = (
        ("tiles", "plaster") if room.kind == "bathroom" else ("plaster", "plaster", "wallpaper", "stripes", "bricks")
    )
    kind = str(rng.choice(kinds))
    contrast = {"plaster": 0.85, "wallpaper": 0.84, "stripes": 0.92, "bricks": 0.86, "tiles": 0.8}[kind]
    if kind == "bricks" and rng.random() < 0.5:
        wall = Material((0.74, 0.46, 0.36), (0.80, 0.76, 0.70), kind, 1.0)
    else:
        wall = Material(tuple(base), tuple(contrast * base), kind, {"tiles": 1.0, "wallpaper": 1.2}.get(kind, 1.0))
    skirting = paint("white") if rng.random() < 0.7 else Material(WOODS["walnut"][0])
    return floor, wall, skirting


def _draw_lighting(room: Room, table: SolidTable, rng: np.random.Generator) -> Lighting:
    """Draw a ceiling lamp, warm or neutral, and daylight from a window, and compute their shadows on the floor."""
    lamp = np.array([*(room.size[:2] * rng.uniform(0.4, 0.6, 2)), room.size[2] - 0.25])
    if room.notch is not None:
        lamp[:2] = room.size[:2] - room.notch.center[:2]
    windows = [item.box for item in room.wall_objects if item.category == "window"]
    daylight = lamp
    if windows:
        opening = windows[0]
        inward = 0.1 * np.array([-math.sin(opening.yaw), math.cos(opening.yaw), 0.0])
        daylight = opening.center + inward + [0, 0, 0.3]
    warmth, balance = rng.uniform(0.0, 1.0), rng.uniform(0.35, 0.65)
    lamp_color = np.array([1.0, 1.0 - 0.1 * warmth, 1.0 - 0.28 * warmth]) * balance * rng.uniform(0.75, 1.0)
    day_color = np.array([0.92, 0.97, 1.0]) * (1 - balance) * rng.uniform(0.75, 1.0)
    ambient = np.array([1.0, 0.99, 0.97]) * rng.uniform(0.44, 0.54)
    furniture = table.take((table.instance > 0) & (table.instance <= len(room.pieces)))
    floor_light = []
    for position, spread in ((lamp, 0.12), (daylight, 0.2)):
        offsets = spread * np.array([[-1, -1, 0], [1, -1, 0], [-1, 1, 0], [1, 1, 0]])
        lit = sum(_lit_floor(room, furniture, position + offset) for offset in offsets) / len(offsets)
        floor_light.append(0.25 + 0.75 * _blur(lit, 2))
    low = furniture.take(furniture.center[:, 2] - furniture.half_size[:, 2] < 0.6)
    uncovered = _lit_floor(room, low, np.array([*(room.size[:2] / 2), 400.0]))
    floor_ambient = 0.5 + 0.5 * _blur(_blur(uncovered, 3), 3)
    return Lighting(
        position=np.stack([lamp, daylight]),
        color=np.stack([lamp_color, day_color]),
        ambient=ambient,
        floor_light=np.stack(floor_light).astype(np.float32),
        floor_ambient=floor_ambient.astype(np.float32),
    )


def _lit_floor(room: Room, blockers: SolidTable, light: np.ndarray) -> np.ndarray:
    """1 for cells of the floor that a light reaches and 0 where a blocker stands between: `(rows, columns)`.

    The floor's grid is the image plane of a camera at the light, so `t = 1` on the floor.
    """
    columns, rows = np.ceil(room.size[:2] / _SHADOW_CELL).astype(int)
    x, y = (np.arange(columns) + 0.5) * _SHADOW_CELL, (np.arange(rows) + 0.5) * _SHADOW_CELL
    basis = np.array([[1.0, 0.0, -light[0]], [0.0, 1.0, -light[1]], [0.0, 0.0, -light[2]]])
    return (cast_rays(blockers, light, basis, x, y)[1] < 0).astype(np.float64)


def _blur(image: np.ndarray, radius: int) -> np.ndarray:
    """Mean over a square window; edges are repeated."""
    for axis in range(2):
        padded = np.pad(image, [(radius, radius) if other == axis else (0, 0) for other in range(2)], mode="edge")
        length = image.shape[axis]
        image = sum(np.take(padded, np.arange(i, i + length), axis=axis) for i in range(2 * radius + 1))
        image = image / (2 * radius + 1)
    return image
