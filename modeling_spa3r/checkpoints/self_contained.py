"""Spa3-VLM on the Hub: checkpoints that carry their code, and what their cards say.

A self-contained checkpoint holds, flat beside the weights, the source files that it needs. With
`trust_remote_code=True` it loads wherever torch, transformers and pillow are installed; where this package is, its own
classes are used.
"""

import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...data_scripts.common.files import new_folder, write_json, write_text
from ..spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration, Spa3VLMModel
from ..spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor

__all__ = [
    "PUBLISHED",
    "Score",
    "add_code",
    "origin",
    "published",
    "push_self_contained",
    "save_self_contained",
    "spa3_vlm_card",
]

MODEL_CLASSES = {
    "AutoConfig": Spa3VLMConfig,
    "AutoModel": Spa3VLMModel,
    "AutoModelForImageTextToText": Spa3VLMForConditionalGeneration,
}
PROCESSOR_CLASSES = {"AutoProcessor": Spa3VLMProcessor}
IMAGE_PROCESSOR_CLASSES = {"AutoImageProcessor": Spa3VLMImageProcessor}
ALL_CLASSES = MODEL_CLASSES | PROCESSOR_CLASSES | IMAGE_PROCESSOR_CLASSES
# The house's two forms of an import of its own: `from .module import name`, `from ..package.module import name`.
OWN_IMPORT = re.compile(r"^from (\.+)([\w.]+) import", flags=re.MULTILINE)

CC_BY_NC = "[CC BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/), which rules out commercial use"
QWEN_RESEARCH = (
    "the [Qwen Research License](https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE), which rules "
    "out commercial use"
)
APACHE = "[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0)"
DINOV3_LICENSE = "the [DINOv3 License](https://ai.meta.com/resources/models-and-libraries/dinov3-license/)"
STATED_THERE = "the licence stated there"
DINOV3 = "facebook/dinov3-vitl16-pretrain-lvd1689m"
# By the last part of a checkpoint's name, in lower case: where its weights come from, and under which licence.
PUBLISHED = {
    "vggt-1b": ("facebook/VGGT-1B", CC_BY_NC),
    "vggt-1b-commercial": ("facebook/VGGT-1B-Commercial", STATED_THERE),
    "dinov3-vitl16": (DINOV3, DINOV3_LICENSE),
    "dinov3-vitl16-pretrain-lvd1689m": (DINOV3, DINOV3_LICENSE),
    "clip-vit-large-patch14": ("openai/clip-vit-large-patch14", STATED_THERE),
    "siglip-large-patch16-256": ("google/siglip-large-patch16-256", STATED_THERE),
    "qwen2.5-vl-3b-instruct": ("Qwen/Qwen2.5-VL-3B-Instruct", QWEN_RESEARCH),
    "qwen2.5-vl-7b-instruct": ("Qwen/Qwen2.5-VL-7B-Instruct", APACHE),
}


def published(checkpoint: str | None) -> tuple[str, str] | None:
    """Name on the Hub and licence of the weights in a checkpoint, where its own name tells: see `PUBLISHED`."""
    return PUBLISHED.get(Path(checkpoint or "").name.lower())


def origin(checkpoint: str) -> str:
    """Where weights come from and under which licence, as the rest of a sentence."""
    if known := published(checkpoint):
        name, licence = known
        return f"from [{name}](https://huggingface.co/{name}), under {licence}."
    return f"from `{checkpoint}`, under the licence of that."


# Checkpoints that carry their code.


def add_code(folder: str | os.PathLike):
    """Put the source files that a saved Spa3-VLM needs beside it, and name its classes in its configurations.

    Args:
        folder (`str` or `os.PathLike`): What `save_pretrained` of the model, of the processor or of both has written.

    Raises:
        ValueError: If it holds neither.
    """
    folder = Path(folder)
    files = {name: _read_json(folder / name) for name in ("config.json", "processor_config.json")}
    config, processor = files.values()
    model_type = config.get("model_type")
    if config and model_type != Spa3VLMConfig.model_type:
        raise ValueError(
            f"`{folder}` holds a `{model_type}` model; only one of type `{Spa3VLMConfig.model_type}` can carry its "
            "code."
        )
    if not config and not processor:
        raise ValueError(
            f"`{folder}` holds neither a `config.json` nor a `processor_config.json`; save the model or the processor "
            "there first."
        )
    for name, source in _flat_sources().items():
        write_text(folder / name, source)
    if config:
        _name_classes(config, MODEL_CLASSES)
    if processor:
        _name_classes(processor, PROCESSOR_CLASSES)
        _name_classes(processor["image_processor"], IMAGE_PROCESSOR_CLASSES)
    for name, content in files.items():
        if content:
            write_json(folder / name, content)


def _flat_sources() -> dict[str, str]:
    """Content by name of the files that define the classes and of all that these import, for one folder."""
    waiting = [Path(inspect.getfile(cls)) for cls in ALL_CLASSES.values()]
    head = f"# From the package spa3r {version('spa3r')}, Apache License 2.0.\n"
    sources = {}
    while waiting:
        file = waiting.pop()
        if file.name not in sources:
            source = file.read_text(encoding="utf-8")
            sources[file.name] = head + OWN_IMPORT.sub(lambda own: f"from .{own[2].split('.')[-1]} import", source)
            waiting += [
                file.parents[len(dots) - 1].joinpath(*module.split(".")).with_suffix(".py")
                for dots, module in OWN_IMPORT.findall(source)
            ]
    return sources


def _module(cls: type) -> str:
    return cls.__module__.split(".")[-1]


def _name_classes(settings: dict, classes: Mapping[str, type]):
    names = {auto: f"{_module(cls)}.{cls.__name__}" for auto, cls in classes.items()}
    settings["auto_map"] = settings.get("auto_map", {}) | names


def _read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def save_self_contained(
    model: Spa3VLMForConditionalGeneration,
    processor: Spa3VLMProcessor | None,
    folder: str | os.PathLike,
    card: ModelCard,
):
    """Save a model, its processor, its code and its card; the folder is there complete or not at all.

    Args:
        model (`Spa3VLMForConditionalGeneration`): The model.
        processor (`Spa3VLMProcessor`, *optional*): Its processor, where there is one.
        folder (`str` or `os.PathLike`): New or empty.
        card (`ModelCard`): Such as `spa3_vlm_card` makes.

    Raises:
        FileExistsError: If the folder holds something already.
    """
    with new_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        if processor is not None:
            processor.save_pretrained(unfinished)
        add_code(unfinished)
        card.save(unfinished / "README.md")


def push_self_contained(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload Spa3-VLM",
) -> CommitInfo:
    """Upload what `save_self_contained` has written, in one commit.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint.
        repo_id (`str`): Such as `"you/spa3-vlm-4b"`; made if there is none. Weights that it holds are replaced.
        private (`bool`, *optional*): Of a new repository; by default as its owner has set.
        token (`str`, *optional*): By default the one that the Hub's client finds.
        commit_message (`str`, *optional*): Title of the commit.

    Raises:
        ValueError: If the checkpoint lacks its model, processor, code or card.
    """
    folder = Path(folder)
    modules = {f"{_module(cls)}.py" for cls in ALL_CLASSES.values()}
    needed = ["config.json", "processor_config.json", "README.md", *sorted(modules)]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise ValueError(
            f"`{folder}` lacks {', '.join(missing)} of a self-contained checkpoint; write it with "
            "`save_self_contained`."
        )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    # Shards of another size and their index would stay beside the new ones, and a trainer's pickle.
    return api.upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        commit_message=commit_message,
        delete_patterns=["model*.safetensors", "model.safetensors.index.json", "training_args.bin"],
    )


# Model cards.

PARTS = {
    "vlm": "Vision-language model",
    "vggt": "VGGT, in the spatial encoder",
    "spatial_encoder": "Spa3R, the rest of the spatial encoder",
    "fusion": "Adapter between the two",
}
FUSIONS = {
    "cross_attention": "through a gated adapter its image features query {latents}",
    "append": "{latents} follow a scene's last image as tokens",
    "none": "plain: it knows no scene",
}


@dataclass
class Score:
    """A measurement of a model: of what, how, and the number as it is to be read, such as `"58.6 %"`."""

    benchmark: str
    protocol: str
    score: str


def parts_of(config: Spa3VLMConfig) -> list[str]:
    """Keys of `PARTS` that a model has."""
    if config.fusion == "none":
        return ["vlm"]
    return [part for part in PARTS if part != "spatial_encoder" or config.spatial_representation == "spa3r"]


def spa3_vlm_card(
    name: str,
    config: Spa3VLMConfig,
    origins: Mapping[str, str | None],
    trained: Sequence[str] = (),
    training_data: Sequence[str] = (),
    scores: Sequence[Score] = (),
) -> ModelCard:
    """Describe a Spa3-VLM: what it is, how to use it, whose weights are in it, what it saw, how well it answers.

    Args:
        name (`str`): What the model is loaded by: a name on the Hub, or a folder.
        config (`Spa3VLMConfig`): The model's.
        origins (`dict[str, str | None]`):
            Checkpoint that the weights of each part come from, by the keys of `PARTS`; `None` where they began as
            random ones. Those named in `PUBLISHED` are given with their licences.
        trained (`list[str]`, *optional*): Parts that were trained since their weights came from there.
        training_data (`list[str]`, *optional*):
            What the model was instruction-tuned on, a Markdown line for each; empty if it was not.
        scores (`list[Score]`, *optional*): What was measured.

    Raises:
        ValueError: If `origins` says nothing of a part of this model, or something of a part that it lacks, or
            `trained` names a part that it lacks.
    """
    parts = parts_of(config)
    if sorted(origins) != sorted(parts):
        raise ValueError(
            f"`origins` must tell where the weights of {parts} come from, got {sorted(origins)}; `None` stands for "
            "random ones."
        )
    if unknown := sorted(set(trained) - set(parts)):
        raise ValueError(f"`trained` names {unknown}, but the parts of this model are {parts}.")
    known = [published(checkpoint) for checkpoint in origins.values()]
    has_weights_of_others = any(origins.values())
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["spa3-vlm", "3d", "spatial-reasoning"],
        base_model=[weights[0] for weights in known if weights] or None,
        # Without weights of others it is for whoever trained the model to choose one.
        license="other" if has_weights_of_others else None,
        license_name="licenses-of-the-weights-inside" if has_weights_of_others else None,
    )
    sections = [
        f"# {name}\n\n{_description(config)}",
        _usage(name),
        "## Weights inside, and their licences\n\n" + _weights(config, origins, trained),
        "## Training data\n\n" + ("\n".join(f"- {line}" for line in training_data) or "Not instruction-tuned."),
        "## Evaluation\n\n" + _evaluation(scores),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _description(config: Spa3VLMConfig) -> str:
    spatial = config.spatial_config
    latents = (
        "VGGT's features of all views"
        if config.spatial_representation == "vggt"
        else f"{spatial.num_latents} latents of size {spatial.hidden_size} that Spa3R makes of the whole scene"
    )
    return (
        "Spa3-VLM ([arXiv 2602.21186](https://arxiv.org/abs/2602.21186)): photos or video frames of a place and a "
        "question about its space in, an answer out. A vision-language model of type "
        f"`{config.vlm_config.model_type}`; {FUSIONS[config.fusion].format(latents=latents)}."
    )


def _usage(name: str) -> str:
    def example(imports: str, options: str) -> str:
        return f"""```python
{imports}from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}"{options})
processor = AutoProcessor.from_pretrained("{name}"{options})
content = [{{"type": "image", "path": path}} for path in ("door.jpg", "sofa.jpg")]
content.append({{"type": "text", "text": "How many chairs are in the room?"}})
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
)
tokens = model.generate(**inputs, max_new_tokens=16)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""

    return f"""## Use

All images are of one place; the first is the reference view. With the package `spa3r`:

{example("import spa3r  # registers the model" + chr(10), "")}

Without it, with torch, transformers and pillow alone, by the code in this repository (Apache-2.0). It runs on your
machine: read it, and pin a `revision`.

{example("", ", trust_remote_code=True")}

A video goes in as `{{"type": "video", "path": "room.mp4"}}` and needs PyAV (`pip install av`)."""


def _weights(config: Spa3VLMConfig, origins: Mapping[str, str | None], trained: Sequence[str]) -> str:
    lines = []
    for part in parts_of(config):
        if checkpoint := origins[part]:
            where = origin(checkpoint) + (" Trained further." if part in trained else "")
        elif part in trained:
            where = "trained from scratch."
        elif part == "fusion" and config.fusion == "cross_attention":
            where = "**untrained**: it adds nothing yet, and the model answers as the vision-language model alone."
        else:
            where = "**untrained**: random weights, for demonstrations only."
        lines.append(f"- {PARTS[part]}: {where}")
    return "\n".join(lines)


def _evaluation(scores: Sequence[Score]) -> str:
    if not scores:
        return "Not evaluated."
    rows = [f"| {score.benchmark} | {score.protocol} | {score.score} |" for score in scores]
    return "\n".join(["| benchmark | protocol | score |", "|---|---|---:|", *rows])
