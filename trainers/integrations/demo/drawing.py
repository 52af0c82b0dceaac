"""The page's pictures, as HTML: tiny images that the browser enlarges, with captions in the page's own type."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from ...pretraining.figures import DEPTH_COLORS
from ..scene_files import OTHER_COLOR, upright
from .looking import SceneField, View

HEAT_COLORS = colormaps["inferno"]
TARGET_NAMES = {"geometry": "geometry features", "semantic": "semantic features"}
MAP_SIZE = (224, 168)
MAX_CELLS = 1024
CSS = """
.spa3r-grid {display: grid; gap: 6px 8px; align-items: start;}
.spa3r-grid figure {margin: 0;}
.spa3r-grid figure > div {position: relative;}
.spa3r-grid img {width: 100%; display: block; border-radius: 4px;}
.spa3r-grid img.patches {image-rendering: pixelated;}
.spa3r-grid img.heat {position: absolute; top: 0; left: 0; border-radius: 0; image-rendering: pixelated;}
.spa3r-grid figcaption {font-size: 12px; line-height: 1.3; color: var(--body-text-color-subdued); padding-top: 2px;}
.spa3r-grid .row {font-size: 13px; font-weight: 600; align-self: center; color: var(--body-text-color);}
.spa3r-grid .head {font-size: 12px; font-weight: 600; color: var(--body-text-color);}
.spa3r-note {font-size: 12px; color: var(--body-text-color-subdued); margin: 4px 0 0;}
#known .gallery-item {white-space: normal; text-align: left;}
.spa3r-latents {display: grid; grid-template-columns: repeat(64, 1fr); gap: 1px;}
.spa3r-latents i {aspect-ratio: 1; border-radius: 2px;}
"""


def data_url(pixels: np.ndarray | Image.Image, format: str = "PNG") -> str:
    """An image, or bytes `(height, width, 3 or 4)`, as an address that holds it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, quality=88)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


class Heat(NamedTuple):
    """
    Values on a photo.

    values (`torch.Tensor` of shape `(rows, columns)`): In [0, 1].
    top (`int`): First row of pixels that they cover.
    size (`tuple[int, int]`): Height and width of what they cover, in pixels, from there and from the left.
    """

    values: Tensor
    top: int
    size: tuple[int, int]


def draw_photos(photos: Sequence[np.ndarray], heat: Sequence[Heat] | None = None, note: str = "") -> str:
    """The photos in rows of six, with values over each."""
    figures = []
    for number, photo in enumerate(photos, start=1):
        over = "" if heat is None else _draw_heat(heat[number - 1], photo)
        picture = f'<img alt="photo {number}" src="{data_url(photo, "JPEG")}">'
        figures.append(f"<figure><div>{picture}{over}</div><figcaption>{number}</figcaption></figure>")
    grid = f'<div class="spa3r-grid" style="grid-template-columns: repeat(6, 1fr)">{"".join(figures)}</div>'
    return grid + (f'<p class="spa3r-note">{html.escape(note)}</p>' if note else "")


def _draw_heat(heat: Heat, photo: np.ndarray) -> str:
    """The values over the part of a photo that the vision tower sees: whole image tokens alone."""
    height, width = photo.shape[:2]
    shares = heat.top / height, heat.size[1] / width, heat.size[0] / height
    top, across, down = (f"{share:.2%}" for share in shares)
    place = f"top: {top}; width: {across}; height: {down}"
    return f'<img class="heat" alt="heat map" style="{place}" src="{data_url(_heat(heat.values))}">'


def draw_latents(shares: Tensor) -> str:
    """One cell for each latent, as bright as its share of the greatest; nothing where there are too many to see."""
    if len(shares) > MAX_CELLS:
        return ""
    colors = (HEAT_COLORS((shares / shares.max()).numpy())[:, :3] * 255).astype(int)
    cells = [
        f'<i title="latent {index}: {share:.1%}" style="background: rgb({red},{green},{blue})"></i>'
        for index, (share, (red, green, blue)) in enumerate(zip(shares.tolist(), colors, strict=True))
    ]
    note = f"The {len(cells)} latents: their shares in what the image tokens that the answer read had queried."
    return f'<div class="spa3r-latents">{"".join(cells)}</div><p class="spa3r-note">{note}</p>'


def draw_look(
    field: SceneField,
    move: np.ndarray,
    predicted: View,
    picture: np.ndarray | None,
    true: View | None,
    numbers: dict[str, float],
) -> str:
    """What the latent predicts from a place, in one row, and what is true there, in another."""
    names = list(predicted.features)
    heads = [
        "",
        "camera",
        *(TARGET_NAMES.get(name, name) for name in names),
        "depth",
    ]
    cells = [f'<div class="head">{html.escape(head)}</div>' for head in heads]
    low, high = field.depth_range
    unit = "" if picture is None else " m"
    scale = f"{low:.1f}{unit} (dark) to {high:.1f}{unit}"
    notes = {name: f"cosine {numbers[name]:.2f}" if numbers else "" for name in names}
    notes["depth"] = scale + (f"; error {numbers['depth']:.0%}" if numbers else "")
    above = data_url(draw_map(field, move))
    cells += [
        '<div class="row">from the latent</div>',
        _figure(above, "cameras from above", "from above; red: this camera"),
    ]
    cells += _draw_view(field, predicted, notes)
    if true is not None:
        cells += [
            '<div class="row">truth</div>',
            _figure(data_url(picture, "JPEG"), "true picture", "rendered from there"),
        ]
        cells += _draw_view(field, true, dict.fromkeys([*names, "depth"], ""))
    columns = f"70px repeat({len(names) + 2}, 1fr)"
    return f'<div class="spa3r-grid" style="grid-template-columns: {columns}">{"".join(cells)}</div>'


def _draw_view(field: SceneField, view: View, notes: dict[str, str]) -> list[str]:
    figures = []
    for name, features in view.features.items():
        colors = (field.colors[name](features).numpy() * 255).astype(np.uint8)
        figures.append(_figure(data_url(colors), TARGET_NAMES.get(name, name), notes[name], patches=True))
    low, high = field.depth_range
    shares = ((view.depth.numpy() - low) / (high - low)).clip(0, 1)
    colors = (DEPTH_COLORS(shares)[..., :3] * 255).astype(np.uint8)
    return [*figures, _figure(data_url(colors), "depth", notes["depth"], patches=True)]


def _figure(source: str, label: str, note: str, patches: bool = False) -> str:
    kind = ' class="patches"' if patches else ""
    return f'<figure><img{kind} alt="{label}" src="{source}"><figcaption>{note}</figcaption></figure>'


def _heat(values: Tensor) -> np.ndarray:
    """Bytes `(rows, columns, 4)`: bright and opaque where much is, clear where nothing is."""
    values = values.clamp(0, 1).sqrt().numpy()
    colors = (HEAT_COLORS(0.25 + 0.75 * values) * 255).astype(np.uint8)
    colors[..., 3] = (230 * values).astype(np.uint8)
    return colors


def draw_map(field: SceneField, move: np.ndarray) -> Image.Image:
    """The scene from above: its points without the ceiling, the photos' cameras, and the moved camera."""
    geometry, width = field.geometry, MAP_SIZE[0]
    turn = upright(geometry)
    cloud = geometry.point_cloud(max_points=20_000)
    positions = cloud.positions @ turn[:3, :3].T
    cameras = np.einsum("ij,vjk->vik", turn, geometry.poses)
    order = np.argsort(positions[:, 1])
    order = order[positions[order, 1] < cameras[:, 1, 3].max() + 0.1 * np.median(geometry.depth)]
    ground = positions[order][:, [0, 2]]
    low, high = np.quantile(ground, [0.005, 0.995], axis=0)
    zoom = 0.9 * min(np.array(MAP_SIZE) / (high - low))

    def place(points: np.ndarray) -> np.ndarray:
        return (points - (low + high) / 2) * zoom + np.array(MAP_SIZE) / 2

    canvas = np.full((MAP_SIZE[1], width, 3), 245, np.uint8)
    pixels = place(ground).round().astype(int)
    inside = ((pixels >= 1) & (pixels < MAP_SIZE)).all(-1)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a point is two pixels wide
        canvas[pixels[inside, 1] - down, pixels[inside, 0] - right] = cloud.colors[order][inside]
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for pose in cameras[::-1]:
        _draw_wedge(draw, place, pose, 0.12 * np.median(geometry.depth), OTHER_COLOR)
    here = move.copy()
    here[:3, 3] *= field.unit
    _draw_wedge(draw, place, turn @ geometry.poses[0] @ here, 0.3 * np.median(geometry.depth), (214, 39, 40))
    return image


def _draw_wedge(draw: ImageDraw.ImageDraw, place, pose: np.ndarray, length: float, color: tuple[int, int, int]):
    """A camera from above: its place, and the triangle in which it looks."""
    corners = np.array([[0, 0, 0], [-0.6, 0, 1.0], [0.6, 0, 1.0]]) * length
    ground = (corners @ pose[:3, :3].T + pose[:3, 3])[:, [0, 2]]
    points = [tuple(point) for point in place(ground)]
    draw.polygon(points, outline=color, width=2)
    x, y = points[0]
    draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=color)
