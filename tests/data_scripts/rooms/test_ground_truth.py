"""Geometry of rooms, checked by brute force: densely sampled points and small steps."""

import math
import re

import numpy as np
import pytest

from spa3r.data_scripts.rooms.ground_truth import (
    RoomGroundTruth,
    RoomObject,
    bearing,
    clip_segment,
    closest_distance,
    read_description,
)

SQUARE = ((0, 0), (4, 0), (4, 4), (0, 4))
L_SHAPE = ((0, 0), (4, 0), (4, 2), (2, 2), (2, 4), (0, 4))


def make_object(category="box", center=(0.0, 0.0, 0.5), size=(1.0, 1.0, 1.0), yaw=0.0, pixels=(100,), instance_id=1):
    return RoomObject(instance_id, category, "red", np.array(center), np.array(size), yaw, 0, np.array(pixels))


def ground_truth(furniture, pixels, size=(100, 100), outline=SQUARE, poses=None):
    """A room whose views show the given numbers of pixels, by instance id."""
    furniture = [
        {
            "instance_id": i,
            "category": c,
            "color": "red",
            "center": [1, 1, 0.5],
            "size": [1, 1, 1],
            "yaw": 0.0,
            "stands_on": 0,
        }
        for i, c in enumerate(furniture, start=1)
    ]
    frames = [{"frame": i, "visible_pixels": {str(k): v for k, v in shown.items()}} for i, shown in enumerate(pixels)]
    description = {"size": list(size), "outline": outline, "height": 2.5, "furniture": furniture, "wall_objects": []}
    poses = np.stack([np.eye(4)] * len(frames)) if poses is None else poses
    intrinsics = np.array([[100.0, 0, 50], [0, 100.0, 50], [0, 0, 1]])
    return RoomGroundTruth(description | {"frames": frames}, range(len(frames)), poses, intrinsics)


def look_along(position, heading):
    """A level camera."""
    cos, sin = math.cos(heading), math.sin(heading)
    pose = np.eye(4)
    pose[:3] = np.array([[sin, 0, cos, position[0]], [-cos, 0, sin, position[1]], [0, -1, 0, position[2]]])
    return pose


def boundary(item, count=1500):
    """Points along the outline, seen from above."""
    if item.category == "ball":
        angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
        local = np.stack([np.cos(angles), np.sin(angles)], axis=-1) / 2
    else:
        share = np.linspace(-0.5, 0.5, count // 4)
        side = np.full_like(share, 0.5)
        local = np.concatenate(
            [np.stack(p, axis=-1) for p in ((share, side), (share, -side), (side, share), (-side, share))]
        )
    turned = (local * item.size[:2])[:, 0] * np.exp(1j * item.yaw) + (local * item.size[:2])[:, 1] * np.exp(
        1j * (item.yaw + math.pi / 2)
    )
    return np.stack([turned.real, turned.imag], axis=-1) + item.center[:2]


@pytest.mark.parametrize("seed", range(8))
def test_closest_distance_is_that_of_the_nearest_sampled_points(seed):
    rng = np.random.default_rng(seed)
    first = make_object("ball" if seed % 2 else "box", (0, 0, 0.5), rng.uniform(0.3, 1.0, 3), rng.uniform(-3, 3))
    second = make_object(
        "box", (*rng.uniform(1.5, 3, 2), rng.uniform(0.5, 2.5)), rng.uniform(0.3, 1.0, 3), rng.uniform(-3, 3)
    )
    offsets = boundary(first)[:, None] - boundary(second)[None]
    heights = [np.linspace(t.center[2] - t.size[2] / 2, t.center[2] + t.size[2] / 2, 300) for t in (first, second)]
    gap = np.abs(heights[0][:, None] - heights[1][None]).min()
    expected = math.hypot(np.sqrt((offsets**2).sum(axis=-1)).min(), 0 if gap < 0.02 else gap)
    assert closest_distance(first, second) == pytest.approx(expected, abs=0.01)
    assert closest_distance(second, first) == pytest.approx(closest_distance(first, second))


def test_the_distance_to_an_object_above_is_the_gap_in_between():
    assert closest_distance(
        make_object(), make_object(center=(0.2, 0.1, 1.95), size=(0.5, 0.5, 0.5))
    ) == pytest.approx(0.7)


def test_bearings_are_positive_to_the_left():
    here = np.zeros(2)
    north, west, east, south = np.array([[0, 2], [-2, 0], [2, 0], [0, -2]])
    assert bearing(here, north, west) == pytest.approx(90)
    assert bearing(here, north, east) == pytest.approx(-90)
    assert abs(bearing(here, north, south)) == pytest.approx(180)
    assert bearing(here, west, north) == pytest.approx(-90)


@pytest.mark.parametrize("seed", range(8))
def test_crossing_is_where_small_steps_lie_inside(seed):
    rng = np.random.default_rng(seed)
    item = make_object(size=rng.uniform(0.5, 1.5, 3), yaw=rng.uniform(-3, 3))
    start, end = rng.uniform(-1.5, 1.5, (2, 2))
    steps = np.linspace(0, 1, 20001)
    points = start + steps[:, None] * (end - start)
    turn = np.array([[math.cos(item.yaw), -math.sin(item.yaw)], [math.sin(item.yaw), math.cos(item.yaw)]])
    inside = (np.abs(points @ turn) < item.size[:2] / 2).all(axis=1)
    found = clip_segment(start, end, item.footprint)
    if not inside.any():
        assert found is None
    else:
        assert found == pytest.approx((steps[inside][0], steps[inside][-1]), abs=1e-3)


def test_an_object_is_visible_if_a_view_shows_enough_pixels():
    room = ground_truth(["bed", "sofa"], [{1: 49, 2: 20}, {1: 0, 2: 50}])
    assert [room.is_visible(item) for item in room.objects] == [False, True]


@pytest.mark.parametrize(
    "categories, visible, unique",
    [
        (["chair", "chair", "bed"], [1, 3], ["bed"]),
        (["chair", "armchair", "bed"], [1, 2, 3], ["armchair", "bed"]),
    ],
    ids=["a second chair is not visible", "an armchair may also be called a chair"],
)
def test_objects_with_ambiguous_names_are_left_out(categories, visible, unique):
    room = ground_truth(categories, [dict.fromkeys(visible, 900)])
    assert [item.category for item in room.unique_objects] == unique


def test_a_wall_of_an_l_shaped_room_blocks_the_line_of_sight():
    room = ground_truth([], [{}], outline=L_SHAPE)
    assert not room.has_line_of_sight(np.array([3.5, 1.5]), np.array([1.5, 3.5]))
    assert room.has_line_of_sight(np.array([3.5, 1.0]), np.array([0.5, 0.5]))


@pytest.mark.parametrize(
    "outline, position, num_views, visible",
    [
        (SQUARE, (2, 2, 1.5), 8, True),
        (SQUARE, (2, 2, 1.5), 2, False),
        (L_SHAPE, (3.5, 1, 1.5), 8, False),
        (L_SHAPE, (0.5, 0.5, 1.5), 8, True),
    ],
    ids=["all around", "two views only", "a corner behind a wall", "from the middle of an L"],
)
def test_an_outline_is_visible_when_all_its_corners_are(outline, position, num_views, visible):
    poses = np.stack([look_along(position, angle) for angle in np.arange(num_views) * math.pi / 4])
    assert ground_truth([], [{}] * num_views, outline=outline, poses=poses).is_outline_visible() == visible


@pytest.mark.parametrize("pixels, x, visible", [(900, -2, True), (3, -2, False), (900, 0.2, False)])
def test_an_object_is_fully_visible_only_if_clear_and_within_the_image(pixels, x, visible):
    room = ground_truth(["bed"], [{1: pixels}], poses=look_along((x, 1, 0.5), 0.0)[None])
    assert room.is_fully_visible(room.objects[0]) == visible


def test_a_damaged_room_is_named(tmp_path):
    (tmp_path / "scene.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "scene.json"))):
        read_description(tmp_path)
