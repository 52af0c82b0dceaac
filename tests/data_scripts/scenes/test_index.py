import json
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_videos import numbers_of, write_video

from spa3r.data_scripts.common.images import UnreadableFrame
from spa3r.data_scripts.scenes.index import (
    load_scene_sources,
    load_scenes,
    read_camera,
    read_depth,
    read_images,
    split_scenes,
)
from spa3r.data_scripts.scenes.views import SceneViews


def write_images(folder, names):
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / name)


def write_scannet(root, scene_id, num_frames=3):
    """A scene whose camera moves along x, one meter a frame."""
    write_images(root / scene_id / "color", [f"{frame}.jpg" for frame in range(num_frames)])
    for part in ("pose", "intrinsic", "depth"):
        (root / scene_id / part).mkdir()
    intrinsics = [[35, 0, 20, 0], [0, 36, 15, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.savetxt(root / scene_id / "intrinsic" / "intrinsic_color.txt", intrinsics)
    for frame in range(num_frames):
        pose = np.eye(4)
        pose[0, 3] = frame
        np.savetxt(root / scene_id / "pose" / f"{frame}.txt", pose)
        Image.fromarray(np.full((30, 40), 1000 + frame, np.uint16)).save(root / scene_id / "depth" / f"{frame}.png")


def write_scannetpp(root, scene_ids, image_folder="undistorted_images"):
    for scene_id in scene_ids:
        write_images(root / "data" / scene_id / "dslr" / image_folder, ["DSC00009.JPG", "DSC00010.JPG"])
    (root / "splits").mkdir()
    (root / "splits" / "nvs_sem_train.txt").write_text("\n".join(scene_ids) + "\n")


def test_scannet_frames_are_in_natural_order(tmp_path):
    write_scannet(tmp_path, "scene0000_00", num_frames=12)
    (scene,) = load_scenes("scannet", tmp_path)
    assert scene["frames"] == [f"color/{frame}.jpg" for frame in range(12)]
    assert (scene["scene_id"], scene["num_frames"], scene["interval"]) == ("scene0000_00", 12, [2, 6])


def test_scannet_reads_scene_folders_only_and_rooms_any(tmp_path):
    for name in ("scene0000_00", "kitchen", ".partial"):
        write_scannet(tmp_path, name)
    assert load_scenes("scannet", tmp_path)["scene_id"][:] == ["scene0000_00"]
    assert load_scenes("rooms", tmp_path)["scene_id"][:] == ["kitchen", "scene0000_00"]


@pytest.mark.parametrize("image_folder", ["undistorted_images", "resized_undistorted_images"])
def test_scannetpp_reads_the_scenes_of_its_training_split(tmp_path, image_folder):
    write_scannetpp(tmp_path, ["0a7cc12c0e", "09c1414f1b"], image_folder)
    (tmp_path / "splits" / "nvs_sem_train.txt").write_text("0a7cc12c0e\n")
    (scene,) = load_scenes("scannetpp", tmp_path)
    assert scene["frames"] == [f"{image_folder}/DSC00009.JPG", f"{image_folder}/DSC00010.JPG"]
    assert (scene["scene_id"], scene["interval"]) == ("0a7cc12c0e", [20, 60])


def test_folders_of_images_are_scenes(tmp_path):
    write_images(tmp_path / "living room", ["b.PNG", "a.jpg", "._a.jpg.png"])
    (tmp_path / "living room" / "notes.txt").touch()
    (scene,) = load_scenes("folders", tmp_path, interval=[1, 9])
    assert (scene["scene_id"], scene["frames"], scene["interval"]) == ("living room", ["a.jpg", "b.PNG"], [1, 9])


def test_excluded_scenes_are_left_out_and_counted(tmp_path, caplog):
    for number in range(4):
        write_images(tmp_path / "data" / f"room {number}", ["0.jpg", "1.jpg"])
    (tmp_path / "benchmark.txt").write_text("room 1\n\nroom 3\nanother\n")
    with caplog.at_level(logging.WARNING):
        scenes = load_scenes("folders", tmp_path / "data", exclude=tmp_path / "benchmark.txt")
    assert scenes["scene_id"][:] == ["room 0", "room 2"]
    assert "2 of 4" in caplog.text


def test_all_scans_of_an_excluded_scannet_room_are_left_out_and_counted(tmp_path, caplog):
    for scene_id in ("scene0011_00", "scene0011_01", "scene0012_00", "scene0110_01"):
        write_scannet(tmp_path, scene_id)
    with caplog.at_level(logging.WARNING):
        scenes = load_scenes("scannet", tmp_path, exclude=["scene0011_00", "scene0700_00"])
    assert scenes["scene_id"][:] == ["scene0012_00", "scene0110_01"]
    assert "2 of 4" in caplog.text and ", 1 of them" in caplog.text


def test_scenes_other_than_scannets_are_excluded_by_their_whole_id(tmp_path):
    for scene_id in ("scene0011_00", "scene0011_01"):
        write_scannet(tmp_path, scene_id)
    assert load_scenes("rooms", tmp_path, exclude=["scene0011_00"])["scene_id"][:] == ["scene0011_01"]


def test_scenes_of_fewer_than_two_frames_are_dropped_and_named(tmp_path, caplog):
    write_images(tmp_path / "full", ["0.jpg", "1.jpg"])
    write_images(tmp_path / "single", ["0.jpg"])
    (tmp_path / "bare").mkdir()
    with caplog.at_level(logging.WARNING):
        scenes = load_scenes("folders", tmp_path)
    assert scenes["scene_id"][:] == ["full"]
    assert "2 of 3" in caplog.text and "bare, single" in caplog.text


@pytest.mark.parametrize(
    "load, error, named",
    [
        (lambda root: load_scenes("matterport", root), ValueError, "`kind`.*matterport"),
        (lambda root: load_scenes("folders", root, interval=[3, 1]), ValueError, r"`interval`.*\[3, 1\]"),
        (lambda root: load_scenes("folders", root, exclude="typo.txt"), FileNotFoundError, "`typo.txt`"),
        (lambda root: load_scenes("folders", root, exclude=["hall"]), FileNotFoundError, "folders.* 1 .*excluded"),
        (lambda root: load_scenes("folders", root / "nowhere"), FileNotFoundError, "nowhere`"),
        (lambda root: load_scenes("scannetpp", root), FileNotFoundError, "nvs_sem_train.txt`"),
        *(
            (lambda root, kind=kind: load_scenes(kind, root / "hall"), FileNotFoundError, f"{kind}.*hall`")
            for kind in ("scannet", "rooms", "folders", "videos")
        ),
        (lambda root: load_scene_sources([str(root)]), ValueError, "KIND:FOLDER.*hold"),
        (lambda root: load_scene_sources([f"rooms:{root}@3-1"]), ValueError, r"`interval`.*\[3, 1\]"),
        (lambda root: split_scenes(load_scenes("folders", root), 1), ValueError, " 1 of 1 "),
        (lambda root: split_scenes(load_scenes("folders", root), -1), ValueError, "`num_held_out`.*-1"),
    ],
)
def test_scenes_that_cannot_be_had_are_refused(tmp_path, load, error, named):
    write_images(tmp_path / "hold" / "hall", ["0.jpg", "1.jpg"])
    with pytest.raises(error, match=named):
        load(tmp_path / "hold")


def test_sources_mix_into_one_data_set(tmp_path):
    write_scannet(tmp_path / "scannet", "scene0000_00")
    write_scannet(tmp_path / "scannet", "scene0001_00")
    write_images(tmp_path / "my:photos" / "garden", ["0.jpg", "1.jpg"])
    sources = [f"scannet:{tmp_path}/scannet", f"folders:{tmp_path}/my:photos@2-3"]
    scenes = load_scene_sources(sources, exclude=["scene0001_00"])
    assert list(zip(scenes["source"], scenes["scene_id"], scenes["interval"], strict=True)) == [
        ("scannet", "scene0000_00", [2, 6]),
        ("folders", "garden", [2, 3]),
    ]


def test_held_out_scenes_do_not_depend_on_the_order_of_the_scenes(tmp_path):
    for number in range(12):
        write_images(tmp_path / f"room{number}", ["0.jpg", "1.jpg"])
    scenes = load_scenes("folders", tmp_path)
    train, held_out = split_scenes(scenes, 3, seed=1)
    assert len(held_out) == 3 and sorted([*train["scene_id"], *held_out["scene_id"]]) == sorted(scenes["scene_id"])
    reordered = split_scenes(scenes.shuffle(seed=0), 3, seed=1)[1]
    assert set(reordered["scene_id"]) == set(held_out["scene_id"])
    assert set(split_scenes(scenes, 3, seed=2)[1]["scene_id"]) != set(held_out["scene_id"])


def test_scans_of_a_scannet_room_are_held_out_together(tmp_path):
    for room in range(6):
        for scan in range(2):
            write_images(tmp_path / f"scene{room:04}_{scan:02}" / "color", ["0.jpg", "1.jpg"])
    train, held_out = split_scenes(load_scenes("scannet", tmp_path), 3)
    rooms_of = [{scene_id[:9] for scene_id in part["scene_id"]} for part in (train, held_out)]
    assert len(held_out) == 4
    assert not rooms_of[0] & rooms_of[1]


def test_scannet_cameras_are_world_to_camera(tmp_path):
    write_scannet(tmp_path, "scene0000_00")
    (scene,) = load_scenes("scannet", tmp_path)
    extrinsics, intrinsics = read_camera(scene, 2, (30, 40))
    # The third camera stands at x = 2, so that what is there lies in its origin.
    point = extrinsics @ torch.tensor([2.0, 0, 0, 1], dtype=torch.float64)
    assert torch.equal(point, torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))
    assert torch.equal(intrinsics, torch.tensor([[35.0, 0, 20], [0, 36, 15], [0, 0, 1]], dtype=torch.float64))


def test_depth_is_that_of_the_frame_in_meters(tmp_path):
    write_scannet(tmp_path, "scene0000_00")
    millimeters = np.array([[0, 1500], [65535, 1]], dtype=np.uint16)
    Image.fromarray(millimeters).save(tmp_path / "scene0000_00" / "depth" / "1.png")
    (scene,) = load_scenes("scannet", tmp_path)
    assert torch.equal(read_depth(scene, 2), torch.full((30, 40), 1.002))
    torch.testing.assert_close(read_depth(scene, 1), torch.tensor([[0, 1.5], [65.535, 0.001]]))


def test_depth_of_several_channels_is_unreadable(tmp_path):
    write_scannet(tmp_path, "scene0000_00")
    Image.new("RGB", (40, 30)).save(tmp_path / "scene0000_00" / "depth" / "1.png")
    (scene,) = load_scenes("scannet", tmp_path)
    with pytest.raises(UnreadableFrame, match=r"1.png.*\(30, 40, 3\)"):
        read_depth(scene, 1)


@pytest.mark.parametrize(
    ("pose", "reason"),
    [
        (np.full((4, 4), -np.inf), "finite"),
        (np.diag([np.nan, 1, 1, 1]), "finite"),
        (np.diag([2.0, 2, 2, 1]), "rigid"),
        (np.diag([1.0, 1, -1, 1]), "rigid"),
        (np.diag([1.0, 1, 1, 0]), "rigid"),
        (np.eye(3), "4 x 4"),
    ],
    ids=["infinite", "nan", "scaled", "mirrored", "singular", "three-rows"],
)
def test_poses_that_are_none_make_a_frame_unreadable(tmp_path, pose, reason):
    write_scannet(tmp_path, "scene0000_00")
    np.savetxt(tmp_path / "scene0000_00" / "pose" / "1.txt", pose)
    (scene,) = load_scenes("scannet", tmp_path)
    with pytest.raises(UnreadableFrame, match=f"1.jpg: .*pose.*{reason}"):
        read_camera(scene, 1, (30, 40))


@pytest.mark.parametrize(
    "intrinsics",
    ["0 0 28\n0 nan 21\n0 0 1", "35 0 nan\n0 36 15\n0 0 1", "35 0 20\n0 inf 15\n0 0 1", "35 0 20\n0 -36 15\n0 0 1"],
    ids=["zero-and-nan", "nan-center", "infinite", "negative"],
)
def test_intrinsics_that_are_none_make_a_frame_unreadable(tmp_path, intrinsics):
    write_scannet(tmp_path, "scene0000_00")
    (tmp_path / "scene0000_00" / "intrinsic" / "intrinsic_color.txt").write_text(intrinsics)
    (scene,) = load_scenes("scannet", tmp_path)
    with pytest.raises(UnreadableFrame, match="1.jpg: .*intrinsic_color.txt.*finite"):
        read_camera(scene, 1, (30, 40))


def test_a_scene_whose_intrinsics_are_none_is_dropped_and_named(tmp_path, caplog):
    for scene_id in ("scene0000_00", "scene0001_00"):
        write_scannet(tmp_path, scene_id)
    (tmp_path / "scene0000_00" / "intrinsic" / "intrinsic_color.txt").write_text("0 0 28\n0 nan 21\n0 0 1")
    views = SceneViews(load_scenes("scannet", tmp_path), image_width=42, cameras=True)
    item = views[0, 0, 2]
    assert (item["scene_id"], item["dropped_scenes"]) == ("scene0001_00", ["scene0000_00"])
    assert "scene0000_00" in caplog.text and "intrinsic_color.txt" in caplog.text


def test_intrinsics_of_another_image_size_are_noticed(tmp_path):
    write_scannet(tmp_path, "scene0000_00")
    (scene,) = load_scenes("scannet", tmp_path)
    with pytest.raises(UnreadableFrame, match="20 x 15"):
        read_camera(scene, 0, (15, 20))


def test_scannetpp_cameras_turn_from_opengl_to_opencv(tmp_path):
    write_scannetpp(tmp_path, ["0a7cc12c0e"])
    # At z = 5, looking along -z with y up, as OpenGL's cameras do unrotated.
    pose = np.eye(4)
    pose[2, 3] = 5
    frames = [{"file_path": "DSC00010.JPG", "transform_matrix": pose.tolist()}]
    transforms = {"fl_x": 30.0, "fl_y": 31.0, "cx": 19.0, "cy": 14.0, "frames": [], "test_frames": frames}
    file = tmp_path / "data" / "0a7cc12c0e" / "dslr" / "nerfstudio" / "transforms_undistorted.json"
    file.parent.mkdir()
    file.write_text(json.dumps(transforms))
    (scene,) = load_scenes("scannetpp", tmp_path)
    extrinsics, intrinsics = read_camera(scene, 1, (30, 40))
    in_front, above = torch.tensor([[0.0, 0, 0, 1], [0, 1, 5, 1]], dtype=torch.float64)
    assert (extrinsics @ in_front).tolist() == [0, 0, 5, 1]
    assert (extrinsics @ above).tolist() == [0, -1, 0, 1]
    assert intrinsics.tolist() == [[30, 0, 19], [0, 31, 14], [0, 0, 1]]
    with pytest.raises(UnreadableFrame, match="DSC00009.JPG: .*camera"):
        read_camera(scene, 0, (30, 40))


def test_a_scannetpp_pose_that_is_no_matrix_makes_a_frame_unreadable(tmp_path):
    write_scannetpp(tmp_path, ["0a7cc12c0e"])
    frames = [{"file_path": "DSC00009.JPG", "transform_matrix": [[1, 0, 0, 0], [0, 1]]}]
    file = tmp_path / "data" / "0a7cc12c0e" / "dslr" / "nerfstudio" / "transforms_undistorted.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"fl_x": 30.0, "fl_y": 31.0, "cx": 19.0, "cy": 14.0, "frames": frames}))
    (scene,) = load_scenes("scannetpp", tmp_path)
    with pytest.raises(UnreadableFrame, match="transforms_undistorted.json: ValueError"):
        read_camera(scene, 0, (30, 40))


def test_a_video_is_a_scene_of_its_frames(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_video(tmp_path / "walk.mp4")
    (scene,) = load_scenes("videos", tmp_path)
    images = dict(read_images(scene, [13, 5, 19]))
    assert (scene["scene_id"], scene["num_frames"]) == ("walk", 20)
    assert list(images) == numbers_of(images.values()) == [5, 13, 19]


def test_a_video_that_was_cut_after_it_was_indexed_names_the_frames_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    video = write_video(tmp_path / "walk.mkv", g="6")
    (scene,) = load_scenes("videos", tmp_path)
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 4 // 5])
    image, error = (image for _, image in read_images(scene, [0, 19]))
    assert isinstance(image, np.ndarray) and isinstance(error, UnreadableFrame)
    assert "walk.mkv" in str(error) and "19" in str(error)


def test_a_file_that_is_no_video_is_dropped_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_video(tmp_path / "walk.mp4")
    (tmp_path / "notes.mp4").write_bytes(b"no video")
    with caplog.at_level(logging.WARNING):
        scenes = load_scenes("videos", tmp_path)
    assert scenes["scene_id"][:] == ["walk"]
    assert "notes.mp4" in caplog.text


def test_a_changed_video_is_indexed_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_video(tmp_path / "walk.mp4")
    assert load_scenes("videos", tmp_path)["num_frames"][:] == [20]
    write_video(tmp_path / "walk.mp4", num_frames=10)
    assert load_scenes("videos", tmp_path)["num_frames"][:] == [10]


def test_only_videos_need_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    write_images(tmp_path / "hall", ["0.jpg", "1.jpg"])
    (tmp_path / "walk.mp4").touch()
    assert load_scenes("folders", tmp_path)["scene_id"][:] == ["hall"]
    with pytest.raises(ImportError, match="pip install av"):
        load_scenes("videos", tmp_path)
