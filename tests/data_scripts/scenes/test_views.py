import logging
import shutil
from itertools import chain, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from tiny_scenes import write_scene
from torch.utils.data import DataLoader

from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.data_scripts.scenes.index import load_scenes
from spa3r.data_scripts.scenes.sampling import ViewBatchSampler
from spa3r.data_scripts.scenes.views import SceneViews, collate_views, warn_of_short_scenes

SIZE = (60, 48)  # width and height on disk; views are 42 wide and, cropped from 33 rows, 28 high


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    for number in range(5):
        write_scene(root, f"room{number}", num_frames=20, size=SIZE)
    return root


@pytest.fixture
def scratch(root, tmp_path):
    """A copy of the scenes to break things in."""
    return shutil.copytree(root, tmp_path / "scenes")


def views_of(root, **options):
    return SceneViews(load_scenes("rooms", root), image_width=42, **options)


def loader_of(views, sampler, rank=None, num_ranks=1, **options):
    """Batches of one process, or of one among several processes."""
    loader = DataLoader(views, batch_sampler=sampler, collate_fn=collate_views, **options)
    if rank is None:
        return loader
    return prepare_data_loader(loader, num_processes=num_ranks, process_index=rank, put_on_device=False)


def as_lists(batches):
    """Batches in a form that can be compared by `==`."""
    return [{k: v.tolist() if torch.is_tensor(v) else v for k, v in batch.items()} for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_take_turns_without_repeating_a_batch(root, world_size):
    views = views_of(root)
    sampler = ViewBatchSampler(5, 2, 4, images_per_batch=8, batches_per_epoch_multiple=world_size * 2)
    by_rank = [list(loader_of(views, sampler, rank, world_size)) for rank in range(world_size)]
    taken = list(chain.from_iterable(zip(*by_rank, strict=True)))
    sampler.set_epoch(0)
    assert as_lists(taken) == as_lists(collate_views([views[request] for request in batch]) for batch in sampler)


def test_skipping_batches_resumes_the_plan_in_the_middle_of_an_epoch(root):
    sampler = ViewBatchSampler(5, 2, 4, images_per_batch=8, batches_per_epoch_multiple=8)
    loader = loader_of(views_of(root), sampler, rank=1, num_ranks=2)
    sampler.set_epoch(3)
    whole = [batch["frame_indices"] for batch in loader]
    resumed = [batch["frame_indices"] for batch in skip_first_batches(loader, 2)]
    assert resumed == whole[2:] and len(whole) == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(root, num_workers):
    views = views_of(root, cameras=True, depth=True)
    sampler = ViewBatchSampler(5, 2, 4, images_per_batch=8)
    alone, together = (as_lists(loader_of(views, sampler, num_workers=workers)) for workers in (0, num_workers))
    assert together == alone


def test_an_item_shows_the_frames_that_it_names(root):
    item = views_of(root, cameras=True, depth=True)[2, 3, 6]
    frames = torch.tensor(item["frame_indices"])
    assert item["scene_id"] == "room3"
    assert item["pixel_values"].dtype == torch.uint8 and item["pixel_values"].shape == (6, 3, 28, 42)
    assert torch.equal(item["pixel_values"][:, 0], frames[:, None, None].expand(6, 28, 42).to(torch.uint8))
    assert torch.equal(item["extrinsics"][:, 0, 3], -frames.float())
    torch.testing.assert_close(item["depth"], (1 + frames / 1000)[:, None, None].expand(6, 28, 42))


def test_draws_change_with_the_pass_the_scene_and_the_seed(root):
    views = views_of(root)
    draws = [views[0, 0, 6], views[1, 0, 6], views[0, 1, 6], views_of(root, seed=1)[0, 0, 6]]
    assert len({tuple(item["frame_indices"]) for item in draws}) == 4


def test_context_ratio_sets_the_number_of_context_views(root):
    for context_ratio, expected in ((0.25, 2), (0.5, 4), (0.75, 6), (0.01, 1), (0.99, 7)):
        assert views_of(root, context_ratio=context_ratio)[0, 0, 8]["num_context_views"] == expected


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"context_ratio": 0}, "`context_ratio`.* 0:"),
        ({"context_ratio": 1.0}, "`context_ratio`.* 1.0:"),
        ({"context_ratio": -0.5}, "`context_ratio`.* -0.5:"),
        ({"image_width": 13}, "`image_width`.* 13"),
        ({"num_views": 1}, "`num_views`.* 1"),
    ],
)
def test_views_that_cannot_be_trained_on_are_refused(root, wrong, named):
    num_views = wrong.pop("num_views", 4)
    with pytest.raises(ValueError, match=named):
        SceneViews(load_scenes("rooms", root), **{"image_width": 42} | wrong)[0, 0, num_views]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:40])])
def test_an_unreadable_frame_is_replaced_by_another_of_its_scene_and_named(scratch, spoil):
    views = views_of(scratch)
    frames = views[0, 0, 6]["frame_indices"]
    file = scratch / "room0" / "color" / f"{frames[2]}.png"
    spoil(file)
    item = views[0, 0, 6]
    (report,) = item["replaced_frames"]
    assert str(file) in report
    assert len(set(item["frame_indices"])) == 6 and frames[2] not in item["frame_indices"]
    assert item["pixel_values"][:, 0, 0, 0].tolist() == item["frame_indices"]


def test_a_replacement_is_the_nearest_frame_that_is_not_in_use(scratch):
    frames = sorted(views_of(scratch)[0, 0, 6]["frame_indices"])
    unused = [frame for frame in range(20) if frame not in frames]
    nearest = min(unused, key=lambda frame: abs(frame - frames[3]))
    (scratch / "room0" / "color" / f"{frames[3]}.png").write_bytes(b"")
    replaced = sorted(views_of(scratch)[0, 0, 6]["frame_indices"])
    assert replaced == sorted({*frames, nearest} - {frames[3]})


@pytest.mark.parametrize("part", ["color", "depth"])
def test_the_last_readable_frame_stands_in_for_all_others(scratch, part):
    for frame in range(20):
        if frame != 11:
            (scratch / "room0" / part / f"{frame}.png").write_bytes(b"")
    item = views_of(scratch, depth=True)[0, 0, 4]
    assert item["frame_indices"] == [11, 11, 11, 11] and len(item["replaced_frames"]) == 19


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_frames_without_a_finite_pose_are_replaced_where_cameras_are_read(scratch, value):
    frame = views_of(scratch)[0, 0, 6]["frame_indices"][1]
    np.savetxt(scratch / "room0" / "pose" / f"{frame}.txt", np.full((4, 4), value))
    with_cameras, without = views_of(scratch, cameras=True)[0, 0, 6], views_of(scratch)[0, 0, 6]
    assert frame not in with_cameras["frame_indices"] and with_cameras["extrinsics"].isfinite().all()
    assert "finite" in with_cameras["replaced_frames"][0]
    assert frame in without["frame_indices"] and not without["replaced_frames"]


def test_a_scene_without_a_readable_frame_gives_way_to_the_next_and_is_named_once(scratch, caplog):
    views = views_of(scratch)
    shutil.rmtree(scratch / "room4" / "color")
    with caplog.at_level(logging.WARNING):
        items = [views[0, 4, 4], views[1, 4, 4]]
    assert [(item["scene_id"], item["dropped_scenes"]) for item in items] == [("room0", ["room4"])] * 2
    assert items[0]["frame_indices"] == views[0, 0, 4]["frame_indices"]
    assert caplog.text.count("Scene room4") == 1


def test_no_readable_scene_at_all_is_an_error(scratch):
    views = views_of(scratch)
    for scene in scratch.glob("room*"):
        shutil.rmtree(scene / "color")
    with pytest.raises(ValueError, match=" 5 scenes .*room[0-4]/color/.*No such file"):
        views[0, 0, 4]


def test_a_scene_that_is_too_short_for_the_views_is_named(scratch, caplog):
    for image in sorted((scratch / "room3" / "color").iterdir())[3:]:
        image.unlink()
    scenes = load_scenes("rooms", scratch)
    warn_of_short_scenes(scenes, 3)
    assert not caplog.text
    warn_of_short_scenes(scenes, 4)
    assert all(
        named in caplog.text for named in ("1 of 5 scenes", "room3 with 3 frames", "rooms:FOLDER@", "--max_views")
    )


@pytest.mark.parametrize("option, part", [("cameras", "intrinsic"), ("cameras", "pose"), ("depth", "depth")])
def test_a_scene_without_the_files_that_are_asked_for_is_named(scratch, option, part):
    shutil.rmtree(scratch / "room3" / part)
    with pytest.raises(ValueError, match=f"room3 .*{part}.*`--{option} false`"):
        views_of(scratch, **{option: True})


def test_intrinsics_and_depth_follow_the_crop_to_the_common_size(tmp_path):
    # The second scene is wider: its views have fewer rows, to which those of the first are cropped.
    for scene_id, size in (("tall", (56, 84)), ("wide", (84, 56))):
        write_scene(tmp_path, scene_id, num_frames=4, size=size)
    views = views_of(tmp_path, cameras=True, depth=True)
    items = [views[0, 0, 4], views[0, 1, 4]]
    batch = collate_views(items)
    assert [item["pixel_values"].shape[-2:] for item in items] == [(56, 42), (28, 42)]
    assert batch["pixel_values"].shape == (2, 4, 3, 28, 42) and batch["depth"].shape == (2, 4, 28, 42)
    # 84 rows become 63, of which 56 and then 28 are kept from the middle, so that the center moves by 3 + 14 rows.
    torch.testing.assert_close(batch["intrinsics"][0, :, 1, 2], torch.full((4,), 42 * 0.75 - 3 - 14))
    torch.testing.assert_close(batch["intrinsics"][1], items[1]["intrinsics"])
    torch.testing.assert_close(items[0]["intrinsics"][:, 1, 2], torch.full((4,), 42 * 0.75 - 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_with_an_orientation_show_points_where_their_cameras_project_them(tmp_path, orientation):
    # A white square on black, 2 m away, is where the camera sees it, whatever the photo says about its top.
    write_scene(tmp_path, "room0", num_frames=2, size=SIZE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    point, center = torch.tensor([0.4, -0.3, 2.0]), (50 * 0.2 + 30, 51 * -0.15 + 24)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    square = (abs(columns - center[0]) <= 5) & (abs(rows - center[1]) <= 5)
    depth = np.where(square, 2000, 5000).astype(np.uint16)
    for frame in range(2):
        np.savetxt(tmp_path / f"room0/pose/{frame}.txt", np.eye(4))
        Image.fromarray(square.astype(np.uint8) * 255).save(tmp_path / f"room0/color/{frame}.png", exif=exif)
        Image.fromarray(depth).save(tmp_path / f"room0/depth/{frame}.png")
    item = views_of(tmp_path, cameras=True, depth=True)[0, 0, 2]
    weight = item["pixel_values"][0, 0].double()
    grid = [torch.arange(side) + 0.5 for side in weight.shape[::-1]]
    seen = [(weight.sum(axis) * grid[axis]).sum() / weight.sum() for axis in range(2)]
    projected = item["intrinsics"][0] @ (item["extrinsics"][0] @ torch.cat([point, torch.ones(1)]))[:3]
    assert (projected[:2] / projected[2] - torch.stack(seen)).abs().max() < 0.75
    near = item["depth"][0] < 3
    assert (near == (item["pixel_values"][0, 0] > 127)).double().mean() > 0.97


def test_views_of_a_room_agree_on_where_its_surfaces_are(tmp_path):
    render_rooms(tmp_path, num_scenes=1, num_views=4, size=(140, 112))
    item = SceneViews(load_scenes("rooms", tmp_path), image_width=84, cameras=True, depth=True)[0, 0, 4]
    intrinsics, extrinsics, depth = (item[name].double() for name in ("intrinsics", "extrinsics", "depth"))
    height, width = depth.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).double()
    errors = []
    for one, other in permutations(range(4), 2):
        points = pixels @ intrinsics[one].inverse().T * depth[one, ..., None]
        motion = extrinsics[other] @ extrinsics[one].inverse()
        points = points @ motion[:3, :3].T + motion[:3, 3]
        seen = points @ intrinsics[other].T
        seen = seen[..., :2] / seen[..., 2:]
        inside = (points[..., 2] > 0.1) & (seen >= 0).all(-1) & (seen < torch.tensor([width, height])).all(-1)
        column, row = seen[inside].long().unbind(-1)
        errors.append((depth[other, row, column] / points[inside][:, 2] - 1).abs())
    # What is hidden in one of the two views does not agree.
    assert (torch.cat(errors) < 0.02).double().mean() > 0.9


def test_images_of_different_sizes_in_a_scene_are_cropped_to_a_common_size(scratch):
    for frame in range(0, 20, 2):
        Image.new("RGB", (60, 90)).save(scratch / "room0" / "color" / f"{frame}.png")
    item = views_of(scratch)[0, 0, 8]
    assert len({frame % 2 for frame in item["frame_indices"]}) == 2
    assert item["pixel_values"].shape == (8, 3, 28, 42)


@pytest.mark.parametrize("size", [(240, 80), (80, 240)])
def test_a_panorama_among_other_images_is_replaced_and_named(scratch, size):
    for scene in ("room0", "room1"):
        Image.new("RGB", size).save(scratch / scene / "color" / "7.png")
    items = [views_of(scratch)[0, scene, 20] for scene in (0, 1, 2)]
    assert collate_views(items)["pixel_values"].shape == (3, 20, 3, 28, 42)
    assert [frame for item in items for frame in item["frame_indices"]].count(7) == 1
    assert all(f"7.png: has {size[0]} x {size[1]}" in item["replaced_frames"][0] for item in items[:2])


def test_a_scene_of_panoramas_gives_way_to_the_next(scratch):
    for frame in range(20):
        Image.new("RGB", (300, 60)).save(scratch / "room3" / "color" / f"{frame}.png")
    item = views_of(scratch)[0, 3, 4]
    assert (item["scene_id"], item["dropped_scenes"]) == ("room4", ["room3"])


def test_scenes_of_panoramas_alone_are_used(tmp_path):
    for scene_id in ("street0", "street1"):
        write_scene(tmp_path, scene_id, num_frames=4, size=(120, 40))
    assert views_of(tmp_path)[0, 0, 4]["pixel_values"].shape == (4, 3, 14, 42)


def test_transparent_and_16_bit_images_are_read_as_everywhere(scratch):
    for frame in range(20):
        Image.new("RGBA", SIZE, (9, 9, 9, 0)).save(scratch / "room0/color" / f"{frame}.png")
    Image.new("I;16", SIZE, 999).save(scratch / "room0/color/7.png")
    item = views_of(scratch)[0, 0, 20]
    assert item["pixel_values"].min() == 255
    (error,) = item["replaced_frames"]
    assert "7.png" in error and "`I;16`" in error


def test_a_batch_gathers_the_reports_of_its_items(scratch):
    views = views_of(scratch)
    shutil.rmtree(scratch / "room4" / "color")
    (scratch / "room0" / "color" / f"{views[0, 0, 4]['frame_indices'][0]}.png").unlink()
    batch = collate_views([views[0, 4, 4], views[0, 0, 4], views[0, 1, 4]])
    assert batch["scene_id"] == ["room0", "room0", "room1"] and batch["dropped_scenes"] == ["room4"]
    assert len(batch["replaced_frames"]) == 2 and batch["num_context_views"] == 2


def test_scenes_of_different_view_counts_do_not_stack(root):
    views = views_of(root)
    with pytest.raises(ValueError, match="`ViewBatchSampler`"):
        collate_views([views[0, 0, 4], views[0, 1, 6]])
