"""Export of recordings that this file writes by itself, after ScanNet's description of the format."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from refusals import refused
from terminal import refusal, verb

from spa3r.data_scripts.common.images import UnreadableFrame
from spa3r.data_scripts.common.locks import only_run_in
from spa3r.data_scripts.scenes.export_scannet import export_scannet
from spa3r.data_scripts.scenes.index import load_scenes, read_camera, read_depth

COLOR_SIZE, DEPTH_SIZE = (81, 60), (64, 48)
INTRINSICS = np.diag([58.5, 57.25, 1, 1]).astype("<f4")
INTRINSICS[:2, 2] = 40.5, 30.125
LOST = 1  # the frame at which tracking was lost
NUM_FRAMES = 5


def jpeg(number: int, size=COLOR_SIZE) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (40 * number, 100, 200)).save(file, "JPEG")
    return file.getvalue()


def depth_map(number: int) -> np.ndarray:
    return (1000 * number + np.arange(DEPTH_SIZE[0] * DEPTH_SIZE[1])).reshape(DEPTH_SIZE[::-1]).astype("<u2")


def pose(number: int) -> np.ndarray:
    matrix = np.full((4, 4), -np.inf) if number == LOST else np.eye(4)
    matrix[0, 3] = -np.inf if number == LOST else number + 0.123456
    return matrix.astype("<f4")


def header(version=4, codecs=(2, 1), units=1000.0, num_frames=NUM_FRAMES) -> bytes:
    name = b"StructureSensor"
    matrices = [INTRINSICS, np.eye(4, dtype="<f4"), INTRINSICS / 2, np.eye(4, dtype="<f4")]
    return (
        struct.pack("<I", version)
        + struct.pack("<Q", len(name))
        + name
        + b"".join(matrix.tobytes() for matrix in matrices)
        + struct.pack("<2i", *codecs)
        + struct.pack("<4I", *COLOR_SIZE, *DEPTH_SIZE)
        + struct.pack("<f", units)
        + struct.pack("<Q", num_frames)
    )


def frame(number: int, color: bytes | None = None, depth: bytes | None = None) -> bytes:
    color = jpeg(number) if color is None else color
    depth = zlib.compress(depth_map(number).tobytes()) if depth is None else depth
    lengths = struct.pack("<4Q", 10 * number, 10 * number + 1, len(color), len(depth))
    return pose(number).tobytes() + lengths + color + depth


def write_recording(root, scene_id="scene0000_00", content: bytes | None = None):
    """A recording where ScanNet's download has it."""
    content = header() + b"".join(map(frame, range(NUM_FRAMES))) if content is None else content
    folder = root / "scans" / scene_id
    folder.mkdir(parents=True)
    (folder / f"{scene_id}.sens").write_bytes(content)
    return root


def files_of(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_export_holds_the_colors_depth_poses_and_intrinsics_of_the_recording(tmp_path):
    (folder,) = export_scannet(write_recording(tmp_path), tmp_path / "out")
    assert folder == tmp_path / "out" / "scene0000_00"
    for number in range(NUM_FRAMES):
        assert (folder / f"color/{number}.jpg").read_bytes() == jpeg(number)
        assert np.array_equal(np.array(Image.open(folder / f"depth/{number}.png")), depth_map(number))
        assert np.array_equal(np.loadtxt(folder / f"pose/{number}.txt", dtype="<f4"), pose(number))
    assert np.array_equal(np.loadtxt(folder / "intrinsic/intrinsic_color.txt", dtype="<f4"), INTRINSICS)
    assert np.array_equal(np.loadtxt(folder / "intrinsic/intrinsic_depth.txt", dtype="<f4"), INTRINSICS / 2)
    assert np.array_equal(np.loadtxt(folder / "intrinsic/extrinsic_color.txt"), np.eye(4))


def test_pre_training_reads_what_was_exported(tmp_path):
    export_scannet(write_recording(tmp_path), tmp_path / "out")
    (scene,) = load_scenes("scannet", tmp_path / "out")
    assert scene["frames"] == [f"color/{number}.jpg" for number in range(NUM_FRAMES)]
    extrinsics, intrinsics = read_camera(scene, 3, COLOR_SIZE[::-1])
    assert np.allclose(np.linalg.inv(extrinsics), pose(3)) and np.allclose(intrinsics, INTRINSICS[:3, :3])
    assert np.allclose(read_depth(scene, 3) * 1000, depth_map(3))
    with pytest.raises(UnreadableFrame, match="1.jpg"):
        read_camera(scene, LOST, COLOR_SIZE[::-1])


def test_every_second_frame_keeps_its_number(tmp_path):
    (folder,) = export_scannet(write_recording(tmp_path), tmp_path / "out", every=2)
    assert sorted(file.name for file in (folder / "color").iterdir()) == ["0.jpg", "2.jpg", "4.jpg"]
    assert (folder / "color/4.jpg").read_bytes() == jpeg(4)


def test_several_processes_write_the_same_bytes(tmp_path):
    for number in range(3):
        write_recording(tmp_path, f"scene000{number}_00")
    one, several = (
        export_scannet(tmp_path, tmp_path / name, workers=workers) for name, workers in (("one", 1), ("several", 2))
    )
    assert [files_of(folder) for folder in several] == [files_of(folder) for folder in one]


def test_an_export_goes_on_where_it_was_killed(tmp_path):
    for number in range(2):
        write_recording(tmp_path, f"scene000{number}_00")
    first, second = export_scannet(tmp_path, tmp_path / "out")
    expected, kept = files_of(second), (first / "color/0.jpg").stat().st_mtime_ns
    second.rename(tmp_path / "out" / ".scene0001_00.partial")
    (tmp_path / "out" / ".scene0001_00.partial" / "color" / "0.jpg").write_bytes(b"half")
    export_scannet(tmp_path, tmp_path / "out")
    assert files_of(second) == expected and (first / "color/0.jpg").stat().st_mtime_ns == kept
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"export.json", first.name, second.name}


def test_another_step_needs_another_folder(tmp_path):
    export_scannet(write_recording(tmp_path), tmp_path / "out")
    with refused("every", "1", "2"):
        export_scannet(tmp_path, tmp_path / "out", every=2)


WHOLE = header() + b"".join(map(frame, range(NUM_FRAMES)))
# Content of a recording, and what the message names besides the file.
DAMAGED = {
    "no recording": (b"RIFF" + bytes(400), ["version 4"]),
    "version": (header(version=3), ["version 4", "3"]),
    "codec": (header(codecs=(1, 1)), ["codec 1"]),
    "units": (header(units=5000.0), ["5000"]),
    "header": (WHOLE[:100], ["header"]),
    "cut short": (WHOLE[:-10], ["frame 4 of 5"]),
    "frames missing": (header() + frame(0), ["frame 1 of 5"]),
    "color": (header() + frame(0) + frame(1, color=jpeg(1)[:300]) + frame(2), ["frame 1 of 5"]),
    "size": (header() + frame(0, color=jpeg(0, (80, 60))), ["frame 0 of 5", "80 x 60", "81 x 60"]),
    "depth": (header() + frame(0, depth=b"no zlib"), ["frame 0 of 5", "depth"]),
    "depth of another size": (header() + frame(0, depth=zlib.compress(b"1234")), ["frame 0 of 5", "depth"]),
    "length": (header() + pose(0).tobytes() + struct.pack("<4Q", 0, 0, 1 << 62, 1) + b"1234", ["frame 0 of 5"]),
}


@pytest.mark.parametrize("content, named", DAMAGED.values(), ids=DAMAGED)
def test_damaged_recordings_are_named_with_their_frame_and_the_others_are_exported(tmp_path, content, named):
    write_recording(tmp_path, "scene0000_00", content)
    write_recording(tmp_path, "scene0001_00")
    with refused("1 of 2", "scene0000_00.sens", *named):
        export_scannet(tmp_path, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"export.json", "scene0001_00"}


def test_a_frame_that_is_left_out_must_be_complete_too(tmp_path):
    write_recording(tmp_path, content=header(num_frames=2) + frame(0) + frame(1)[:-1])
    with refused("frame 1 of 2"):
        export_scannet(tmp_path, tmp_path / "out", every=2)


def test_a_list_chooses_the_scenes(tmp_path, capsys):
    for number in range(2):
        write_recording(tmp_path / "raw", f"scene000{number}_00")
    (tmp_path / "train.txt").write_text("scene0001_00\r\n")
    export = ["--input", tmp_path / "raw", "--scenes", tmp_path / "train.txt", "--output", tmp_path / "out"]
    verb("scenes", "export-scannet")([*export, "--workers", 1])
    assert load_scenes("scannet", tmp_path / "out")["scene_id"][:] == ["scene0001_00"]
    assert f"--scenes scannet:{tmp_path / 'out'}" in capsys.readouterr().out
    (tmp_path / "train.txt").write_text("scene0001_00\nscene0707_00\n")
    assert "scene0707_00" in refusal(capsys, "scenes", "export-scannet", *export)
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\xfd")
    assert str(tmp_path / "train.txt") in refusal(capsys, "scenes", "export-scannet", *export)


def test_a_second_export_to_a_folder_is_refused(tmp_path, capsys):
    export = ["--input", write_recording(tmp_path / "raw"), "--output", tmp_path / "out"]
    with only_run_in(tmp_path / "out"):
        assert str(tmp_path / "out") in refusal(capsys, "scenes", "export-scannet", *export)


def test_a_folder_without_recordings_is_refused(tmp_path):
    with refused(str(tmp_path), ".sens", error=FileNotFoundError):
        export_scannet(tmp_path, tmp_path / "out")


def test_pre_training_refuses_raw_recordings_and_names_the_export(tmp_path):
    write_recording(tmp_path / "[raw]")
    for root in (tmp_path / "[raw]", tmp_path / "[raw]/scans"):
        with refused(str(root), "spa3r scenes export-scannet", error=FileNotFoundError):
            load_scenes("scannet", root)


def test_pre_training_refuses_photos_of_scannetpp_that_are_not_undistorted(tmp_path):
    for part in ("data/0a7cc12c0e/dslr/resized_images", "splits"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "data/0a7cc12c0e/dslr/resized_images/DSC00001.JPG").write_bytes(jpeg(0))
    (tmp_path / "splits/nvs_sem_train.txt").write_text("0a7cc12c0e\n")
    with refused("dslr/resized_images", "undistort", error=FileNotFoundError):
        load_scenes("scannetpp", tmp_path)


def test_pre_training_says_that_iphone_videos_are_not_read_as_scannetpp(tmp_path):
    for part in ("data/0a7cc12c0e/iphone", "splits"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "data/0a7cc12c0e/iphone/rgb.mkv").touch()
    (tmp_path / "splits/nvs_sem_train.txt").write_text("0a7cc12c0e\n")
    with refused("iphone/rgb.mkv", "videos:", error=FileNotFoundError):
        load_scenes("scannetpp", tmp_path)
