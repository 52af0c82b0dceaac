"""Pre-training of Spa3R: transformers' Trainer with batches of scenes whose number of views varies."""

from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import CommitInfo, upload_folder
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.trainer import TRAINING_ARGS_NAME

from ...configuration import Spa3RConfig
from ...data_scripts.rooms.labels import STRUCTURE
from ...data_scripts.scenes.views import SceneViews
from ...modeling_spa3r.compilation import compile_blocks
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ..runs.marks import mark_complete
from ..runs.publish import final_folder
from ..runs.scene_views_trainer import SceneViewsTrainer
from .arguments import Spa3RTrainingArguments
from .evaluation import PSFMReport, evaluate_psfm


class Spa3RTrainer(SceneViewsTrainer):
    """
    Trains `Spa3RForPreTraining` by PSFM.

    Checkpoints hold the trained weights and the names of the frozen teachers; teachers without a name are in the
    checkpoint. `save_model()` writes a self-contained model.

    Args:
        model (`Spa3RForPreTraining`): With its teachers loaded.
        args (`Spa3RTrainingArguments`): Settings.
        train_dataset (`SceneViews`): Scenes to train on.
        kwargs: As for `transformers.Trainer`.
    """

    def __init__(self, model: Spa3RForPreTraining, args: Spa3RTrainingArguments, train_dataset: SceneViews, **kwargs):
        model.freeze_teachers()
        self._frozen_names = _names_to_leave_out(model)
        if args.compile_blocks:
            compile_blocks(model)
        super().__init__(model, args, train_dataset, **kwargs)
        if args.bf16_teachers:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise ValueError(
                    "`bf16_teachers` is for one device or DDP, but the launch file asks for DeepSpeed or FSDP, which "
                    "hold all weights in types of their own: leave the option out."
                )
            model.cast_teachers(torch.bfloat16)
        self.report: PSFMReport | None = None

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            # FSDP's own mixed precision rounds all inputs to bfloat16, cameras and depth included. Like under DDP,
            # weights stay in float32 and autocast applies.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The sum of the model's losses; each is also logged under its own name."""
        inputs = self.take_reports(inputs)
        if (labels := inputs.pop("labels", None)) is not None:
            patch_size = self.accelerator.unwrap_model(model).config.vggt_config.patch_size
            inputs["patch_weights"] = object_weights(labels, self.args.object_weight, patch_size)
        outputs = model(**inputs)
        self.record_losses(outputs.losses)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Write the trained weights to a checkpoint, or all weights to the self-contained final model."""
        left_out = self._frozen_names if _internal_call else set()
        model = self.accelerator.unwrap_model(self.model)
        before = model._keys_to_ignore_on_save
        model.config.teachers_included, model._keys_to_ignore_on_save = not left_out, left_out
        try:
            if self.args.bf16_teachers:
                # A model has one dtype where it is loaded.
                model.cast_teachers(torch.float32)
            # Otherwise the parent pushes the whole folder of the run; see `push_to_hub()`.
            super().save_model(output_dir, _internal_call=True)
        finally:
            model.config.teachers_included, model._keys_to_ignore_on_save = True, before
            if self.args.bf16_teachers:
                model.cast_teachers(torch.bfloat16)
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


def object_weights(labels: Tensor, weight: float, patch_size: int) -> Tensor:
    """Weights of patches: 1 for walls, floors and ceilings, `weight` for objects, and between them by their share.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, num_views, height, width)`): Categories, see `LABELS`.
        weight (`float`): Of a patch that shows only objects.
        patch_size (`int`): In pixels.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_views, num_patches)`.
    """
    share = F.avg_pool2d((labels > len(STRUCTURE)).float().flatten(0, 1), patch_size)
    return (1 + (weight - 1) * share).flatten(1).unflatten(0, labels.shape[:2])


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
