"""Training arguments of every trainer whose batches are views of scenes."""

from argparse import SUPPRESS
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


@dataclass
class SceneViewsArguments(TrainingArguments):
    """
    `transformers.TrainingArguments`, and the sizes of batches of views.

    Args:
        min_views, max_views (`int`, *optional*, defaults to 4 and 12):
            Views of a scene; their number is drawn for each batch.
        images_per_device (`int`, *optional*, defaults to 24):
            Images in a batch of one device, which holds as many scenes as fit. Replaces
            `per_device_train_batch_size`.
        from_scratch (`bool`, *optional*, defaults to `False`):
            Draw initial weights for training a small model from nothing (see `initialize_for_scratch`), and train the
            matrices of its blocks by Muon.
        muon_learning_rate (`float`, *optional*, defaults to 0.02):
            Peak learning rate of Muon.
    """

    min_views: int = field(default=4, metadata={"help": "fewest views of a scene in a batch"})
    max_views: int = field(default=12, metadata={"help": "most views of a scene in a batch"})
    images_per_device: int = field(default=24, metadata={"help": "images in a batch of one device"})
    from_scratch: bool = field(default=False, metadata={"help": "initial weights and Muon for small models"})
    muon_learning_rate: float = field(default=0.02, metadata={"help": SUPPRESS})
    save_total_limit: int = field(default=3, metadata={"help": "checkpoints to keep, at least 2"})
    ddp_find_unused_parameters: bool = field(default=False, metadata={"help": SUPPRESS})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": SUPPRESS})

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
