"""Checkpoints of Spa3-VLM that carry their code.

A self-contained checkpoint holds the source files that it needs, flat beside the weights. With
`trust_remote_code=True` it loads wherever torch, transformers and pillow are installed. Where this package is
installed, the package's own classes are used.
"""

import inspect
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...data_scripts.common.files import new_folder, write_json, write_text
from ..spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from ..spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration, Spa3VLMModel
from ..spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from .cards import write_card

__all__ = ["add_code", "push_self_contained", "save_self_contained"]

MODEL_CLASSES = {
    "AutoConfig": Spa3VLMConfig,
    "AutoModel": Spa3VLMModel,
    "AutoModelForImageTextToText": Spa3VLMForConditionalGeneration,
    "AutoModelForMultimodalLM": Spa3VLMForConditionalGeneration,
}
PROCESSOR_CLASSES = {"AutoProcessor": Spa3VLMProcessor}
IMAGE_PROCESSOR_CLASSES = {"AutoImageProcessor": Spa3VLMImageProcessor}
ALL_CLASSES = MODEL_CLASSES | PROCESSOR_CLASSES | IMAGE_PROCESSOR_CLASSES
# The two forms of relative import in this package: `from .module import name`, `from ..package.module import name`.
OWN_IMPORT = re.compile(r"^from (\.+)([\w.]+) import", flags=re.MULTILINE)


def save_self_contained(
    model: Spa3VLMForConditionalGeneration,
    processor: Spa3VLMProcessor | None,
    folder: str | os.PathLike,
    card: Mapping[str, Any],
):
    """Save a model with its processor, code and card. If anything fails, there is no folder.

    Args:
        model (`Spa3VLMForConditionalGeneration`): The model.
        processor (`Spa3VLMProcessor`, *optional*): Its processor.
        folder (`str` or `os.PathLike`): New or empty folder.
        card (`dict`): Facts for the model card, from `spa3_vlm_card`.

    Raises:
        FileExistsError: If the folder is not empty.
    """
    with new_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        if processor is not None:
            processor.save_pretrained(unfinished)
        add_code(unfinished)
        write_card(unfinished, card)


def add_code(folder: str | os.PathLike):
    """Copy the source files that a saved Spa3-VLM needs beside it, and name its classes in its configurations.

    Args:
        folder (`str` or `os.PathLike`): Written by `save_pretrained` of the model, of the processor or of both.

    Raises:
        ValueError: If the folder holds neither, or another model.
    """
    folder = Path(folder)
    files = {name: _read_json(folder / name) for name in ("config.json", "processor_config.json")}
    config, processor = files.values()
    model_type = config.get("model_type")
    if config and model_type != Spa3VLMConfig.model_type:
        raise ValueError(
            f"`{folder}` holds a `{model_type}` model, but only a `{Spa3VLMConfig.model_type}` can carry its code; "
            "name another folder."
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


def push_self_contained(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload Spa3-VLM",
) -> CommitInfo:
    """Upload a self-contained checkpoint in one commit.

    Args:
        folder (`str` or `os.PathLike`): Written by `save_self_contained`.
        repo_id (`str`): Repository such as `"you/spa3-vlm-4b"`; created if needed. Weights in it are replaced.
        private (`bool`, *optional*): Whether a new repository is private; by default as its owner's settings say.
        token (`str`, *optional*): By default the token that huggingface_hub finds.
        commit_message (`str`, *optional*): Title of the commit.

    Raises:
        ValueError: If the checkpoint lacks its model, processor, code or card.
    """
    folder = Path(folder)
    modules = {f"{_module(cls)}.py" for cls in ALL_CLASSES.values()}
    required = ["config.json", "processor_config.json", "README.md", *sorted(modules)]
    if missing := [name for name in required if not (folder / name).is_file()]:
        raise ValueError(
            f"`{folder}` lacks {', '.join(missing)} of a self-contained checkpoint; write it with "
            "`save_self_contained`."
        )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    # Otherwise shards of an earlier upload, their index and a trainer's pickle would stay beside the new weights.
    return api.upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        commit_message=commit_message,
        delete_patterns=["model*.safetensors", "model.safetensors.index.json", "training_args.bin"],
    )


def _flat_sources() -> dict[str, str]:
    """Collect the files that define the classes, and all that these import, rewritten to lie in one folder."""
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


def _name_classes(settings: dict[str, Any], classes: Mapping[str, type]):
    names = {auto: f"{_module(cls)}.{cls.__name__}" for auto, cls in classes.items()}
    settings["auto_map"] = settings.get("auto_map", {}) | names


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
