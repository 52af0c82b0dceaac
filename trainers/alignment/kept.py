"""Encodings of scenes that are kept on disk, because encoding costs far more than a step of training."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset, Sampler
from transformers.utils import logging

from ...data_scripts.common.files import replace_when_complete
from ...data_scripts.scenes.sampling import ViewBatchSampler, seeded_generator
from ..runs.errors import first_line
from ..runs.grounding import SceneObjects
from .encoders import EncodedScenes, read_grids, split_objects
from .views import AlignmentViews, collate_alignment

logger = logging.get_logger(__name__)


class KeptEncodings(Dataset):
    """Batches of `AlignmentViews` or, once they are kept, of their encodings.

    A batch has a file of its own, named by its requests, so that encodings always come from the same batch. Pass this
    to a `DataLoader` with `collate_kept`.

    Args:
        views (`AlignmentViews`): The scenes.
        folder (`Path`): Where the encodings are kept.
    """

    def __init__(self, views: AlignmentViews, folder: Path):
        self.views = views
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def scenes(self):
        return self.views.scenes

    def __len__(self) -> int:
        return len(self.views)

    def __getitems__(self, requests: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
        """The items of a batch, or one item with the encodings of the whole batch."""
        name = hashlib.sha256(repr([tuple(request) for request in requests]).encode()).hexdigest()[:24]
        file = self.folder / f"{name}.safetensors"
        if file.is_file():
            return [load_file(file)]
        return [self.views[request] | {"file": str(file)} for request in requests]


def collate_kept(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put items of `KeptEncodings` into a batch: kept encodings, or views and the `file` to keep theirs in."""
    if "file" not in items[0]:
        return items[0]
    return collate_alignment(items) | {"file": items[0]["file"]}


def write_encodings(file: str | Path, scenes: EncodedScenes):
    """Keep the encodings of a batch. On a full disk the run goes on without, and encodes the batch again later."""
    tensors = {
        "image_tokens": torch.cat(scenes.image_tokens),
        "latents": torch.cat(scenes.latents),
        "points": scenes.points,
        "num_tokens": torch.tensor([len(tokens) for tokens in scenes.image_tokens]),
        "num_latents": torch.tensor([len(latents) for latents in scenes.latents]),
        "image_grid_thw": torch.cat(scenes.grids),
        "num_views": torch.tensor([len(grid) for grid in scenes.grids]),
    }
    if scenes.objects is not None:
        fields = zip(SceneObjects._fields, zip(*scenes.objects, strict=True), strict=True)
        tensors |= {name: torch.cat(values) for name, values in fields}
        tensors["num_objects"] = torch.tensor([len(each.names) for each in scenes.objects])
    try:
        with replace_when_complete(file) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    except (OSError, SafetensorError) as error:
        logger.warning_once(
            f"Encodings cannot be kept in {Path(file).parent} ({first_line(error)}), so later passes encode their "
            "scenes again: make room, or set `distinct_passes` to 0."
        )


def read_encodings(inputs: Mapping[str, torch.Tensor]) -> EncodedScenes:
    """The encodings of a batch that were kept."""
    image_tokens = inputs["image_tokens"].split(inputs["num_tokens"].tolist())
    latents = inputs["latents"].split(inputs["num_latents"].tolist())
    grids, objects = read_grids(inputs), split_objects(inputs)
    return EncodedScenes(list(image_tokens), list(latents), inputs["points"], grids, objects)


class RepeatedPasses(Sampler):
    """The batches of the first epochs of a plan, again and again, in a new order each time.

    Args:
        plan (`ViewBatchSampler`): Plans the batches of an epoch, about one pass over the scenes.
        num_epochs (`int`): Epochs after which batches repeat.
        seed (`int`): Seed of the orders.
    """

    def __init__(self, plan: ViewBatchSampler, num_epochs: int, seed: int):
        self.plan = plan
        self.num_epochs = num_epochs
        self.seed = seed

    def set_epoch(self, epoch: int):
        self.plan.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch = self.plan.epoch
        self.plan.set_epoch(epoch % self.num_epochs)
        batches = list(self.plan)
        self.plan.set_epoch(epoch)
        if epoch >= self.num_epochs:
            seeded_generator(self.seed, "order", epoch).shuffle(batches)
        yield from batches
