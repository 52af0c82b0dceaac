"""Furniture of the procedural rooms: each `build_*` function draws the sizes and colors of one piece and builds it.

A builder takes the scene's random generator and `Style` and returns a `Furniture` in its own frame (see `solids`).
Sizes range as widely as those of real pieces do, so that the name of a piece gives away little about its size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .materials import BLACK, BOOKS, COLORS, DARK_METAL, METAL, PORCELAIN, SCREEN, WOODS, Material, fabric, paint, wood
from .solids import Furniture, Solid, assemble, box, cylinder, ellipsoid

FABRIC_COLORS = ("gray", "beige", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown")


@dataclass(frozen=True)
class Style:
    """The woods that a room's furniture shares: one for cabinets, one for chairs, tables and beds."""

    case_wood: str
    frame_wood: str


def draw_style(rng: Generator) -> Style:
    return Style(case_wood=_choose(rng, tuple(WOODS)), frame_wood=_choose(rng, tuple(WOODS)))


def _choose(rng: Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _between(rng: Generator, low: float, high: float) -> float:
    """A length drawn in whole centimeters."""
    return round(float(rng.uniform(low, high)), 2)


def _case_material(rng: Generator, style: Style) -> tuple[str, Material]:
    """Color name and material of a cabinet: painted white, or in the room's wood."""
    if rng.random() < 0.3:
        return "white", paint("white")
    return style.case_wood, wood(style.case_wood)


def _legs(width: float, depth: float, height: float, thickness: float, material: Material) -> list[Solid]:
    x, y = (width - thickness) / 2, (depth - thickness) / 2
    return [box(sx * x, sy * y, 0.0, thickness, thickness, height, material) for sx in (-1, 1) for sy in (-1, 1)]


def _fronts(
    width: float, front: float, bottom: float, height: float, columns: int, rows: int, material: Material, x: float = 0
) -> list[Solid]:
    """Doors (one row, with upright bars) or drawers (with round knobs), as raised panels on the face `y = front`."""
    panel_width, panel_height = width / columns, height / rows
    solids = []
    for column in range(columns):
        for row in range(rows):
            panel_x = x - width / 2 + (column + 0.5) * panel_width
            z = bottom + row * panel_height
            size = (panel_width - 0.02, 0.016, panel_height - 0.02)
            solids.append(box(panel_x, front + 0.008, z + 0.01, *size, material))
            if rows == 1:
                bar_x = panel_x + (0.5 * panel_width - 0.06) * (1 if column % 2 == 0 else -1)
                bar_height = min(0.3, 0.4 * panel_height)
                bar_z = z + (panel_height - bar_height) / 2
                solids.append(box(bar_x, front + 0.03, bar_z, 0.02, 0.028, bar_height, DARK_METAL))
            else:
                knob_z = z + panel_height / 2 - 0.02
                solids.append(ellipsoid(panel_x, front + 0.03, knob_z, 0.04, 0.04, 0.04, DARK_METAL))
    return solids


def build_bed(rng: Generator, style: Style) -> Furniture:
    width, length = _between(rng, 0.75, 1.9), _between(rng, 1.4, 2.2)
    color = _choose(rng, FABRIC_COLORS)
    frame, cover, linen = wood(style.frame_wood), fabric(color), fabric("white")
    back = -length / 2
    solids = [
        box(0, 0, 0.08, width, length, 0.22, frame),
        box(0, back - 0.03, 0.0, width + 0.06, 0.06, _between(rng, 0.9, 1.15), frame),
        box(0, length / 2 + 0.02, 0.0, width + 0.06, 0.04, 0.42, frame),
        box(0, 0.0, 0.3, width - 0.04, length - 0.02, 0.2, linen),
        box(0, 0.25, 0.32, width + 0.02, length - 0.52, 0.22, cover),
        box(0, back + 0.6, 0.5, width + 0.0, 0.22, 0.055, linen),
    ]
    pillows = 2 if width > 1.3 else 1
    for i in range(pillows):
        x = (i - (pillows - 1) / 2) * width / 2
        solids.append(ellipsoid(x, back + 0.3, 0.46, 0.62 if pillows == 1 else width / 2 - 0.08, 0.42, 0.2, linen))
    return assemble("bed", color, solids)


def _upholstered(category: str, width: float, seats: int, rng: Generator) -> Furniture:
    depth, color = _between(rng, 0.82, 0.95), _choose(rng, FABRIC_COLORS)
    cloth = fabric(color)
    cushion = Material(tuple(min(1.0, 1.12 * c) for c in COLORS[color]), COLORS[color], "fabric", period=0.25)
    back_height, inner = _between(rng, 0.78, 0.92), width - 0.36
    solids = _legs(width - 0.1, depth - 0.1, 0.1, 0.06, BLACK)
    solids += [
        box(0, 0, 0.1, width, depth, 0.2, cloth),
        box(0, -depth / 2 + 0.12, 0.3, width, 0.24, back_height - 0.3, cloth),
    ]
    for side in (-1, 1):
        x = side * (width / 2 - 0.09)
        solids.append(box(x, 0.01, 0.3, 0.18, depth, 0.24, cloth))
        solids.append(cylinder(x, 0.01, 0.45, 0.18, depth, cloth, axis="y"))
    for i in range(seats):
        x = (i - (seats - 1) / 2) * inner / seats
        solids.append(box(x, 0.11, 0.3, inner / seats - 0.015, depth - 0.26, 0.15, cushion))
        solids.append(box(x, -depth / 2 + 0.29, 0.45, inner / seats - 0.015, 0.12, back_height - 0.47, cushion))
    return assemble(category, color, solids)


def build_sofa(rng: Generator, style: Style) -> Furniture:
    width = _between(rng, 1.25, 3.0)
    return _upholstered("sofa", width, max(2, round(width / 0.75)), rng)


def build_armchair(rng: Generator, style: Style) -> Furniture:
    return _upholstered("armchair", _between(rng, 0.75, 1.15), 1, rng)


def build_chair(rng: Generator, style: Style) -> Furniture:
    # From chairs of children to those with a high back.
    seat_height, back_height = _between(rng, 0.3, 0.5), _between(rng, 0.36, 0.65)
    width = round(0.24 + 0.44 * seat_height, 2)
    if rng.random() < 0.5:
        color, frame = style.frame_wood, wood(style.frame_wood)
    else:
        color = _choose(rng, ("white", "black", "red", "blue", "green", "yellow"))
        frame = paint(color)
    solids = _legs(width - 0.02, width - 0.02, seat_height - 0.03, 0.04, frame)
    solids.append(box(0, 0, seat_height - 0.03, width, width, 0.04, frame))
    back = 0.02 - width / 2
    for side in (-1, 1):
        solids.append(box(side * -back, back, seat_height, 0.04, 0.04, back_height, frame))
    top = seat_height + back_height
    if rng.random() < 0.5:
        solids.append(box(0, back, top - 0.3, width - 0.06, 0.025, 0.28, frame))
    else:
        for i in range(3):
            solids.append(box(0, back, top - 0.08 - 0.13 * i, width - 0.06, 0.025, 0.07, frame))
    return assemble("chair", color, solids)


def build_stool(rng: Generator, style: Style) -> Furniture:
    height, width, color = _between(rng, 0.28, 0.85), _between(rng, 0.28, 0.42), _choose(rng, FABRIC_COLORS)
    frame = wood(style.frame_wood)
    solids = _legs(0.8 * width, 0.8 * width, height - 0.05, 0.035, frame)
    solids.append(box(0, 0, 0.36 * height, 0.8 * width, 0.025, 0.03, frame))
    solids.append(cylinder(0, 0, height - 0.06, width, 0.06, fabric(color)))
    return assemble("stool", color, solids)


def build_table(rng: Generator, style: Style) -> Furniture:
    frame, height = wood(style.frame_wood), _between(rng, 0.72, 0.77)
    if rng.random() < 0.35:
        diameter = _between(rng, 0.65, 1.5)
        solids = [
            cylinder(0, 0, 0, round(0.48 * diameter, 2), 0.04, frame),
            cylinder(0, 0, 0.04, 0.12, height - 0.08, frame),
            cylinder(0, 0, height - 0.04, diameter, 0.04, frame),
        ]
        return assemble("table", style.frame_wood, solids, (0.6 * diameter, 0.6 * diameter))
    width, depth = _between(rng, 0.75, 2.4), _between(rng, 0.65, 1.0)
    solids = _legs(width - 0.06, depth - 0.06, height - 0.04, 0.07, frame)
    solids.append(box(0, 0, height - 0.12, width - 0.16, depth - 0.16, 0.08, frame))
    solids.append(box(0, 0, height - 0.04, width, depth, 0.04, frame))
    return assemble("table", style.frame_wood, solids, (width - 0.1, depth - 0.1))


def build_coffee_table(rng: Generator, style: Style) -> Furniture:
    width, depth, height = _between(rng, 0.5, 1.5), _between(rng, 0.42, 0.7), _between(rng, 0.32, 0.48)
    frame = wood(style.frame_wood)
    solids = _legs(width - 0.04, depth - 0.04, height - 0.04, 0.05, frame)
    solids.append(box(0, 0, 0.12, width - 0.1, depth - 0.1, 0.025, frame))
    solids.append(box(0, 0, height - 0.04, width, depth, 0.04, frame))
    return assemble("coffee table", style.frame_wood, solids, (width - 0.1, depth - 0.1))


def build_desk(rng: Generator, style: Style) -> Furniture:
    width, depth, height = _between(rng, 0.85, 2.1), _between(rng, 0.55, 0.8), 0.74
    color, case = _case_material(rng, style)
    front = depth / 2 - 0.03
    solids = [
        box(0, 0, height - 0.035, width, depth, 0.035, case),
        box(-width / 2 + 0.22, 0, 0.02, 0.4, depth - 0.06, height - 0.06, case),
        box(width / 2 - 0.04, 0, 0.0, 0.04, depth - 0.04, height - 0.035, case),
        box(0, -depth / 2 + 0.05, height - 0.35, width - 0.1, 0.02, 0.3, case),
    ]
    solids += _fronts(0.4, front, 0.03, height - 0.08, 1, 3, case, x=-width / 2 + 0.22)
    return assemble("desk", color, solids, (width - 0.1, depth - 0.06))


def build_nightstand(rng: Generator, style: Style) -> Furniture:
    width, depth, height = _between(rng, 0.32, 0.62), 0.4, _between(rng, 0.38, 0.72)
    color, case = _case_material(rng, style)
    solids = _legs(width - 0.02, depth - 0.02, 0.1, 0.04, case)
    solids.append(box(0, 0, 0.1, width, depth, height - 0.1, case))
    solids += _fronts(width - 0.02, depth / 2, 0.11, height - 0.13, 1, 2, case)
    return assemble("nightstand", color, solids, (width - 0.04, depth - 0.04))


def build_wardrobe(rng: Generator, style: Style) -> Furniture:
    doors = int(rng.integers(1, 5))
    width, depth, height = doors * _between(rng, 0.42, 0.62), 0.58, _between(rng, 1.3, 2.25)
    color, case = _case_material(rng, style)
    solids = [
        box(0, 0, 0.0, width - 0.04, depth - 0.04, 0.08, DARK_METAL),
        box(0, 0, 0.08, width, depth, height - 0.08, case),
    ]
    solids += _fronts(width - 0.02, depth / 2, 0.1, height - 0.14, doors, 1, case)
    return assemble("wardrobe", color, solids)


def build_cabinet(rng: Generator, style: Style) -> Furniture:
    doors = int(rng.integers(2, 5))
    width, depth, height = doors * _between(rng, 0.3, 0.6), 0.42, _between(rng, 0.5, 1.0)
    color, case = _case_material(rng, style)
    solids = _legs(width - 0.04, depth - 0.04, 0.12, 0.05, DARK_METAL)
    solids.append(box(0, 0, 0.12, width, depth, height - 0.12, case))
    rows = 1 if rng.random() < 0.5 else 3
    solids += _fronts(width - 0.02, depth / 2, 0.13, height - 0.16, doors, rows, case)
    return assemble("cabinet", color, solids, (width - 0.04, depth - 0.04))


def build_bookshelf(rng: Generator, style: Style) -> Furniture:
    width, depth, height = _between(rng, 0.5, 1.4), 0.3, _between(rng, 0.8, 2.2)
    color, case = _case_material(rng, style)
    solids = [box(0, -depth / 2 + 0.01, 0, width, 0.02, height, case)]
    solids += [box(side * (width / 2 - 0.0125), 0, 0, 0.025, depth, height, case) for side in (-1, 1)]
    shelves = int(height / 0.36)
    gap = (height - 0.08) / shelves
    for i in range(shelves + 1):
        solids.append(box(0, 0, 0.05 + i * gap, width - 0.04, depth, 0.025, case))
    for i in range(shelves):
        filled = _between(rng, 0.45, 1.0) * (width - 0.06)
        side = 1 if rng.random() < 0.5 else -1
        x = side * (width - 0.06 - filled) / 2
        solids.append(box(x, -0.02, 0.075 + i * gap, filled, depth - 0.08, gap * _between(rng, 0.65, 0.85), BOOKS))
    return assemble("bookshelf", color, solids)


def _lamp_shade(rng: Generator) -> tuple[str, Material]:
    color = _choose(rng, ("white", "beige", "yellow", "orange", "red", "teal"))
    bright = tuple(0.5 * channel + 0.5 for channel in COLORS[color])
    return color, Material(bright, None, "plain", glow=0.75)


def build_floor_lamp(rng: Generator, style: Style) -> Furniture:
    height, width = _between(rng, 1.1, 2.0), _between(rng, 0.32, 0.52)
    color, shade = _lamp_shade(rng)
    solids = [
        cylinder(0, 0, 0, 0.3, 0.03, DARK_METAL),
        cylinder(0, 0, 0.03, 0.035, height - 0.3, DARK_METAL),
        cylinder(0, 0, height - 0.3, width, 0.3, shade, taper=0.65),
    ]
    return assemble("lamp", color, solids)


def build_table_lamp(rng: Generator, style: Style) -> Furniture:
    height, width = _between(rng, 0.3, 0.7), _between(rng, 0.2, 0.3)
    shade_height = round(0.48 * height, 2)
    color, shade = _lamp_shade(rng)
    base = paint(_choose(rng, ("black", "white", "blue", "brown")))
    solids = [
        cylinder(0, 0, 0, 0.14, 0.02, base),
        ellipsoid(0, 0, 0.02, 0.12, 0.12, height - shade_height, base),
        cylinder(0, 0, height - shade_height, width, shade_height, shade, taper=0.6),
    ]
    return assemble("lamp", color, solids)


def build_plant(rng: Generator, style: Style) -> Furniture:
    height = _between(rng, 0.4, 2.0)
    scale = float(np.clip(height / 1.1, 0.5, 1.2))
    pot, pot_height, leaf_size = _between(rng, 0.28, 0.38) * scale, 0.28 * scale, 0.28 * scale
    color = _choose(rng, ("white", "orange", "brown", "gray", "black"))
    leaf = Material((0.30, 0.55, 0.22), (0.12, 0.30, 0.10), "leaves", period=0.5)
    solids = [
        cylinder(0, 0, 0, pot, pot_height, paint(color), taper=1.3),
        cylinder(0, 0, pot_height - 0.005, 0.86 * pot, 0.01, Material((0.2, 0.13, 0.08))),
        cylinder(0, 0, pot_height, 0.04, height - pot_height - leaf_size / 2, paint("brown")),
    ]
    count = 7
    turn = float(rng.uniform(0, np.pi))
    lowest, highest = min(1.5 * pot_height, height - leaf_size), height - leaf_size
    for i in range(count):
        angle, level = turn + 2.4 * i, i / (count - 1)
        radius = 0.17 * scale * (1 - 0.8 * level)
        width = _between(rng, 0.24, 0.32) * scale
        x, y, z = radius * np.cos(angle), radius * np.sin(angle), lowest + level * (highest - lowest)
        solids.append(ellipsoid(x, y, z, width, width, leaf_size, leaf))
    return assemble("plant", "green", solids)


def build_tv(rng: Generator, style: Style) -> Furniture:
    width = _between(rng, 0.55, 1.6)
    height = round(width * 0.58, 2)
    solids = [
        box(0, 0, 0, 0.4 * width, 0.2, 0.02, BLACK),
        box(0, 0, 0.02, 0.08, 0.04, 0.06, BLACK),
        box(0, 0, 0.06, width, 0.05, height, BLACK),
        box(0, 0.027, 0.08, width - 0.04, 0.006, height - 0.04, SCREEN),
    ]
    return assemble("tv", "black", solids)


def build_monitor(rng: Generator, style: Style) -> Furniture:
    width = _between(rng, 0.4, 0.85)
    height = round(width * 0.6, 2)
    solids = [
        cylinder(0, 0, 0, 0.22, 0.015, METAL),
        cylinder(0, -0.02, 0.015, 0.04, 0.12, METAL),
        box(0, 0, 0.11, width, 0.04, height, BLACK),
        box(0, 0.022, 0.125, width - 0.03, 0.006, height - 0.03, SCREEN),
    ]
    return assemble("monitor", "black", solids)


def build_refrigerator(rng: Generator, style: Style) -> Furniture:
    width, depth, height = _between(rng, 0.5, 0.9), 0.64, _between(rng, 0.85, 2.1)
    color = _choose(rng, ("white", "gray", "red"))
    body = Material((0.78, 0.79, 0.81)) if color == "gray" else paint(color)
    split = round(0.62 * height, 2)
    handle_x = width / 2 - 0.07
    solids = [
        box(0, 0, 0, width - 0.04, depth - 0.04, 0.05, BLACK),
        box(0, 0, 0.05, width, depth - 0.04, height - 0.05, Material(tuple(0.8 * c for c in body.color))),
        box(0, depth / 2 - 0.01, 0.06, width, 0.05, split - 0.07, body),
        box(0, depth / 2 - 0.01, split, width, 0.05, height - split, body),
        box(handle_x, depth / 2 + 0.03, split - 0.08 - 0.25 * height, 0.03, 0.03, 0.25 * height, METAL),
        box(handle_x, depth / 2 + 0.03, split + 0.08, 0.03, 0.03, 0.17 * height, METAL),
    ]
    return assemble("refrigerator", color, solids)


def build_stove(rng: Generator, style: Style) -> Furniture:
    color = _choose(rng, ("white", "gray", "black"))
    body = paint(color)
    solids = [
        box(0, 0, 0, 0.6, 0.58, 0.87, body),
        box(0, 0, 0.87, 0.6, 0.6, 0.02, BLACK),
        box(0, -0.28, 0.89, 0.6, 0.04, 0.1, body),
        box(0, 0.3, 0.2, 0.54, 0.02, 0.48, DARK_METAL),
        box(0, 0.312, 0.28, 0.42, 0.01, 0.28, BLACK),
        cylinder(0, 0.33, 0.62, 0.03, 0.46, METAL, axis="x"),
    ]
    for x, y, diameter in ((-0.15, -0.12, 0.2), (0.15, -0.12, 0.16), (-0.15, 0.14, 0.16), (0.15, 0.14, 0.2)):
        solids.append(cylinder(x, y, 0.89, diameter, 0.012, Material((0.55, 0.2, 0.15))))
    solids += [cylinder(-0.22 + 0.11 * i, 0.3, 0.74, 0.05, 0.04, METAL, axis="y") for i in range(5)]
    return assemble("stove", color, solids)


def build_sink(rng: Generator, style: Style) -> Furniture:
    width, depth = _between(rng, 0.6, 0.9), 0.48
    color, case = _case_material(rng, style)
    solids = [
        box(0, 0, 0, width, depth - 0.02, 0.76, case),
        box(0, 0, 0.76, width + 0.02, depth, 0.04, PORCELAIN),
        cylinder(0, 0.02, 0.8, 0.44, 0.1, PORCELAIN, taper=1.2, depth=0.36),
        cylinder(0, 0.02, 0.9, 0.38, 0.004, Material((0.66, 0.78, 0.84)), depth=0.3),
        cylinder(0, -0.19, 0.8, 0.035, 0.26, METAL),
        cylinder(0, -0.13, 1.03, 0.03, 0.14, METAL, axis="y"),
    ]
    solids += _fronts(width - 0.02, depth / 2 - 0.01, 0.06, 0.68, 2, 1, case)
    return assemble("sink", color, solids)


def build_toilet(rng: Generator, style: Style) -> Furniture:
    solids = [
        cylinder(0, 0.08, 0, 0.3, 0.3, PORCELAIN, taper=1.15, depth=0.42),
        ellipsoid(0, 0.1, 0.16, 0.38, 0.5, 0.3, PORCELAIN),
        cylinder(0, 0.1, 0.38, 0.39, 0.04, Material((0.88, 0.88, 0.87)), depth=0.5),
        cylinder(0, 0.11, 0.42, 0.36, 0.02, PORCELAIN, depth=0.46),
        box(0, -0.2, 0.0, 0.22, 0.16, 0.4, PORCELAIN),
        box(0, -0.23, 0.38, 0.4, 0.18, 0.36, PORCELAIN),
        box(0, -0.23, 0.74, 0.42, 0.2, 0.03, PORCELAIN),
        cylinder(0, -0.23, 0.77, 0.06, 0.012, METAL),
    ]
    return assemble("toilet", "white", solids)


def build_bathtub(rng: Generator, style: Style) -> Furniture:
    length, width, height, wall = _between(rng, 1.1, 2.0), _between(rng, 0.65, 0.85), 0.56, 0.09
    solids = [
        box(0, 0, 0, length - 0.04, width - 0.04, 0.12, PORCELAIN),
        box(0, 0, 0.12, length - wall, width - wall, 0.22, Material((0.62, 0.80, 0.88))),
    ]
    solids += [box(0, side * (width - wall) / 2, 0.0, length, wall, height, PORCELAIN) for side in (-1, 1)]
    solids += [box(side * (length - wall) / 2, 0, 0.0, wall, width, height, PORCELAIN) for side in (-1, 1)]
    faucet_x = length / 2 - wall / 2
    solids.append(cylinder(faucet_x, 0, height, 0.05, 0.2, METAL))
    solids.append(cylinder(faucet_x - 0.08, 0, height + 0.16, 0.04, 0.18, METAL, axis="x"))
    return assemble("bathtub", "white", solids)


def build_washing_machine(rng: Generator, style: Style) -> Furniture:
    solids = [
        box(0, 0, 0, 0.6, 0.58, 0.85, paint("white")),
        box(0, 0.292, 0.72, 0.58, 0.016, 0.11, paint("gray")),
        box(-0.17, 0.3, 0.74, 0.18, 0.02, 0.07, paint("white")),
        cylinder(0.18, 0.31, 0.74, 0.07, 0.04, METAL, axis="y"),
        cylinder(0, 0.3, 0.22, 0.42, 0.04, METAL, axis="y"),
        cylinder(0, 0.315, 0.27, 0.32, 0.04, Material((0.12, 0.16, 0.24)), axis="y"),
    ]
    return assemble("washing machine", "white", solids)


def build_trash_can(rng: Generator, style: Style) -> Furniture:
    width, height = _between(rng, 0.2, 0.42), _between(rng, 0.22, 0.8)
    color = _choose(rng, ("gray", "black", "green", "blue", "red"))
    solids = [
        cylinder(0, 0, 0, width, height, paint(color), taper=1.25),
        cylinder(0, 0, height - 0.03, width + 0.02, 0.03, METAL),
        cylinder(0, 0, height, width - 0.05, 0.004, BLACK),
    ]
    return assemble("trash can", color, solids)


def build_box(rng: Generator, style: Style) -> Furniture:
    width, depth, height = _between(rng, 0.25, 0.9), _between(rng, 0.25, 0.6), _between(rng, 0.2, 0.6)
    card, tape = Material((0.72, 0.54, 0.34), (0.66, 0.48, 0.29), "fabric", period=0.6), Material((0.88, 0.80, 0.62))
    solids = [
        box(0, 0, 0, width, depth, height, card),
        box(0, 0, height - 0.1, 0.06, depth + 0.006, 0.104, tape),
    ]
    return assemble("box", "brown", solids)


def build_ball(rng: Generator, style: Style) -> Furniture:
    diameter, color = _between(rng, 0.18, 0.75), _choose(rng, ("red", "orange", "yellow", "green", "blue", "purple"))
    skin = Material(COLORS[color], COLORS["white"], "stripes", period=1.5 * diameter)
    return assemble("ball", color, [ellipsoid(0, 0, 0, diameter, diameter, diameter, skin)])


def build_vase(rng: Generator, style: Style) -> Furniture:
    height, color = _between(rng, 0.15, 0.42), _choose(rng, ("white", "blue", "teal", "red", "yellow"))
    glaze, stem = paint(color), Material((0.2, 0.42, 0.18))
    solids = [
        cylinder(0, 0, 0, 0.09, 0.02, glaze),
        ellipsoid(0, 0, 0.01, 0.15, 0.15, 0.75 * height, glaze),
        cylinder(0, 0, 0.65 * height, 0.07, 0.35 * height, glaze, taper=1.3),
    ]
    for i in range(4):
        angle = 1.6 * i + float(rng.uniform(0, 1))
        x, y, rise = 0.06 * np.cos(angle), 0.06 * np.sin(angle), _between(rng, 0.08, 0.16)
        petal = Material(COLORS[_choose(rng, ("red", "pink", "yellow", "purple", "orange"))])
        solids.append(cylinder(0.4 * x, 0.4 * y, height - 0.02, 0.012, rise + 0.02, stem))
        solids.append(ellipsoid(x, y, height + rise - 0.03, 0.08, 0.08, 0.07, petal))
    return assemble("vase", color, solids)


def build_microwave(rng: Generator, style: Style) -> Furniture:
    color = _choose(rng, ("white", "black", "gray"))
    solids = [
        box(0, 0, 0.01, 0.5, 0.34, 0.28, paint(color)),
        box(-0.06, 0.172, 0.04, 0.34, 0.01, 0.22, BLACK),
        box(0.1, 0.19, 0.05, 0.02, 0.03, 0.2, METAL),
        box(0.185, 0.172, 0.2, 0.09, 0.01, 0.05, Material((0.2, 0.8, 0.5), glow=0.8)),
        box(0.185, 0.172, 0.05, 0.09, 0.01, 0.13, DARK_METAL),
        box(0, 0, 0, 0.44, 0.3, 0.01, BLACK),
    ]
    return assemble("microwave", color, solids)


def build_rug(rng: Generator, style: Style) -> Furniture:
    width, depth = _between(rng, 0.8, 3.0), _between(rng, 0.6, 2.0)
    color = _choose(rng, ("red", "teal", "blue", "gray", "orange", "purple", "green"))
    pile = Material(COLORS[color], tuple(0.6 + 0.35 * c for c in COLORS[color]), "rug", period=0.0)
    return assemble("rug", color, [box(0, 0, 0, width, depth, 0.012, pile)])


# Keys name a builder, not a category: both lamps have the category "lamp".
FURNITURE: dict[str, Callable[[Generator, Style], Furniture]] = {
    "armchair": build_armchair,
    "ball": build_ball,
    "bathtub": build_bathtub,
    "bed": build_bed,
    "bookshelf": build_bookshelf,
    "box": build_box,
    "cabinet": build_cabinet,
    "chair": build_chair,
    "coffee table": build_coffee_table,
    "desk": build_desk,
    "floor lamp": build_floor_lamp,
    "microwave": build_microwave,
    "monitor": build_monitor,
    "nightstand": build_nightstand,
    "plant": build_plant,
    "refrigerator": build_refrigerator,
    "rug": build_rug,
    "sink": build_sink,
    "sofa": build_sofa,
    "stool": build_stool,
    "stove": build_stove,
    "table": build_table,
    "table lamp": build_table_lamp,
    "toilet": build_toilet,
    "trash can": build_trash_can,
    "tv": build_tv,
    "vase": build_vase,
    "wardrobe": build_wardrobe,
    "washing machine": build_washing_machine,
}
