"""Alignment of Spa3-VLM's adapter: transformers' Trainer with frozen encoders beside what it trains."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from ...data_scripts.scenes.sampling import ViewBatchSampler
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ...modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry
from ..runs.distributed import start_workers_from_clean_server
from ..runs.resume import MarkCompleteCheckpoints, StopOnNonFiniteLoss
from .arguments import AlignmentTrainingArguments
from .encoders import EncodedScenes, FrozenEncoders
from .evaluation import AlignmentReport, evaluate_alignment
from .kept import KeptEncodings, RepeatedPasses, collate_kept, read_encodings, write_encodings
from .probe import AdapterWithHead, point_errors, point_loss
from .views import AlignmentViews, collate_alignment

logger = logging.get_logger(__name__)

# Unreadable frames and scenes that the log names; all are counted.
MAX_NAMED = 20


class AlignmentTrainer(Trainer):
    """
    Trains the adapter of a Spa3-VLM, and a head to throw away, to find the points that image tokens show.

    Batches and frames depend on the seed and the step alone, so a run that was killed and resumed ends with the
    weights of an uninterrupted one. Checkpoints hold adapter and head alone.

    Args:
        vlm (`Spa3VLMForConditionalGeneration`): Its adapter is trained in place, in float32.
        args (`AlignmentTrainingArguments`): Settings.
        train_dataset (`AlignmentViews`): Scenes to train on.
        unit (`str`): Unit of the points, for the report.
        geometry (`VGGTForGeometry`, *optional*): Estimates the points, if the scenes have no depth.
        kept_folder (`Path`, *optional*): Where encodings are kept, if `args.distinct_passes` says so.
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
        **kwargs,
    ):
        self.vlm = vlm.requires_grad_(False)
        dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
        self.encoders = FrozenEncoders(vlm.model, geometry, dtype).to(args.device)
        self._saved_dtype = next(vlm.model.fusion.parameters()).dtype
        patches_per_token = vlm.config.vlm_config.vision_config.spatial_merge_size**2
        # In bfloat16 most updates would be rounded away.
        fusion = vlm.model.fusion.float().requires_grad_(True)
        model = AdapterWithHead(fusion, vlm.config.get_text_config().hidden_size, patches_per_token)
        collator = collate_alignment
        if args.distinct_passes:
            train_dataset, collator = KeptEncodings(train_dataset, kept_folder), collate_kept
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=collator, **kwargs)
        self.unit = unit
        self.batch_sampler = ViewBatchSampler(
            len(train_dataset.scenes),
            min_views=args.min_views,
            max_views=args.max_views,
            images_per_batch=args.images_per_device,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            batches_per_epoch_multiple=args.world_size * args.gradient_accumulation_steps,
        )
        if args.distinct_passes:
            self.batch_sampler = RepeatedPasses(self.batch_sampler, args.distinct_passes, self.batch_sampler.seed)
        self.replaced_frames, self.dropped_scenes = Counter(), Counter()
        self.report: AlignmentReport | None = None
        self._errors: list[torch.Tensor] = []
        self.add_callback(_FollowEpochs(self.batch_sampler, args.world_size * args.gradient_accumulation_steps))
        self.add_callback(MarkCompleteCheckpoints(self.accelerator))
        self.add_callback(StopOnNonFiniteLoss())

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """Autocast for the encoders, too; accelerate wraps the forward of the trained module alone."""
        return self.accelerator.autocast()

    def get_train_dataloader(self) -> DataLoader:
        """Batches in which all scenes have the same number of views, as the batch sampler plans."""
        workers = {}
        if self.args.dataloader_num_workers:
            start_workers_from_clean_server(self.args, __name__)
            workers = {
                "num_workers": self.args.dataloader_num_workers,
                "multiprocessing_context": self.args.dataloader_multiprocessing_context,
                "persistent_workers": True,
                "prefetch_factor": self.args.dataloader_prefetch_factor,
            }
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batch_sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            **workers,
        )
        return self.accelerator.prepare(loader)

    def _prepare_input(self, data):
        # The parent rounds all inputs to DeepSpeed's precision, points included.
        return send_to_device(data, self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the points; their mean error is also logged."""
        self.replaced_frames.update(inputs.get("replaced_frames", ()))
        self.dropped_scenes.update(inputs.get("dropped_scenes", ()))
        scenes = self.encode(inputs)
        predicted = model(scenes.image_tokens, scenes.latents)
        loss = point_loss(predicted, scenes.points)
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

    def train(self, *args, **kwargs):
        """Train, then log the frames and scenes that could not be read."""
        output = super().train(*args, **kwargs)
        for what, counts in (("frames", self.replaced_frames), ("scenes", self.dropped_scenes)):
            counts = sum(gather_object([counts]), Counter())
            if counts and self.is_world_process_zero():
                named = "\n  ".join(f"{name} ({count}x)" for name, count in counts.most_common(MAX_NAMED))
                logger.warning(f"{len(counts)} unusable {what} were replaced by others:\n  {named}")
        return output

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
        """The weights of the whole model; those of the adapter in the precision that they were loaded in."""
        prefix = "model.fusion."
        weights = self.vlm.state_dict().items()
        return {name: weight.to(self._saved_dtype) if name.startswith(prefix) else weight for name, weight in weights}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Write adapter and head, for a checkpoint; `save_aligned_model` writes the final model."""
        super().save_model(output_dir, _internal_call=True)


class _FollowEpochs(TrainerCallback):
    """Tell the batch sampler the epoch, because after a resume the Trainer only reaches its wrappers."""

    def __init__(self, batch_sampler: ViewBatchSampler, batches_per_step: int):
        self.batch_sampler = batch_sampler
        self.batches_per_step = batches_per_step

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.batch_sampler.set_epoch(state.global_step * self.batches_per_step // len(self.batch_sampler))
