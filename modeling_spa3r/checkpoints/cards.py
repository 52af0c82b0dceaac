"""Model cards: whose weights a checkpoint holds, what they were trained on, how to use it, and how well it does.

A card is a dict of facts, stored as `card.json` beside the weights. A template in the folder `cards` renders it to the
`README.md` that the Hub shows.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...configuration.configuration_spa3r import Spa3RConfig
from ...data_scripts.common.files import write_json, write_text
from ..library import cached_file

__all__ = [
    "CARD",
    "PUBLISHED",
    "Score",
    "parts_of",
    "render_card",
    "spa3_vlm_card",
    "spa3r_card",
    "tuned_card",
    "write_card",
]

logger = logging.getLogger(__name__)

CARD = "card.json"
TEMPLATES = Path(__file__).parent / "cards"
METADATA = {
    "spa3_vlm": {"pipeline_tag": "image-text-to-text", "tags": ["spa3-vlm", "3d", "spatial-reasoning"]},
    "spa3r": {"pipeline_tag": "image-feature-extraction", "tags": ["spa3r", "3d", "spatial-reasoning"]},
}
PARTS = ("vlm", "vggt", "spatial_encoder", "fusion")

CC_BY_NC = "[CC BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/), which rules out commercial use"
QWEN_RESEARCH = (
    "the [Qwen Research License](https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE), which rules "
    "out commercial use"
)
APACHE = "[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0)"
DINOV3_LICENSE = "the [DINOv3 License](https://ai.meta.com/resources/models-and-libraries/dinov3-license/)"
STATED_THERE = "the licence stated there"
DINOV3 = "facebook/dinov3-vitl16-pretrain-lvd1689m"
# Last part of a checkpoint's name, in lower case -> repository on the Hub of its weights, and their licence.
PUBLISHED = {
    "vggt-1b": ("facebook/VGGT-1B", CC_BY_NC),
    "vggt-1b-commercial": ("facebook/VGGT-1B-Commercial", STATED_THERE),
    "dinov3-vitl16": (DINOV3, DINOV3_LICENSE),
    "dinov3-vitl16-pretrain-lvd1689m": (DINOV3, DINOV3_LICENSE),
    "clip-vit-large-patch14": ("openai/clip-vit-large-patch14", STATED_THERE),
    "siglip-large-patch16-256": ("google/siglip-large-patch16-256", STATED_THERE),
    "qwen2.5-vl-3b-instruct": ("Qwen/Qwen2.5-VL-3B-Instruct", QWEN_RESEARCH),
    "qwen2.5-vl-7b-instruct": ("Qwen/Qwen2.5-VL-7B-Instruct", APACHE),
    "qwen3-vl-2b-instruct": ("Qwen/Qwen3-VL-2B-Instruct", APACHE),
    "qwen3-vl-4b-instruct": ("Qwen/Qwen3-VL-4B-Instruct", APACHE),
    "qwen3-vl-8b-instruct": ("Qwen/Qwen3-VL-8B-Instruct", APACHE),
}


@dataclass
class Score:
    """A measurement: which benchmark, by which protocol, and the number as printed, such as `"58.6 %"`."""

    benchmark: str
    protocol: str
    score: str


def parts_of(config: Spa3VLMConfig) -> list[str]:
    """List the parts of a Spa3-VLM that have weights: some of `vlm`, `vggt`, `spatial_encoder` and `fusion`."""
    if config.fusion == "none":
        return ["vlm"]
    return [part for part in PARTS if part != "spatial_encoder" or config.spatial_representation == "spa3r"]


def spa3_vlm_card(
    name: str,
    config: Spa3VLMConfig,
    origins: Mapping[str, str | None],
    trained: Iterable[str] = (),
    training_data: Iterable[str] = (),
    scores: Iterable[Score] = (),
) -> dict[str, Any]:
    """Collect the facts for the card of a Spa3-VLM.

    Args:
        name (`str`): Name that the model is loaded by: on the Hub, or of a folder.
        config (`Spa3VLMConfig`): Configuration of the model.
        origins (`dict[str, str | None]`):
            Checkpoint that the weights of each part (see `parts_of`) come from; `None` for random weights. The card
            gives the licences of those in `PUBLISHED`.
        trained (`list[str]`, *optional*): Parts that were trained since.
        training_data (`list[str]`, *optional*): Lines of Markdown on the instruction tuning; empty if there was none.
        scores (`list[Score]`, *optional*): Measurements of the model.

    Raises:
        ValueError: If `origins` does not name exactly the model's parts, or `trained` names others.
    """
    parts = parts_of(config)
    if sorted(origins) != sorted(parts):
        raise ValueError(
            f"`origins` must say where the weights of {parts} come from, got {sorted(origins)}; use `None` for random "
            "weights."
        )
    if unknown := sorted(set(trained) - set(parts)):
        raise ValueError(f"`trained` names {unknown}, but the parts of this model are {parts}.")
    return {
        "template": "spa3_vlm",
        "name": name,
        "vlm_type": config.vlm_config.model_type,
        "fusion": config.fusion,
        "spatial_representation": config.spatial_representation,
        "num_latents": config.spatial_config.num_latents,
        "latent_size": config.spatial_config.hidden_size,
        "origins": dict(origins),
        "trained": list(trained),
        "training_data": list(training_data),
        "scores": [asdict(score) for score in scores],
    }


def tuned_card(
    name: str,
    config: Spa3VLMConfig,
    training_data: Sequence[str],
    scores: Iterable[Score] = (),
    trained: Sequence[str] = ("vlm", "fusion"),
) -> dict[str, Any]:
    """Extend the card of the checkpoint that `config` was loaded from by a training.

    Where that checkpoint has no `card.json`, it is itself the origin of all weights.

    Args:
        name (`str`): Name that the tuned model is loaded by.
        config (`Spa3VLMConfig`): Its configuration; `name_or_path` is the checkpoint that tuning started from.
        training_data (`list[str]`): As for `spa3_vlm_card`; follows that of the earlier checkpoint.
        scores (`list[Score]`, *optional*): As for `spa3_vlm_card`; replaces those of the earlier checkpoint.
        trained (`list[str]`, *optional*): Parts that the training changed, by default those of instruction tuning.
    """
    start, parts = config.name_or_path or None, parts_of(config)
    earlier = _read_card(start) if start else {}
    origins = {part: earlier.get("origins", {}).get(part, start) for part in parts}
    trained = [part for part in parts if part in (*trained, *earlier.get("trained", ()))]
    data = [*earlier.get("training_data", ()), *training_data]
    return spa3_vlm_card(name, config, origins, trained, data, scores) | {"tuned_from": start}


def spa3r_card(name: str, config: Spa3RConfig, training: dict[str, Any], evaluation: str | None) -> dict[str, Any]:
    """Collect the facts for the card of a pre-trained Spa3R.

    Args:
        name (`str`): Name that the model is loaded by: on the Hub, or of a folder.
        config (`Spa3RConfig`): Configuration of the model; `name_or_path` is the checkpoint that it started from.
        training (`dict`): Settings of the training, as the template `spa3r.md` names them.
        evaluation (`str`, *optional*): Markdown table of the held-out evaluation, if there was one.
    """
    teachers = {name: teacher["checkpoint"] for name, teacher in config.teachers.items()}
    return {
        "template": "spa3r",
        "name": name,
        "num_latents": config.num_latents,
        "latent_size": config.hidden_size,
        "origins": {"vggt": config.vggt_checkpoint} | teachers,
        "started_from": config.name_or_path or None,
        "training": training,
        "evaluation": evaluation,
    }


def render_card(card: Mapping[str, Any]) -> ModelCard:
    """Render the facts of a card by its template."""
    checkpoints = [*card["origins"].values(), card.get("started_from")]
    base_models = dict.fromkeys(weights[0] for weights in map(published, checkpoints) if weights)
    data = ModelCardData(
        library_name="transformers",
        **METADATA[card["template"]],
        base_model=list(base_models) or None,
        # Weights trained from scratch get no licence here: whoever trained them chooses one.
        license="other" if any(checkpoints) else card.get("license"),
        license_name="licenses-of-the-weights-inside" if any(checkpoints) else None,
    )
    return ModelCard.from_template(data, str(TEMPLATES / f"{card['template']}.md"), published=published, **card)


def write_card(folder: str | os.PathLike, card: Mapping[str, Any]):
    """Write `card.json` and the `README.md` rendered from it to a folder."""
    write_json(Path(folder) / CARD, card, sort_keys=False)
    write_text(Path(folder) / "README.md", f"{render_card(card)}\n")


def published(checkpoint: str | None) -> tuple[str, str] | None:
    """Find the repository and the licence of published weights by the name of a checkpoint; see `PUBLISHED`."""
    return PUBLISHED.get(Path(checkpoint or "").name.lower())


def _read_card(checkpoint: str) -> dict[str, Any]:
    """Read the card of a Spa3-VLM from a folder or the Hub; empty where there is none."""
    try:
        return json.loads(Path(cached_file(checkpoint, CARD)).read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        # The weights are trained by now: never lose them over a damaged card.
        logger.warning(
            "The `%s` of `%s` is not JSON (%s): the new card names no earlier origins.", CARD, checkpoint, error
        )
        return {}
