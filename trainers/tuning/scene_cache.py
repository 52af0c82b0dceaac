"""Latents and vision features of scenes that are encoded once: written by `spa3r encode-scenes`, read by training."""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BatchFeature

from ...data_scripts.common.files import remove_unfinished, replace_when_complete, write_json
from ...data_scripts.common.processes import start_fork_server
from ...modeling_spa3r.scene_images import list_scenes
from ...modeling_spa3r.spa3_vlm.image_processing_spa3_vlm import Spa3VLMImageProcessor
from ...modeling_spa3r.spa3_vlm.modeling_spa3_vlm import Spa3VLMForConditionalGeneration
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ..runs.fingerprint import hash_weights
from .image_bytes import LevelTables, with_image_bytes
from .instruction_data import InstructionCollator, open_images, without_decoding

FINGERPRINT = "fingerprint.json"
SCENES_PER_SHARD = 64
# The key of the vision tower in a fingerprint, and what follows the key of a scene in the names of its features and of
# frames, rows and columns of patches of each image.
VISION_TOWER = "vision_tower"
VISION_SUFFIX, GRIDS_SUFFIX = ".vision_features", ".image_grids"
GEOMETRY = ("pixel_values_geometry", "geometry_sizes")


def encoder_fingerprint(
    model: Spa3VLMForConditionalGeneration, processor: Spa3VLMProcessor, vision_features: bool = False
) -> dict[str, str]:
    """Hashes of all that decides the latents: weights and type of the encoder, and the preparation of images.

    With `vision_features`, the weights of the vision tower count, too. Under ZeRO-3 every process must call this.
    """
    encoder = model.model.spatial_encoder
    if encoder is None and not vision_features:
        raise ValueError(
            "A model with `fusion='none'` has no scene latents: train it without `scene_latents`, or encode its "
            "scenes with `--vision-features`."
        )
    fingerprint = {
        "dtype": str((model if encoder is None else encoder).dtype).removeprefix("torch."),
        "images": hashlib.sha256(processor.image_processor.to_json_string().encode()).hexdigest(),
    }
    if encoder is not None:
        fingerprint["spatial_encoder"] = hash_weights(encoder)
    if vision_features:
        fingerprint |= {VISION_TOWER: hash_weights(model.model.vlm.visual), "image_grids": "kept"}
    return fingerprint


def _key(images: Sequence[dict[str, Any]]) -> str:
    """A key for a list of views, from their bytes or, if the data set has no bytes, from their paths."""
    # An image with bytes in the data set has a file name instead of a path.
    names = [hashlib.sha256(image["bytes"]).hexdigest() if image["bytes"] else image["path"] for image in images]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def with_scene_keys(dataset: Dataset) -> Dataset:
    """Add the column `scene_key`, empty for records without images; no image is decoded."""
    return without_decoding(dataset).map(
        lambda record: {"scene_key": _key(record["images"]) if record["images"] else ""}, desc="Scenes"
    )


class SceneLatents:
    """Latents and features that `spa3r encode-scenes` has written.

    Args:
        folder (`str` or `os.PathLike`): The `--output` of that command.
        model (`Spa3VLMForConditionalGeneration`): The model to train.
        processor (`Spa3VLMProcessor`): Its processor.

    Raises:
        ValueError: If the folder has no latents, or those of another model.
    """

    def __init__(self, folder: str | os.PathLike, model: Spa3VLMForConditionalGeneration, processor: Spa3VLMProcessor):
        self.folder = Path(folder)
        self.has_vision = VISION_TOWER in _read_fingerprint(self.folder)
        self.has_latents = model.model.spatial_encoder is not None
        needed = encoder_fingerprint(model, processor, self.has_vision)
        check_fingerprint(self.folder, needed, needed)
        self.shards = find_latents(self.folder)

    def check_complete(self, keys: Sequence[str]):
        """Refuse a data set with scenes that have no latents."""
        scenes = {key for key in keys if key}
        if missing := scenes - self.shards.keys():
            raise ValueError(
                f"{len(missing)} of {len(scenes)} scenes have no latents in `{self.folder}`: run `spa3r "
                "encode-scenes` with the same instruction sets."
            )

    def __getitem__(self, key: str) -> Tensor:
        """Latents of a scene, of shape `(num_latents, latent_size)`."""
        return _open(self.shards[key]).get_tensor(key)

    def vision_features(self, key: str) -> Tensor:
        """Features of a scene's images, of shape `(num_image_tokens, hidden_size)`."""
        return _open(self.shards[key]).get_tensor(key + VISION_SUFFIX)

    def image_grids(self, key: str) -> list[list[int]]:
        """Frames, rows and columns of patches of each image of a scene."""
        return _open(self.shards[key]).get_tensor(key + GRIDS_SUFFIX).tolist()


@lru_cache(maxsize=128)
def _open(shard: Path):
    return safe_open(shard, framework="pt")


def find_latents(folder: Path) -> dict[str, Path]:
    """The shard of each encoded scene, by the key of the scene."""
    shards = {}
    for shard in sorted(folder.glob("latents-*.safetensors")):
        with safe_open(shard, framework="pt") as content:
            shards |= dict.fromkeys((name.partition(".")[0] for name in content.keys()), shard)
    return shards


def _read_fingerprint(folder: Path) -> dict[str, str]:
    file = folder / FINGERPRINT
    if not file.is_file():
        raise ValueError(f"`{folder}` holds no latents of scenes: run `spa3r encode-scenes` first.")
    return json.loads(file.read_text())


def check_fingerprint(folder: Path, fingerprint: dict[str, str], compared: Iterable[str] | None = None):
    """Refuse latents of another model, or a mix of latents with and without features of the vision tower.

    Args:
        folder (`Path`): Holds the latents.
        fingerprint (`dict[str, str]`): Of this model.
        compared (`Iterable[str]`, *optional*): The keys that must agree; by default those of both.
    """
    kept = _read_fingerprint(folder)
    if kept.get("dtype") != fingerprint["dtype"]:
        raise ValueError(
            f"The latents in `{folder}` were encoded in {kept.get('dtype')}, but this model is in "
            f"{fingerprint['dtype']}: encode the scenes with `--dtype {fingerprint['dtype']}` into another folder."
        )
    names = kept | fingerprint if compared is None else compared
    if different := sorted(name for name in names if kept.get(name) != fingerprint.get(name)):
        raise ValueError(
            f"The latents in `{folder}` are of another model ({', '.join(different)} differ): encode the scenes with "
            "this one into another folder."
        )


class KeptImages(Spa3VLMImageProcessor):
    """Stands in for the image processor where features are kept: an image has one pixel for each patch."""

    def fetch_images(self, image_url_or_urls):
        return image_url_or_urls

    def preprocess(self, images, **kwargs) -> BatchFeature:
        """Return `image_grid_thw` and `num_views` alone."""
        scenes, _ = list_scenes(images)
        grids = [[1, image.height, image.width] for scene in scenes for image in scene]
        counts = [len(scene) for scene in scenes]
        return BatchFeature({"image_grid_thw": np.array(grids), "num_views": np.array(counts)})


class CachedLatentsCollator(InstructionCollator):
    """The collator of records, with latents instead of the images for the spatial encoder and, if stored, with
    features instead of the patches for the vision tower; then no image is read."""

    def __init__(self, latents: SceneLatents, processor: Spa3VLMProcessor, **kwargs):
        if latents.has_vision:
            processor = copy.copy(processor)
            processor.image_processor = KeptImages(**processor.image_processor.to_dict())
        super().__init__(processor=processor, **kwargs)
        self.latents = latents

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Needs the column `scene_key`; see `with_scene_keys`."""
        keys = [example["scene_key"] for example in examples if example["scene_key"]]
        batch = super().torch_call([self._record(example) for example in examples])
        for name in GEOMETRY:
            batch.pop(name, None)
        # Empty latents tell a batch of text alone that other processes encode no scene either.
        if self.latents.has_latents:
            batch["spatial_latents"] = torch.stack([self.latents[key] for key in keys]) if keys else torch.empty(0)
        if self.latents.has_vision:
            features = [self.latents.vision_features(key) for key in keys]
            batch["vision_features"] = torch.cat(features) if keys else torch.empty(0)
        return batch

    def _record(self, example: dict[str, Any]) -> dict[str, Any]:
        images, key = example["images"], example["scene_key"]
        if self.latents.has_vision and key:
            grids = self.latents.image_grids(key)
            images = [PIL.Image.new("L", (columns, rows)) for _, rows, columns in grids]
        return {"images": images, "messages": example["messages"]}


def encode_scenes(
    model: Spa3VLMForConditionalGeneration,
    processor: Spa3VLMProcessor,
    dataset: Dataset,
    folder: str | os.PathLike,
    vision_features: bool = False,
    scenes_per_batch: int = 1,
    num_workers: int = 0,
):
    """Write the latents of all scenes that have none yet; every process must call it.

    Args:
        model (`Spa3VLMForConditionalGeneration`): On the device of this process.
        processor (`Spa3VLMProcessor`): Its processor.
        dataset (`Dataset`): With a column `images`.
        folder (`str` or `os.PathLike`): Where the shards are written.
        vision_features (`bool`, *optional*, defaults to `False`): Whether to store features of the vision tower.
        scenes_per_batch (`int`, *optional*, defaults to 1): Scenes that are encoded at once.
        num_workers (`int`, *optional*, defaults to 0): Processes that read images; 0 reads them in this one.

    Raises:
        ValueError: If the folder holds latents of another encoder.
    """
    folder, state = Path(folder), PartialState()
    fingerprint = encoder_fingerprint(model, processor, vision_features)
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        if not (folder / FINGERPRINT).is_file():
            write_json(folder / FINGERPRINT, fingerprint)
    state.wait_for_everyone()
    check_fingerprint(folder, fingerprint)
    done = find_latents(folder)
    dataset = with_scene_keys(dataset)
    rows = {key: row for row, key in enumerate(dataset["scene_key"]) if key and key not in done}
    own = sorted(rows.items())[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # all processes list the same shards before there are new ones
    progress = tqdm(total=len(own), desc="Encoding scenes", unit="scene", disable=not state.is_local_main_process)
    shard, keys_of_shard = {}, []
    names = GEOMETRY if model.model.spatial_encoder is not None else ()
    names += ("pixel_values", "image_grid_thw") if vision_features else ()
    reader = SceneReader(dataset, with_image_bytes(processor), ("num_views", *names))
    to_numbers = LevelTables(processor.image_processor, model.device)
    for keys, inputs in reader.read(own, scenes_per_batch, num_workers):
        inputs = inputs.to(model.device)
        shard |= _encode(model, keys, inputs | to_numbers(inputs), vision_features)
        keys_of_shard += keys
        progress.update(len(keys))
        if len(keys_of_shard) >= SCENES_PER_SHARD:
            _write_shard(shard, folder)
            shard, keys_of_shard = {}, []
    if shard:
        _write_shard(shard, folder)
    state.wait_for_everyone()


@dataclass
class SceneReader:
    """
    Reads the images of scenes; a class, so that it can be sent to workers.

    dataset (`Dataset`): With a column `images`.
    processor (`Spa3VLMProcessor`): What prepares the images.
    names (`tuple[str, ...]`): What is needed of that.
    """

    dataset: Dataset
    processor: Spa3VLMProcessor
    names: tuple[str, ...]

    def __call__(self, scenes: Sequence[tuple[str, int]]) -> tuple[list[str], BatchFeature]:
        """The keys of some scenes, given with their rows, and what is needed of their images."""
        keys, rows = zip(*scenes, strict=True)
        images = [open_images(self.dataset[row]["images"]) for row in rows]
        features = self.processor.image_processor(images, return_tensors="pt")
        return list(keys), BatchFeature({name: features[name] for name in self.names})

    def read(
        self, scenes: Sequence[tuple[str, int]], batch_size: int, num_workers: int
    ) -> Iterator[tuple[list[str], BatchFeature]]:
        """Read all scenes, batch after batch."""
        # A process with threads can deadlock in a fork.
        context = "forkserver" if num_workers else None
        if num_workers:
            start_fork_server(__name__)
        yield from DataLoader(
            scenes, batch_size, collate_fn=self, num_workers=num_workers, multiprocessing_context=context
        )


def _encode(
    model: Spa3VLMForConditionalGeneration, keys: Sequence[str], inputs: Mapping[str, Tensor], vision_features: bool
) -> dict[str, Tensor]:
    """What is stored of the scenes of a batch, by their keys."""
    stored = {}
    if model.model.spatial_encoder is not None:
        latents = model.encode_scene(*(inputs[name] for name in (*GEOMETRY, "num_views")))
        stored |= dict(zip(keys, latents.cpu(), strict=True))
    if vision_features:
        grids = inputs["image_grid_thw"]
        features = model.model.encode_images(inputs["pixel_values"], grids).cpu()
        num_tokens = grids.prod(-1) // model.config.vlm_config.vision_config.spatial_merge_size**2
        counts = inputs["num_views"].tolist()
        per_scene = [int(each.sum()) for each in num_tokens.split(counts)]
        stored |= {key + VISION_SUFFIX: each for key, each in zip(keys, features.split(per_scene), strict=True)}
        stored |= {key + GRIDS_SUFFIX: each for key, each in zip(keys, grids.cpu().split(counts), strict=True)}
    # Slices of a batch share its memory, which safetensors refuses to write.
    return {name: tensor.clone() for name, tensor in stored.items()}


def _write_shard(shard: dict[str, Tensor], folder: Path):
    """Write a file of latents. It is named by its content, so that no two processes or runs write the same one."""
    name = hashlib.sha256("".join(shard).encode()).hexdigest()[:16]
    with replace_when_complete(folder / f"latents-{name}.safetensors") as temporary:
        save_file(shard, temporary)
