"""`spa3r export`: every file is read back, and all describe the same scene."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spa3r
from spa3r.data_scripts.rooms.generate import render_rooms
from spa3r.trainers.integrations.cli import main

trimesh = pytest.importorskip("trimesh")
NUM_VIEWS = 4


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return render_rooms(tmp_path_factory.mktemp("rooms"), 1, NUM_VIEWS, (112, 84), seed=7, every=2)[0]


@pytest.fixture(scope="module")
def exported(room, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "scene"
    main(["export", str(room), "--output", str(output), "--max-points", "2000"])
    return output


def rows(file):
    """The lines of a COLMAP text file, without comments."""
    return [line.split() for line in file.read_text().splitlines() if not line.startswith("#")]


def rotation(w, x, y, z):
    """The rotation of a unit quaternion, by its action on the axes: q v q*."""

    def multiply(a, b):
        return np.array([a[0] * b[0] - a[1:] @ b[1:], *(a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:]))])

    q, conjugate = np.array([w, x, y, z]), np.array([w, -x, -y, -z])
    return np.stack([multiply(multiply(q, np.array([0.0, *axis])), conjugate)[1:] for axis in np.eye(3)], axis=1)


def test_each_colmap_point_projects_to_the_pixel_of_its_track_and_has_its_color(exported):
    model = exported / "sparse" / "0"
    cameras = {row[0]: list(map(float, row[4:])) for row in rows(model / "cameras.txt")}
    lines = rows(model / "images.txt")
    images = {
        row[0]: (row, np.array(seen, float).reshape(-1, 3)) for row, seen in zip(lines[::2], lines[1::2], strict=True)
    }
    points = rows(model / "points3D.txt")
    assert len(points) == 2000 and len(images) == NUM_VIEWS
    for number, *rest in points:
        position, color, (image, place) = np.array(rest[:3], float), list(map(int, rest[3:6])), rest[7:]
        row, seen = images[image]
        x, y, z = rotation(*map(float, row[1:5])) @ position + np.array(row[5:8], float)
        focal_x, focal_y, center_x, center_y = cameras[row[8]]
        pixel = np.array([focal_x * x / z + center_x, focal_y * y / z + center_y])
        assert np.allclose(pixel, seen[int(place), :2], atol=0.01) and seen[int(place), 2] == int(number)
        picture = Image.open(exported / "images" / row[9])
        assert picture.getpixel(tuple(pixel.astype(int))) == tuple(color)


def test_the_glb_holds_the_points_and_a_camera_for_each_photo(exported):
    scene = trimesh.load(exported / "scene.glb")
    clouds = [part for part in scene.geometry.values() if isinstance(part, trimesh.PointCloud)]
    assert [len(cloud.vertices) for cloud in clouds] == [2000]
    assert len(scene.geometry) == 1 + NUM_VIEWS


def test_up_is_up_in_the_glb(exported):
    scene, arrays = trimesh.load(exported / "scene.glb"), np.load(exported / "scene.npz")
    (node,) = (node for node in scene.graph.nodes_geometry if node.startswith("points"))
    to_glb = scene.graph[node][0][:3, :3]
    ups = -np.linalg.inv(arrays["extrinsics"])[:, :3, 1] @ to_glb.T
    assert np.allclose(ups.mean(0) / np.linalg.norm(ups.mean(0)), [0, 1, 0], atol=1e-5)


def test_the_ply_holds_the_points_of_the_colmap_model(exported):
    cloud = trimesh.load(exported / "points.ply")
    points = np.array([row[1:7] for row in rows(exported / "sparse" / "0" / "points3D.txt")], float)
    assert np.allclose(cloud.vertices, points[:, :3], atol=1e-5)
    assert np.array_equal(cloud.colors[:, :3], points[:, 3:].astype(np.uint8))


def test_the_npz_holds_the_estimates_of_the_model(exported, room):
    arrays = np.load(exported / "scene.npz")
    processor = spa3r.Spa3RImageProcessor(image_width=112)
    pixels = processor([str(room / "color" / f"{view}.jpg") for view in range(NUM_VIEWS)], return_tensors="pt")
    model = spa3r.Spa3RForPreTraining.from_pretrained(spa3r.nano_path("spa3r-nano")).eval()
    observed = model.observe(**pixels, num_context_views=NUM_VIEWS)
    assert np.allclose(arrays["extrinsics"], observed["extrinsics"][0].numpy(), atol=1e-5)
    depth = arrays["depth"][:, ::14, ::14].reshape(NUM_VIEWS, -1)
    assert np.allclose(depth, observed["depth"][0].numpy(), atol=1e-4)


# Arguments after `--output new`, in a folder with photos, and what the sentence names.
WRONG = {
    "no folder": (["nowhere"], "nowhere"),
    "no photo": (["empty"], "empty"),
    "two photos of one name": (["twins"], "`door`"),
    "output in use": (["photos", "--output", "photos"], "photos"),
    "another kind of model": (["photos", "--model", spa3r.nano_path("spa3-vlm-nano")], "spa3_vlm"),
    "no point": (["photos", "--keep", "0"], "--keep"),
}


@pytest.mark.parametrize(("arguments", "named"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused_with_a_sentence_that_names_it(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file in ("photos/door.png", "twins/door.png", "twins/door.bmp", "empty/notes.txt"):
        Path(file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (112, 84)).save(file) if file.endswith(("png", "bmp")) else Path(file).touch()
    with pytest.raises(SystemExit) as ended:
        main(["export", "--output", "new", *arguments])
    assert named in f"{ended.value.code} {capsys.readouterr().err}" and not Path("new").exists()
