"""Geometry of rooms against brute force: points sampled densely, and small steps."""

import math

import numpy as np
import pytest

from spa3r.data_scripts.rooms.ground_truth import (
    RoomFacts,
    Thing,
    bearing,
    closest_distance,
    crossing,
    read_description,
)


def thing(category="box", center=(0.0, 0.0, 0.5), size=(1.0, 1.0, 1.0), yaw=0.0, pixels=(100,), instance_id=1):
    return Thing(instance_id, category, np.array(center), np.array(size), yaw, 0, np.array(pixels))


def facts(furniture, pixels, size=(100, 100), outline=((0, 0), (4, 0), (4, 4), (0, 4)), poses=None):
    """Facts of a room of which each view shows the given pixels by instance id."""
    furniture = [
        {"instance_id": i, "category": c, "center": [1, 1, 0.5], "size": [1, 1, 1], "yaw": 0.0, "stands_on": 0}
        for i, c in enumerate(furniture, start=1)
    ]
    frames = [{"frame": i, "visible_pixels": {str(k): v for k, v in shown.items()}} for i, shown in enumerate(pixels)]
    description = {"size": list(size), "outline": outline, "height": 2.5, "furniture": furniture, "wall_objects": []}
    poses = np.stack([np.eye(4)] * len(frames)) if poses is None else poses
    intrinsics = np.array([[100.0, 0, 50], [0, 100.0, 50], [0, 0, 1]])
    return RoomFacts(description | {"frames": frames}, range(len(frames)), poses, intrinsics)


def look_along(position, heading):
    """A level camera."""
    cos, sin = math.cos(heading), math.sin(heading)
    pose = np.eye(4)
    pose[:3] = np.array([[sin, 0, cos, position[0]], [-cos, 0, sin, position[1]], [0, -1, 0, position[2]]])
    return pose


def boundary(item, count=1500):
    """Points along the outline from above."""
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
    first = thing("ball" if seed % 2 else "box", (0, 0, 0.5), rng.uniform(0.3, 1.0, 3), rng.uniform(-3, 3))
    second = thing(
        "box", (*rng.uniform(1.5, 3, 2), rng.uniform(0.5, 2.5)), rng.uniform(0.3, 1.0, 3), rng.uniform(-3, 3)
    )
    offsets = boundary(first)[:, None] - boundary(second)[None]
    heights = [np.linspace(t.center[2] - t.size[2] / 2, t.center[2] + t.size[2] / 2, 300) for t in (first, second)]
    gap = np.abs(heights[0][:, None] - heights[1][None]).min()
    expected = math.hypot(np.sqrt((offsets**2).sum(axis=-1)).min(), 0 if gap < 0.02 else gap)
    assert closest_distance(first, second) == pytest.approx(expected, abs=0.01)
    assert closest_distance(second, first) == pytest.approx(closest_distance(first, second))


def test_a_thing_above_another_is_as_far_as_the_gap_between_them():
    assert closest_distance(thing(), thing(center=(0.2, 0.1, 1.95), size=(0.5, 0.5, 0.5))) == pytest.approx(0.7)


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
    item = thing(size=rng.uniform(0.5, 1.5, 3), yaw=rng.uniform(-3, 3))
    start, end = rng.uniform(-1.5, 1.5, (2, 2))
    steps = np.linspace(0, 1, 20001)
    points = start + steps[:, None] * (end - start)
    turn = np.array([[math.cos(item.yaw), -math.sin(item.yaw)], [math.sin(item.yaw), math.cos(item.yaw)]])
    inside = (np.abs(points @ turn) < item.size[:2] / 2).all(axis=1)
    found = crossing(start, end, item.footprint)
    if not inside.any():
        assert found is None
    else:
        assert found == pytest.approx((steps[inside][0], steps[inside][-1]), abs=1e-3)


def test_a_thing_is_clear_where_a_view_shows_enough_pixels():
    room = facts(["bed", "sofa"], [{1: 49, 2: 20}, {1: 0, 2: 50}])
    assert [room.is_clear(item) for item in room.things] == [False, True]


def test_a_name_is_not_used_where_a_second_thing_of_it_is_unseen():
    room = facts(["chair", "chair", "bed"], [{1: 900, 3: 900}])
    assert [item.category for item in room.named] == ["bed"]


def test_a_name_is_not_used_where_another_thing_may_be_meant():
    room = facts(["chair", "armchair", "bed"], [{1: 900, 2: 900, 3: 900}])
    assert [item.category for item in room.named] == ["armchair", "bed"]


def test_a_wall_between_two_points_of_an_l_shaped_room_is_noticed():
    outline = ((0, 0), (4, 0), (4, 2), (2, 2), (2, 4), (0, 4))
    room = facts([], [{}], outline=outline)
    assert not room.is_open(np.array([3.5, 1.5]), np.array([1.5, 3.5]))
    assert room.is_open(np.array([3.5, 1.0]), np.array([0.5, 0.5]))


def test_an_outline_is_shown_when_all_its_corners_are():
    around = np.stack([look_along((2, 2, 1.5), angle) for angle in np.arange(8) * math.pi / 4])
    assert facts([], [{}] * 8, poses=around).shows_outline()
    assert not facts([], [{}] * 2, poses=around[:2]).shows_outline()


def test_a_corner_behind_a_wall_is_not_shown():
    outline = ((0, 0), (4, 0), (4, 2), (2, 2), (2, 4), (0, 4))
    around = np.stack([look_along((3.5, 1, 1.5), angle) for angle in np.arange(8) * math.pi / 4])
    assert not facts([], [{}] * 8, outline=outline, poses=around).shows_outline()
    moved = np.stack([look_along((0.5, 0.5, 1.5), angle) for angle in np.arange(8) * math.pi / 4])
    assert facts([], [{}] * 8, outline=outline, poses=moved).shows_outline()


def test_a_thing_is_shown_whole_only_where_it_is_clear_too():
    pose = look_along((-2, 1, 0.5), 0.0)[None]
    assert facts(["bed"], [{1: 900}], poses=pose).shows_whole(facts(["bed"], [{1: 900}], poses=pose).things[0])
    hidden = facts(["bed"], [{1: 3}], poses=pose)
    assert not hidden.shows_whole(hidden.things[0])
    near = facts(["bed"], [{1: 900}], poses=look_along((0.2, 1, 0.5), 0.0)[None])
    assert not near.shows_whole(near.things[0])


def test_a_damaged_room_is_named(tmp_path):
    (tmp_path / "scene.json").write_text("{")
    with pytest.raises(ValueError, match="Cannot read .*scene.json.*render the rooms again"):
        read_description(tmp_path)
