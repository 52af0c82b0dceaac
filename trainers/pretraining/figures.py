"""Figures like the paper's Fig. 2: true and predicted features and depth of target views."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from ...data_scripts.common.files import replace_when_complete
from ...data_scripts.scenes.views import SceneViews, collate_views
from ...modeling_spa3r.geometry import relative_cameras
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from .evaluation import model_inputs, nearest_context_views

DEPTH_COLORS = colormaps["viridis"].with_extremes(bad="0.85")
CONTEXT_COLOR, TARGET_COLOR = "tab:blue", "tab:orange"
PANEL_WIDTH = 1.55  # inches
DPI = 150


@dataclass(frozen=True)
class PCAColors:
    """
    A projection of features to red, green and blue. Only colours of the same projection can be compared.

    mean (`torch.Tensor` of shape `(channels,)`), components (`torch.Tensor` of shape `(channels, 3)`):
        The projection onto the first three principal components.
    low, high (`torch.Tensor` of shape `(3,)`):
        Projections that become 0 and 1; values outside are clipped.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def fit(cls, features: Tensor) -> "PCAColors":
        """Fit to features of shape `(..., channels)`; colours span the 1st to the 99th percentile."""
        features = features.flatten(0, -2).double()
        mean = features.mean(0)
        centered = features - mean
        components = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -3:].flip(-1)
        # The sign of a component is arbitrary and depends on the solver: make its largest entry positive.
        components = components * components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
        low, high = torch.quantile(centered @ components, torch.tensor([0.01, 0.99]).to(mean), dim=0)
        return cls(mean, components, low, high)

    def __call__(self, features: Tensor) -> Tensor:
        """Colours in [0, 1] of shape `(..., 3)` for features of shape `(..., channels)`."""
        projected = (features.double() - self.mean) @ self.components
        return ((projected - self.low) / (self.high - self.low).clamp(min=1e-12)).clamp(0, 1).float()


@dataclass(frozen=True)
class PredictedScene:
    """
    The content of a figure. Target views come last; predictions are theirs alone.

    images (`torch.Tensor` of shape `(num_views, height, width, 3)`):
        In [0, 255].
    names (`list[str]`):
        Names of the views.
    angles (`torch.Tensor` of shape `(num_target_views,)`):
        Degrees to the nearest context view.
    features (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
        Target and predicted, of shape `(num_target_views, rows, columns, target_size)`.
    depth (`tuple[torch.Tensor, torch.Tensor]`):
        True (0 where unknown) and probed depth, both of shape `(num_target_views, rows, columns)`.
    is_metric (`bool`):
        Whether depth is in metres, or in the scale of VGGT's estimate.
    """

    images: Tensor
    names: list[str]
    angles: Tensor
    features: dict[str, tuple[Tensor, Tensor]]
    depth: tuple[Tensor, Tensor]
    is_metric: bool


@torch.no_grad()
def predict_scene(model: Spa3RForPreTraining, item: dict[str, Any]) -> PredictedScene:
    """Run a model on one scene, as `SceneViews` gives it."""
    was_training = model.training
    model.eval()
    inputs = model_inputs(collate_views([item]), model)
    outputs = model(**inputs)
    model.train(was_training)
    num_context = inputs["num_context_views"]
    num_targets = inputs["pixel_values"].shape[1] - num_context
    grid_size = model.model.vggt.grid_size(inputs["pixel_values"])

    def grids(patches: Tensor) -> Tensor:
        # Target views come last; some models predict the context views, too.
        return patches[0, -num_targets:].float().unflatten(1, grid_size)

    is_metric = "depth" in inputs
    in_units = is_metric and model.config.normalize_cameras
    unit = relative_cameras(inputs["extrinsics"])[1] if in_units else 1.0
    return PredictedScene(
        images=torch.as_tensor(item["pixel_values"]).permute(0, 2, 3, 1),
        names=[str(index) for index in item["frame_indices"]],
        angles=nearest_context_views(outputs.extrinsics, num_context)[0].squeeze(0),
        features={
            name: (grids(target), grids(outputs.predicted_features[name]))
            for name, target in outputs.target_features.items()
        },
        depth=(grids(outputs.target_depth * unit), grids(outputs.probe_depth * unit)),
        is_metric=is_metric,
    )


def draw_scene_figure(model: Spa3RForPreTraining, item: dict[str, Any]) -> Figure:
    """Draw the views of a scene, and features and depth of its target views, true and predicted.

    Colours of features are their first three principal components, fitted to the target features of the scene and
    applied to the predicted ones, too (the paper's Fig. 2 fits each separately). Depth has one value per patch, with
    true and probed values in the same colours, grey where unknown. The title of a target view gives the angle to its
    nearest context view.

    Args:
        model (`Spa3RForPreTraining`): Runs on its device and in its dtype.
        item (`dict`): A scene, as `SceneViews` gives it.

    Returns:
        `matplotlib.figure.Figure`: Independent of pyplot, drawn without a display.
    """
    scene = predict_scene(model, item)
    num_targets = len(scene.angles)
    num_context = len(scene.images) - num_targets
    num_rows, num_columns = 4 + 2 * len(scene.features), max(num_context, num_targets)
    height, width = scene.images.shape[1:3]
    figure = Figure(
        figsize=(PANEL_WIDTH * num_columns + 1.35, (PANEL_WIDTH * height / width + 0.1) * num_rows + 0.3),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)

    context_names = [f"view {name}" for name in scene.names[:num_context]]
    _draw_row(axes[0], "context\nviews", scene.images[:num_context], context_names, CONTEXT_COLOR)
    names = zip(scene.names[num_context:], scene.angles.tolist(), strict=True)
    target_names = [f"view {name} · {angle:.0f}°" for name, angle in names]
    _draw_row(axes[1], "target\nviews,\n° to nearest", scene.images[num_context:], target_names, TARGET_COLOR)
    for row, (name, (target, predicted)) in enumerate(scene.features.items()):
        colors = PCAColors.fit(target)
        similarities = F.cosine_similarity(target, predicted, dim=-1).mean((1, 2)).tolist()
        _draw_row(axes[2 + 2 * row], f"{name}\ntarget", colors(target))
        _draw_row(
            axes[3 + 2 * row], f"{name}\npredicted", colors(predicted), [f"cosine {s:.2f}" for s in similarities]
        )
    _draw_depth(figure, axes[-2:], scene)
    figure.suptitle(item["scene_id"], fontsize=10)
    return figure


def _draw_row(axes: np.ndarray, label: str, images: Tensor, titles: list[str] | None = None, color: str | None = None):
    """Draw images of shape `(num_images, rows, columns[, 3])` into the first panels of a row."""
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for index, (panel, image) in enumerate(zip(axes, images, strict=False)):
        panel.imshow(image.cpu().numpy(), interpolation="nearest")
        if titles is not None:
            panel.set_title(titles[index], fontsize=8, pad=2)
        if color is not None:
            panel.spines[:].set(visible=True, color=color, linewidth=2)


def _draw_depth(figure: Figure, axes: np.ndarray, scene: PredictedScene):
    """Draw true and probed depth in two rows of panels, with one colour bar."""
    true, probed = (depth.cpu() for depth in scene.depth)
    known = true[true > 0] if (true > 0).any() else probed
    low, high = torch.quantile(known, torch.tensor([0.02, 0.98])).tolist()
    labels = ("depth\nmeasured" if scene.is_metric else "depth\nVGGT", "depth\nprobe")
    masked = np.ma.masked_equal(true.numpy(), 0)
    for row, label, grids in zip(axes, labels, (masked, probed.numpy()), strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        for panel, grid in zip(row, grids, strict=False):
            drawn = panel.imshow(grid, cmap=DEPTH_COLORS, vmin=low, vmax=high, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.01, aspect=14)
    bar.set_label("metres" if scene.is_metric else "scale of the cameras", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def save_figure(figure: Figure, path: Path):
    """Write a figure as PNG, completely or not at all, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


class PSFMFigureCallback(TrainerCallback):
    """
    Draws held-out scenes at each evaluation: to `<output_dir>/figures/step_<step>/<scene>.png` and, where TensorBoard
    is among `report_to`, as images of a run `figures` beside the numbers. The main process writes.

    Args:
        views (`SceneViews`): Held-out scenes, read at epoch 0 as the evaluation does.
        num_views (`int`): Views of a scene.
        num_scenes (`int`): How many scenes are drawn, from the first on.
    """

    def __init__(self, views: SceneViews, num_views: int, num_scenes: int):
        self.views = views
        self.num_views = num_views
        self.num_scenes = min(num_scenes, len(views))

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        model = extract_model_from_parallel(model)
        folder = Path(args.output_dir) / "figures"
        is_main = state.is_world_process_zero
        # TensorBoard reads one event file per folder, so images get their own folder.
        writer = SummaryWriter(folder) if is_main and "tensorboard" in args.report_to else None
        for scene in range(self.num_scenes):
            item = self.views[0, scene, self.num_views]
            # In every process, because each may hold a part of the weights.
            figure = draw_scene_figure(model, item)
            if is_main:
                save_figure(figure, folder / f"step_{state.global_step:06d}" / f"{item['scene_id']}.png")
            if writer is not None:
                figure.canvas.draw()
                image = np.asarray(figure.canvas.buffer_rgba())[..., :3]
                writer.add_image(item["scene_id"], image, state.global_step, dataformats="HWC")
        if writer is not None:
            writer.close()
