"""What trainers over views of scenes share: the batches, the named losses, and the count of unusable frames."""

from collections import Counter
from collections.abc import Mapping

import torch
from accelerate.utils import gather_object, send_to_device
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.utils import logging

from ...data_scripts.scenes.sampling import ViewBatchSampler
from ...data_scripts.scenes.views import SceneViews, collate_views, warn_of_short_scenes
from .distributed import start_workers_from_clean_server
from .optimizers import MuonWithAdamW, split_for_muon
from .resume import MarkCompleteCheckpoints, StopOnNonFiniteLoss

logger = logging.get_logger(__name__)

# What the collator reports besides the inputs of the model.
REPORTS = ("scene_id", "frame_indices", "replaced_frames", "dropped_scenes")

# Unreadable frames and scenes that the log names; all are counted.
MAX_NAMED = 20


class SceneViewsTrainer(Trainer):
    """
    A Trainer whose batches are views of scenes.

    Batches, frames and partitions depend on the seed and the step alone, so a run that was killed and resumed ends
    with the weights of an uninterrupted one, with any number of workers.

    Args:
        model (`nn.Module`): The model to train.
        args (`SceneViewsArguments`): Settings.
        train_dataset (`SceneViews`): Scenes to train on.
        kwargs: As for `transformers.Trainer`; batches are those of `collate_views` unless they say otherwise.
    """

    def __init__(self, model: nn.Module, args, train_dataset: SceneViews, **kwargs):
        kwargs = {"data_collator": collate_views} | kwargs
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        if isinstance(model, PreTrainedModel):
            # The Trainer sets this option of language models on every model.
            vars(model.config).pop("use_cache", None)
        if args.process_index == 0:
            warn_of_short_scenes(train_dataset.scenes, args.max_views)
        self.batch_sampler = ViewBatchSampler(
            len(train_dataset.scenes),
            min_views=args.min_views,
            max_views=args.max_views,
            images_per_batch=args.images_per_device,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            batches_per_epoch_multiple=args.world_size * args.gradient_accumulation_steps,
        )
        self.replaced_frames, self.dropped_scenes = Counter(), Counter()
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._num_losses = 0
        self.add_callback(_FollowEpochs(self.batch_sampler, args.world_size * args.gradient_accumulation_steps))
        self.add_callback(MarkCompleteCheckpoints(self.accelerator))
        self.add_callback(StopOnNonFiniteLoss())

    def create_optimizer(self, model=None):
        """Muon and AdamW for small models that are trained from nothing; else the Trainer's own."""
        if self.optimizer is None and self.args.from_scratch:
            matrices, others = self.split_parameters()
            args = self.args
            self.optimizer = MuonWithAdamW(
                matrices, others, args.learning_rate, args.muon_learning_rate, args.weight_decay
            )
        return super().create_optimizer() if model is None else super().create_optimizer(model)

    def split_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters that Muon trains, and those that AdamW trains."""
        return split_for_muon(self.model)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """Autocast for the whole computation; accelerate wraps the forward alone, and not FSDP's."""
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
        # The parent rounds all inputs to DeepSpeed's precision, cameras and depth included.
        return send_to_device(data, self.args.device)

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        # Images are copied as bytes and converted on the device.
        return inputs | {"pixel_values": inputs["pixel_values"].float() / 255}

    def take_reports(self, inputs: Mapping) -> dict:
        """Count the unusable frames and scenes of a batch, and return its other entries."""
        self.replaced_frames.update(inputs.get("replaced_frames", ()))
        self.dropped_scenes.update(inputs.get("dropped_scenes", ()))
        return {name: value for name, value in inputs.items() if name not in REPORTS}

    def record_losses(self, losses: Mapping[str, torch.Tensor]):
        """Add the named losses of a batch to the means that the next log shows."""
        for name, loss in losses.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0) + loss.detach()
        self._num_losses += 1

    def train(self, *args, **kwargs):
        """Train, then log the frames and scenes that could not be read."""
        output = super().train(*args, **kwargs)
        for what, counts in (("frames", self.replaced_frames), ("scenes", self.dropped_scenes)):
            counts = sum(gather_object([counts]), Counter())
            if counts and self.is_world_process_zero():
                named = "\n  ".join(f"{name} ({count}x)" for name, count in counts.most_common(MAX_NAMED))
                logger.warning(f"{len(counts)} unusable {what} were replaced by others:\n  {named}")
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Add the mean of each named loss since the last log, over all processes."""
        if "loss" in logs and self._num_losses:
            names = sorted(self._loss_sums)
            means = torch.stack([self._loss_sums[name] for name in names]) / self._num_losses
            losses = zip(names, self.accelerator.reduce(means, reduction="mean").tolist(), strict=True)
            logs |= {f"loss_{name}": round(loss, 5) for name, loss in losses}
            self._loss_sums, self._num_losses = {}, 0
        super().log(logs, start_time)


class _FollowEpochs(TrainerCallback):
    """Tell the batch sampler the epoch, because after a resume the Trainer only reaches its wrappers."""

    def __init__(self, batch_sampler: ViewBatchSampler, batches_per_step: int):
        self.batch_sampler = batch_sampler
        self.batches_per_step = batches_per_step

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.batch_sampler.set_epoch(state.global_step * self.batches_per_step // len(self.batch_sampler))
