"""Pre-training of Spa3R: transformers' Trainer fed with scenes of varying view counts."""

import multiprocessing
from collections import Counter
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from ..data_scripts.view_batches import SceneViews, ViewBatchSampler, collate_views
from ..modeling_spa3r.modeling_spa3r import Spa3RForPreTraining
from .checkpointing import MarkCompleteCheckpoints
from .psfm_evaluation import PSFMReport, evaluate_psfm

__all__ = ["Spa3RTrainer", "Spa3RTrainingArguments"]

logger = logging.get_logger(__name__)

# What the collator reports beside the tensors that the model takes.
REPORTS = ("scene_id", "frame_indices", "replaced_frames", "dropped_scenes")

# Unreadable frames and scenes are all counted; this many are named.
MAX_NAMED = 20


@dataclass
class Spa3RTrainingArguments(TrainingArguments):
    """
    `transformers.TrainingArguments` with the paper's settings as defaults, and what PSFM needs besides.

    Args:
        min_views, max_views (`int`, *optional*, defaults to 4 and 12):
            Views of a scene; their number is drawn for each batch.
        images_per_device (`int`, *optional*, defaults to 24):
            Images in a batch of one device: as many scenes as fit. Takes the place of `per_device_train_batch_size`.
        eval_views (`int`, *optional*, defaults to 8):
            Views of each held-out scene in evaluation.
    """

    min_views: int = field(default=4, metadata={"help": "Fewest views of a scene in a batch."})
    max_views: int = field(default=12, metadata={"help": "Most views of a scene in a batch."})
    images_per_device: int = field(
        default=24, metadata={"help": "Images in a batch of one device; replaces per_device_train_batch_size."}
    )
    eval_views: int = field(default=8, metadata={"help": "Views of each held-out scene in evaluation."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay, not on biases and norms."})
    max_steps: int = field(default=80_000, metadata={"help": "Optimizer steps."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    save_total_limit: int = field(default=3, metadata={"help": "Checkpoints kept; at least 2, so that one is whole."})
    ddp_find_unused_parameters: bool = field(default=False, metadata={"help": "Every trained parameter is used."})

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.min_views <= self.max_views:
            raise ValueError(
                "`min_views` must be at least 2 (one to encode, one to predict) and at most `max_views`, got "
                f"{self.min_views} and {self.max_views}."
            )
        if self.images_per_device < self.max_views:
            raise ValueError(
                f"`images_per_device` must hold a scene of `max_views`={self.max_views}, got {self.images_per_device}."
            )
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise ValueError(
                f"`save_total_limit` must be at least 2, got {self.save_total_limit}: with one, a run that is killed "
                "while it saves has nothing to resume from."
            )


class Spa3RTrainer(Trainer):
    """
    Trains `Spa3RForPreTraining` by PSFM.

    Batches, frames and partitions are functions of the seed and of the step alone, so a run that was killed and
    resumed ends with the weights of an uninterrupted one, whatever the number of workers. Checkpoints hold what trains
    and name the frozen teachers; the model written by `save_model()` is self-contained.

    Args:
        model (`Spa3RForPreTraining`): With its teachers loaded.
        args (`Spa3RTrainingArguments`): Settings.
        train_dataset (`SceneViews`): Scenes to train on.
        kwargs: As for `transformers.Trainer`.
    """

    def __init__(self, model: Spa3RForPreTraining, args: Spa3RTrainingArguments, train_dataset: SceneViews, **kwargs):
        model.freeze_teachers()
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=collate_views, **kwargs)
        self.batch_sampler = ViewBatchSampler(
            len(train_dataset.scenes),
            min_views=args.min_views,
            max_views=args.max_views,
            images_per_batch=args.images_per_device,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            batches_per_epoch_multiple=args.world_size * args.gradient_accumulation_steps,
        )
        self.replaced_frames, self.dropped_scenes = Counter(), Counter()
        self.report: PSFMReport | None = None
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._num_losses = 0
        self.add_callback(_FollowEpochs(self.batch_sampler, args.world_size * args.gradient_accumulation_steps))
        self.add_callback(MarkCompleteCheckpoints(self.accelerator))

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            # FSDP's own mixed precision rounds all inputs to bfloat16, cameras and depth among them. Weights stay in
            # float32 and autocast computes, as under DDP.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """Autocast for all that is computed; accelerate wraps only the forward, and not FSDP's."""
        return self.accelerator.autocast()

    def get_train_dataloader(self) -> DataLoader:
        """Batches of a common number of views; the plan is the batch sampler's."""
        workers = {}
        if self.args.dataloader_num_workers:
            # A process with threads (a progress bar, NCCL) can deadlock in a fork: workers come from a clean server,
            # once a run. The server imports what they need before it makes the first.
            multiprocessing.set_forkserver_preload([__name__])
            workers = {
                "num_workers": self.args.dataloader_num_workers,
                "multiprocessing_context": self.args.dataloader_multiprocessing_context or "forkserver",
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

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        # Images travel as bytes and become numbers on the device.
        return inputs | {"pixel_values": inputs["pixel_values"].float() / 255}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The sum of the model's losses; each is kept for the log under its own name."""
        self.replaced_frames.update(inputs.get("replaced_frames", ()))
        self.dropped_scenes.update(inputs.get("dropped_scenes", ()))
        outputs = model(**{name: value for name, value in inputs.items() if name not in REPORTS})
        for name, loss in outputs.losses.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0) + loss.detach()
        self._num_losses += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def train(self, *args, **kwargs):
        """Train, then name the frames and scenes that could not be read."""
        output = super().train(*args, **kwargs)
        for what, counts in (("frames", self.replaced_frames), ("scenes", self.dropped_scenes)):
            counts = sum(gather_object([counts]), Counter())
            if counts and self.is_world_process_zero():
                named = "\n  ".join(f"{name} ({count}x)" for name, count in counts.most_common(MAX_NAMED))
                logger.warning(f"{len(counts)} {what} could not be used and were replaced by others:\n  {named}")
        return output

    def evaluate(self, eval_dataset: SceneViews | None = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Report what was learnt on held-out scenes (see `evaluate_psfm`); every process computes the same."""
        eval_dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():
            self.report = evaluate_psfm(model, eval_dataset, num_views=self.args.eval_views)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.report.metrics().items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Add the mean of each named loss since the last log, over all processes."""
        if "loss" in logs and self._num_losses:
            names = sorted(self._loss_sums)
            means = torch.stack([self._loss_sums[name] for name in names]) / self._num_losses
            means = self.accelerator.reduce(means, reduction="mean").tolist()
            logs |= {f"loss_{name}": round(mean, 5) for name, mean in zip(names, means, strict=True)}
            self._loss_sums, self._num_losses = {}, 0
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Write the model: what trains for a checkpoint, everything for the final, self-contained model."""
        model = self.accelerator.unwrap_model(self.model)
        frozen = tuple(f"{name}." for name in model.frozen_modules())
        only_trained = {name for name in model.state_dict() if name.startswith(frozen)} if _internal_call else set()
        model._keys_to_ignore_on_save, model.config.teachers_included = only_trained, not _internal_call
        super().save_model(output_dir, _internal_call=_internal_call)
        model.config.teachers_included = True


class _FollowEpochs(TrainerCallback):
    """Tells the batch sampler the epoch, also after a resume, where the Trainer reaches only its wrappers."""

    def __init__(self, batch_sampler: ViewBatchSampler, batches_per_step: int):
        self.batch_sampler = batch_sampler
        self.batches_per_step = batches_per_step

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.batch_sampler.set_epoch(state.global_step * self.batches_per_step // len(self.batch_sampler))
