"""Markers of SPAR questions: the points and boxes that a question such as "how far is the red point" mentions.

`spar_info` holds each marker under `<color>_point` or `<color>_bbox`, in thousandths of the image's width and height.
With several images, it also holds an image index for each marker, in an order of colors that depends on the type of
question. The rules are those of VG-LLM's code; Spa3R's own code draws no markers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from ..common.records import BadRecord

COORDINATE_RANGE = 1000
# A marker may reach out of the image, but larger numbers are not coordinates.
MAX_COORDINATE = 10 * COORDINATE_RANGE
# In pixels of the image at full resolution.
POINT_RADIUS = 20
BOX_WIDTH = 20
BOX_MARGIN = 17.5
COLORS = ("red", "blue", "green", "yellow")

# Types whose markers are all on their one image, or on the first of two.
ON_FIRST_IMAGE = {
    "depth_prediction_oc": COLORS,
    "depth_prediction_oo": COLORS,
    "distance_prediction_oc": COLORS,
    "distance_prediction_oo": COLORS,
    "distance_infer_center_oo": COLORS,
    "obj_spatial_relation_oo": COLORS,
    "spatial_imagination_oc": COLORS,
    "spatial_imagination_oo": COLORS,
    # The other box is the answer; it is on the second image.
    "position_matching": ("red",),
}
# Types of several images, with the order of colors in `point_img_idx` or `bbox_img_idx`.
ON_INDEXED_IMAGES = {
    "depth_prediction_oc_mv": COLORS,
    "depth_prediction_oo_mv": COLORS,
    "distance_prediction_oc_mv": COLORS,
    "distance_prediction_oo_mv": COLORS,
    "distance_prediction_oo_video": COLORS,
    "distance_infer_center_oo_mv": ("red", "green", "blue"),
    "obj_spatial_relation_oc_mv": COLORS,
    "obj_spatial_relation_oo_mv": COLORS,
    "spatial_imagination_oc_mv": ("green", "blue", "red", "yellow"),
    "spatial_imagination_oo_mv": ("green", "blue", "red", "yellow"),
}
# Later markers cover earlier ones where they overlap.
DRAWING_ORDERS = {
    "spatial_imagination_oc_mv": ("red", "green", "blue", "yellow"),
    "spatial_imagination_oo_mv": ("red", "green", "blue", "yellow"),
}
UNMARKED = {
    "appearance_order",
    "camera_motion_infer",
    "distance_infer_center_oc",
    "distance_infer_center_oc_mv",
    "nav",
    "obj_count",
    "room_size",
    "spatial_imagination_oc_video_hard",
    "spatial_imagination_oo_video_hard",
    "view_change_infer",
}


class Marker(NamedTuple):
    """A filled circle or the outline of a box; `box` is `(left, top, right, bottom)` in pixels."""

    image: int
    shape: str
    box: tuple[int, int, int, int]
    color: str


def place_markers(spar_info: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> list[Marker]:
    """Find the image, place and size of each marker.

    Args:
        spar_info (`Mapping`): `type` of the question, and its markers in thousandths of width and height.
        sizes (`Sequence[tuple[int, int]]`): Width and height of each image of the question, in pixels.

    Returns:
        `list[Marker]`: Markers in drawing order.

    Raises:
        BadRecord: If markers are malformed, or the type of question is unknown.
    """
    kind = spar_info.get("type")
    present = [
        (color, shape)
        for color in DRAWING_ORDERS.get(kind, COLORS)
        for shape in ("point", "bbox")
        if spar_info.get(f"{color}_{shape}") is not None
    ]
    if kind in UNMARKED or not present:
        return []
    if kind in ON_FIRST_IMAGE:
        present = [(color, shape) for color, shape in present if color in ON_FIRST_IMAGE[kind]]
        images = {marker: 0 for marker in present}
    elif kind in ON_INDEXED_IMAGES:
        images = _indexed_images(spar_info, present, ON_INDEXED_IMAGES[kind])
    else:
        raise BadRecord("unknown markers", f"how the markers of a question of type {kind!r} are drawn is not known")
    if any(not 0 <= image < len(sizes) for image in images.values()):
        raise BadRecord("malformed markers", f"markers are on images {list(images.values())} of {len(sizes)}")
    return [_place(spar_info, color, shape, images[color, shape], sizes) for color, shape in present]


def draw_markers(image: Image.Image, markers: Sequence[Marker]) -> Image.Image:
    """Draw markers on a copy of an RGB image at full resolution."""
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    for marker in markers:
        if marker.shape == "ellipse":
            draw.ellipse(marker.box, fill=marker.color)
        else:
            draw.rectangle(marker.box, outline=marker.color, width=BOX_WIDTH)
    return marked


def _indexed_images(
    spar_info: Mapping[str, Any], present: Sequence[tuple[str, str]], order: Sequence[str]
) -> dict[tuple[str, str], int]:
    """Return the image of each marker: `spar_info` lists an index for each color present, in the order given."""
    if unknown := [color for color, _ in present if color not in order]:
        raise BadRecord("malformed markers", f"a {unknown[0]} marker, where only {', '.join(order)} are known")
    images = {}
    for shape in ("point", "bbox"):
        if markers := [(color, shape) for color in order if (color, shape) in present]:
            indices = _first_numbers(spar_info, f"{shape}_img_idx", len(markers))
            images |= dict(zip(markers, map(int, indices), strict=True))
    return images


def _place(
    spar_info: Mapping[str, Any], color: str, shape: str, image: int, sizes: Sequence[tuple[int, int]]
) -> Marker:
    width, height = sizes[image]
    if shape == "point":
        x, y = map(int, _scale(_first_numbers(spar_info, f"{color}_point", 2), width, height))
        box = (x - POINT_RADIUS, y - POINT_RADIUS, x + POINT_RADIUS, y + POINT_RADIUS)
        return Marker(image, "ellipse", box, color)
    left, top, right, bottom = _scale(_first_numbers(spar_info, f"{color}_bbox", 4), width, height)
    if left > right or top > bottom:
        raise BadRecord("malformed markers", f"`{color}_bbox` ends before it begins: {spar_info[f'{color}_bbox']}")
    box = (left - BOX_MARGIN, top - BOX_MARGIN, right + BOX_MARGIN, bottom + BOX_MARGIN)
    return Marker(image, "rectangle", tuple(int(side) for side in box), color)


def _scale(values: Sequence[float], width: int, height: int) -> list[float]:
    return [value / COORDINATE_RANGE * (height if axis % 2 else width) for axis, value in enumerate(values)]


def _first_numbers(spar_info: Mapping[str, Any], name: str, length: int) -> list[float]:
    """Return the first list of numbers under a name: `[395, 89]` for `[[395, 89]]`."""
    value = spar_info.get(name)
    first = value[0] if isinstance(value, list) and value else None
    is_list = isinstance(first, list) and len(first) == length
    if not is_list or not all(type(number) in (int, float) and abs(number) <= MAX_COORDINATE for number in first):
        raise BadRecord("malformed markers", f"`{name}` must hold a list of {length} numbers, got {value!r:.200}")
    return first
