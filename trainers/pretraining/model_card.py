"""The card of a pre-trained Spa3R: how to load it, whose weights are in it, what it saw, and how well it predicts."""

from collections import Counter

from huggingface_hub import ModelCard, ModelCardData

from ...configuration import Spa3RConfig
from ...modeling_spa3r.checkpoints.self_contained import origin, published
from .evaluation import PSFMReport
from .trainer import Spa3RTrainer

__all__ = ["pretraining_card"]

SOURCES = {
    "scannet": "ScanNet",
    "scannetpp": "ScanNet++",
    "rooms": "procedural rooms",
    "folders": "folders of images",
    "videos": "videos",
}


def pretraining_card(name: str, trainer: Spa3RTrainer) -> ModelCard:
    """Describe the model that a run of pre-training has made.

    Args:
        name (`str`): What the model is loaded by: a name on the Hub, or a folder.
        trainer (`Spa3RTrainer`): After training and, where scenes were held out, evaluation.
    """
    config = trainer.accelerator.unwrap_model(trainer.model).config
    parts = _frozen_parts(config)
    base_models = [weights[0] for weights in map(published, parts.values()) if weights]
    has_weights_of_others = any(parts.values()) or config.name_or_path
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["spa3r", "3d", "spatial-reasoning"],
        base_model=base_models or None,
        # Without weights of others it is for whoever trained the model to choose one.
        license="other" if has_weights_of_others else None,
        license_name="licenses-of-the-weights-inside" if has_weights_of_others else None,
    )
    sections = [
        f"# {name}\n\n[Spa3R](https://arxiv.org/abs/2602.21186), pre-trained by Predictive Spatial Field Modeling: "
        f"views of a place, without camera poses, become {config.num_latents} latents of size {config.hidden_size} "
        "that describe the whole scene.",
        _usage(name, config),
        "## Weights inside, and their licences\n\n" + _weights(config, parts),
        "## Training\n\n" + _training(trainer),
        "## Evaluation\n\n" + _evaluation(trainer.report),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _usage(name: str, config: Spa3RConfig) -> str:
    side = config.vggt_config.patch_size
    return f"""## Use

Needs the package `spa3r`.

```python
import torch
import spa3r  # registers the model
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}")
# One scene of four RGB views in [0, 1]; sides are multiples of {side}.
views = torch.rand(1, 4, 3, {3 * side}, {4 * side})
latents = model(views).latents  # (1, {config.num_latents}, {config.hidden_size})
```

`spa3r.Spa3RForPreTraining.from_pretrained("{name}")` has the decoder and the teachers besides."""


def _frozen_parts(config: Spa3RConfig) -> dict[str, str | None]:
    """Checkpoints that the frozen parts were loaded from."""
    teachers = {f"Teacher `{name}`": teacher["checkpoint"] for name, teacher in config.teachers.items()}
    return {"VGGT": config.vggt_checkpoint} | teachers


def _weights(config: Spa3RConfig, parts: dict[str, str | None]) -> str:
    start = config.name_or_path
    lines = []
    for part, checkpoint in parts.items():
        if checkpoint:
            where = origin(checkpoint)
        elif start:
            where = f"as it was in `{start}`, under the licence of that."
        else:
            where = "**untrained**: random weights, for demonstrations only."
        lines.append(f"- {part}, frozen: {where}")
    lines.append(f"- Encoder and decoder: trained {f'further, from `{start}`' if start else 'from scratch'}.")
    return "\n".join(lines)


def _training(trainer: Spa3RTrainer) -> str:
    args, views = trainer.args, trainer.train_dataset
    counts = Counter(views.scenes["source"])
    scenes = ", ".join(f"{count} of {SOURCES[source]}" for source, count in sorted(counts.items()))
    terms = "" if set(counts) == {"rooms"} else " The terms of use of the data apply."
    images = args.images_per_device * args.world_size * args.gradient_accumulation_steps
    return f"""- Scenes: {scenes}.{terms}
- {trainer.state.global_step} steps of at most {images} images; {args.min_views} to {args.max_views} views of a scene,
  {views.image_width} pixels wide; a share of {views.context_ratio:g} of them is encoded, the rest predicted.
- Cameras: {"those of the data" if views.cameras else "estimated by VGGT"}.
- Optimizer `{args.optim.value}`: learning rate {args.learning_rate:g} ({args.lr_scheduler_type.value}), weight decay
  {args.weight_decay:g}; seed {args.seed}."""


def _evaluation(report: PSFMReport | None) -> str:
    if report is None:
        return "Not evaluated: no scenes were held out of training."
    return f"On scenes of the same sources, held out of training.\n\n{report.to_table()}"
