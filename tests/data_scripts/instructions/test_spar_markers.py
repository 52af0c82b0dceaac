"""Markers of SPAR agree with recorded draw calls, and color the right pixels."""

import numpy as np
import pytest
from instruction_records import recorded
from PIL import Image

from spa3r.data_scripts.common.records import BadRecord
from spa3r.data_scripts.instructions.spar_markers import BOX_WIDTH, Marker, draw_markers, place_markers

SIZES = [(1000, 1000)] * 4
BAD_POINTS = [[395, 89], [["a", "b"]], [[float("nan"), 1]], [[1, 2, 3]], [[1, 1e300]]]
BAD_INDICES = [{}, {"bbox_img_idx": [[0, 1]]}, {"bbox_img_idx": [[4]]}, {"bbox_img_idx": [[-1]]}]
BOXES = {f"{color}_bbox": [[100, 100, 200, 200]] for color in ("red", "blue", "green", "yellow")}


@pytest.mark.parametrize("case", recorded("spar_markers"), ids=lambda case: f"{case['type']}-{case['image_wh'][0]}")
def test_markers_are_those_of_the_recorded_draw_calls(case):
    markers = place_markers(case["spar_info"], [tuple(case["image_wh"])] * case["num_images"])
    calls = [[m.shape, m.image, list(m.box), m.color] + [BOX_WIDTH] * (m.shape == "rectangle") for m in markers]
    assert calls == case["draw_calls"]


@pytest.mark.parametrize("kind", recorded("spar_draw_types"))
def test_a_known_type_without_markers_draws_nothing(kind):
    assert place_markers({"type": kind}, SIZES) == []


def images_of(kind, indices, boxes=BOXES):
    return {m.color: m.image for m in place_markers({"type": kind, **boxes, "bbox_img_idx": [indices]}, SIZES)}


def test_indices_belong_to_colors_in_the_order_of_the_type():
    three = {name: box for name, box in BOXES.items() if name != "yellow_bbox"}
    assert images_of("spatial_imagination_oo_mv", [0, 1, 2, 3]) == {"green": 0, "blue": 1, "red": 2, "yellow": 3}
    assert images_of("distance_infer_center_oo_mv", [0, 1, 2], three) == {"red": 0, "green": 1, "blue": 2}
    assert images_of("obj_spatial_relation_oo_mv", [0, 1, 2], three) == {"red": 0, "blue": 1, "green": 2}


def test_position_matching_does_not_show_its_answer_on_the_second_image():
    markers = place_markers({"type": "position_matching", **BOXES}, SIZES[:2])
    assert [(marker.color, marker.image) for marker in markers] == [("red", 0)]


def test_each_image_is_measured_in_its_own_size():
    spar_info = {"type": "depth_prediction_oo_mv", "red_point": [[500, 500]], "blue_point": [[500, 500]]}
    markers = place_markers(spar_info | {"point_img_idx": [[1, 0]]}, [(200, 100), (2000, 1000)])
    assert [marker.box for marker in markers] == [(980, 480, 1020, 520), (80, 30, 120, 70)]


@pytest.mark.parametrize("kind", ["spatial_imagination_map_mv", "spatial_volume_infer", "of_tomorrow"])
def test_markers_of_a_type_that_is_not_known_are_refused(kind):
    with pytest.raises(BadRecord, match=kind) as caught:
        place_markers({"type": kind, "red_point": [[1, 2]]}, SIZES)
    assert caught.value.reason == "unknown markers"


@pytest.mark.parametrize(
    "spar_info",
    [
        *[{"type": "depth_prediction_oo", "red_point": point} for point in BAD_POINTS],
        {"type": "obj_spatial_relation_oo", "red_bbox": [[300, 100, 200, 400]]},
        *[{"type": "obj_spatial_relation_oo_mv", "red_bbox": [[1, 2, 3, 4]]} | indices for indices in BAD_INDICES],
        {"type": "distance_infer_center_oo_mv", "yellow_bbox": [[1, 2, 3, 4]], "bbox_img_idx": [[0]]},
    ],
)
def test_malformed_markers_are_refused(spar_info):
    with pytest.raises(BadRecord) as caught:
        place_markers(spar_info, SIZES)
    assert caught.value.reason == "malformed markers"


def test_a_point_is_a_filled_circle():
    image = np.asarray(draw_markers(Image.new("RGB", (200, 100)), [Marker(0, "ellipse", (80, 30, 120, 70), "red")]))
    y, x = np.mgrid[:100, :200]
    distance = np.hypot(x - 100, y - 50)
    red = (image == [255, 0, 0]).all(axis=-1)
    assert red[distance <= 19].all() and not red[distance >= 22].any()


def test_a_box_is_an_outline_that_leaves_its_inside_as_it_was():
    image = Image.new("RGB", (200, 200), "white")
    pixels = np.asarray(draw_markers(image, [Marker(0, "rectangle", (20, 40, 160, 180), "blue")]))
    blue = (pixels == [0, 0, 255]).all(axis=-1)
    expected = np.zeros((200, 200), dtype=bool)
    expected[40:181, 20:161] = True
    expected[60:161, 40:141] = False
    assert (blue == expected).all() and (pixels[~blue] == 255).all()


def test_the_original_image_keeps_its_pixels():
    image = Image.new("RGB", (50, 50))
    draw_markers(image, [Marker(0, "ellipse", (5, 5, 45, 45), "red")])
    assert not np.asarray(image).any()
