"""Cameras, rays and PRoPE against independent computations."""

import math

import pytest
import torch
import torch.nn.functional as F

from spa3r.modeling_spa3r.geometry import (
    PRoPE,
    camera_rays,
    invert_rigid,
    plucker_rays,
    pose_encoding_to_cameras,
    quaternion_to_rotation,
    relative_cameras,
)


def axis_angle_rotation(axis, angle):
    x, y, z = F.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(angle * skew)


def random_cameras(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    quaternions = torch.randn(*shape, 4, generator=generator)
    extrinsics = torch.eye(4).repeat(*shape, 1, 1)
    extrinsics[..., :3, :3] = quaternion_to_rotation(quaternions)
    extrinsics[..., :3, 3] = torch.randn(*shape, 3, generator=generator)
    intrinsics = torch.zeros(*shape, 3, 3)
    intrinsics[..., 0, 0] = 50 + 20 * torch.rand(*shape, generator=generator)
    intrinsics[..., 1, 1] = 50 + 20 * torch.rand(*shape, generator=generator)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = 34.0, 29.5, 1.0
    return extrinsics, intrinsics


def test_rigid_inverse_equals_the_general_inverse():
    extrinsics, _ = random_cameras(3, 2)
    torch.testing.assert_close(invert_rigid(extrinsics), torch.linalg.inv(extrinsics), atol=1e-5, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-4, 1.0, math.pi - 1e-4, math.pi])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -2, 3)])
def test_quaternions_describe_the_rotation_about_an_axis(axis, angle):
    direction = F.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    quaternion = torch.cat([direction * math.sin(angle / 2), torch.tensor([math.cos(angle / 2)])])
    rotation = axis_angle_rotation(axis, angle)
    torch.testing.assert_close(quaternion_to_rotation(-2.5 * quaternion), rotation, atol=1e-7, rtol=0)


def test_a_pose_encoding_begins_with_translation_and_rotation():
    encoding = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0, 1.0, 1.0, 0.5, 0.5]])
    extrinsics, _ = pose_encoding_to_cameras(encoding, (56, 70))
    quarter_turn_about_z = [[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]
    torch.testing.assert_close(extrinsics[0], torch.tensor(quarter_turn_about_z))


def test_field_of_view_spans_the_image():
    encoding = torch.tensor([[0, 0, 0, 0, 0, 0, 1, math.radians(60), math.radians(90)]])
    _, intrinsics = pose_encoding_to_cameras(encoding, (40, 80))
    assert intrinsics[0, 0, 0].item() == pytest.approx(40.0)
    assert intrinsics[0, 1, 1].item() == pytest.approx(20 / math.tan(math.radians(30)))
    assert intrinsics[0, :2, 2].tolist() == [40.0, 20.0]


def test_relative_cameras_do_not_depend_on_world_frame_or_unit():
    extrinsics, _ = random_cameras(2, 4)
    world_motion, _ = random_cameras(1, 1, seed=1)
    moved = extrinsics @ world_motion
    moved[..., :3, 3] *= 7.0
    expected, unit = relative_cameras(extrinsics)
    actual, moved_unit = relative_cameras(moved)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved_unit, 7 * unit, atol=1e-4, rtol=0)


def test_relative_cameras_start_at_the_identity_and_lie_at_unit_mean_distance():
    relative, _ = relative_cameras(random_cameras(2, 4)[0])
    torch.testing.assert_close(relative[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0)
    centres = torch.linalg.inv(relative)[:, 1:, :3, 3]
    torch.testing.assert_close(centres.norm(dim=-1).mean(-1), torch.ones(2), atol=1e-5, rtol=0)


def test_cameras_that_only_turn_keep_their_scale():
    extrinsics, _ = random_cameras(1, 3)
    extrinsics[..., :3, 3] = 0
    relative, unit = relative_cameras(extrinsics)
    assert unit.item() == 1.0
    assert torch.isfinite(relative).all()


def test_rays_project_onto_patch_centres():
    _, intrinsics = random_cameras(2, 3)
    rays = camera_rays(intrinsics, (4, 5), 14)
    torch.testing.assert_close(rays.norm(dim=-1), torch.ones(2, 3, 20), atol=1e-6, rtol=0)
    pixels = torch.einsum("bvij,bvnj->bvni", intrinsics, 3.7 * rays)
    pixels = pixels[..., :2] / pixels[..., 2:]
    expected = [[14 * column + 7.0, 14 * row + 7.0] for row in range(4) for column in range(5)]
    torch.testing.assert_close(pixels, torch.tensor(expected).expand_as(pixels), atol=1e-4, rtol=0)


def test_plucker_coordinates_hold_for_any_point_on_the_ray():
    extrinsics, intrinsics = random_cameras(2, 3)
    rays = camera_rays(intrinsics, (2, 3), 14)
    direction, moment = plucker_rays(extrinsics, rays).chunk(2, dim=-1)
    points = F.pad(2.3 * rays, (0, 1), value=1.0) @ torch.linalg.inv(extrinsics).transpose(-1, -2)
    torch.testing.assert_close(torch.linalg.cross(points[..., :3], direction), moment, atol=1e-5, rtol=0)


def dense_prope(extrinsics, intrinsics, grid_size, image_size, head_dim):
    """One matrix M per token, in float64: queries become M^T q, keys and values M^-1 k, outputs M o."""
    rows, columns = grid_size
    height, width = image_size
    scale = torch.diag(torch.tensor([1 / width, 1 / height, 1.0], dtype=torch.float64))
    shift = torch.tensor([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]], dtype=torch.float64)
    matrices = []
    for extrinsic, intrinsic in zip(extrinsics.double(), intrinsics.double(), strict=True):
        projection = torch.block_diag(shift @ scale @ intrinsic, torch.eye(1, dtype=torch.float64)) @ extrinsic
        for y in range(rows):
            for x in range(columns):
                rotations = []
                for position in (x, y):
                    angles = [position * 100 ** (-k / (head_dim // 8)) for k in range(head_dim // 8)]
                    cos, sin = torch.tensor(angles).cos().diag(), torch.tensor(angles).sin().diag()
                    rotations.append(torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]).double())
                matrices.append(torch.block_diag(*[projection] * (head_dim // 8), *rotations))
    return torch.stack(matrices)


def test_prope_equals_one_dense_matrix_per_token():
    extrinsics, intrinsics = random_cameras(1, 2)
    prope = PRoPE(extrinsics, intrinsics, (2, 3), (28, 42), head_dim=16)
    query, key, value = torch.randn(3, 1, 2, 12, 16, generator=torch.Generator().manual_seed(3))
    matrices = dense_prope(*extrinsics, *intrinsics, grid_size=(2, 3), image_size=(28, 42), head_dim=16)
    inverse = torch.linalg.inv(matrices)
    expected = (
        torch.einsum("nji,bhnj->bhni", matrices, query.double()),
        torch.einsum("nij,bhnj->bhni", inverse, key.double()),
        torch.einsum("nij,bhnj->bhni", inverse, value.double()),
    )
    for actual, dense in zip(prope.rotate(query, key, value), expected, strict=True):
        torch.testing.assert_close(actual.double(), dense, atol=2e-5, rtol=1e-5)
    dense = torch.einsum("nij,bhnj->bhni", matrices, query.double())
    torch.testing.assert_close(prope.restore(query).double(), dense, atol=2e-5, rtol=1e-5)


def test_prope_attention_does_not_depend_on_the_world_frame():
    extrinsics, intrinsics = random_cameras(2, 3)
    world_motion, _ = random_cameras(1, 1, seed=1)
    query, key, value = torch.randn(3, 2, 2, 18, 16, generator=torch.Generator().manual_seed(3))
    outputs = []
    for cameras in (extrinsics, extrinsics @ world_motion):
        prope = PRoPE(cameras, intrinsics, (2, 3), (28, 42), head_dim=16)
        output = F.scaled_dot_product_attention(*prope.rotate(query, key, value))
        outputs.append(prope.restore(output))
    torch.testing.assert_close(*outputs, atol=1e-3, rtol=1e-3)


def test_prope_leaves_tokens_without_a_camera_alone():
    extrinsics, intrinsics = random_cameras(1, 1)
    prope = PRoPE(extrinsics, intrinsics, (2, 3), (28, 42), head_dim=16)
    hidden_states = torch.randn(1, 2, 4 + 6, 16)
    for rotated in (*prope.rotate(hidden_states, hidden_states, hidden_states), prope.restore(hidden_states)):
        assert torch.equal(rotated[:, :, :4], hidden_states[:, :, :4])
        assert not torch.equal(rotated[:, :, 4:], hidden_states[:, :, 4:])


def test_prope_refuses_heads_that_do_not_divide_into_blocks():
    extrinsics, intrinsics = random_cameras(1, 1)
    with pytest.raises(ValueError, match="`head_dim`.* 12"):
        PRoPE(extrinsics, intrinsics, (2, 3), (28, 42), head_dim=12)
