"""Trainers of the teachers: VGGT by geometry, vision transformers by the categories of patches."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...data_scripts.rooms.labels import STRUCTURE
from ...data_scripts.scenes.views import SceneViews, collate_views
from ..runs.scene_views_trainer import SceneViewsTrainer
from .categories import category_losses, category_shares
from .geometry import AttentionTeacher, find_correspondences, geometry_losses, geometry_metrics, geometry_truth

SCENES_PER_EVALUATION_BATCH = 8


class TeachingTrainer(SceneViewsTrainer):
    """What the trainers of both kinds of teachers share."""

    def held_out_batches(self) -> Iterator[Mapping[str, Tensor]]:
        """All views of the held-out scenes, in the order of the walk."""
        scenes, num_views = self.eval_dataset, self.args.max_views
        requests = [(0, index, num_views) for index in range(len(scenes))]
        loader = DataLoader(scenes, batch_size=SCENES_PER_EVALUATION_BATCH, sampler=requests, collate_fn=collate_views)
        for batch in loader:
            yield in_order(self._prepare_inputs(batch))

    @torch.no_grad()
    def evaluate(self, eval_dataset: SceneViews | None = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Evaluate on held-out scenes; every process computes the same figures."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        values = defaultdict(list)
        for batch in self.held_out_batches():
            with self.compute_loss_context_manager():
                for name, value in self.measure(model, batch).items():
                    values[name].append(value.float().flatten())
        model.train(was_training)
        metrics = {}
        for name, parts in values.items():
            together = torch.cat(parts)
            metrics[f"{metric_key_prefix}_{name}"] = round(together.mean().item(), 4)
            if name in ("rotation", "translation"):
                metrics[f"{metric_key_prefix}_{name}_median"] = round(together.median().item(), 4)
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in self.baselines().items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def baselines(self) -> dict[str, float]:
        """Figures of simpler methods, to read those of the model beside."""
        return {}


class GeometryTrainer(TeachingTrainer):
    """Trains `VGGTForGeometry` on scenes with cameras and depth."""

    def __init__(self, model, args, train_dataset, **kwargs):
        super().__init__(model, args, train_dataset, **kwargs)
        layers = args.correspondence_layers if args.correspondence_weight else ()
        self.attention_teacher = AttentionTeacher(model, layers) if layers else None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The sum of the losses of `geometry_losses`, and that of correspondences."""
        self.take_reports(inputs)
        batch = group_views(in_order(inputs), self.args.views_at(self.state.global_step))
        truth = self._truth(batch)
        num_views = batch["pixel_values"].shape[1]
        dense_views = torch.randperm(num_views)[: math.ceil(num_views * self.args.dense_share)].to(truth.depth.device)
        output = model(batch["pixel_values"], dense_views=dense_views)
        losses = geometry_losses(output, truth, dense_views)
        if self.attention_teacher is not None:
            patch_size = self.accelerator.unwrap_model(model).config.patch_size
            loss = self.attention_teacher.loss(find_correspondences(truth, patch_size))
            losses["correspondence"] = self.args.correspondence_weight * loss
        self.record_losses(losses)
        loss = sum(losses.values())
        return (loss, output) if return_outputs else loss

    def _truth(self, batch):
        return geometry_truth(batch["extrinsics"], batch["intrinsics"], batch["depth"], self.args.normalize_scenes)

    def measure(self, model, batch) -> Mapping[str, Tensor]:
        """Errors of each view of a batch."""
        truth = self._truth(batch)
        metrics = geometry_metrics(model(batch["pixel_values"]), truth)
        if self.attention_teacher is not None:
            self.attention_teacher.forget()
        return metrics

    def baselines(self) -> dict[str, float]:
        """The relative error of depth that is guessed from its place in the image, as the mean there."""
        half = self.accelerator.unwrap_model(self.model).config.patch_size // 2
        depths = [batch["depth"][..., half :: 2 * half, half :: 2 * half] for batch in self.held_out_batches()]
        depth = torch.cat([each.flatten(0, 1).flatten(1) for each in depths])
        known = depth > 0
        mean = (depth * known).sum(0) / known.sum(0).clamp(min=1)
        error = (mean - depth).abs() / depth.clamp(min=1e-3) * known
        return {"depth_abs_rel_of_mean": round((error.sum() / known.sum().clamp(min=1)).item(), 4)}


class CategoryTrainer(TeachingTrainer):
    """Trains a `PatchClassifier` on scenes with categories."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The sum of the losses of `category_losses`."""
        batch = self.take_reports(inputs)
        losses = category_losses(model, batch["pixel_values"].flatten(0, 1), batch["labels"].flatten(0, 1))
        losses["color"] = self.args.color_weight * losses["color"]
        self.record_losses(losses)
        return sum(losses.values())

    def measure(self, model, batch) -> Mapping[str, Tensor]:
        """Whether the category with the largest share of each patch is found: of all, and of those of objects."""
        images, labels = batch["pixel_values"].flatten(0, 1), batch["labels"].flatten(0, 1)
        return classification_metrics(model, images, labels)


def in_order(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the views of each scene back into the order of their frames; only tensors are kept."""
    order = torch.tensor(batch["frame_indices"]).argsort(dim=1, stable=True)
    rows = torch.arange(len(order))[:, None]
    return {name: value[rows, order] for name, value in batch.items() if torch.is_tensor(value)}


def group_views(batch: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Cut the views of each scene into groups of `size` neighbours, each a scene of its own; 0 keeps them whole."""
    num_views = batch["pixel_values"].shape[1]
    if size == 0 or size >= num_views:
        return dict(batch)
    kept = num_views // size * size
    return {name: value[:, :kept].unflatten(1, (-1, size)).flatten(0, 1) for name, value in batch.items()}


def classification_metrics(model, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Accuracies of a `PatchClassifier` on the most frequent category of each patch."""
    images = torch.nn.functional.interpolate(images, model.image_size, mode="bilinear", align_corners=False)
    labels = torch.nn.functional.interpolate(labels[:, None].float(), model.image_size, mode="nearest-exact")[:, 0]
    shares = category_shares(labels, model.grid_size, model.num_categories)
    largest, expected = shares.max(-1)
    correct = (model(images)[0].argmax(-1) == expected)[largest > 0]
    objects = (expected >= len(STRUCTURE))[largest > 0]
    return {"accuracy": correct, "accuracy_objects": correct[objects]}
