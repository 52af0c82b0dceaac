"""Cameras, rays and projective position encoding: pure functions of tensors.

Conventions, everywhere in this package: cameras follow OpenCV (x right, y down, z forward); `extrinsics` map world to
camera coordinates (`x_camera = R @ x_world + t`), as homogeneous matrices; `intrinsics` are in pixels, with the origin
at the top-left corner of the top-left pixel, so that pixel centres lie at half-integers.
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
]


def without_autocast(function: Callable) -> Callable:
    """Keep a function's products in the precision of its tensors: camera poses do not survive bfloat16."""

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
    bottom = matrices.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*matrices.shape[:-2], 1, 4)
    return torch.cat([matrices, bottom], dim=-2)


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
    """Rotation matrices of quaternions of any non-zero length.

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


def rotation_to_quaternion(rotations: Tensor) -> Tensor:
    """Unit quaternions of rotation matrices, with a non-negative scalar part.

    All four components are recovered from whichever of them is largest, which keeps the division well conditioned.

    Args:
        rotations (`torch.Tensor` of shape `(..., 3, 3)`): Rotation matrices.

    Returns:
        `torch.Tensor` of shape `(..., 4)`: In the order x, y, z, w.
    """
    m = rotations
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    xw, yw, zw = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    rows = (
        (1 + m00 - m11 - m22, xy, xz, xw),
        (xy, 1 - m00 + m11 - m22, yz, yw),
        (xz, yz, 1 - m00 - m11 + m22, zw),
        (xw, yw, zw, 1 + m00 + m11 + m22),
    )
    # Four times the outer product of (x, y, z, w) with itself: each row is the quaternion up to a factor.
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    quaternions = torch.take_along_dim(outer, largest[..., None, None], dim=-2).squeeze(-2)
    quaternions = F.normalize(quaternions, dim=-1)
    return torch.where(quaternions[..., 3:] < 0, -quaternions, quaternions)


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


def cameras_to_pose_encoding(extrinsics: Tensor, intrinsics: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Encode camera matrices as VGGT's nine numbers per view; the inverse of `pose_encoding_to_cameras`.

    Args:
        extrinsics (`torch.Tensor` of shape `(..., 3, 4)` or `(..., 4, 4)`): World to camera.
        intrinsics (`torch.Tensor` of shape `(..., 3, 3)`): In pixels; the principal point is not encoded.
        image_size (`tuple[int, int]`): Height and width of the images in pixels.

    Returns:
        `torch.Tensor` of shape `(..., 9)`: See `pose_encoding_to_cameras`; the quaternion has unit length and a
        non-negative scalar part.
    """
    height, width = image_size
    field_of_view = torch.stack(
        [
            2 * torch.atan((height / 2) / intrinsics[..., 1, 1]),
            2 * torch.atan((width / 2) / intrinsics[..., 0, 0]),
        ],
        dim=-1,
    )
    quaternions = rotation_to_quaternion(extrinsics[..., :3, :3])
    return torch.cat([extrinsics[..., :3, 3], quaternions, field_of_view], dim=-1).float()


@without_autocast
def relative_cameras(extrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Express the cameras of a scene in the frame of its first view, in units of their mean distance from it.

    VGGT estimates cameras in the first view's frame and in a scale of its own; given cameras are brought to the same
    form, which also makes everything computed from them independent of the world frame and of its unit of length.

    Args:
        extrinsics (`torch.Tensor` of shape `(batch_size, num_views, 4, 4)`): World to camera.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Extrinsics of shape `(batch_size, num_views, 4, 4)`, the first being the
        identity, and the length of shape `(batch_size,)`, in the units given, that became 1. Where all cameras share
        one place nothing is scaled.
    """
    relative = extrinsics.double() @ invert_rigid(extrinsics[:, :1].double())
    # The distance between two camera centres is the length of the translation between their frames.
    distances = relative[..., :3, 3].norm(dim=-1)
    scale = distances.sum(-1) / max(distances.shape[-1] - 1, 1)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    translation = relative[..., :3, 3:] / scale[:, None, None, None]
    relative = homogeneous(torch.cat([relative[..., :3, :3], translation], dim=-1))
    return relative.to(extrinsics.dtype), scale.to(extrinsics.dtype)


def camera_rays(intrinsics: Tensor, grid_size: tuple[int, int], patch_size: int) -> Tensor:
    """Unit directions, in the camera frame, through the centres of the patches: the paper's ray tokens.

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
    """Plücker coordinates, in the world frame, of rays given in the camera frame.

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
    """Intrinsics in units of the image size with the origin at its centre, and their inverses; both 3x3."""
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
    """Projective position encoding of patch tokens whose cameras are known (PRoPE, Li et al. 2025).

    Half of each attention head is acted on by the camera's projection matrix `P = K [R|t]`, so that a product of query
    and key sees the relative projection between their cameras; the other half by rotary embeddings of the patch's
    column and row. Tokens in front of the patches (registers, latents) belong to no camera and are left alone: in the
    paper's decoder the camera therefore enters where rays meet latents.

    An object holds the matrices and tables of one forward pass, computed once in float32 and shared by all layers; an
    attention module calls `rotate` before and `restore` after its attention product.

    Args:
        extrinsics (`torch.Tensor` of shape `(batch_size, num_cameras, 4, 4)`): World to camera.
        intrinsics (`torch.Tensor` of shape `(batch_size, num_cameras, 3, 3)`, *optional*):
            In pixels, without skew. Without them the projection is the rigid transform alone.
        grid_size (`tuple[int, int]`): Rows and columns of each camera's patch grid.
        image_size (`tuple[int, int]`): Height and width of the images in pixels.
        head_dim (`int`): Size of an attention head; a multiple of 8.
        base (`float`, *optional*, defaults to 100.0): Base of the rotary frequencies.
        frequency_scale (`float`, *optional*, defaults to 1.0): Factor on the rotary frequencies.
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
        frequency_scale: float = 1.0,
    ):
        if head_dim % 8:
            raise ValueError(f"PRoPE splits a head into blocks of 8 channels, got `head_dim`={head_dim}.")
        rows, columns = grid_size
        self.num_cameras = extrinsics.shape[1]
        self.num_patches = self.num_cameras * rows * columns
        extrinsics = extrinsics.float()
        projection, inverse = extrinsics, invert_rigid(extrinsics)
        if intrinsics is not None:
            matrix, matrix_inverse = _normalized_intrinsics(intrinsics.float(), image_size)
            projection, inverse = _lift(matrix) @ projection, inverse @ _lift(matrix_inverse)
        # Row vectors are multiplied from the right: x @ M.T applies M, with an axis for the heads.
        self.query_matrix = projection[:, None]
        self.key_matrix = inverse.transpose(-1, -2)[:, None]
        self.output_matrix = projection.transpose(-1, -2)[:, None]

        frequency_ids = torch.arange(head_dim // 8, device=extrinsics.device, dtype=torch.float32)
        frequencies = frequency_scale * base ** (-frequency_ids / (head_dim // 8))
        y, x = torch.meshgrid(
            torch.arange(rows, device=extrinsics.device),
            torch.arange(columns, device=extrinsics.device),
            indexing="ij",
        )
        angles = torch.stack([x.flatten(), y.flatten()], dim=-1)[..., None] * frequencies  # (rows * columns, 2, d / 8)
        self.cos, self.sin = (table.repeat(self.num_cameras, 1, 1) for table in (angles.cos(), angles.sin()))

    def to(self, device: torch.device, **kwargs) -> "PRoPE":
        """Move to another device; a model that is spread over devices asks for this between its layers."""
        moved = copy.copy(self)
        moved.__dict__ |= {k: v.to(device, **kwargs) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return moved

    def rotate(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode queries, keys and values.

        Args:
            query, key, value (`torch.Tensor` of shape `(batch_size, num_heads, num_tokens, head_dim)`):
                The patch tokens come last, camera by camera, row by row.
        """
        return (
            self._apply(query, self.query_matrix, -self.sin),
            self._apply(key, self.key_matrix, -self.sin),
            self._apply(value, self.key_matrix, -self.sin),
        )

    def restore(self, output: Tensor) -> Tensor:
        """Bring the attention output, of the shape of the queries, back into each patch's own frame."""
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
