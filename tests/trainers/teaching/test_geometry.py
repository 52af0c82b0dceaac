"""What VGGT is taught: true geometry, losses that vanish at the truth, correspondences."""

import math

import pytest
import torch

from spa3r import VGGTForGeometry
from spa3r.configuration import VGGTConfig
from spa3r.data_scripts.scenes.index import load_scenes
from spa3r.data_scripts.scenes.views import SceneViews, collate_views
from spa3r.modeling_spa3r.geometry import (
    cameras_to_pose_encoding,
    pose_encoding_to_cameras,
    quaternion_to_rotation,
    rotation_to_quaternion,
)
from spa3r.modeling_spa3r.vggt.modeling_vggt import VGGTForGeometryOutput
from spa3r.trainers.teaching.geometry import (
    AttentionTeacher,
    camera_loss,
    find_correspondences,
    geometry_losses,
    geometry_metrics,
    geometry_truth,
)

PATCH_SIZE = 14


@pytest.fixture(scope="module")
def batch(rooms):
    """All views of two rendered rooms."""
    views = SceneViews(load_scenes("rooms", rooms), image_width=112, cameras=True, depth=True)
    return collate_views([views[0, index, 4] for index in range(2)])


@pytest.fixture(scope="module")
def truth(batch):
    return geometry_truth(batch["extrinsics"], batch["intrinsics"], batch["depth"], normalize=False)


def tiny_vggt():
    """An untrained VGGT of two layers."""
    config = VGGTConfig(
        image_size=112,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_embedding="conv",
        camera_layers=1,
        camera_heads=2,
        dense_hidden_size=16,
        dense_channels=[8, 8, 8, 8],
        dense_layers=[0, 0, 1, 1],
    )
    return VGGTForGeometry(config)


def perfect(truth):
    """The output of a model that knows the truth."""
    ones = torch.ones_like(truth.depth)
    return VGGTForGeometryOutput(
        extrinsics=truth.extrinsics,
        intrinsics=truth.intrinsics,
        pose_encodings=(truth.pose_encoding,) * 2,
        depth=truth.depth,
        depth_confidence=ones,
        points=truth.points,
        points_confidence=ones,
    )


def test_rotations_of_quaternions_give_the_quaternions_back():
    torch.manual_seed(0)
    expected = torch.nn.functional.normalize(torch.randn(200, 4, dtype=torch.float64), dim=-1)
    expected = torch.where(expected[:, 3:] < 0, -expected, expected)
    found = rotation_to_quaternion(quaternion_to_rotation(expected))
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_half_turns_have_quaternions():
    half_turns = torch.stack([torch.diag(torch.tensor(signs)) for signs in ([1.0, -1, -1], [-1, 1, -1], [-1, -1, 1])])
    assert torch.equal(rotation_to_quaternion(half_turns).abs(), torch.eye(4)[:3])


def test_pose_encodings_are_decoded_to_the_cameras_they_came_from(truth):
    extrinsics, intrinsics = pose_encoding_to_cameras(truth.pose_encoding, truth.depth.shape[-2:])
    torch.testing.assert_close(extrinsics, truth.extrinsics, atol=1e-5, rtol=0)
    for axis in (0, 1):
        torch.testing.assert_close(intrinsics[..., axis, axis], truth.intrinsics[..., axis, axis])


def test_the_first_camera_is_the_origin(truth):
    torch.testing.assert_close(truth.extrinsics[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)


def test_points_of_a_view_project_to_its_pixel_centers(truth):
    camera = torch.einsum("bvij,bvhwj->bvhwi", truth.extrinsics[..., :3, :3], truth.points)
    camera = camera + truth.extrinsics[:, :, None, None, :3, 3]
    pixels = torch.einsum("bvij,bvhwj->bvhwi", truth.intrinsics, camera / camera[..., 2:])
    height, width = truth.depth.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    expected = torch.stack([columns, rows], dim=-1).expand(2, 4, -1, -1, -1)
    torch.testing.assert_close(pixels[..., :2], expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(camera[..., 2], truth.depth, atol=1e-4, rtol=0)


def test_normalised_points_are_one_unit_from_the_first_camera_on_average(batch):
    truth = geometry_truth(batch["extrinsics"], batch["intrinsics"], batch["depth"], normalize=True)
    distances = truth.points.norm(dim=-1)
    means = [float(scene[known].mean()) for scene, known in zip(distances, truth.known, strict=True)]
    assert means == pytest.approx([1, 1], abs=1e-4)


def test_the_truth_has_no_loss(truth):
    losses = geometry_losses(perfect(truth), truth)
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(
        {"camera": 0, "depth": 0, "points": 0}, abs=1e-5
    )


def test_the_truth_has_no_error(truth):
    errors = {name: float(values.abs().max()) for name, values in geometry_metrics(perfect(truth), truth).items()}
    assert errors["rotation"] < 0.1  # degrees; the arc cosine is steep at 1
    assert max(errors["translation"], errors["depth_abs_rel"], errors["point_error"]) < 1e-4


def test_unknown_depth_has_no_loss(truth):
    output = perfect(truth)
    depth = truth.depth.clone()
    depth[:, :, 10:20] = 0
    known = geometry_truth(truth.extrinsics, truth.intrinsics, depth, normalize=False)
    output.depth = torch.where(depth > 0, output.depth, 100.0)
    assert float(geometry_losses(output, known)["depth"]) == pytest.approx(0, abs=1e-5)


def test_a_quaternion_and_its_negative_have_the_same_loss(truth):
    negative = truth.pose_encoding.clone()
    negative[..., 3:7] *= -1
    assert float(camera_loss([negative], truth.pose_encoding)) == pytest.approx(0, abs=1e-6)


def test_a_turn_of_ten_degrees_is_an_error_of_ten_degrees(truth):
    output = perfect(truth)
    angle = math.radians(10)
    turn = torch.eye(4)
    turn[0, 0] = turn[2, 2] = math.cos(angle)
    turn[0, 2], turn[2, 0] = math.sin(angle), -math.sin(angle)
    output.extrinsics = turn @ truth.extrinsics
    rotation = geometry_metrics(output, truth)["rotation"]
    torch.testing.assert_close(rotation, torch.full_like(rotation, 10), atol=0.01, rtol=0)


def test_a_patch_corresponds_to_itself_in_its_own_view(truth):
    found = find_correspondences(truth, PATCH_SIZE)
    num_patches = found.shape[2]
    for view in range(found.shape[1]):
        assert torch.equal(found[:, view, :, view], torch.arange(num_patches).expand(len(found), -1))


def test_corresponding_patches_show_nearby_points(truth):
    found = find_correspondences(truth, PATCH_SIZE)
    half = PATCH_SIZE // 2
    centers = truth.points[:, :, half::PATCH_SIZE, half::PATCH_SIZE].flatten(2, 3)
    depth = truth.depth[:, :, half::PATCH_SIZE, half::PATCH_SIZE].flatten(2, 3)
    scene, view, patch, other = torch.nonzero(found >= 0, as_tuple=True)
    matched = found[scene, view, patch, other]
    distance = (centers[scene, view, patch] - centers[scene, other, matched]).norm(dim=-1)
    # A patch at this depth is about 0.15 of it wide; slanted surfaces stretch it.
    assert (distance < 0.3 * depth[scene, other, matched] + 0.1).float().mean() > 0.95
    assert (view != other).sum() > 50


def test_taught_attention_learns_correspondences(batch, truth):
    torch.manual_seed(0)
    model = tiny_vggt()
    teacher, correspondences = AttentionTeacher(model, [0, 1]), find_correspondences(truth, PATCH_SIZE)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        model.vggt(batch["pixel_values"].float() / 255)
        losses.append(teacher.loss(correspondences))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_depth_of_chosen_views_is_that_of_all_views(batch):
    torch.manual_seed(0)
    model, images = tiny_vggt().eval(), batch["pixel_values"].float() / 255
    views = torch.tensor([2, 0])
    with torch.no_grad():
        torch.testing.assert_close(model(images, dense_views=views).depth, model(images).depth[:, views])


def test_cameras_of_wide_and_tall_images_keep_their_fields_of_view():
    intrinsics = torch.tensor([[100.0, 0, 60], [0, 90, 40], [0, 0, 1]])
    encoding = cameras_to_pose_encoding(torch.eye(4), intrinsics, (80, 120))
    expected = [2 * math.atan(40 / 90), 2 * math.atan(60 / 100)]
    assert encoding[7:].tolist() == pytest.approx(expected)
