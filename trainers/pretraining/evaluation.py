"""Compare Spa3R's predictions of held-out views with three baselines.

A decoder can lower the loss without using the scene, from the mean feature or from how features vary with the camera.
The baselines are therefore the same decoder with another scene's latents, the mean feature, and the features of the
context view with the most similar direction. All are binned by the angle between the two views, because views close to
a context view are easy to predict.
"""

import json
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...data_scripts.scenes.views import collate_views
from ...modeling_spa3r.geometry import invert_rigid
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from .category_probe import CategoryProbe, is_object, patch_categories

ANGLE_BINS = (0, 10, 20, 40, 60, 180)
SOURCES = {"own": "own latents", "other": "other scene", "mean": "mean feature", "nearest": "nearest view"}
METRICS = {"l1": "L1 ↓", "cosine": "cosine ↑", "abs_rel": "abs. rel. ↓", "accuracy": "accuracy ↑"}
# Least advantage that counts, in cosine similarity and as a share of L1: untrained latents stay below it by chance.
MARGIN = 0.005
# Directions closer than this (degrees) are equal: float32 noise must not decide between parallel cameras.
TIED_ANGLE = 0.1


@dataclass(frozen=True)
class PSFMRow:
    """
    One metric of one target, averaged over the target views whose nearest context view lies in a range of angles.

    target (`str`):
        A name of `config.targets`; `"depth"`, what the probe reads from the decoder; or `"objects"`, the categories
        that `CategoryProbe` reads from the features of patches that show objects.
    metric (`str`):
        `"l1"`, the mean absolute difference; `"cosine"`, the cosine similarity (1 is perfect); or, of depth,
        `"abs_rel"`, the absolute difference relative to the true depth. Depth is in the scale of the cameras. Of
        objects, `"accuracy"`, the share of patches whose category is found.
    min_angle, max_angle (`float`):
        Range in degrees, the upper end excluded except for 180.
    num_views (`int`):
        Target views in the range; for depth and objects, those with any known depth or any object.
    own (`float`):
        From the scene's own latents.
    other (`float`, *optional*):
        From the latents of the next held-out scene, with the same decoder and cameras; `None` with a single scene.
    mean (`float`, *optional*):
        Mean over the target views of the other held-out scenes at the same patch; `None` with a single scene.
    nearest (`float`, *optional*):
        Features of the nearest context view at the same patch; `None` for depth.
    """

    target: str
    metric: str
    min_angle: float
    max_angle: float
    num_views: int
    own: float
    other: float | None = None
    mean: float | None = None
    nearest: float | None = None


@dataclass(frozen=True)
class PSFMReport:
    """
    rows (`list[PSFMRow]`):
        For each target and metric, the row of all angles and then the rows of non-empty bins.
    num_scenes (`int`):
        Held-out scenes.
    given_cameras (`bool`):
        Whether the cameras are those of the scenes, or VGGT's estimates.
    """

    rows: list[PSFMRow]
    num_scenes: int
    given_cameras: bool

    def overall(self) -> list[PSFMRow]:
        """The rows of all angles."""
        return [row for row in self.rows if (row.min_angle, row.max_angle) == (ANGLE_BINS[0], ANGLE_BINS[-1])]

    def metrics(self) -> dict[str, float]:
        """Numbers over all angles by flat names such as `geometry_cosine_own`, for logging."""
        named = {
            f"{row.target}_{row.metric}_{source}": getattr(row, source) for row in self.overall() for source in SOURCES
        }
        return {name: value for name, value in named.items() if value is not None}

    def beats_other_scene(self) -> bool:
        """Whether own latents predict every target better than another scene's, in L1 and cosine by over `MARGIN`.

        Raises:
            ValueError: If there is a single scene.
        """
        if self.num_scenes < 2:
            raise ValueError(f"A comparison between scenes needs at least 2, got {self.num_scenes}: evaluate more.")
        rows = {(row.target, row.metric): row for row in self.overall() if row.target not in ("depth", "objects")}
        return all(
            row.own - row.other > MARGIN if metric == "cosine" else 1 - row.own / row.other > MARGIN
            for (_, metric), row in rows.items()
        )

    def to_table(self) -> str:
        """The report as a Markdown table, aligned as plain text."""
        header = ["target", "metric", "angle", "views", *SOURCES.values()]
        cells, previous = [], None
        for row in self.rows:
            first = (row.target, row.metric) != previous
            previous = (row.target, row.metric)
            angle = "all" if first else f"{row.min_angle:g}-{row.max_angle:g}°"
            values = [getattr(row, source) for source in SOURCES]
            numbers = ["–" if value is None else f"{value:.4f}" for value in values]
            labels = [row.target, METRICS[row.metric]] if first else ["", ""]
            cells.append([*labels, angle, str(row.num_views), *numbers])
        widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
        # The first two columns are words; numbers align right.
        rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
        lines = [header, rule, *cells]
        padded = [
            [text.ljust(width) if column < 2 else text.rjust(width) for column, (text, width) in enumerate(pairs)]
            for pairs in ([*zip(line, widths, strict=True)] for line in lines)
        ]
        table = "\n".join(f"| {' | '.join(line)} |" for line in padded)
        return f"{table}\n\n{self._caption()}"

    def _caption(self) -> str:
        scenes = "1 scene" if self.num_scenes == 1 else f"{self.num_scenes} scenes"
        cameras = "given" if self.given_cameras else "estimated"
        caption = (
            f"{scenes}, {cameras} cameras. ↓ lower is better, ↑ higher is better; angle to the nearest context view. "
            "The same target views are predicted from the scene's own latents; by the same decoder from another "
            "scene's latents; by the mean feature of the other scenes at the same patch; and by the feature of the "
            "nearest context view at the same patch."
        )
        if self.num_scenes == 1:
            caption += " With a single scene there is no other scene and no mean feature."
        return textwrap.fill(caption, 100)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dicts and numbers."""
        return asdict(self)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def _read(loader: DataLoader, description: str, show_progress: bool) -> Iterator[Mapping[str, Any]]:
    """Batches of one scene each, because image sizes differ between scenes."""
    for batch in tqdm(loader, desc=description, unit="scene", disable=not show_progress):
        # The data set replaces an unreadable scene by the next one, which is evaluated on its own.
        if not batch["dropped_scenes"]:
            yield batch


def model_inputs(batch: Mapping[str, Any], model: Spa3RForPreTraining) -> dict[str, Any]:
    """Arguments of `model.observe` from a batch of `collate_views`: on the model's device, images in [0, 1]."""
    inputs = {
        name: batch[name].to(model.device, torch.float32)
        for name in ("extrinsics", "intrinsics", "depth")
        if batch.get(name) is not None
    }
    pixel_values = batch["pixel_values"].to(model.device).float() / 255
    return inputs | {"pixel_values": pixel_values, "num_context_views": int(batch["num_context_views"])}


def nearest_context_views(extrinsics: Tensor, num_context_views: int) -> tuple[Tensor, Tensor]:
    """Find the context view with the viewing direction most like that of each target view.

    Args:
        extrinsics (`torch.Tensor` of shape `(batch_size, num_views, 4, 4)`): World to camera, context views first.
        num_context_views (`int`): How many of them are context views.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The angle between the two viewing directions in degrees, and the index of
        the context view, both of shape `(batch_size, num_views - num_context_views)`. Among context views of equal
        direction, the closest in position.
    """
    directions = extrinsics[..., 2, :3].double()
    centres = invert_rigid(extrinsics.double())[..., :3, 3]
    context, target = directions[:, None, :num_context_views], directions[:, num_context_views:, None]
    context, target = torch.broadcast_tensors(context, target)
    # Unlike the arc cosine, this is precise for almost parallel directions.
    sine, cosine = torch.linalg.cross(context, target).norm(dim=-1), (context * target).sum(-1)
    angles = torch.atan2(sine, cosine).rad2deg()
    distances = (centres[:, num_context_views:, None] - centres[:, None, :num_context_views]).norm(dim=-1)
    tied = angles <= angles.amin(-1, keepdim=True) + TIED_ANGLE
    nearest = distances.masked_fill(~tied, torch.inf).argmin(-1)
    return angles.gather(-1, nearest[..., None]).squeeze(-1), nearest


class PatchMean:
    """Mean value at each patch position over the views of all scenes but one.

    Only a running sum is kept. Scenes with other patch grids are resampled to the grid of the first.
    """

    def __init__(self):
        self.sums = None

    def add(self, values: Tensor, known: Tensor, grid_size: tuple[int, int]):
        """Add a scene.

        Args:
            values (`torch.Tensor` of shape `(num_views, num_patches, channels)`): Features, or depth.
            known (`torch.Tensor` of shape `(num_views, num_patches)`): Whether a value counts.
            grid_size (`tuple[int, int]`): Rows and columns of the patch grid.
        """
        sums = self._sums(values, known, grid_size)
        self.sums = sums if self.sums is None else self.sums + resample(sums, tuple(self.sums.shape[-2:]))

    def without(self, values: Tensor, known: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """The mean of the other scenes; takes the arguments of `add` for this scene.

        Returns:
            `torch.Tensor` of shape `(num_patches, channels)`: The overall mean where no other scene has a known value.
        """
        rest = self.sums - resample(self._sums(values, known, grid_size), tuple(self.sums.shape[-2:]))
        sums, counts = rest[:, :-1], rest[:, -1:]
        overall = sums.sum((-2, -1), keepdim=True) / counts.sum((-2, -1), keepdim=True)
        # Resampled counts are fractions.
        mean = torch.where(counts > 1e-3, sums / counts, overall)
        return resample(mean, grid_size).flatten(2).squeeze(0).T.float()

    @staticmethod
    def _sums(values: Tensor, known: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Sums over views, with the number of views as the last channel: `(1, channels + 1, rows, columns)`."""
        sums = (values * known[..., None]).sum(0, dtype=torch.float64)
        counts = known.sum(0, dtype=torch.float64)
        return torch.cat([sums, counts[:, None]], dim=-1).T.unflatten(1, grid_size)[None]


def resample(grids: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample `(batch_size, channels, rows, columns)` to another number of rows and columns."""
    if grids.shape[-2:] == size:
        return grids
    return F.interpolate(grids, size, mode="bilinear", align_corners=False)


class BinnedMeans:
    """Running means of metrics per view, by name and angle."""

    def __init__(self, edges: tuple[float, ...]):
        self.edges = torch.tensor(edges, dtype=torch.float64)
        self.sums = defaultdict(lambda: torch.zeros(len(edges) - 1, dtype=torch.float64))
        self.counts = defaultdict(lambda: torch.zeros(len(edges) - 1, dtype=torch.long))

    def add(self, key: tuple[str, str, str], values: Tensor, angles: Tensor, counted: Tensor):
        """Add values at angles where `counted`; all of shape `(batch_size, num_views)`."""
        values, angles = values[counted].double().cpu(), angles[counted].double().cpu()
        bins = torch.bucketize(angles, self.edges[1:-1], right=True)
        self.sums[key] += torch.bincount(bins, values, minlength=len(self.edges) - 1)
        self.counts[key] += torch.bincount(bins, minlength=len(self.edges) - 1)

    def rows(self) -> list[PSFMRow]:
        """Rows of the report, with targets and metrics in the order in which they were added."""
        edges, rows = self.edges.tolist(), []
        for target, metric in dict.fromkeys(key[:2] for key in self.sums):
            counts = self.counts[target, metric, "own"]
            ranges = [(edges[0], edges[-1], slice(None))]
            ranges += [(edges[i], edges[i + 1], slice(i, i + 1)) for i in range(len(edges) - 1)]
            for low, high, chosen in ranges:
                count = int(counts[chosen].sum())
                if count:
                    sums = {s: self.sums[target, metric, s] for s in SOURCES if (target, metric, s) in self.sums}
                    means = {source: float(total[chosen].sum()) / count for source, total in sums.items()}
                    rows.append(PSFMRow(target, metric, low, high, count, **means))
        return rows


def feature_metrics(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """L1 and cosine similarity of each view, from `(batch_size, num_views, num_patches, channels)`."""
    prediction, target = prediction.float(), target.float()
    return {
        "l1": (prediction - target).abs().mean((-2, -1)),
        "cosine": F.cosine_similarity(prediction, target, dim=-1).mean(-1),
    }


def depth_metrics(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """L1 and relative error of each view over known depth, from `(batch_size, num_views, num_patches)`."""
    known = target > 0
    count = known.sum(-1).clamp(min=1)
    error = (prediction.float() - target).abs() * known
    return {"l1": error.sum(-1) / count, "abs_rel": (error / target.where(known, 1.0)).sum(-1) / count}


def _patch_values(targets: Mapping[str, Tensor], depth: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Features and depth as pairs: values `(..., num_patches, channels)`, and whether they are known."""
    values = {name: (target, torch.ones_like(target[..., 0], dtype=torch.bool)) for name, target in targets.items()}
    return values | {"depth": (depth[..., None], depth > 0)}


def _target_categories(model: Spa3RForPreTraining, batch: Mapping[str, Any]) -> Tensor | None:
    """Categories of the patches of target views, if the data has them."""
    if batch.get("labels") is None:
        return None
    labels = batch["labels"][:, int(batch["num_context_views"]) :].to(model.device)
    return patch_categories(labels, model.config.vggt_config.patch_size)


def _survey_scenes(
    model: Spa3RForPreTraining, batches: Iterable[Mapping[str, Any]]
) -> tuple[Tensor, dict[str, PatchMean], CategoryProbe]:
    """Latents of all scenes, `(num_scenes, num_latents, hidden_size)`, the mean of each target, and the probe."""
    latents, means, probe = [], defaultdict(PatchMean), CategoryProbe()
    for batch in batches:
        inputs = model_inputs(batch, model)
        grid_size = model.model.vggt.grid_size(inputs["pixel_values"])
        observed = model.observe(**inputs, first_target=inputs["num_context_views"])
        latents.append(model.model.encode(observed["context_features"], grid_size))
        if (categories := _target_categories(model, batch)) is not None:
            probe.add(torch.cat(list(observed["targets"].values()), dim=-1), categories)
        for name, (values, known) in _patch_values(observed["targets"], observed["depth"]).items():
            for scene_values, scene_known in zip(values, known, strict=True):
                means[name].add(scene_values, scene_known, grid_size)
    if not latents:
        raise ValueError("No scene to evaluate has a readable frame; use other scenes.")
    return torch.cat(latents), means, probe


def _compare_scenes(
    model: Spa3RForPreTraining,
    inputs: Mapping[str, Any],
    own_latents: Tensor,
    other_latents: Tensor | None,
    means: Mapping[str, PatchMean] | None,
    tally: BinnedMeans,
    probe: CategoryProbe,
    categories: Tensor | None,
):
    """Add the predictions and baselines of a batch to the tally; two baselines need another scene."""
    num_context, image_size = inputs["num_context_views"], tuple(inputs["pixel_values"].shape[-2:])
    grid_size = model.model.vggt.grid_size(inputs["pixel_values"])
    observed = model.observe(**inputs)
    extrinsics, intrinsics = observed["extrinsics"], observed["intrinsics"]
    angles, nearest = nearest_context_views(extrinsics, num_context)
    cameras = extrinsics[:, num_context:], intrinsics[:, num_context:]
    predictions = {"own": model.decode(own_latents, *cameras, image_size)}
    if other_latents is not None:
        predictions["other"] = model.decode(other_latents, *cameras, image_size)

    targets = {name: features[:, num_context:] for name, features in observed["targets"].items()}
    features = defaultdict(list)
    for name, (values, known) in _patch_values(targets, observed["depth"][:, num_context:]).items():
        sources = {source: prediction[name] for source, prediction in predictions.items()}
        if means is not None:
            scenes = zip(values, known, strict=True)
            mean = torch.stack([means[name].without(*scene, grid_size) for scene in scenes])[:, None].expand_as(values)
            sources["mean"] = mean.squeeze(-1) if name == "depth" else mean
        if name == "depth":
            measure, truth = depth_metrics, values.squeeze(-1)
        else:
            measure, truth = feature_metrics, values
            context_features = observed["targets"][name][:, :num_context]
            sources["nearest"] = torch.take_along_dim(context_features, nearest[..., None, None], dim=1)
            for source, prediction in sources.items():
                features[source].append(prediction)
        for source, prediction in sources.items():
            for metric, per_view in measure(prediction, truth).items():
                tally.add((name, metric, source), per_view, angles, known.any(-1))
    if categories is not None:
        counted = is_object(categories)
        for source, parts in features.items():
            correct = (probe.read(torch.cat(parts, dim=-1)) == categories) & counted
            accuracy = correct.sum(-1) / counted.sum(-1).clamp(min=1)
            tally.add(("objects", "accuracy", source), accuracy, angles, counted.any(-1))


def with_gathered_weights(function: Callable) -> Callable:
    """Let a function call parts of a model that FSDP has sharded; all processes must call it together.

    FSDP gathers weights for the model's forward and for registered methods alone, so a registered method runs it.
    """

    @wraps(function)
    def wrapped(model, *args, **kwargs):
        if not isinstance(model, FSDPModule):
            return function(model, *args, **kwargs)
        if not hasattr(model, "call_function"):
            model.call_function = lambda function: function()
            register_fsdp_forward_method(model, "call_function")
        return model.call_function(partial(function, model, *args, **kwargs))

    return wrapped


@with_gathered_weights
@torch.no_grad()
def evaluate_psfm(
    model: Spa3RForPreTraining,
    views: Dataset,
    num_views: int,
    num_scenes: int | None = None,
    num_workers: int = 0,
    show_progress: bool = True,
) -> PSFMReport:
    """Compare predictions of held-out views with baselines that know less.

    Each target view weighs the same. Cameras are those of the data, or else VGGT's estimates. The data is read twice,
    so that memory holds only the latents of the scenes and one running sum of features. The report depends on weights
    and data alone, so it is the same in every process. With replicated weights (DDP, ZeRO-2) a single process may call
    this; with sharded weights (FSDP) all must.

    Args:
        model (`Spa3RForPreTraining`): Runs on its device, in its dtype or under the caller's autocast.
        views (`SceneViews`):
            Held-out scenes, read at epoch 0. The "other" scene is the next one; of the last scene it is the first.
        num_views (`int`): Views of a scene, context and target together.
        num_scenes (`int`, *optional*): Number of scenes, from the first; all by default.
        num_workers (`int`, *optional*, defaults to 0): Processes that read images.
        show_progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Raises:
        ValueError: If there is no scene, or none with a readable frame.
    """
    num_scenes = len(views) if num_scenes is None else min(num_scenes, len(views))
    if num_scenes < 1:
        raise ValueError(f"`num_scenes` must be at least 1, got {num_scenes}: hold out 2 or more scenes.")
    # Starting a loader draws a number, which must not come from the generator of the training.
    loader = DataLoader(
        views,
        sampler=[(0, scene, num_views) for scene in range(num_scenes)],
        collate_fn=collate_views,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    was_training = model.training
    model.eval()
    try:
        latents, means, probe = _survey_scenes(model, _read(loader, "Encoding scenes", show_progress))
        several = len(latents) > 1
        tally, start = BinnedMeans(ANGLE_BINS), 0
        for batch in _read(loader, "Predicting target views", show_progress):
            inputs = model_inputs(batch, model)
            scenes = slice(start, start + len(inputs["pixel_values"]))
            other_latents = latents.roll(-1, dims=0)[scenes] if several else None
            categories = _target_categories(model, batch)
            known_means = means if several else None
            _compare_scenes(model, inputs, latents[scenes], other_latents, known_means, tally, probe, categories)
            start = scenes.stop
    finally:
        model.train(was_training)
    return PSFMReport(tally.rows(), len(latents), given_cameras="extrinsics" in inputs)
