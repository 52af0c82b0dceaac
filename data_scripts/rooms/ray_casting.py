"""A vectorized ray caster for boxes, cylinders and ellipsoids.

Along a ray `origin + t * direction`, the inverse distance `w = 1 / t` at which the ray meets a plane is an affine
function of the pixel; for a cylinder or ellipsoid it is the root of a quadratic. A ray hits a convex solid if its
farthest entry lies before its nearest exit, that is if `min(entry w) > max(exit w)`. So each solid costs a few sums
over the rectangle of pixels that it can cover, and a buffer of the largest `w` resolves visibility. Directions have
camera z = 1, so `t` is the depth.
"""

from dataclasses import dataclass, fields

import numpy as np

from .solids import Solid
from .textures import TEXTURES

BOX, CYLINDER, ELLIPSOID = range(3)
_SHAPES = {"box": BOX, "cylinder": CYLINDER, "ellipsoid": ELLIPSOID}
_NEAR = 0.001


@dataclass(frozen=True)
class SolidTable:
    """Solids as arrays, one row each. Dividing by `half_size` turns a solid into a unit cube, cylinder or sphere."""

    shape: np.ndarray  # (P,) BOX, CYLINDER or ELLIPSOID
    center: np.ndarray  # (P, 3) meters, world
    half_size: np.ndarray  # (P, 3) meters, along the solid's own axes
    rotation: np.ndarray  # (P, 3, 3) world_from_solid
    radii: np.ndarray  # (P, 2) a cylinder's radii at bottom and top; the wider one is 1
    color: np.ndarray  # (P, 3) where the texture is 1
    dark_color: np.ndarray  # (P, 3) where the texture is 0
    texture: np.ndarray  # (P,) index into TEXTURES
    texture_scale: np.ndarray  # (P, 3) repeats per meter along the solid's own axes
    texture_offset: np.ndarray  # (P,) repeats
    glow: np.ndarray  # (P,)
    instance: np.ndarray  # (P,) instance id; 0 for floor, ceiling and walls

    @classmethod
    def build(cls, solids: list[tuple[int, Solid]]) -> "SolidTable":
        """Build a table from pairs of instance id and solid in the world frame."""
        parts = [solid for _, solid in solids]
        materials = [solid.material for solid in parts]
        half_size = np.array([solid.size for solid in parts]) / 2
        taper = np.array([solid.taper for solid in parts])
        period = np.array([material.period for material in materials])[:, None]
        stretched = period == 0
        return cls(
            shape=np.array([_SHAPES[solid.shape] for solid in parts]),
            center=np.array([solid.center for solid in parts]),
            half_size=half_size,
            rotation=np.array([solid.rotation for solid in parts]),
            radii=np.stack([1 / np.maximum(taper, 1), np.minimum(taper, 1)], axis=-1),
            color=np.array([material.color for material in materials], np.float32),
            dark_color=np.array([material.dark_color for material in materials], np.float32),
            texture=np.array([TEXTURES.index(material.texture) for material in materials], np.int32),
            texture_scale=np.where(stretched, 0.5 / half_size, 1 / np.where(stretched, 1, period)).astype(np.float32),
            texture_offset=np.where(stretched[:, 0], 0.5, 0.0).astype(np.float32),
            glow=np.array([material.glow for material in materials], np.float32),
            instance=np.array([instance for instance, _ in solids]),
        )

    def take(self, rows: np.ndarray) -> "SolidTable":
        """The table of some of the solids."""
        return SolidTable(*(getattr(self, field.name)[rows] for field in fields(self)))


def cast_rays(
    table: SolidTable, origin: np.ndarray, basis: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the first hit of each ray `origin + t * basis @ (u, v, 1)`.

    Args:
        table (`SolidTable`): The solids.
        origin (`np.ndarray` of shape `(3,)`): Start of all rays, outside every solid.
        basis (`np.ndarray` of shape `(3, 3)`): `world_from_camera`, applied to (u, v, 1).
        u (`np.ndarray` of shape `(width,)`), v (`np.ndarray` of shape `(height,)`): Ascending and evenly spaced.

    Returns:
        `(np.ndarray, np.ndarray)` of shape `(height, width)`: `1 / t` as float32, 0 where a ray hits nothing, and the
        row of `table` that it hits, -1 for none.
    """
    inverse = np.zeros((len(v), len(u)), np.float32)
    hit_rows = np.full((len(v), len(u)), -1, np.int32)
    # In its own scaled frame, each solid fills the cube [-1, 1]^3; a ray starts at `start` and has the direction
    # `slope @ (u, v, 1)`.
    start = (table.rotation * (origin - table.center)[:, :, None]).sum(axis=1) / table.half_size  # (P, 3)
    slope = (table.rotation[:, :, :, None] * basis[None, :, None, :]).sum(axis=1)  # (P, 3, 3)
    slope = slope / table.half_size[:, :, None]
    rectangles = _covered_rectangles(table, origin, basis, u, v)
    u, v = u.astype(np.float32)[None, :], v.astype(np.float32)[:, None]
    start, slope = start.astype(np.float32), slope.astype(np.float32)
    for i in np.flatnonzero((rectangles[:, 0] < rectangles[:, 1]) & (rectangles[:, 2] < rectangles[:, 3])):
        left, right, top, bottom = rectangles[i]
        window = (slice(top, bottom), slice(left, right))
        ray = (start[i], slope[i], u[:, left:right], v[top:bottom])
        if table.shape[i] == BOX:
            entry, exit = _slab_interval(*ray, num_axes=3)
        elif table.shape[i] == ELLIPSOID:
            entry, exit = _quadric_interval(*ray, radii=None)
        else:
            (entry, exit), (side_entry, side_exit) = _slab_interval(*ray, 1), _quadric_interval(*ray, table.radii[i])
            entry, exit = np.minimum(entry, side_entry), np.maximum(exit, side_exit)
        visible = (entry > exit) & (entry > inverse[window])
        np.copyto(inverse[window], entry, where=visible)
        np.copyto(hit_rows[window], i, where=visible)
    return inverse, hit_rows


def _covered_rectangles(
    table: SolidTable, origin: np.ndarray, basis: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Pixel rectangles (left, right, top, bottom) around the solids' boxes, `(P, 4)`; empty where out of view."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    reach = signs[None] * table.half_size[:, None]  # (P, 8, 3)
    corners = (table.rotation[:, None] * reach[:, :, None, :]).sum(axis=-1) + table.center[:, None]
    image = (np.linalg.inv(basis)[None, None] * (corners - origin)[:, :, None, :]).sum(axis=-1)
    in_front = image[..., 2] > _NEAR
    depth = np.where(in_front, image[..., 2], 1.0)
    columns = (image[..., 0] / depth - u[0]) / (u[1] - u[0])
    rows = (image[..., 1] / depth - v[0]) / (v[1] - v[0])
    partly = (in_front.any(axis=1) & ~in_front.all(axis=1))[:, None]
    low = np.stack([columns.min(axis=1), rows.min(axis=1)], axis=-1)
    high = np.stack([columns.max(axis=1), rows.max(axis=1)], axis=-1)
    size = np.array([len(u), len(v)])
    low = np.where(partly, 0, np.clip(np.floor(low), 0, size)).astype(int)
    high = np.where(partly, size, np.clip(np.ceil(high) + 1, 0, size)).astype(int)
    high = np.where(in_front.any(axis=1)[:, None], high, 0)
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=-1)


def _slab_interval(
    start: np.ndarray, slope: np.ndarray, u: np.ndarray, v: np.ndarray, num_axes: int
) -> tuple[np.ndarray | np.float32, np.ndarray]:
    """Inverse distances of entry and exit for the unit cube (`num_axes` 3), or for its z slab only (1)."""
    entry, exit = np.float32(np.inf), None
    for axis in range(3 - num_axes, 3):
        a, b, c = slope[axis]
        position = float(start[axis])
        for side in (-1.0, 1.0):
            gap = side - position
            if abs(gap) < 1e-6:
                gap = 1e-6 if side > 0 else -1e-6
            scale = np.float32(1.0 / gap)
            plane = (a * scale * u) + (b * v + c) * scale
            if gap * side < 0:  # the ray starts on the outer side of this face
                entry = np.minimum(entry, plane)
            elif exit is None:
                exit = plane
            else:
                np.maximum(exit, plane, out=exit)
    return entry, exit


def _quadric_interval(
    start: np.ndarray, slope: np.ndarray, u: np.ndarray, v: np.ndarray, radii: np.ndarray | None
) -> tuple[np.ndarray | np.float32, np.ndarray]:
    """Inverse distances of entry and exit for the unit sphere (no `radii`), or for the endless side of a cylinder.

    The cylinder has the `radii` at z = -1 and 1.
    """
    x, y, z = (slope[axis, 0] * u + (slope[axis, 1] * v + slope[axis, 2]) for axis in range(3))
    ox, oy, oz = (float(value) for value in start)
    if radii is None:
        constant = ox * ox + oy * oy + oz * oz - 1
        linear = np.float32(ox) * x + np.float32(oy) * y + np.float32(oz) * z
        quadratic = x * x + y * y + z * z
    else:
        growth = float(radii[1] - radii[0]) / 2
        radius = float(radii[0] + radii[1]) / 2 + growth * oz
        constant = ox * ox + oy * oy - radius * radius
        linear = np.float32(ox) * x + np.float32(oy) * y - np.float32(growth * radius) * z
        quadratic = x * x + y * y
        if growth:
            quadratic -= np.float32(growth * growth) * z * z
    if abs(constant) < 1e-6:
        constant = 1e-6
    discriminant = linear * linear - np.float32(constant) * quadratic
    root = np.sqrt(np.maximum(discriminant, 0))
    scale = np.float32(1 / constant)
    exit = (-linear - root) * scale
    if constant < 0:  # the rays start inside, so they only exit
        return np.float32(np.inf), exit
    entry = (root - linear) * scale
    return np.where(discriminant > 0, entry, np.float32(-1)), exit
