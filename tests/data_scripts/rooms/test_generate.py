"""Rooms on disk, checked by computations that share no code with the renderer."""

import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from terminal import verb

from spa3r.data_scripts.rooms.camera_walk import draw_walk
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.rooms.ground_truth import read_description
from spa3r.data_scripts.rooms.labels import LABELS, STRUCTURE
from spa3r.data_scripts.rooms.layout import ROOM_KINDS, draw_room
from spa3r.data_scripts.rooms.materials import Material
from spa3r.data_scripts.rooms.ray_casting import SolidTable, cast_rays
from spa3r.data_scripts.rooms.solids import Solid

main = verb("rooms")

NUM_VIEWS, SIZE = 6, (112, 84)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Folders of three rooms rendered by one process."""
    return render_rooms(tmp_path_factory.mktemp("rooms"), 3, NUM_VIEWS, SIZE, seed=5, workers=1)


@pytest.fixture(scope="module")
def drawn_rooms():
    """Forty-two furnished rooms, seven of each kind, not rendered."""
    seeds = iter(range(42))
    return [draw_room(kind, np.random.default_rng(next(seeds))) for _ in range(7) for kind in ROOM_KINDS]


def read_frame(scene, frame):
    """Depth in meters, camera-to-world pose and intrinsics of one frame, from its files."""
    depth = np.asarray(Image.open(scene / "depth" / f"{frame}.png")).astype(np.float64) / 1000
    pose = np.loadtxt(scene / "pose" / f"{frame}.txt")
    return depth, pose, np.loadtxt(scene / "intrinsic" / "intrinsic_depth.txt")


def world_points(depth, pose, intrinsics):
    height, width = depth.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    camera = np.stack([(x - intrinsics[0, 2]) / intrinsics[0, 0], (y - intrinsics[1, 2]) / intrinsics[1, 1]], axis=-1)
    camera = np.concatenate([camera, np.ones((height, width, 1))], axis=-1) * depth[..., None]
    return camera @ pose[:3, :3].T + pose[:3, 3]


def reproject(scene, source, target):
    """Compare the depth of the source's pixels with the target's depth where they project.

    Returns, for each source pixel inside the target view, its depth in the target camera over the nearest and over the
    farthest depth of the 3x3 pixels around its projection. The two ratios enclose 1 where the views agree.
    """
    target_depth, target_pose, intrinsics = read_frame(scene, target)
    points = world_points(*read_frame(scene, source)).reshape(-1, 3)
    camera = (points - target_pose[:3, 3]) @ target_pose[:3, :3]
    camera = camera[camera[:, 2] > 0.1]
    pixels = camera @ intrinsics[:3, :3].T
    column, row = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    height, width = target_depth.shape
    inside = (column >= 1) & (column < width - 1) & (row >= 1) & (row < height - 1)
    around = [target_depth[row[inside] + dy, column[inside] + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    seen = camera[inside, 2]
    return seen / np.min(around, axis=0), seen / np.max(around, axis=0)


def clip_polygon(polygon, other):
    """The part of a convex polygon inside another one, both counter-clockwise (Sutherland-Hodgman)."""
    for start, end in zip(other, np.roll(other, -1, axis=0), strict=True):
        edge, kept = end - start, []
        sides = [edge[0] * (point[1] - start[1]) - edge[1] * (point[0] - start[0]) for point in polygon]
        for i, (point, side) in enumerate(zip(polygon, sides, strict=True)):
            if (sides[i - 1] < 0) != (side < 0):
                share = sides[i - 1] / (sides[i - 1] - side)
                kept.append(polygon[i - 1] + share * (point - polygon[i - 1]))
            if side >= 0:
                kept.append(point)
        polygon = kept
        if not polygon:
            return np.zeros((0, 2))
    return np.array(polygon)


def polygon_area(polygon):
    if len(polygon) < 3:
        return 0.0
    x, y = np.array(polygon).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def rotation(yaw):
    return np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])


def footprint(box):
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * box.size[:2] / 2
    return corners @ rotation(box.yaw).T + box.center[:2]


def shared_volume(first, second):
    low = max(item.center[2] - item.size[2] / 2 for item in (first, second))
    high = min(item.center[2] + item.size[2] / 2 for item in (first, second))
    return max(0.0, high - low) * polygon_area(clip_polygon(footprint(first), footprint(second)))


def inside_polygon(point, polygon):
    """Whether a ray from the point to the right crosses the outline an odd number of times."""
    crossings = 0
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y1 > point[1]) != (y2 > point[1]):
            crossings += point[0] < x1 + (point[1] - y1) / (y2 - y1) * (x2 - x1)
    return crossings % 2 == 1


def folder_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_scenes_have_the_files_of_scannets_export(rooms):
    expected = {f"color/{i}.jpg" for i in range(NUM_VIEWS)} | {f"depth/{i}.png" for i in range(NUM_VIEWS)}
    expected |= {f"label-filt/{i}.png" for i in range(NUM_VIEWS)}
    expected |= {f"pose/{i}.txt" for i in range(NUM_VIEWS)} | {"scene.json"}
    expected |= {
        f"intrinsic/{kind}_{camera}.txt" for kind in ("intrinsic", "extrinsic") for camera in ("color", "depth")
    }
    for scene in rooms:
        assert {path.as_posix() for path in folder_bytes(scene)} == expected


def test_color_and_16_bit_depth_have_the_requested_size(rooms):
    with Image.open(rooms[0] / "color" / "0.jpg") as color, Image.open(rooms[0] / "depth" / "0.png") as depth:
        assert (color.mode, color.size, depth.mode, depth.size) == ("RGB", SIZE, "I;16", SIZE)


def test_consecutive_views_overlap_and_agree_in_depth(rooms):
    for scene in rooms:
        for frame in range(NUM_VIEWS - 1):
            over_nearest, over_farthest = reproject(scene, frame, frame + 1)
            agree = (over_nearest > 0.99) & (over_farthest < 1.01)
            # A point may be hidden in the other view, but the other view never shows a point behind it.
            assert np.mean(over_nearest < 0.99) < 0.005
            assert np.mean(agree) > 0.6
            assert np.sum(agree) > 0.3 * SIZE[0] * SIZE[1]


def test_poses_are_rigid_upright_and_at_eye_height(rooms):
    for scene in rooms:
        for frame in range(NUM_VIEWS):
            pose = np.loadtxt(scene / "pose" / f"{frame}.txt")
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-5)
            assert np.linalg.det(pose[:3, :3]) == pytest.approx(1, abs=1e-5)
            assert pose[2, 0] == 0  # no roll: the image's x axis is level
            assert pose[2, 1] < -0.9  # the image's y axis points down
            assert 1.4 < pose[2, 3] < 1.6


def test_visible_pixels_are_those_whose_points_lie_in_the_objects_box(rooms):
    for scene in rooms:
        description = read_description(scene)
        for frame in description["frames"]:
            points = world_points(*read_frame(scene, frame["frame"])).reshape(-1, 3)
            for item in description["furniture"]:
                local = points - item["center"]
                local[:, :2] = local[:, :2] @ rotation(item["yaw"])
                # Without the underside, which touches the floor.
                low, high = -np.array(item["size"]) / 2, np.array(item["size"]) / 2
                inside = ((local > low - [0.008, 0.008, -0.002]) & (local < high + 0.004)).all(axis=1)
                listed = frame["visible_pixels"].get(str(item["instance_id"]), 0)
                assert abs(int(inside.sum()) - listed) <= 20 + 0.08 * listed


def test_categories_of_pixels_count_the_visible_pixels_of_objects(rooms):
    for scene in rooms:
        description = read_description(scene)
        categories = {
            item["instance_id"]: item["category"] for item in description["furniture"] + description["wall_objects"]
        }
        for frame in description["frames"]:
            expected = Counter()
            for instance, pixels in frame["visible_pixels"].items():
                expected[categories[int(instance)]] += pixels
            labels = np.asarray(Image.open(scene / "label-filt" / f"{frame['frame']}.png"))
            counted = Counter(LABELS[value - 1] for value in labels.ravel().tolist())
            assert {name: n for name, n in counted.items() if name not in STRUCTURE} == expected


def test_floor_and_ceiling_lie_at_their_heights(rooms):
    for scene in rooms:
        height = read_description(scene)["height"]
        for frame in range(NUM_VIEWS):
            z = world_points(*read_frame(scene, frame))[..., 2]
            labels = np.asarray(Image.open(scene / "label-filt" / f"{frame}.png"))
            np.testing.assert_allclose(z[labels == LABELS.index("floor") + 1], 0, atol=0.01)
            np.testing.assert_allclose(z[labels == LABELS.index("ceiling") + 1], height, atol=0.01)


def test_every_other_view_is_that_of_the_full_walk(rooms, tmp_path):
    (sparse,) = render_rooms(tmp_path, 1, NUM_VIEWS // 2, SIZE, seed=5, every=2)
    full = [np.loadtxt(rooms[0] / "pose" / f"{frame}.txt") for frame in range(0, NUM_VIEWS, 2)]
    np.testing.assert_array_equal([np.loadtxt(sparse / "pose" / f"{i}.txt") for i in range(NUM_VIEWS // 2)], full)


def test_most_views_show_several_pieces_of_furniture(tmp_path):
    counts = []
    for scene in render_rooms(tmp_path, 8, 8, (56, 42), seed=0):
        description = read_description(scene)
        furniture = {str(item["instance_id"]) for item in description["furniture"]}
        enough = 0.005 * 56 * 42
        for frame in description["frames"]:
            visible = [key for key, pixels in frame["visible_pixels"].items() if key in furniture and pixels > enough]
            counts.append(len(visible))
    assert np.median(counts) >= 3


def test_rooms_are_3_to_8_meters_with_6_to_16_pieces_of_many_categories(drawn_rooms):
    for room in drawn_rooms:
        assert 3 <= room.size[:2].min() and room.size[:2].max() <= 8
        assert 6 <= len(room.pieces) <= 16
    assert len({piece.furniture.category for room in drawn_rooms[:10] for piece in room.pieces}) >= 12


def test_rooms_have_doors_and_most_have_windows(drawn_rooms):
    categories = [{item.category for item in room.wall_objects} for room in drawn_rooms]
    assert all("door" in found for found in categories)
    assert np.mean(["window" in found for found in categories]) > 0.9


def test_pieces_do_not_intersect(drawn_rooms):
    for room in drawn_rooms:
        boxes = [item.box for item in (*room.pieces, *room.wall_objects)]
        for i, first in enumerate(boxes):
            assert all(shared_volume(first, second) < 1e-6 for second in boxes[i + 1 :])


def test_pieces_lie_within_the_rooms_outline(drawn_rooms):
    for room in drawn_rooms:
        assert polygon_area(room.outline) == pytest.approx(room.area)
        for piece in room.pieces:
            corners = footprint(piece.box)
            assert all(inside_polygon(corner, room.outline) for corner in corners)
            # The notch of an L-shaped room may reach into the footprint although all footprint corners are inside.
            if room.notch is not None:
                assert shared_volume(piece.box, room.notch) < 1e-6


def test_pieces_stand_on_the_floor_or_on_another_piece(drawn_rooms):
    for room in drawn_rooms:
        by_id = {piece.instance_id: piece.box for piece in room.pieces}
        for piece in room.pieces:
            underside = piece.box.center[2] - piece.box.size[2] / 2
            if piece.stands_on == 0:
                assert underside == pytest.approx(0, abs=1e-6)
                continue
            support = by_id[piece.stands_on]
            assert underside == pytest.approx(support.center[2] + support.size[2] / 2, abs=1e-6)
            corners = footprint(piece.box)
            on_top = clip_polygon(corners, footprint(support))
            assert polygon_area(on_top) == pytest.approx(polygon_area(corners))


def test_solids_lie_within_their_pieces_box(drawn_rooms):
    for room in drawn_rooms[:10]:
        for piece in room.pieces:
            half = piece.furniture.size / 2
            for solid in piece.furniture.solids:
                low, high = solid.bounds()
                assert (low >= [-half[0] - 1e-6, -half[1] - 1e-6, -1e-6]).all()
                assert (high <= [half[0] + 1e-6, half[1] + 1e-6, 2 * half[2] + 1e-6]).all()


def test_camera_walks_through_free_space(drawn_rooms):
    for seed, room in enumerate(drawn_rooms):
        poses = draw_walk(room, 40, np.random.default_rng(seed))
        if poses is None:
            continue
        for position in poses[:, :2, 3]:
            assert inside_polygon(position, room.outline)
            body = position + np.array([[-0.15, -0.15], [0.15, -0.15], [0.15, 0.15], [-0.15, 0.15]])
            for piece in room.pieces:
                if piece.furniture.category != "rug":
                    corners = footprint(piece.box)
                    assert polygon_area(clip_polygon(body, corners)) == 0


def test_rooms_of_every_kind_can_be_walked(drawn_rooms):
    walks = [(room.kind, draw_walk(room, 2, np.random.default_rng(0))) for room in drawn_rooms]
    assert {kind for kind, walk in walks if walk is not None} == set(ROOM_KINDS)


@pytest.mark.parametrize("shape, taper", [("box", 1.0), ("cylinder", 1.0), ("cylinder", 0.6), ("ellipsoid", 1.0)])
def test_rays_hit_solids_where_small_steps_along_them_first_enter(shape, taper):
    center, size = np.array([0.3, -0.2, 4.0]), np.array([1.2, 0.8, 1.5])
    turn, tilt = np.eye(3), np.eye(3)
    turn[:2, :2], tilt[1:, 1:] = rotation(0.7), rotation(1.2)
    solid = Solid(shape, center, size, tilt @ turn, Material((1.0, 1.0, 1.0)), taper)
    u, v = np.linspace(-0.35, 0.45, 25), np.linspace(-0.4, 0.3, 21)
    inverse, rows = cast_rays(SolidTable.build([(1, solid)]), np.zeros(3), np.eye(3), u, v)

    steps = np.arange(2.5, 5.5, 0.002)
    directions = np.stack(np.broadcast_arrays(u[None, :], v[:, None], 1.0), axis=-1)
    local = (directions[:, :, None] * steps[:, None] - center) @ solid.rotation / (size / 2)
    radius = np.hypot(local[..., 0], local[..., 1])
    if shape == "box":
        inside = (np.abs(local) < 1).all(axis=-1)
    elif shape == "cylinder":
        inside = (np.abs(local[..., 2]) < 1) & (radius < 1 + (taper - 1) * (local[..., 2] + 1) / 2)
    else:
        inside = (local**2).sum(axis=-1) < 1
    entered = inside.any(axis=-1)
    assert 50 < entered.sum() < entered.size
    assert np.mean(entered != (rows >= 0)) < 0.02  # steps may miss a grazing ray
    both = entered & (rows >= 0)
    np.testing.assert_allclose(1 / inverse[both], steps[inside.argmax(axis=-1)][both], atol=0.02)
    assert np.median(np.abs(1 / inverse[both] - steps[inside.argmax(axis=-1)][both])) < 0.002


def test_two_workers_write_the_same_bytes_as_one(rooms, tmp_path):
    for scene, other in zip(rooms, render_rooms(tmp_path, 3, NUM_VIEWS, SIZE, seed=5, workers=2), strict=True):
        assert folder_bytes(scene) == folder_bytes(other)


def test_another_seed_gives_other_rooms(rooms, tmp_path):
    other = render_rooms(tmp_path, 1, NUM_VIEWS, SIZE, seed=6)
    assert folder_bytes(rooms[0]) != folder_bytes(other[0])


def test_a_killed_run_is_resumed_to_the_same_bytes(rooms, tmp_path, capsys):
    first = render_rooms(tmp_path, 1, NUM_VIEWS, SIZE, seed=5)[0]
    (first / "kept").touch()
    leftover = tmp_path / ".room_000001.123.partial"
    (leftover / "color").mkdir(parents=True)
    resumed = render_rooms(tmp_path, 3, NUM_VIEWS, SIZE, seed=5)
    assert "1 of 3" in capsys.readouterr().out
    assert (first / "kept").exists()
    assert not leftover.exists()
    assert [folder_bytes(scene) for scene in resumed[1:]] == [folder_bytes(scene) for scene in rooms[1:]]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"num_views": 5}, "`views`"),
        ({"size": (56, 42)}, "`size`"),
        ({"seed": 6}, "`seed`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_made_with_other_options_is_refused(rooms, changes, named):
    options = {"num_scenes": 3, "num_views": NUM_VIEWS, "size": SIZE, "seed": 5} | changes
    with pytest.raises(ValueError, match=named):
        render_rooms(rooms[0].parent, **options)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--scenes", "0"], ["scenes", "0"]),
        (["--views", "0"], ["views", "0"]),
        (["--workers", "-1"], ["workers", "-1"]),
        (["--size", "0x84"], ["size", "16", "0x84"]),
        (["--size", "224"], ["size", "224", "WIDTHxHEIGHT"]),
        (["--seed", "-3"], ["seed", "-3"]),
    ],
    ids=" ".join,
)
def test_an_option_out_of_range_is_refused_by_name_and_value(tmp_path, capsys, arguments, named):
    with pytest.raises(SystemExit) as refusal:
        main(["--output", tmp_path / "rooms", *arguments])
    message = f"{refusal.value} {capsys.readouterr().err}"
    assert all(word in message for word in named)
    assert not (tmp_path / "rooms").exists()
