"""Colors and materials of the procedural rooms."""

from dataclasses import dataclass

# Everyday color names; values are RGB in [0, 1].
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
# The light and the dark color of each wood.
WOODS = {
    "oak": ((0.80, 0.62, 0.41), (0.62, 0.44, 0.26)),
    "walnut": ((0.47, 0.31, 0.20), (0.30, 0.18, 0.11)),
    "pine": ((0.90, 0.75, 0.52), (0.76, 0.58, 0.36)),
    "cherry": ((0.60, 0.30, 0.18), (0.43, 0.19, 0.11)),
    "ash": ((0.78, 0.73, 0.65), (0.62, 0.56, 0.48)),
}


@dataclass(frozen=True)
class Material:
    """The appearance of a surface: a texture in [0, 1] that blends two colors.

    Args:
        color (`tuple[float, float, float]`): RGB in [0, 1] where the texture is 1.
        second_color (`tuple[float, float, float]`, *optional*): RGB where the texture is 0. Default: 55 % of `color`.
        texture (`str`): One of `textures.TEXTURES`.
        period (`float`): Meters that one repeat of the texture covers; 0 stretches one repeat over each face.
        glow (`float`): Share of the color that is emitted regardless of the light, in [0, 1].
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


METAL = Material((0.74, 0.75, 0.77))
DARK_METAL = Material((0.22, 0.22, 0.24))
BLACK = Material((0.06, 0.06, 0.07))
PORCELAIN = Material((0.96, 0.96, 0.95))
SCREEN = Material((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "screen", period=0.0, glow=0.85)
BOOKS = Material((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "books", period=0.0)


def wood(name: str, texture: str = "wood", period: float = 0.8) -> Material:
    return Material(*WOODS[name], texture, period)


def paint(color: str) -> Material:
    return Material(COLORS[color])


def fabric(color: str) -> Material:
    return Material(COLORS[color], None, "fabric", period=0.25)
