"""Boxes, cylinders and ellipsoids with a material, and pieces of furniture made of them.

Lengths are meters. Each piece of furniture has its own frame: the origin is the center of its underside, y points to
its front, z up, and x to the right of someone who stands behind the piece.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from .materials import Material


@dataclass(frozen=True)
class Solid:
    """A box, or the cylinder or ellipsoid inscribed in it.

    Args:
        shape (`str`): `"box"`, `"cylinder"` (elliptical, around its own z) or `"ellipsoid"`.
        center (`np.ndarray` of shape `(3,)`): Center in the parent's frame.
        size (`np.ndarray` of shape `(3,)`): Full extents along the solid's own axes.
        rotation (`np.ndarray` of shape `(3, 3)`): `parent_from_solid`; its columns are the solid's axes.
        taper (`float`): Radius of a cylinder's top over that of its bottom; `size` holds the wider one.
    """

    shape: str
    center: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    material: Material
    taper: float = 1.0

    def placed(self, position: np.ndarray, yaw: float) -> "Solid":
        """Move to the frame in which the parent's origin is `position` and the parent is turned by `yaw`."""
        turn = yaw_rotation(yaw)
        center = (turn * self.center).sum(axis=1) + position
        return replace(self, center=center, rotation=turn @ self.rotation)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner, along the parent's axes, of a box around the solid's oriented box."""
        half = (np.abs(self.rotation) * self.size / 2).sum(axis=1)
        return self.center - half, self.center + half


@dataclass(frozen=True)
class Furniture:
    """A piece of furniture in its own frame.

    Args:
        category (`str`): Its everyday name.
        color_name (`str`): Its main color or wood.
        size (`np.ndarray` of shape `(3,)`): Width (x), depth (y) and height (z) of the box around all solids.
        support_size (`tuple[float, float]`, *optional*): Width and depth of the top on which other pieces may stand.
            `None` if none may.
    """

    category: str
    color_name: str
    solids: tuple[Solid, ...]
    size: np.ndarray
    support_size: tuple[float, float] | None = None


def yaw_rotation(yaw: float) -> np.ndarray:
    """Rotation by `yaw` radians about z: `parent_from_piece`."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


# `parent_from_solid` for a cylinder along each of the parent's axes; the solid's own z is the cylinder's axis.
_AXES = {
    "x": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
    "z": np.eye(3),
}


def box(x: float, y: float, bottom: float, width: float, depth: float, height: float, material: Material) -> Solid:
    """An upright box; `(x, y)` is its center, `bottom` the height of its underside."""
    center = np.array([x, y, bottom + height / 2])
    return Solid("box", center, np.array([width, depth, height]), np.eye(3), material)


def cylinder(
    x: float,
    y: float,
    bottom: float,
    diameter: float,
    length: float,
    material: Material,
    taper: float = 1.0,
    axis: str = "z",
    depth: float | None = None,
) -> Solid:
    """A cylinder along `axis`; `bottom` is the height of its lowest point, `depth` an optional second diameter."""
    height = length if axis == "z" else diameter
    size = np.array([diameter, depth or diameter, length])
    return Solid("cylinder", np.array([x, y, bottom + height / 2]), size, _AXES[axis], material, taper)


def ellipsoid(
    x: float, y: float, bottom: float, width: float, depth: float, height: float, material: Material
) -> Solid:
    """An upright ellipsoid; `bottom` is the height of its lowest point."""
    center = np.array([x, y, bottom + height / 2])
    return Solid("ellipsoid", center, np.array([width, depth, height]), np.eye(3), material)


def assemble(
    category: str, color_name: str, solids: list[Solid], support_size: tuple[float, float] | None = None
) -> Furniture:
    """Build a piece of furniture, and move its solids so that its underside is centered at the origin."""
    bounds = np.array([solid.bounds() for solid in solids])  # (number of solids, 2, 3)
    low, high = bounds[:, 0].min(axis=0), bounds[:, 1].max(axis=0)
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    moved = tuple(replace(solid, center=solid.center - origin) for solid in solids)
    return Furniture(category, color_name, moved, high - low, support_size)
