"""Cameras, depth and points of a scene, as VGGT estimates them from its photos alone."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...modeling_spa3r.geometry import unproject
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ...modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry, estimated_cameras

# Pixels at a jump in depth hang in the air between two surfaces; this is the least jump, as a share of the depth.
EDGE_SHARE = 0.06


class PointCloud(NamedTuple):
    """
    Points on the surfaces that the photos show.

    positions (`np.ndarray` of shape `(num_points, 3)`): In the first view's frame, OpenCV axes.
    colors (`np.ndarray` of shape `(num_points, 3)`): RGB bytes.
    pixels (`np.ndarray` of shape `(num_points, 3)`): View, row and column that a point was seen at.
    """

    positions: np.ndarray
    colors: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class SceneGeometry:
    """
    What VGGT estimates of a scene. The world is the first view's frame, OpenCV axes; the unit is VGGT's own.

    images (`np.ndarray` of shape `(num_views, height, width, 3)`): RGB bytes, as the model saw them.
    extrinsics (`np.ndarray` of shape `(num_views, 4, 4)`): World to camera.
    intrinsics (`np.ndarray` of shape `(num_views, 3, 3)`): In pixels; pixel centres are at half-integers.
    depth (`np.ndarray` of shape `(num_views, height, width)`): Along the viewing axis.
    confidence (`np.ndarray` of shape `(num_views, height, width)`): Of the depth, at least 1.
    """

    images: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the views in pixels."""
        return self.images.shape[1:3]

    @property
    def poses(self) -> np.ndarray:
        """Camera to world, of shape `(num_views, 4, 4)`."""
        return np.linalg.inv(self.extrinsics)

    def point_cloud(self, keep: float = 0.9, max_points: int = 150_000) -> PointCloud:
        """Put each pixel where its depth says.

        Args:
            keep (`float`, *optional*, defaults to 0.9): Share of the pixels to keep, those with the surest depth.
            max_points (`int`, *optional*, defaults to 150_000): If more remain, a fixed random choice of them.
        """
        camera = (torch.from_numpy(array)[None].float() for array in (self.depth, self.extrinsics, self.intrinsics))
        positions = unproject(*camera)[0].numpy()
        least = np.quantile(self.confidence, 1 - keep)
        chosen = np.argwhere((self.confidence >= least) & ~_is_edge(self.depth))
        if len(chosen) > max_points:
            chosen = chosen[np.sort(np.random.default_rng(0).choice(len(chosen), max_points, replace=False))]
        where = tuple(chosen.T)
        return PointCloud(positions[where], self.images[where], chosen)


@torch.no_grad()
def estimate_geometry(model: Spa3RForPreTraining | VGGTForGeometry, pixel_values: Tensor) -> SceneGeometry:
    """Estimate cameras and depth with a VGGT, or with the one inside a Spa3R.

    Args:
        model (`Spa3RForPreTraining` or `VGGTForGeometry`): On any device.
        pixel_values (`torch.FloatTensor` of shape `(1, num_views, 3, height, width)`):
            RGB in [0, 1], sides multiples of the patch size; the first view is the reference.
    """
    pixel_values = pixel_values.to(model.device)
    image_size = tuple(pixel_values.shape[-2:])
    vggt = model.vggt if isinstance(model, VGGTForGeometry) else model.model.vggt
    features = vggt(pixel_values, output_layers=tuple(vggt.config.dense_layers), return_dict=True)
    pose_encoding = model.camera_head(features.camera_tokens.to(model.dtype))[-1].float()
    extrinsics, intrinsics = estimated_cameras(pose_encoding, image_size)
    depth, confidence = model.depth_head(features.layer_patch_tokens, image_size)
    images = (pixel_values[0].permute(0, 2, 3, 1).float() * 255).round().byte()
    found = images, extrinsics[0], intrinsics[0], depth[0, ..., 0].float(), confidence[0].float()
    return SceneGeometry(*(tensor.cpu().numpy() for tensor in found))


def _is_edge(depth: np.ndarray) -> np.ndarray:
    """Whether the depth `(num_views, height, width)` of a pixel and of a neighbour differ by a jump."""
    edge = np.zeros(depth.shape, bool)
    for axis in (1, 2):
        low, high = (np.take(depth, range(start, depth.shape[axis] + start - 1), axis) for start in (0, 1))
        jump = np.abs(high - low) > EDGE_SHARE * np.minimum(low, high)
        edge |= np.pad(jump, [(0, int(axis == other)) for other in range(3)])
        edge |= np.pad(jump, [(int(axis == other), 0) for other in range(3)])
    return edge
