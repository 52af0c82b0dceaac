"""The losses that teach VGGT: cameras, depth and points (Wang et al., CVPR 2025), and true correspondences.

Deviations from VGGT:
- Depth is compared by its logarithm, without a term for gradients, so a mistake counts in proportion to the depth.
- Lengths may stay in meters, so that the model learns the true size of what it sees.
- Optionally, some heads of global attention are taught which patches of two views show the same place. A model that
  is trained from nothing finds wide-baseline cameras far sooner with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...modeling_spa3r.geometry import cameras_to_pose_encoding, invert_rigid, relative_cameras, unproject
from ...modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry, VGGTForGeometryOutput

# Weight of the logarithm of the confidence, and of each earlier iteration of the camera head (both VGGT's).
CONFIDENCE_WEIGHT, ITERATION_WEIGHT = 0.2, 0.6
# A point is visible in another view if its depth there agrees up to this share.
DEPTH_TOLERANCE = 0.08


@dataclass
class GeometryTruth:
    """
    What VGGT should predict, in the first view's frame.

    pose_encoding (`torch.Tensor` of shape `(batch_size, num_views, 9)`): See `cameras_to_pose_encoding`.
    depth (`torch.Tensor` of shape `(batch_size, num_views, height, width)`): 0 where unknown.
    points (`torch.Tensor` of shape `(batch_size, num_views, height, width, 3)`): World coordinates of each pixel.
    extrinsics (`torch.Tensor` of shape `(batch_size, num_views, 4, 4)`): World to camera.
    intrinsics (`torch.Tensor` of shape `(batch_size, num_views, 3, 3)`): In pixels.
    """

    pose_encoding: Tensor
    depth: Tensor
    points: Tensor
    extrinsics: Tensor
    intrinsics: Tensor

    @property
    def known(self) -> Tensor:
        """Whether the depth of each pixel is known."""
        return self.depth > 0


def geometry_truth(extrinsics: Tensor, intrinsics: Tensor, depth: Tensor, normalize: bool) -> GeometryTruth:
    """Express the cameras and depth of scenes in the frame of the first view.

    Args:
        extrinsics (`torch.Tensor` of shape `(batch_size, num_views, 4, 4)`): World to camera, meters.
        intrinsics (`torch.Tensor` of shape `(batch_size, num_views, 3, 3)`): In pixels.
        depth (`torch.Tensor` of shape `(batch_size, num_views, height, width)`): Meters, 0 where unknown.
        normalize (`bool`): Divide lengths by the mean distance of the points from the first camera, as VGGT does.
    """
    relative, unit = relative_cameras(extrinsics.float())
    relative = relative.clone()
    relative[..., :3, 3] *= unit[:, None, None]
    points = unproject(depth, relative, intrinsics)
    if normalize:
        known = depth > 0
        distance = (points.norm(dim=-1) * known).sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp(min=1)
        scale = distance.clamp(min=1e-6)[:, None, None, None]
        points, depth = points / scale[..., None], depth / scale
        relative[..., :3, 3] /= scale[..., 0]
    encoding = cameras_to_pose_encoding(relative, intrinsics, tuple(depth.shape[-2:]))
    return GeometryTruth(encoding, depth, points, relative, intrinsics)


def geometry_losses(
    output: VGGTForGeometryOutput, truth: GeometryTruth, dense_views: Tensor | None = None
) -> dict[str, Tensor]:
    """The losses `camera`, `depth` and `points`, each a scalar in float32.

    Args:
        output (`VGGTForGeometryOutput`): The prediction.
        truth (`GeometryTruth`): What it should be, of all views.
        dense_views (`torch.LongTensor` of shape `(num_dense_views,)`, *optional*):
            Views whose depth and points were predicted; all by default.
    """
    views = slice(None) if dense_views is None else dense_views
    depth, points = truth.depth[:, views], truth.points[:, views]
    known, depth = depth > 0, depth.clamp(min=1e-3)
    depth_error = (output.depth.float().clamp(min=1e-3).log() - depth.log()).abs()
    # Not the norm, whose gradient is not finite where the error is zero.
    point_error = (output.points.float() - points).abs().sum(dim=-1)
    return {
        "camera": camera_loss(output.pose_encodings, truth.pose_encoding),
        "depth": _with_confidence(depth_error, output.depth_confidence, known),
        "points": _with_confidence(point_error, output.points_confidence, known),
    }


def _with_confidence(error: Tensor, confidence: Tensor, known: Tensor) -> Tensor:
    """Mean error, weighted by the model's confidence, which costs it a logarithm."""
    loss = confidence * error - CONFIDENCE_WEIGHT * confidence.log()
    return (loss * known).sum() / known.sum().clamp(min=1)


def camera_loss(pose_encodings: Sequence[Tensor], truth: Tensor) -> Tensor:
    """L1 distance of pose encodings, summed over the iterations of the camera head; later ones weigh more."""
    # A quaternion and its negative are the same rotation: compare with the nearer one.
    last = pose_encodings[-1]
    sign = torch.where((last[..., 3:7] * truth[..., 3:7]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    truth = torch.cat([truth[..., :3], truth[..., 3:7] * sign, truth[..., 7:]], dim=-1)
    losses = [F.l1_loss(encoding.float(), truth) for encoding in pose_encodings]
    return sum(ITERATION_WEIGHT ** (len(losses) - 1 - step) * loss for step, loss in enumerate(losses))


def find_correspondences(truth: GeometryTruth, patch_size: int) -> Tensor:
    """For the center of each patch, the patch of each view that shows the same place.

    Args:
        truth (`GeometryTruth`): Cameras and depth.
        patch_size (`int`): In pixels.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_views, num_patches, num_views)`: Index of the patch in each view,
        or -1 if the place lies outside of that view or behind what it shows.
    """
    height, width = truth.depth.shape[-2:]
    half, rows, columns = patch_size // 2, height // patch_size, width // patch_size
    points = truth.points[:, :, half::patch_size, half::patch_size].flatten(2, 3)  # (B, V, N, 3)
    known = truth.depth[:, :, half::patch_size, half::patch_size].flatten(2, 3) > 0
    camera = torch.einsum("bvij,bunj->bunvi", truth.extrinsics[..., :3, :3], points)
    camera = camera + truth.extrinsics[:, None, None, :, :3, 3]  # (B, V, N, V, 3): the last view is the other one
    depth = camera[..., 2]
    focal, center = truth.intrinsics[..., [0, 1], [0, 1]], truth.intrinsics[..., :2, 2]
    pixels = camera[..., :2] / depth[..., None].clamp(min=1e-3) * focal[:, None, None] + center[:, None, None]
    column, row = pixels.floor().long().unbind(-1)
    inside = (depth > 1e-3) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)  # (B, V, N, V)
    maps = truth.depth.flatten(2)[:, None, None].expand(*place.shape[:3], -1, -1)
    seen = maps.gather(-1, place[..., None]).squeeze(-1)
    visible = inside & known[..., None] & ((depth - seen).abs() < DEPTH_TOLERANCE * seen)
    patch = (row // patch_size).clamp(0, rows - 1) * columns + (column // patch_size).clamp(0, columns - 1)
    return torch.where(visible, patch, -1)


class AttentionTeacher:
    """Teaches some heads of global attention which patches of two views show the same place.

    Hooks on the attention modules keep the queries and keys of half of their heads; `loss` compares them with the
    true correspondences.

    Args:
        model (`VGGTForGeometry`): The model to teach.
        layers (`Sequence[int]`): Layers whose global attention is taught.
    """

    def __init__(self, model: VGGTForGeometry, layers: Sequence[int]):
        self.num_special_tokens = 1 + model.config.num_register_tokens
        self._kept: list[tuple[Tensor, Tensor]] = []
        for layer in layers:
            model.vggt.global_blocks[layer].attention.register_forward_pre_hook(self._keep)

    def _keep(self, attention: nn.Module, inputs: tuple):
        hidden_states, rope = inputs[:2]
        heads, size = attention.num_heads // 2, attention.head_dim
        weight = attention.qkv.weight.unflatten(0, (3, attention.num_heads, size))[:2, :heads].flatten(0, 2)
        bias = attention.qkv.bias.unflatten(0, (3, attention.num_heads, size))[:2, :heads].flatten(0, 2)
        states = F.linear(hidden_states, weight, bias).unflatten(-1, (2, heads, size))
        query, key = states.permute(2, 0, 3, 1, 4).unbind(0)
        query, key, _ = rope.rotate(attention.q_norm(query), attention.k_norm(key), key)
        self._kept.append((query.float() * attention.scaling, key.float()))

    def loss(self, correspondences: Tensor) -> Tensor:
        """Cross-entropy of the attention of each patch to the patches of each other view.

        Args:
            correspondences (`torch.LongTensor` of shape `(batch_size, num_views, num_patches, num_views)`):
                See `find_correspondences`.
        """
        num_views, num_patches = correspondences.shape[1:3]
        others = ~torch.eye(num_views, dtype=torch.bool, device=correspondences.device)[:, None]  # (V, 1, V)
        answers = correspondences.masked_fill(~others, -1)
        losses = []
        for query, key in self._kept:
            query, key = (
                states.unflatten(2, (num_views, -1))[:, :, :, self.num_special_tokens :] for states in (query, key)
            )
            logits = torch.einsum("bhund,bhvmd->bhunvm", query, key)
            expected = answers[:, None].expand(logits.shape[:-1])
            loss = F.cross_entropy(logits.flatten(0, -2), expected.flatten(), ignore_index=-1, reduction="sum")
            losses.append(loss / (expected >= 0).sum().clamp(min=1))
        self._kept.clear()
        return sum(losses) / len(losses)

    def forget(self):
        """Drop what a forward pass without a loss has left."""
        self._kept.clear()


def geometry_metrics(output: VGGTForGeometryOutput, truth: GeometryTruth) -> Mapping[str, Tensor]:
    """Errors of a prediction, one value for each view or scene.

    Returns:
        `dict[str, torch.Tensor]`: `rotation` in degrees and `translation` in the unit of `truth`, of all views but the
        first, `(batch_size * (num_views - 1),)`; `depth_abs_rel` of each view, `(batch_size * num_views,)`; and
        `point_error`, the mean distance of points, likewise.
    """
    turn = output.extrinsics[..., :3, :3] @ truth.extrinsics[..., :3, :3].transpose(-1, -2)
    cosine = (turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    centers = (invert_rigid(cameras)[:, 1:, :3, 3] for cameras in (output.extrinsics, truth.extrinsics))
    predicted, expected = centers
    known = truth.known
    count = known.sum((-1, -2)).clamp(min=1)
    relative = (output.depth - truth.depth).abs() / truth.depth.clamp(min=1e-3) * known
    distance = (output.points - truth.points).norm(dim=-1) * known
    return {
        "rotation": torch.rad2deg(cosine.clamp(-1, 1).acos())[:, 1:].flatten(),
        "translation": (predicted - expected).norm(dim=-1).flatten(),
        "depth_abs_rel": (relative.sum((-1, -2)) / count).flatten(),
        "point_error": (distance.sum((-1, -2)) / count).flatten(),
    }
