"""Cameras, rays and projective position encoding: pure functions of tensors.

Conventions of the whole package: cameras follow OpenCV (x right, y down, z forward). `extrinsics` are homogeneous
matrices that map world to camera coordinates (`x_camera = R @ x_world + t`). `intrinsics` are in pixels; the origin is
the top-left corner of the top-left pixel, so pixel centres are at half-integers.
"""

import copy
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "PRoPE",
    "camera_rays",
    "cameras_to_pose_encoding",
    "homogeneous",
    "invert_rigid",
    "plucker_rays",
    "pose_encoding_to_cameras",
    "relative_cameras",
    "rotation_to_quaternion",
    "unproject",
    "without_autocast",
]


def without_autocast(function: Callable) -> Callable:
    """Turn autocast off inside a function, because camera poses do not survive matrix products in bfloat16."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        device = next(arg.device.type for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor))
        if not torch.amp.is_autocast_available(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def homogeneous(matrices: Tensor) -> Tensor:
    """Append the row `(0, 0, 0, 1)` to rigid transforms.

    Args:
        matrices (`torch.Tensor` of shape `(..., 3, 4)`): Rigid transforms `[R|t]`.

    Returns:
        `torch.Tensor` of shape `(..., 4, 4)`.
    """
    # Made on the device: a list of numbers would be copied there, and the host would wait.
    bottom = torch.eye(4, dtype=matrices.dtype, device=matrices.device)[3:]
    return torch.cat([matrices, bottom.expand(*matrices.shape[:-2], 1, 4)], dim=-2)


@without_autocast
def invert_rigid(transforms: Tensor) -> Tensor:
    """Invert rigid transforms analytically.

    Args:
        transforms (`torch.Tensor` of shape `(..., 4, 4)`): Rotation and translation, without scale or shear.

    Returns:
        `torch.Tensor` of shape `(..., 4, 4)`.
    """
    rotation = transforms[..., :3, :3].transpose(-1, -2)
    translation = -rotation @ transforms[..., :3, 3:]
    return homogeneous(torch.cat([rotation, translation], dim=-1))


def quaternion_to_rotation(quaternions: Tensor) -> Tensor:
    """Convert quaternions of any non-zero length to rotation matrices.

    Args:
        quaternions (`torch.Tensor` of shape `(..., 4)`): In the order x, y, z, w.

    Returns:
        `torch.Tensor` of shape `(..., 3, 3)`.
    """
    x, y, z, w = quaternions.unbind(-1)
    scale = 2.0 / quaternions.square().sum(-1)
    rows = (
        (1 - scale * (y * y + z * z), scale * (x * y - z * w), scale * (x * z + y * w)),
        (scale * (x * y + z * w), 1 - scale * (x * x + z * z), scale * (y * z - x * w)),
        (scale * (x * z - y * w), scale * (y * z + x * w), 1 - scale * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def pose_encoding_to_cameras(pose_encoding: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Decode VGGT's nine numbers per view into camera matrices.

    Args:
        pose_encoding (`torch.Tensor` of shape `(..., 9)`):
            Translation (3), rotation quaternion in the order x, y, z, w (4; any length), vertical and horizontal field
            of view in radians (2). A field of view of zero gives an infinite focal length.
        image_size (`tuple[int, int]`): Height and width of the images in pixels.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Extrinsics of shape `(..., 4, 4)`, world to camera, and intrinsics of
        shape `(..., 3, 3)` in pixels with the principal point at the image centre; both float32.
    """
    height, width = image_size
    pose_encoding = pose_encoding.float()
    rotation = quaternion_to_rotation(pose_encoding[..., 3:7])
    extrinsics = homogeneous(torch.cat([rotation, pose_encoding[..., :3, None]], dim=-1))
    focal_y = (height / 2) / torch.tan(pose_encoding[..., 7] / 2)
    focal_x = (width / 2) / torch.tan(pose_encoding[..., 8] / 2)
    intrinsics = pose_encoding.new_zeros(*pose_encoding.shape[:-1], 3, 3)
    intrinsics[..., 0, 0] = focal_x
    intrinsics[..., 1, 1] = focal_y
    intrinsics[..., 0, 2] = width / 2
    intrinsics[..., 1, 2] = height / 2
    intrinsics[..., 2, 2] = 1.0
    return extrinsics, intrinsics


@without_autocast
def rotation_to_quaternion(rotation: Tensor) -> Tensor:
    """Turn rotation matrices `(..., 3, 3)` into unit quaternions `(..., 4)` in the order x, y, z, w, with w >= 0."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rotation.unbind(-2))
    # Each row is the quaternion times one of its four entries, times 4; the longest row is the best conditioned.
    rows = [
        [1 + xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy],
        [zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz],
    ]
    rows = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    longest = rows.norm(dim=-1).argmax(dim=-1)[..., None, None].expand(*rows.shape[:-2], 1, 4)
    quaternion = torch.nn.functional.normalize(rows.gather(-2, longest).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


@without_autocast
def cameras_to_pose_encoding(extrinsics: Tensor, intrinsics: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Encode cameras as VGGT's nine numbers per view; the inverse of `pose_encoding_to_cameras`.

    Args:
        extrinsics (`torch.Tensor` of shape `(..., 4, 4)`): World to camera.
        intrinsics (`torch.Tensor` of shape `(..., 3, 3)`): In pixels; the principal point is not encoded.
        image_size (`tuple[int, int]`): Height and width of the images in pixels.

    Returns:
        `torch.Tensor` of shape `(..., 9)`, with w >= 0 in the quaternion.
    """
    quaternion = rotation_to_quaternion(extrinsics[..., :3, :3])
    height, width = image_size
    focal_y, focal_x = intrinsics[..., 1, 1], intrinsics[..., 0, 0]
    half_views = torch.stack([torch.atan(height / 2 / focal_y), torch.atan(width / 2 / focal_x)], dim=-1)
    return torch.cat([extrinsics[..., :3, 3], quaternion, 2 * half_views], dim=-1)


@without_autocast
def relative_cameras(extrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Express the cameras of a scene in the frame of its first view, in units of their mean distance from it.

    VGGT also estimates cameras in the first view's frame and in a scale of its own. Everything computed from relative
    cameras is therefore independent of the world frame and of its unit of length.

    Args:
        extrinsics (`torch.Tensor` of shape `(batch_size, num_views, 4, 4)`): World to camera.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Extrinsics of shape `(batch_size, num_views, 4, 4)`, the first being the
        identity, and the unit of length of shape `(batch_size,)`, measured in the given unit. The unit is 1 if all
        cameras are in one place.
    """
    relative = extrinsics.double() @ invert_rigid(extrinsics[:, :1].double())
    # The distance between two camera centres is the length of the translation between their frames.
    distances = relative[..., :3, 3].norm(dim=-1)
    scale = distances.sum(-1) / max(distances.shape[-1] - 1, 1)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    translation = relative[..., :3, 3:] / scale[:, None, None, None]
    relative = homogeneous(torch.cat([relative[..., :3, :3], translation], dim=-1))
    return relative.to(extrinsics.dtype), scale.to(extrinsics.dtype)


@without_autocast
def unproject(depth: Tensor, extrinsics: Tensor, intrinsics: Tensor) -> Tensor:
    """World coordinates of the centre of each pixel.

    Args:
        depth (`torch.Tensor` of shape `(batch_size, num_views, height, width)`): Along the viewing axis.
        extrinsics (`torch.Tensor` of shape `(batch_size, num_views, 4, 4)`): World to camera.
        intrinsics (`torch.Tensor` of shape `(batch_size, num_views, 3, 3)`): In pixels, without skew.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_views, height, width, 3)`.
    """
    height, width = depth.shape[-2:]
    v, u = torch.meshgrid(
        torch.arange(height, device=depth.device) + 0.5, torch.arange(width, device=depth.device) + 0.5, indexing="ij"
    )
    focal, center = intrinsics[..., [0, 1], [0, 1]], intrinsics[..., :2, 2]
    x = (u - center[..., 0, None, None]) / focal[..., 0, None, None] * depth
    y = (v - center[..., 1, None, None]) / focal[..., 1, None, None] * depth
    camera = torch.stack([x, y, depth], dim=-1).flatten(2, 3)
    world_from_camera = invert_rigid(extrinsics)
    points = camera @ world_from_camera[..., :3, :3].transpose(-1, -2) + world_from_camera[..., None, :3, 3]
    return points.unflatten(2, (height, width))


def camera_rays(intrinsics: Tensor, grid_size: tuple[int, int], patch_size: int) -> Tensor:
    """Unit directions, in the camera frame, through the centres of the patches.

    Eq. 8: d = Normalize(K^-1 u~), u~ = (u, v, 1) the homogeneous pixel coordinates of a patch centre.

    Args:
        intrinsics (`torch.Tensor` of shape `(..., 3, 3)`): In pixels, without skew.
        grid_size (`tuple[int, int]`): Rows and columns of the patch grid.
        patch_size (`int`): Side of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(..., rows * columns, 3)`: Row by row, float32.
    """
    rows, columns = grid_size
    intrinsics = intrinsics.float()
    device = intrinsics.device
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) * patch_size
    x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) * patch_size
    y, x = torch.meshgrid(y, x, indexing="ij")
    y, x = y.flatten(), x.flatten()
    ray_x = (x - intrinsics[..., 0, 2, None]) / intrinsics[..., 0, 0, None]
    ray_y = (y - intrinsics[..., 1, 2, None]) / intrinsics[..., 1, 1, None]
    return F.normalize(torch.stack([ray_x, ray_y, torch.ones_like(ray_x)], dim=-1), dim=-1)


@without_autocast
def plucker_rays(extrinsics: Tensor, rays: Tensor) -> Tensor:
    """Plücker coordinates, in the world frame, of rays given in the camera frame (the ablation of Tab. 7).

    Args:
        extrinsics (`torch.Tensor` of shape `(..., 4, 4)`): World to camera.
        rays (`torch.Tensor` of shape `(..., num_rays, 3)`): Unit directions in the camera frame.

    Returns:
        `torch.Tensor` of shape `(..., num_rays, 6)`: Direction, and moment (camera centre x direction).
    """
    world_from_camera = invert_rigid(extrinsics)
    directions = rays @ world_from_camera[..., :3, :3].transpose(-1, -2)
    centres = world_from_camera[..., None, :3, 3].expand_as(directions)
    return torch.cat([directions, torch.linalg.cross(centres, directions)], dim=-1)


def _lift(intrinsics: Tensor) -> Tensor:
    """Embed 3x3 matrices in the top-left corner of 4x4 identities."""
    lifted = torch.eye(4, dtype=intrinsics.dtype, device=intrinsics.device).repeat(*intrinsics.shape[:-2], 1, 1)
    lifted[..., :3, :3] = intrinsics
    return lifted


def _normalized_intrinsics(intrinsics: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Intrinsics in units of the image size, with the origin at the image centre, and their inverses; both 3x3."""
    height, width = image_size
    focal_x, focal_y = intrinsics[..., 0, 0] / width, intrinsics[..., 1, 1] / height
    centre_x, centre_y = intrinsics[..., 0, 2] / width - 0.5, intrinsics[..., 1, 2] / height - 0.5
    matrix, inverse = torch.zeros_like(intrinsics), torch.zeros_like(intrinsics)
    matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2] = focal_x, focal_y, 1.0
    matrix[..., 0, 2], matrix[..., 1, 2] = centre_x, centre_y
    inverse[..., 0, 0], inverse[..., 1, 1], inverse[..., 2, 2] = 1 / focal_x, 1 / focal_y, 1.0
    inverse[..., 0, 2], inverse[..., 1, 2] = -centre_x / focal_x, -centre_y / focal_y
    return matrix, inverse


class PRoPE:
    """Projective position encoding of patch tokens with known cameras (PRoPE, Li et al. 2025).

    Eq. 9-10: O_i = sum_j softmax(Q_i^T T_ij K_j / sqrt(d)) T_ij V_j, T_ij = D_i D_j^-1.

    D_i is block-diagonal: on the first half of an attention head, the camera's projection matrix `P = K [R|t]` for
    every 4 channels; on the other half, the rotations by the patch's column and row. T_ij factorises, so `rotate`
    transforms queries, keys and values before a plain attention product, and `restore` transforms its output.
    D is the identity for the tokens before the patches (registers, latents), which belong to no camera. Between two
    rays of one camera the pose cancels, so in the paper's decoder it acts between rays and latents only.

    An object holds the matrices and tables of one forward pass. They are computed once, in float32, and all layers
    share them.

    Args:
        extrinsics (`torch.Tensor` of shape `(batch_size, num_cameras, 4, 4)`): World to camera.
        intrinsics (`torch.Tensor` of shape `(batch_size, num_cameras, 3, 3)`, *optional*):
            In pixels, without skew. If not given, `P` is the rigid transform alone.
        grid_size (`tuple[int, int]`): Rows and columns of each camera's patch grid.
        image_size (`tuple[int, int]`): Height and width of the images in pixels.
        head_dim (`int`): Channels of an attention head, a multiple of 8.
        base (`float`, *optional*, defaults to 100.0): Base of the rotary frequencies.
    """

    @without_autocast
    def __init__(
        self,
        extrinsics: Tensor,
        intrinsics: Tensor | None,
        grid_size: tuple[int, int],
        image_size: tuple[int, int],
        head_dim: int,
        base: float = 100.0,
    ):
        if head_dim % 8:
            raise ValueError(
                f"`head_dim` must be a multiple of 8, because PRoPE transforms blocks of 8 channels, got {head_dim}; "
                "choose another number of attention heads."
            )
        rows, columns = grid_size
        self.num_cameras = extrinsics.shape[1]
        self.num_patches = self.num_cameras * rows * columns
        extrinsics = extrinsics.float()
        projection, inverse = extrinsics, invert_rigid(extrinsics)
        if intrinsics is not None:
            matrix, matrix_inverse = _normalized_intrinsics(intrinsics.float(), image_size)
            projection, inverse = _lift(matrix) @ projection, inverse @ _lift(matrix_inverse)
        # D^T q, D^-1 k, D^-1 v and D o. Tokens are rows, so x @ M.T applies M. The new axis is for the heads.
        self.query_matrix = projection[:, None]
        self.key_matrix = inverse.transpose(-1, -2)[:, None]
        self.output_matrix = projection.transpose(-1, -2)[:, None]

        frequency_ids = torch.arange(head_dim // 8, device=extrinsics.device, dtype=torch.float32)
        frequencies = base ** (-frequency_ids / (head_dim // 8))
        y, x = torch.meshgrid(
            torch.arange(rows, device=extrinsics.device),
            torch.arange(columns, device=extrinsics.device),
            indexing="ij",
        )
        angles = torch.stack([x.flatten(), y.flatten()], dim=-1)[..., None] * frequencies  # (rows * columns, 2, d / 8)
        self.cos, self.sin = (table.repeat(self.num_cameras, 1, 1) for table in (angles.cos(), angles.sin()))

    def to(self, device: torch.device, **kwargs) -> "PRoPE":
        """Copy to another device; accelerate calls this between the layers of a model that spans devices."""
        moved = copy.copy(self)
        moved.__dict__ |= {k: v.to(device, **kwargs) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return moved

    def rotate(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 9: transform queries to D_i^T Q_i, keys to D_j^-1 K_j and values to D_j^-1 V_j.

        Args:
            query, key, value (`torch.Tensor` of shape `(batch_size, num_heads, num_tokens, head_dim)`):
                The patch tokens come last, camera by camera and row by row.
        """
        return (
            self._apply(query, self.query_matrix, -self.sin),
            self._apply(key, self.key_matrix, -self.sin),
            self._apply(value, self.key_matrix, -self.sin),
        )

    def restore(self, output: Tensor) -> Tensor:
        """Eq. 9: multiply the attention output, which has the shape of the queries, by D_i."""
        return self._apply(output, self.output_matrix, self.sin)

    @without_autocast
    def _apply(self, hidden_states: Tensor, matrix: Tensor, sin: Tensor) -> Tensor:
        batch_size, num_heads, num_tokens, head_dim = hidden_states.shape
        prefix, patches = hidden_states.split([num_tokens - self.num_patches, self.num_patches], dim=2)
        projective, rotary = patches.float().chunk(2, dim=-1)
        grouped = projective.reshape(batch_size, num_heads, self.num_cameras, -1, 4)
        projective = (grouped @ matrix).view(projective.shape)
        first, second = rotary.unflatten(-1, (2, 2, head_dim // 8)).unbind(-2)
        rotary = torch.stack([first * self.cos - second * sin, first * sin + second * self.cos], dim=-2)
        patches = torch.cat([projective, rotary.flatten(-3)], dim=-1)
        return torch.cat([prefix, patches.to(hidden_states.dtype)], dim=2)
