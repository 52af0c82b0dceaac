"""Alignment of Spa3-VLM's adapter: transformers' Trainer with frozen encoders beside what it trains."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ...modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry
from ..runs.grounding import grounding_losses
from ..runs.initialization import initialize_for_scratch
from ..runs.optimizers import split_for_muon
from ..runs.points import point_errors, point_loss
from ..runs.scene_views_trainer import SceneViewsTrainer
from .arguments import AlignmentTrainingArguments
from .encoders import EncodedScenes, FrozenEncoders
from .evaluation import AlignmentReport, evaluate_alignment
from .grounding import GroundedAdapter, TextWriter
from .kept import KeptEncodings, RepeatedPasses, collate_kept, read_encodings, write_encodings
from .objects import add_absent, join_objects
from .probe import AdapterWithHead
from .views import AlignmentViews, collate_alignment

# Names in a text whose objects the scene does not have.
NUM_ABSENT = 4


class AlignmentTrainer(SceneViewsTrainer):
    """
    Trains the adapter of a Spa3-VLM, and a head to throw away, to find the points that image tokens show.

    The encoders stay beside the trained module, so checkpoints hold adapter and head alone; with a `writer` also the
    language model, which then learns where named objects are.

    Args:
        vlm (`Spa3VLMForConditionalGeneration`): Its adapter is trained in place, in float32.
        args (`AlignmentTrainingArguments`): Settings.
        train_dataset (`AlignmentViews`): Scenes to train on.
        unit (`str`): Unit of the points, for the report.
        geometry (`VGGTForGeometry`, *optional*): Estimates the points, if the scenes have no depth.
        kept_folder (`Path`, *optional*): Where encodings are kept, if `args.distinct_passes` says so.
        writer (`TextWriter`, *optional*): Writes the names of objects; needed with `args.grounding`.
        kwargs: As for `transformers.Trainer`.
    """

    def __init__(
        self,
        vlm: Spa3VLMForConditionalGeneration,
        args: AlignmentTrainingArguments,
        train_dataset: AlignmentViews,
        unit: str,
        geometry: VGGTForGeometry | None = None,
        kept_folder: Path | None = None,
        writer: TextWriter | None = None,
        **kwargs,
    ):
        self.vlm = vlm.requires_grad_(False)
        dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
        self.encoders = FrozenEncoders(vlm.model, geometry, dtype).to(args.device)
        self._saved_dtypes = {name: weight.dtype for name, weight in vlm.state_dict().items()}
        patches_per_token = vlm.config.vlm_config.vision_config.spatial_merge_size**2
        fusion = vlm.model.fusion
        if fusion is not None:
            fusion.float().requires_grad_(True)  # in bfloat16 most updates would be rounded away
            if args.from_scratch:
                initialize_for_scratch(fusion)
        self.writer = writer
        if writer is None:
            model = AdapterWithHead(fusion, vlm.config.get_text_config().hidden_size, patches_per_token)
        else:
            vlm.model.language_model.float().requires_grad_(True)
            model = GroundedAdapter(vlm.model, patches_per_token)
        collator = collate_alignment
        if args.distinct_passes:
            train_dataset, collator = KeptEncodings(train_dataset, kept_folder), collate_kept
        super().__init__(model, args, train_dataset, data_collator=collator, **kwargs)
        if args.distinct_passes:
            self.batch_sampler = RepeatedPasses(self.batch_sampler, args.distinct_passes, self.batch_sampler.seed)
        self.unit = unit
        self.report: AlignmentReport | None = None
        self._errors: list[torch.Tensor] = []

    def split_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The matrices of the adapter, which has no blocks, and of the language model's blocks, and all else."""
        adapter = self.model.fusion.parameters() if self.model.fusion is not None else ()
        matrices = [weight for weight in adapter if weight.ndim == 2] + split_for_muon(self.model)[0]
        chosen = set(map(id, matrices))
        return matrices, [weight for weight in self.model.parameters() if id(weight) not in chosen]

    def _prepare_inputs(self, inputs):
        # Without the parent's conversion of bytes: the model's image processor makes floats.
        return super(SceneViewsTrainer, self)._prepare_inputs(inputs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the points and, with a `writer`, of named objects; the mean error of points is also logged."""
        scenes = self.encode(self.take_reports(inputs))
        if self.writer is None:
            predicted = model(scenes.image_tokens, scenes.latents)
            loss = point_loss(predicted, scenes.points)
        else:
            objects = [add_absent(each, NUM_ABSENT) for each in scenes.objects]
            text = self.writer(scenes.grids, [each.names for each in objects]).to(self.args.device)
            predicted, found = model(scenes.image_tokens, scenes.latents, text)
            losses = {"point": point_loss(predicted, scenes.points)}
            truth = join_objects(objects, self.args.device)
            losses |= grounding_losses(found, truth.places, truth.first_views)
            self.record_losses(losses)
            loss = sum(losses.values())
        self._errors.append(point_errors(predicted.detach(), scenes.points).nanmean())
        return (loss, predicted) if return_outputs else loss

    def encode(self, inputs: dict[str, Any]) -> EncodedScenes:
        """The encodings of a batch: those that were kept, or new ones, which are kept if the batch names a file."""
        if "image_tokens" in inputs:
            return read_encodings(inputs)
        scenes = self.encoders(inputs)
        if "file" in inputs:
            write_encodings(inputs["file"], scenes)
        return scenes

    def evaluate(self, eval_dataset: AlignmentViews | None = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Evaluate on held-out scenes (see `evaluate_alignment`); every process computes the same report."""
        args = self.args
        with self.compute_loss_context_manager():
            self.report = evaluate_alignment(
                self.accelerator.unwrap_model(self.model),
                self.encoders,
                eval_dataset if eval_dataset is not None else self.eval_dataset,
                args.eval_views,
                args.images_per_device,
                self.unit,
                self.writer,
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.report.metrics().items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Add the mean error of points since the last log, over all processes."""
        if "loss" in logs and self._errors:
            error = self.accelerator.reduce(torch.stack(self._errors).nanmean(), reduction="mean").item()
            logs |= {"point_error": round(error, 5)}
            self._errors = []
        super().log(logs, start_time)

    def weights_of_vlm(self) -> dict[str, torch.Tensor]:
        """The weights of the whole model, in the precision that they were loaded in."""
        return {name: weight.to(self._saved_dtypes[name]) for name, weight in self.vlm.state_dict().items()}

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """The parts of the model that this run changes, as cards name them."""
        parts = () if self.model.fusion is None else ("fusion",)
        return parts if self.writer is None else ("vlm", *parts)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Write adapter and head, for a checkpoint; `save_aligned_model` writes the final model."""
        super().save_model(output_dir, _internal_call=True)
