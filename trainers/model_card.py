"""The card of a pre-trained Spa3R: how to load it, whose weights are in it, what it saw, and how well it predicts."""

from collections import Counter
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..configuration import Spa3RConfig
from .psfm_evaluation import PSFMReport
from .psfm_trainer import Spa3RTrainer

__all__ = ["pretraining_card"]

SOURCES = {
    "scannet": "ScanNet",
    "scannetpp": "ScanNet++",
    "rooms": "procedural rooms",
    "folders": "folders of images",
    "videos": "videos",
}
CC_BY_NC = "[CC BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/), which rules out commercial use"
DINOV3_LICENSE = "the [DINOv3 License](https://ai.meta.com/resources/models-and-libraries/dinov3-license/)"
DINOV3 = "facebook/dinov3-vitl16-pretrain-lvd1689m"
# By the last part of a checkpoint's name, in lower case: where its weights come from, and under which licence.
PUBLISHED = {
    "vggt-1b": ("facebook/VGGT-1B", CC_BY_NC),
    "dinov3-vitl16": (DINOV3, DINOV3_LICENSE),
    "dinov3-vitl16-pretrain-lvd1689m": (DINOV3, DINOV3_LICENSE),
    "clip-vit-large-patch14": ("openai/clip-vit-large-patch14", "the licence stated there"),
    "siglip-large-patch16-256": ("google/siglip-large-patch16-256", "the licence stated there"),
}


def pretraining_card(name: str, trainer: Spa3RTrainer) -> ModelCard:
    """Describe the model that a run of pre-training has made.

    Args:
        name (`str`): What the model is loaded by: a name on the Hub, or a folder.
        trainer (`Spa3RTrainer`): After training and, where scenes were held out, evaluation.
    """
    config = trainer.accelerator.unwrap_model(trainer.model).config
    parts = _frozen_parts(config)
    base_models = [PUBLISHED[key][0] for key in map(_published, parts.values()) if key]
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
import spa3r.modeling_spa3r  # registers the model
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}")
# One scene of four RGB views in [0, 1]; sides are multiples of {side}.
views = torch.rand(1, 4, 3, {3 * side}, {4 * side})
latents = model(views).latents  # (1, {config.num_latents}, {config.hidden_size})
```

`spa3r.modeling_spa3r.Spa3RForPreTraining.from_pretrained("{name}")` has the decoder and the teachers besides."""


def _frozen_parts(config: Spa3RConfig) -> dict[str, str | None]:
    """Checkpoints that the frozen parts were loaded from."""
    teachers = {f"Teacher `{name}`": teacher["checkpoint"] for name, teacher in config.teachers.items()}
    return {"VGGT": config.vggt_checkpoint} | teachers


def _published(checkpoint: str | None) -> str | None:
    """Key of `PUBLISHED` of a checkpoint that is known by its name."""
    key = Path(checkpoint or "").name.lower()
    return key if key in PUBLISHED else None


def _weights(config: Spa3RConfig, parts: dict[str, str | None]) -> str:
    start = config.name_or_path
    lines = []
    for part, checkpoint in parts.items():
        if key := _published(checkpoint):
            name, licence = PUBLISHED[key]
            origin = f"from [{name}](https://huggingface.co/{name}), under {licence}."
        elif checkpoint:
            origin = f"from `{checkpoint}`, under the licence of that."
        elif start:
            origin = f"as it was in `{start}`, under the licence of that."
        else:
            origin = "**untrained**: random weights, for demonstrations only."
        lines.append(f"- {part}, frozen: {origin}")
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
