"""The facts of a pre-training run for the model card of its Spa3R."""

from collections import Counter
from typing import Any

from ...modeling_spa3r.checkpoints.cards import spa3r_card
from .trainer import Spa3RTrainer

SOURCES = {
    "scannet": "ScanNet",
    "scannetpp": "ScanNet++",
    "rooms": "procedural rooms",
    "folders": "folders of images",
    "videos": "videos",
}


def pretraining_card(name: str, trainer: Spa3RTrainer) -> dict[str, Any]:
    """Collect the facts for the card of the model that a run has made; see `write_card`.

    Args:
        name (`str`): Name that the model is loaded by: on the Hub, or of a folder.
        trainer (`Spa3RTrainer`): After training and, where scenes were held out, evaluation.
    """
    args, views = trainer.args, trainer.train_dataset
    counts = Counter(views.scenes["source"])
    training = {
        "scenes": {SOURCES[source]: count for source, count in sorted(counts.items())},
        "steps": trainer.state.global_step,
        "images_per_step": args.images_per_device * args.world_size * args.gradient_accumulation_steps,
        "min_views": args.min_views,
        "max_views": args.max_views,
        "image_width": views.image_width,
        "context_ratio": views.context_ratio,
        "given_cameras": views.cameras,
        "optimizer": args.optim.value,
        "learning_rate": args.learning_rate,
        "schedule": args.lr_scheduler_type.value,
        "weight_decay": args.weight_decay,
        "seed": args.seed,
    }
    config = trainer.accelerator.unwrap_model(trainer.model).config
    return spa3r_card(name, config, training, trainer.report and trainer.report.to_table())
