"""Look from elsewhere: what Spa3R predicts that a camera would see, from the latents of a scene alone."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....modeling_spa3r.geometry import relative_cameras
from ....modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ...pretraining.figures import PCAColors
from ..scene_geometry import SceneGeometry, estimate_geometry
from .rooms import RenderedRoom


@dataclass(frozen=True)
class View:
    """
    What a camera sees, on the grid of patches.

    features (`dict[str, torch.Tensor]` of shape `(rows, columns, channels)`): By target, such as "geometry".
    depth (`torch.Tensor` of shape `(rows, columns)`): At the top-left pixel of each patch.
    """

    features: dict[str, Tensor]
    depth: Tensor


@dataclass(frozen=True)
class SceneField:
    """
    A scene whose latents can be asked what any camera would see.

    pixel_values (`torch.FloatTensor` of shape `(1, num_views, 3, height, width)`): The context views.
    latents (`torch.FloatTensor` of shape `(1, num_latents, hidden_size)`): Their latents.
    geometry (`SceneGeometry`): Cameras and depth that VGGT estimates.
    colors (`dict[str, PCAColors]`): Of each target, one projection for the whole scene, fitted to its context views.
    depth_range (`tuple[float, float]`): Depths that become the ends of the colour scale, in the unit of the move.
    intrinsics (`torch.Tensor` of shape `(3, 3)`): Of the camera that looks, in pixels.
    unit (`float`): Length in the model's scale of a unit of the move: of a meter where the true cameras are known.
    """

    pixel_values: Tensor
    latents: Tensor
    geometry: SceneGeometry
    colors: dict[str, PCAColors]
    depth_range: tuple[float, float]
    intrinsics: Tensor
    unit: float

    @property
    def image_size(self) -> tuple[int, int]:
        return self.geometry.image_size


def camera_move(right: float, up: float, forward: float, turn: float, tilt: float) -> np.ndarray:
    """The pose `(4, 4)` of a moved camera in the first view's frame, OpenCV axes.

    Args:
        right, up, forward (`float`): Lengths along the axes of the first camera.
        turn, tilt (`float`): Degrees to the right, then up.
    """
    yaw, pitch = np.radians([turn, tilt])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    pose = np.eye(4)
    pose[:3, :3] = about_y @ about_x
    pose[:3, 3] = right, -up, forward
    return pose


@torch.no_grad()
def make_field(
    model: Spa3RForPreTraining, pixel_values: Tensor, latents: Tensor, room: RenderedRoom | None
) -> SceneField:
    """Estimate a scene's cameras, and fit the colours of its features.

    Args:
        model (`Spa3RForPreTraining`): The Spa3R that made the latents, with its decoder and teachers.
        pixel_values (`torch.FloatTensor` of shape `(1, num_views, 3, height, width)`): RGB in [0, 1].
        latents (`torch.FloatTensor` of shape `(1, num_latents, hidden_size)`): Of these views.
        room (`RenderedRoom`, *optional*): Whose views they are; its scale and focal length are then used.
    """
    geometry = estimate_geometry(model, pixel_values)
    targets = model.observe(pixel_values.to(model.device), pixel_values.shape[1])["targets"]
    colors = {name: PCAColors.fit(features.cpu()) for name, features in targets.items()}
    unit, intrinsics = 1.0, torch.from_numpy(geometry.intrinsics[0])
    if room is not None:
        true = torch.from_numpy(np.linalg.inv(room.poses))
        estimated, given = (
            relative_cameras(cameras[None])[1] for cameras in (torch.from_numpy(geometry.extrinsics), true)
        )
        unit = float(estimated / given)
        # The views may be larger than the pictures.
        focal_length = room.renderer.focal_length * geometry.image_size[1] / len(room.renderer.u)
        intrinsics = intrinsics.new_tensor([focal_length] * 2 + [1.0]).diag()
        intrinsics[:2, 2] = intrinsics.new_tensor(geometry.image_size[::-1]) / 2
    low, high = np.quantile(geometry.depth / unit, [0.02, 0.98])
    return SceneField(pixel_values, latents, geometry, colors, (float(low), float(high)), intrinsics, unit)


@torch.no_grad()
def predict(model: Spa3RForPreTraining, field: SceneField, move: np.ndarray) -> View:
    """What Spa3R's decoder says that the moved camera sees; it reads the latents, the camera and nothing else."""
    extrinsics = torch.from_numpy(np.linalg.inv(move)).float()
    extrinsics[:3, 3] *= field.unit
    cameras = (matrix[None, None].to(model.device) for matrix in (extrinsics, field.intrinsics.float()))
    predictions = model.decode(field.latents.to(model.device), *cameras, field.image_size)
    depth = predictions.pop("depth") / field.unit
    return View(
        {name: _grid(model, field, features) for name, features in predictions.items()}, _grid(model, field, depth)
    )


@torch.no_grad()
def see(model: Spa3RForPreTraining, field: SceneField, picture: np.ndarray, depth: np.ndarray) -> View:
    """What the teachers find in the true picture of a camera, which the model has not seen, and its true depth."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float()[None] / 255
    pixels = F.interpolate(pixels, field.image_size, mode="bilinear", antialias=True)
    views = torch.cat([field.pixel_values, pixels[None].to(field.pixel_values)], dim=1).to(model.device)
    num_context = field.pixel_values.shape[1]
    targets = model.observe(views, num_context, first_target=num_context)["targets"]
    patch_size = model.config.vggt_config.patch_size
    features = {name: _grid(model, field, target) for name, target in targets.items()}
    depth = F.interpolate(torch.from_numpy(depth)[None, None], field.image_size, mode="nearest-exact")[0, 0]
    return View(features, depth[::patch_size, ::patch_size])


def agreement(predicted: View, true: View) -> dict[str, float]:
    """Mean cosine of the features of each target, and under "depth" the mean relative error of the depth."""
    found = {
        name: float(F.cosine_similarity(predicted.features[name], features, dim=-1).mean())
        for name, features in true.features.items()
    }
    return found | {"depth": float(((predicted.depth - true.depth).abs() / true.depth).mean())}


def _grid(model: Spa3RForPreTraining, field: SceneField, patches: Tensor) -> Tensor:
    """Patches `(1, 1, rows * columns[, channels])` as `(rows, columns[, channels])` on the host."""
    patch_size = model.config.vggt_config.patch_size
    return patches[0, 0].float().cpu().unflatten(0, [side // patch_size for side in field.image_size])
