"""The bricks of the procedural rooms: boxes, cylinders and ellipsoids with a material, and groups of them.

Lengths are meters. A piece of furniture is described in its own frame: the origin lies at the center of its underside,
x points to its left when seen from the front, y to its front, z up.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

# Names are what a person would say; values are RGB in [0, 1].
COLORS = {
    "white": (0.93, 0.92, 0.90),
    "gray": (0.55, 0.56, 0.58),
    "black": (0.11, 0.11, 0.12),
    "brown": (0.45, 0.29, 0.17),
    "beige": (0.82, 0.73, 0.58),
    "red": (0.74, 0.16, 0.15),
    "orange": (0.90, 0.48, 0.14),
    "yellow": (0.92, 0.77, 0.22),
    "green": (0.25, 0.50, 0.27),
    "teal": (0.13, 0.52, 0.53),
    "blue": (0.18, 0.34, 0.66),
    "purple": (0.45, 0.28, 0.56),
    "pink": (0.89, 0.56, 0.62),
}
WOODS = {
    "oak": ((0.80, 0.62, 0.41), (0.62, 0.44, 0.26)),
    "walnut": ((0.47, 0.31, 0.20), (0.30, 0.18, 0.11)),
    "pine": ((0.90, 0.75, 0.52), (0.76, 0.58, 0.36)),
    "cherry": ((0.60, 0.30, 0.18), (0.43, 0.19, 0.11)),
    "ash": ((0.78, 0.73, 0.65), (0.62, 0.56, 0.48)),
}


@dataclass(frozen=True)
class Material:
    """How a surface looks: a texture in [0, 1] that blends two colors.

    Args:
        color (`tuple[float, float, float]`): RGB in [0, 1] where the texture is 1.
        second_color (`tuple[float, float, float]`, *optional*): RGB where the texture is 0; by default 55 % of
            `color`.
        texture (`str`): A name of `room_textures.TEXTURES`.
        period (`float`): Meters that one repeat of the texture covers; 0 stretches one repeat over each face.
        glow (`float`): Share of the color that is emitted whatever the light, in [0, 1].
    """

    color: tuple[float, float, float]
    second_color: tuple[float, float, float] | None = None
    texture: str = "plain"
    period: float = 1.0
    glow: float = 0.0

    @property
    def dark_color(self) -> tuple[float, float, float]:
        """RGB where the texture is 0."""
        return self.second_color or tuple(0.55 * channel for channel in self.color)


@dataclass(frozen=True)
class Solid:
    """A box, cylinder or ellipsoid that fills an oriented box.

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
        """The same solid in the frame where its parent's origin is `position` and its parent is turned by `yaw`."""
        turn = yaw_rotation(yaw)
        center = (turn * self.center).sum(axis=1) + position
        return replace(self, center=center, rotation=turn @ self.rotation)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of the parent's axis-aligned box around the solid's own oriented box."""
        half = (np.abs(self.rotation) * self.size / 2).sum(axis=1)
        return self.center - half, self.center + half


@dataclass(frozen=True)
class Furniture:
    """A piece of furniture in its own frame: the underside of its box is centered at the origin.

    Args:
        category (`str`): What a person would call it.
        color_name (`str`): Its dominant color or wood, in a word.
        size (`np.ndarray` of shape `(3,)`): Width (x), depth (y) and height (z) of the tight box around all solids.
        support_size (`tuple[float, float]`, *optional*): Width and depth of its top surface where things may stand.
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


# Columns are the solid's axes in its parent: a cylinder "along y" has its own z on the parent's y.
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
    """A cylinder along `axis`; `bottom` is the height of its lowest point, `depth` an ellipse's second diameter."""
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
    """Move `solids` so that the underside of their common box is centered at the origin."""
    bounds = np.array([solid.bounds() for solid in solids])  # (number of solids, 2, 3)
    low, high = bounds[:, 0].min(axis=0), bounds[:, 1].max(axis=0)
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    moved = tuple(replace(solid, center=solid.center - origin) for solid in solids)
    return Furniture(category, color_name, moved, high - low, support_size)
