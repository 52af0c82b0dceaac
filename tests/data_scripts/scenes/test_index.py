import json
import logging
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from tiny_scenes import write_images, write_scene
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

SIZE = (30, 40)
TWO = ["0.jpg", "1.jpg"]
INTRINSICS = np.array([[50.0, 0, 20], [0, 51, 15], [0, 0, 1]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def scannet(tmp_path):
    """A scene of ScanNet, whose files may still be changed, and its folder."""
    write_scene(tmp_path, "scene0000_00", num_frames=12)
    return load_scenes("scannet", tmp_path)[0], tmp_path / "scene0000_00"


def write_scannetpp(root, scene_ids, image_folder="undistorted_images"):
    for scene_id in scene_ids:
        write_images(root / "data" / scene_id / "dslr" / image_folder, ["DSC00009.JPG", "DSC00010.JPG"])
    (root / "splits").mkdir()
    (root / "splits/nvs_sem_train.txt").write_text("\n".join(scene_ids) + "\n")


def scannetpp_scene(root, **frames):
    """A scene of ScanNet++ with these cameras."""
    write_scannetpp(root, ["0a7cc12c0e"])
    file = root / "data/0a7cc12c0e/dslr/nerfstudio/transforms_undistorted.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"fl_x": 30.0, "fl_y": 31.0, "cx": 19.0, "cy": 14.0, "frames": []} | frames))
    return load_scenes("scannetpp", root)[0]


def test_scannet_frames_are_in_natural_order(scannet):
    scene, _ = scannet
    assert scene["frames"] == [f"color/{frame}.png" for frame in range(12)]
    assert (scene["scene_id"], scene["num_frames"], scene["interval"]) == ("scene0000_00", 12, [2, 6])


def test_scannet_reads_scene_folders_only_and_rooms_any(tmp_path):
    for name in ("scene0000_00", "kitchen", ".partial"):
        write_scene(tmp_path, name)
    assert load_scenes("scannet", tmp_path)["scene_id"][:] == ["scene0000_00"]
    assert load_scenes("rooms", tmp_path)["scene_id"][:] == ["kitchen", "scene0000_00"]


@pytest.mark.parametrize("image_folder", ["undistorted_images", "resized_undistorted_images"])
def test_scannetpp_reads_the_scenes_of_its_training_split(tmp_path, image_folder):
    write_scannetpp(tmp_path, ["0a7cc12c0e", "09c1414f1b"], image_folder)
    (tmp_path / "splits/nvs_sem_train.txt").write_text("0a7cc12c0e\n")
    (scene,) = load_scenes("scannetpp", tmp_path)
    assert scene["frames"] == [f"{image_folder}/DSC00009.JPG", f"{image_folder}/DSC00010.JPG"]
    assert (scene["scene_id"], scene["interval"]) == ("0a7cc12c0e", [20, 60])


def test_folders_of_images_are_scenes(tmp_path):
    write_images(tmp_path / "living room", ["b.PNG", "a.jpg", "._a.jpg.png"])
    (tmp_path / "living room/notes.txt").touch()
    (scene,) = load_scenes("folders", tmp_path, interval=[1, 9])
    assert (scene["scene_id"], scene["frames"], scene["interval"]) == ("living room", ["a.jpg", "b.PNG"], [1, 9])


# Kind, scenes, excluded scenes, scenes that are left, and what is counted.
EXCLUDED = {
    "listed scenes": ("rooms", ["1", "2", "3"], ["1", " 3 ", "", "another"], ["2"], "2 of 3 .*2 of the 3 "),
    "all scans of a ScanNet room": (
        *("scannet", ["scene0011_00", "scene0011_01", "scene0012_00", "scene0110_01"]),
        *(["scene0011_00", "scene0700_00"], ["scene0012_00", "scene0110_01"], "2 of 4 .*1 of the 2 "),
    ),
    "scans under other names": (
        *("rooms", ["scannet_scene0011_01_rgb", "x_b1", "09c1414f1b_dslr"]),
        *(["scene0011_00", "b1", "09c1414f1b"], ["x_b1"], "2 of 3 .*2 of the 3 "),
    ),
}


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("kind, scene_ids, exclude, left, counted", EXCLUDED.values(), ids=EXCLUDED)
def test_excluded_scenes_are_left_out_and_counted(tmp_path, caplog, kind, scene_ids, exclude, left, counted, is_file):
    for scene_id in scene_ids:
        write_scene(tmp_path, scene_id, num_frames=2)
    if is_file:
        (tmp_path / "benchmark.txt").write_text("\n".join(exclude))
        exclude = tmp_path / "benchmark.txt"
    with caplog.at_level(logging.WARNING):
        assert load_scenes(kind, tmp_path, exclude=exclude)["scene_id"][:] == left
    assert re.search(counted, caplog.text)


@pytest.mark.parametrize("entry", ["living room", "{root}/living room", "{root}/living room/1.jpg", "./living room/"])
def test_a_list_names_scenes_by_their_paths_too(tmp_path, entry):
    for name in ("living room", "kitchen"):
        write_images(tmp_path / "photos" / name, TWO)
    (tmp_path / "list.txt").write_text(entry.format(root=tmp_path / "photos"))
    assert load_scenes("folders", tmp_path / "photos", exclude=tmp_path / "list.txt")["scene_id"][:] == ["kitchen"]


def test_a_videos_path_excludes_it(tmp_path):
    for name in ("walk.mp4", "scene0011_01.mp4", "hall.mp4"):
        write_video(tmp_path / "videos" / name, num_frames=3)
    (tmp_path / "list.csv").write_text("videos/walk.mp4, scannet/scene0011_00.mp4")
    assert load_scenes("videos", tmp_path / "videos", exclude=tmp_path / "list.csv")["scene_id"][:] == ["hall"]


def test_a_benchmarks_own_file_leaves_its_scenes_out_of_all_sources(tmp_path, caplog):
    for name in ("scene0000_00", "scene0011_01"):
        write_scene(tmp_path / "scannet", name)
    write_images(tmp_path / "photos/garden", TWO)
    rows = [{"scene_name": scene, "question": "How many?"} for scene in ("scene0011_00", "41069025")]
    (tmp_path / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sources = [f"scannet:{tmp_path}/scannet", f"folders:{tmp_path}/photos"]
    with caplog.at_level(logging.WARNING):
        scenes = load_scene_sources(sources, tmp_path / "test.jsonl")
    assert scenes["scene_id"][:] == ["scene0000_00", "garden"]
    assert "1 of 3 scenes are left out (1 of the 2 listed were found)" in caplog.text


def test_a_list_that_leaves_out_nothing_is_refused_unless_it_may(tmp_path, caplog):
    write_images(tmp_path / "photos/garden", TWO)
    with pytest.raises(ValueError, match="`exclude`.* 0 of 1 .*'scene0011_00'.*`exclude_may_match_nothing`"):
        load_scene_sources([f"folders:{tmp_path}/photos"], ["scene0011_00"])
    with caplog.at_level(logging.WARNING):
        load_scene_sources([f"folders:{tmp_path}/photos"], ["scene0011_00"], exclude_may_match_nothing=True)
    assert "0 of 1 scenes are left out (0 of the 1 listed were found)" in caplog.text


def test_scenes_of_fewer_than_two_frames_are_dropped_and_named(tmp_path, caplog):
    write_images(tmp_path / "full", TWO)
    write_images(tmp_path / "single", TWO[:1])
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
    write_images(tmp_path / "hold/hall", TWO)
    with pytest.raises(error, match=named):
        load(tmp_path / "hold")


def test_sources_mix_into_one_data_set(tmp_path):
    write_scene(tmp_path / "scannet", "scene0000_00")
    write_scene(tmp_path / "scannet", "scene0001_00")
    write_images(tmp_path / "my:photos/garden", TWO)
    sources = [f"scannet:{tmp_path}/scannet", f"folders:{tmp_path}/my:photos@2-3"]
    scenes = load_scene_sources(sources, exclude=["scene0001_00"])
    assert list(zip(scenes["source"], scenes["scene_id"], scenes["interval"], strict=True)) == [
        ("scannet", "scene0000_00", [2, 6]),
        ("folders", "garden", [2, 3]),
    ]


def test_held_out_scenes_do_not_depend_on_the_order_of_the_scenes(tmp_path):
    for number in range(12):
        write_images(tmp_path / f"room{number}", TWO)
    scenes = load_scenes("folders", tmp_path)
    train, held_out = split_scenes(scenes, 3, seed=1)
    assert len(held_out) == 3 and sorted([*train["scene_id"], *held_out["scene_id"]]) == sorted(scenes["scene_id"])
    reordered = split_scenes(scenes.shuffle(seed=0), 3, seed=1)[1]
    assert set(reordered["scene_id"]) == set(held_out["scene_id"])
    assert set(split_scenes(scenes, 3, seed=2)[1]["scene_id"]) != set(held_out["scene_id"])


def test_scans_of_a_scannet_room_are_held_out_together(tmp_path):
    for number in range(12):
        write_images(tmp_path / f"scene{number // 2:04}_{number % 2:02}/color", TWO)
    train, held_out = split_scenes(load_scenes("scannet", tmp_path), 3)
    rooms_of = [{scene_id[:9] for scene_id in part["scene_id"]} for part in (train, held_out)]
    assert len(held_out) == 4
    assert not rooms_of[0] & rooms_of[1]


def test_scannet_cameras_are_world_to_camera(scannet):
    extrinsics, intrinsics = read_camera(scannet[0], 2, SIZE)
    # The third camera stands at x = 2, so that what is there lies in its origin.
    assert (extrinsics @ torch.tensor([2.0, 0, 0, 1], dtype=torch.float64)).tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(intrinsics, INTRINSICS)


def test_depth_is_that_of_the_frame_in_meters(scannet):
    scene, folder = scannet
    Image.fromarray(np.array([[0, 1500], [65535, 1]], dtype=np.uint16)).save(folder / "depth/1.png")
    assert torch.equal(read_depth(scene, 2), torch.full(SIZE, 1.002))
    torch.testing.assert_close(read_depth(scene, 1), torch.tensor([[0, 1.5], [65.535, 0.001]]))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA"])
def test_depth_that_is_not_one_channel_of_16_bits_is_unreadable(scannet, mode):
    scene, folder = scannet
    Image.new("L", (40, 30), 100).convert(mode).save(folder / "depth/1.png")
    with pytest.raises(UnreadableFrame, match=rf"depth/1.png.*`{mode}`"):
        read_depth(scene, 1)


POSE, CENTER = "pose/1.txt", "intrinsic/intrinsic_color.txt"


@pytest.mark.parametrize(
    "file, matrix, named",
    [
        (POSE, np.full((4, 4), -np.inf), "pose.*finite"),
        (POSE, np.diag([np.nan, 1, 1, 1]), "pose.*finite"),
        (POSE, np.diag([2.0, 2, 2, 1]), "pose.*rigid"),
        (POSE, np.diag([1.0, 1, -1, 1]), "pose.*rigid"),
        (POSE, np.diag([1.0, 1, 1, 0]), "pose.*rigid"),
        (POSE, np.eye(3), "pose.*4 x 4"),
        (CENTER, [[0, 0, 28], [0, np.nan, 21], [0, 0, 1]], f"{CENTER}.*finite"),
        (CENTER, [[35, 0, np.nan], [0, 36, 15], [0, 0, 1]], f"{CENTER}.*finite"),
        (CENTER, [[35, 0, 20], [0, np.inf, 15], [0, 0, 1]], f"{CENTER}.*finite"),
        (CENTER, [[35, 0, 20], [0, -36, 15], [0, 0, 1]], f"{CENTER}.*finite"),
        (CENTER, [[35, 0, 41], [0, 36, 15], [0, 0, 1]], "40 x 30"),
        # Half the size, and a picture on its side.
        (CENTER, [[18, 0, 10], [0, 18, 7.5], [0, 0, 1]], "40 x 30"),
        (CENTER, [[36, 0, 15], [0, 35, 20], [0, 0, 1]], "40 x 30"),
    ],
)
def test_cameras_that_are_none_make_a_frame_unreadable(scannet, file, matrix, named):
    scene, folder = scannet
    np.savetxt(folder / file, matrix)
    with pytest.raises(UnreadableFrame, match=f"1.png: .*{named}"):
        read_camera(scene, 1, SIZE)


@pytest.mark.parametrize("name", ["../../../escape", "/etc", "a/b", ".."])
def test_a_split_of_scannetpp_names_folders_of_its_data_alone(tmp_path, name):
    write_scannetpp(tmp_path, ["0a7cc12c0e"])
    with (tmp_path / "splits" / "nvs_sem_train.txt").open("a") as file:
        file.write(f"\n{name}\n")
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        load_scenes("scannetpp", tmp_path)


def test_scannetpp_cameras_turn_from_opengl_to_opencv(tmp_path):
    # At z = 5, looking along -z with y up, as OpenGL's cameras do unrotated.
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1]]
    scene = scannetpp_scene(tmp_path, test_frames=[{"file_path": "DSC00010.JPG", "transform_matrix": pose}])
    extrinsics, intrinsics = read_camera(scene, 1, SIZE)
    in_front, above = torch.tensor([[0.0, 0, 0, 1], [0, 1, 5, 1]], dtype=torch.float64)
    assert (extrinsics @ in_front).tolist() == [0, 0, 5, 1]
    assert (extrinsics @ above).tolist() == [0, -1, 0, 1]
    assert intrinsics.tolist() == [[30, 0, 19], [0, 31, 14], [0, 0, 1]]
    with pytest.raises(UnreadableFrame, match="DSC00009.JPG: .*camera"):
        read_camera(scene, 0, SIZE)


def test_scannetpp_cameras_of_another_image_size_make_a_frame_unreadable(tmp_path):
    frames = [{"file_path": "DSC00009.JPG", "transform_matrix": np.eye(4).tolist()}]
    scene = scannetpp_scene(tmp_path, frames=frames, w=80, h=60)
    with pytest.raises(UnreadableFrame, match="DSC00009.JPG.* 80 x 60.* 40 x 30"):
        read_camera(scene, 0, SIZE)


@pytest.mark.parametrize("file", ["transforms_undistorted.json", "transforms.json"])
def test_images_that_scannetpp_marks_as_bad_are_left_out(tmp_path, file):
    write_scannetpp(tmp_path, ["0a7cc12c0e"])
    write_images(tmp_path / "more", ["DSC00011.JPG", "DSC00012.JPG"])
    for image in (tmp_path / "more").iterdir():
        image.rename(tmp_path / "data/0a7cc12c0e/dslr/undistorted_images" / image.name)
    marks = {
        "frames": [{"file_path": "DSC00009.JPG", "is_bad": True}, {"file_path": "DSC00010.JPG", "is_bad": False}],
        "test_frames": [{"file_path": "DSC00011.JPG", "is_bad": True}, {"file_path": "DSC00012.JPG"}],
    }
    (tmp_path / "data/0a7cc12c0e/dslr/nerfstudio").mkdir()
    (tmp_path / "data/0a7cc12c0e/dslr/nerfstudio" / file).write_text(json.dumps(marks))
    names = load_scenes("scannetpp", tmp_path)[0]["frames"]
    assert [name.rpartition("/")[2] for name in names] == ["DSC00010.JPG", "DSC00012.JPG"]


def test_a_scannetpp_pose_that_is_no_matrix_makes_a_frame_unreadable(tmp_path):
    frames = [{"file_path": "DSC00009.JPG", "transform_matrix": [[1, 0, 0, 0], [0, 1]]}]
    with pytest.raises(UnreadableFrame, match="transforms_undistorted.json: ValueError"):
        read_camera(scannetpp_scene(tmp_path, frames=frames), 0, SIZE)


def test_a_video_is_a_scene_of_its_frames(tmp_path):
    write_video(tmp_path / "walk.mp4")
    (scene,) = load_scenes("videos", tmp_path)
    images = dict(read_images(scene, [13, 5, 19]))
    assert (scene["scene_id"], scene["num_frames"]) == ("walk", 20)
    assert list(images) == numbers_of(images.values()) == [5, 13, 19]


def test_a_video_that_was_cut_after_it_was_indexed_names_the_frames_that_are_missing(tmp_path):
    video = write_video(tmp_path / "walk.mkv", g="6")
    (scene,) = load_scenes("videos", tmp_path)
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 4 // 5])
    image, error = (image for _, image in read_images(scene, [0, 19]))
    assert isinstance(image, np.ndarray) and isinstance(error, UnreadableFrame)
    assert "walk.mkv" in str(error) and "19" in str(error)


def test_a_file_that_is_no_video_is_dropped_and_named(tmp_path, caplog):
    write_video(tmp_path / "walk.mp4")
    (tmp_path / "notes.mp4").write_bytes(b"no video")
    with caplog.at_level(logging.WARNING):
        assert load_scenes("videos", tmp_path)["scene_id"][:] == ["walk"]
    assert "notes.mp4" in caplog.text


def test_a_changed_video_is_indexed_anew(tmp_path):
    for num_frames in (20, 10):
        write_video(tmp_path / "walk.mp4", num_frames)
        assert load_scenes("videos", tmp_path)["num_frames"][:] == [num_frames]


def test_only_videos_need_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    write_images(tmp_path / "hall", TWO)
    (tmp_path / "walk.mp4").touch()
    assert load_scenes("folders", tmp_path)["scene_id"][:] == ["hall"]
    with pytest.raises(ImportError, match="pip install av"):
        load_scenes("videos", tmp_path)


def test_files_that_are_not_read_are_counted_by_kind(tmp_path, caplog):
    for scene in ("kitchen", "hall"):
        write_images(tmp_path / scene, TWO)
        for name in ("._1.jpg", "2.CR2", "3.cr2", "notes"):
            (tmp_path / scene / name).touch()
    load_scenes("folders", tmp_path)
    assert "8 files are skipped: 2 ._*, 4 .cr2, 2 notes." in caplog.text


def test_files_beside_videos_are_counted_by_kind(tmp_path, caplog):
    write_video(tmp_path / "walk.MOV")
    for name in ("._walk.MOV", "IMG_1.HEIC"):
        (tmp_path / name).touch()
    assert load_scenes("videos", tmp_path)["scene_id"][:] == ["walk"]
    assert "2 files are skipped: 1 ._*, 1 .heic." in caplog.text


@pytest.mark.parametrize(
    "num_scenes, options", [(1, "--held_out_scenes 0 --eval_strategy no"), (3, "--held_out_scenes 1")]
)
def test_too_few_scenes_to_hold_out_name_the_option_to_change(tmp_path, num_scenes, options):
    for index in range(num_scenes):
        write_images(tmp_path / str(index), TWO)
    with refused(f"8 of {num_scenes}", options):
        split_scenes(load_scenes("folders", tmp_path), 8)
