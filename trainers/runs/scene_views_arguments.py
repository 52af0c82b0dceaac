"""Training arguments of every trainer whose batches are views of scenes."""

from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from .scene_views_options import SceneViewsOptions


@dataclass
class SceneViewsArguments(SceneViewsOptions, TrainingArguments):
    """
    `transformers.TrainingArguments`, with `SceneViewsOptions` and their checks.
    """

    def __post_init__(self):
        super().__post_init__()
        self._check_batches()
        if self.n_gpu > 1:
            raise ValueError(
                f"One process cannot train on {self.n_gpu} GPUs: start one process for each with `accelerate launch "
                f"--config_file configuration/accelerate/ddp.yaml --num_processes {self.n_gpu} -m spa3r VERB ...`, or "
                "choose a single GPU with CUDA_VISIBLE_DEVICES."
            )

    def _check_batches(self):
        for name in ("per_device_train_batch_size", "dataloader_drop_last", "auto_find_batch_size"):
            if (value := getattr(self, name)) != self.__dataclass_fields__[name].default:
                raise ValueError(f"`{name}` has no effect here, got {value}: set `images_per_device` instead.")
        if not 2 <= self.min_views <= self.max_views:
            raise ValueError(
                "`min_views` must be at least 2 (one to encode, one to predict) and at most `max_views`, got "
                f"{self.min_views} and {self.max_views}."
            )
        if self.images_per_device < self.max_views:
            raise ValueError(
                f"`images_per_device` must hold a scene of `max_views`={self.max_views}, got {self.images_per_device}."
            )

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer pickles its arguments beside each checkpoint and publishes them with `push_to_hub`.
        return self.__dict__ | {"hub_token": None}
