"""Options of every trainer whose batches are views of scenes; the help needs no more than these."""

from argparse import SUPPRESS
from dataclasses import dataclass, field


@dataclass
class SceneViewsOptions:
    """
    The sizes of batches of views, and defaults other than the library's.

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
