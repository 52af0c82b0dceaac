"""A scene's cameras, depth and points, as VGGT estimates them from its photos: what `spa3r export` does."""

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import logging

from ...configuration.configuration_spa3r import Spa3RConfig
from ...configuration.configuration_vggt import VGGTConfig
from ...data_scripts.common.files import natural_key, new_folder, require_empty_folder
from ...data_scripts.common.images import IMAGE_SUFFIXES
from ...data_scripts.common.videos import spread_evenly
from ...modeling_spa3r.checkpoints.loading import load_config, load_whole, require_checkpoint
from ...modeling_spa3r.nano import nano_path
from ...modeling_spa3r.spa3r.image_processing_spa3r import Spa3RImageProcessor
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ...modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry
from ..runs.devices import usable_device
from .scene_files import import_trimesh, write_colmap, write_glb, write_npz, write_ply
from .scene_geometry import estimate_geometry

MODELS = {Spa3RConfig.model_type: Spa3RForPreTraining, VGGTConfig.model_type: VGGTForGeometry}
# A model without settings of its own for photos.
DEFAULT_WIDTH = 518


def export(options: argparse.Namespace):
    """Estimate the scene and write all files."""
    import_trimesh()
    require_empty_folder(options.output)
    photos = find_photos(options.folder, options.num_views)
    logging.disable_progress_bar()
    name = options.model or nano_path("spa3r-nano")
    model = load_model(name).to(usable_device(options.device)).eval()
    processor = load_image_processor(name, options.image_width)
    geometry = estimate_geometry(
        model, processor([str(photo) for photo in photos], return_tensors="pt")["pixel_values"]
    )
    cloud = geometry.point_cloud(options.keep, options.max_points)
    names = [photo.stem for photo in photos]
    with new_folder(options.output) as folder:
        write_glb(folder / "scene.glb", geometry, cloud)
        write_ply(folder / "points.ply", cloud)
        write_npz(folder / "scene.npz", geometry, names)
        write_colmap(folder, geometry, cloud, names)
    print(f"Wrote {len(photos)} cameras and {len(cloud.positions)} points to {options.output}.")
    if options.model is None:
        print("The nano model knows rendered rooms; for photos, give a Spa3R or VGGT with --model.")


def find_photos(folder: Path, num_views: int) -> list[Path]:
    """Photos of a folder, or of its subfolder `color`, in natural order.

    Raises:
        FileNotFoundError: If there is no such folder, or no photo in it.
        ValueError: If two photos have the same name without their suffixes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`; give one with photos.")
    place = folder / "color" if (folder / "color").is_dir() else folder
    found = [file for file in place.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if not found:
        raise FileNotFoundError(f"The folder `{place}` has no photos ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    found.sort(key=lambda file: natural_key(file.name))
    stems = [file.stem for file in found]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise ValueError(f"`{place}` has several photos called `{twice}` with other suffixes; rename or remove some.")
    return [found[index] for index in spread_evenly(len(found), num_views)]


def load_model(name: str) -> Spa3RForPreTraining | VGGTForGeometry:
    """Load a Spa3R with its heads, or a VGGT.

    Raises:
        ValueError: If the checkpoint is of another kind.
    """
    require_checkpoint(name)
    model_type = load_config(AutoConfig, name).model_type
    if model_type not in MODELS:
        raise ValueError(f"`{name}` holds a `{model_type}` model; give a Spa3R or a VGGT.")
    return load_whole(MODELS[model_type], name, dtype=torch.float32)


def load_image_processor(name: str, image_width: int | None) -> Spa3RImageProcessor:
    """The model's settings for photos, or the usual ones, with another width if one is given."""
    given = {} if image_width is None else {"image_width": image_width}
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
        return Spa3RImageProcessor(**({"image_width": DEFAULT_WIDTH} | given))
    return Spa3RImageProcessor.from_pretrained(name, **given)
