"""Pre-training of Spa3R: transformers' Trainer with batches of scenes whose number of views varies."""

from collections import Counter
from pathlib import Path

import torch
from accelerate.utils import gather_object, send_to_device
from huggingface_hub import CommitInfo, upload_folder
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import logging

from ...configuration import Spa3RConfig
from ...data_scripts.scenes.sampling import ViewBatchSampler
from ...data_scripts.scenes.views import SceneViews, collate_views
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ..runs.distributed import start_workers_from_clean_server
from ..runs.publish import final_folder
from ..runs.resume import MarkCompleteCheckpoints, StopOnNonFiniteLoss, mark_complete
from .arguments import Spa3RTrainingArguments
from .evaluation import PSFMReport, evaluate_psfm

logger = logging.get_logger(__name__)

# What the collator reports besides the inputs of the model.
REPORTS = ("scene_id", "frame_indices", "replaced_frames", "dropped_scenes")

# Unreadable frames and scenes that the log names; all are counted.
MAX_NAMED = 20


class Spa3RTrainer(Trainer):
    """
    Trains `Spa3RForPreTraining` by PSFM.

    Batches, frames and partitions depend on the seed and the step alone, so a run that was killed and resumed ends
    with the weights of an uninterrupted one, with any number of workers. Checkpoints hold the trained weights and the
    names of the frozen teachers; teachers without a name are in the checkpoint. `save_model()` writes a self-contained
    model.

    Args:
        model (`Spa3RForPreTraining`): With its teachers loaded.
        args (`Spa3RTrainingArguments`): Settings.
        train_dataset (`SceneViews`): Scenes to train on.
        kwargs: As for `transformers.Trainer`.
    """

    def __init__(self, model: Spa3RForPreTraining, args: Spa3RTrainingArguments, train_dataset: SceneViews, **kwargs):
        model.freeze_teachers()
        self._frozen_names = _names_to_leave_out(model)
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=collate_views, **kwargs)
        # The Trainer sets this option of language models on every model.
        vars(model.config).pop("use_cache", None)
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
        self.add_callback(StopOnNonFiniteLoss())

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            # FSDP's own mixed precision rounds all inputs to bfloat16, cameras and depth included. Like under DDP,
            # weights stay in float32 and autocast applies.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()

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

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The sum of the model's losses; each is also logged under its own name."""
        self.replaced_frames.update(inputs.get("replaced_frames", ()))
        self.dropped_scenes.update(inputs.get("dropped_scenes", ()))
        outputs = model(**{name: value for name, value in inputs.items() if name not in REPORTS})
        for name, loss in outputs.losses.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0) + loss.detach()
        self._num_losses += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def train(self, *args, **kwargs):
        """Train, then log the frames and scenes that could not be read."""
        output = super().train(*args, **kwargs)
        for what, counts in (("frames", self.replaced_frames), ("scenes", self.dropped_scenes)):
            counts = sum(gather_object([counts]), Counter())
            if counts and self.is_world_process_zero():
                named = "\n  ".join(f"{name} ({count}x)" for name, count in counts.most_common(MAX_NAMED))
                logger.warning(f"{len(counts)} unusable {what} were replaced by others:\n  {named}")
        return output

    def evaluate(self, eval_dataset: SceneViews | None = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Evaluate on held-out scenes (see `evaluate_psfm`); every process computes the same report."""
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
            losses = zip(names, self.accelerator.reduce(means, reduction="mean").tolist(), strict=True)
            logs |= {f"loss_{name}": round(loss, 5) for name, loss in losses}
            self._loss_sums, self._num_losses = {}, 0
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Write the trained weights to a checkpoint, or all weights to the self-contained final model."""
        left_out = self._frozen_names if _internal_call else set()
        model = self.accelerator.unwrap_model(self.model)
        before = model._keys_to_ignore_on_save
        model.config.teachers_included, model._keys_to_ignore_on_save = not left_out, left_out
        try:
            # Otherwise the parent pushes the whole folder of the run; see `push_to_hub()`.
            super().save_model(output_dir, _internal_call=True)
        finally:
            model.config.teachers_included, model._keys_to_ignore_on_save = True, before
        if not _internal_call and self.args.should_save:
            # A pickle does not belong into a published model.
            (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _issue_warnings_after_load(self, load_result):
        # Frozen weights are left out of checkpoints on purpose.
        missing = [name for name in load_result.missing_keys if name not in self._frozen_names]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _push_from_checkpoint(self, checkpoint_folder: str):
        # To resume from the checkpoint, its mark must be on the Hub.
        mark_complete(checkpoint_folder, self.accelerator, self.state.global_step)
        super()._push_from_checkpoint(checkpoint_folder)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo | None:
        """Upload the final model of the run to the top of the repository.

        It replaces the trained weights that `hub_strategy` pushed during training. Logs and figures stay, and so does
        the folder `last-checkpoint` of `hub_strategy="checkpoint"`. Arguments and result are the parent's; `None` in
        all processes but the main one.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        return upload_folder(
            repo_id=self.hub_model_id,
            folder_path=final_folder(self.args),
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=not blocking,
            delete_patterns=["model*.safetensors*", TRAINING_ARGS_NAME],
        )


def teacher_checkpoints(config: Spa3RConfig) -> dict[str, str | None]:
    """The checkpoints of all teachers by their names, VGGT included; `None` for untrained ones."""
    teachers = {name: teacher["checkpoint"] for name, teacher in config.teachers.items()}
    return {"vggt": config.vggt_checkpoint} | teachers


def _names_to_leave_out(model: Spa3RForPreTraining) -> set[str]:
    """Frozen weights that the configuration says where to load from; checkpoints leave them out."""
    if model.config.name_or_path and None in teacher_checkpoints(model.config).values():
        return set()
    frozen = tuple(f"{name}." for name in model.frozen_modules())
    return {name for name in model.state_dict() if name.startswith(frozen)}


class _FollowEpochs(TrainerCallback):
    """Tell the batch sampler the epoch, because after a resume the Trainer only reaches its wrappers."""

    def __init__(self, batch_sampler: ViewBatchSampler, batches_per_step: int):
        self.batch_sampler = batch_sampler
        self.batches_per_step = batches_per_step

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.batch_sampler.set_epoch(state.global_step * self.batches_per_step // len(self.batch_sampler))
