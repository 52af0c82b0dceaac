"""What `spa3r inspect` does: scenes, photos or a video in, a report and figures out."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ...data_scripts.common.files import write_text
from ...data_scripts.common.image_shapes import require_similar_shapes
from ...data_scripts.common.locks import only_run_in
from ...data_scripts.common.videos import index_video, read_frames_at, spread_evenly
from ...data_scripts.scenes.index import load_scene_sources, split_scenes
from ...data_scripts.scenes.view_transforms import crop_to_common, load_frame
from ...data_scripts.scenes.views import SceneViews
from ...modeling_spa3r.checkpoints.loading import load_whole
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ..runs.devices import usable_device
from .evaluation import PSFMReport, evaluate_psfm
from .figures import draw_scene_figure, save_figure


class PhotoScene(Dataset):
    """A single scene of given images, in the form of `SceneViews`.

    Args:
        scene_id (`str`): Name of the scene.
        images (`dict[int, Path | np.ndarray]`):
            Images by number, context views first, as for `load_frame`; all are cropped to the least height.
        num_context_views (`int`): How many of them the encoder sees.
        image_width (`int`): Images are resized to this width.
    """

    def __init__(self, scene_id: str, images: dict[int, Path | np.ndarray], num_context_views: int, image_width: int):
        views, sizes = [], {}
        for number, image in images.items():
            name = f"`{image}`" if isinstance(image, Path) else f"Frame {number}"
            try:
                pixels, size = load_frame(image, image_width)
            except ValueError as error:
                raise ValueError(f"{name} cannot be used: {error}") from error
            views.append(pixels)
            sizes[name] = size.original
        require_similar_shapes(sizes)
        pixel_values, _ = crop_to_common(views)
        self.item = {
            "pixel_values": pixel_values,
            "num_context_views": num_context_views,
            "scene_id": scene_id,
            "frame_indices": list(images),
            "replaced_frames": [],
            "dropped_scenes": [],
        }

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: tuple[int, int, int]) -> dict[str, Any]:
        return self.item


def read_photos(args: argparse.Namespace) -> PhotoScene:
    """The scene of `--images`: context views are the first ones."""
    if len(args.images) < 2:
        raise ValueError("`--images` needs at least 2 photos, one to encode and one to predict, got 1.")
    images = dict(enumerate(args.images, start=1))
    return PhotoScene("photos", images, max(1, int(len(images) * args.context_ratio)), args.image_width)


def read_video(args: argparse.Namespace) -> PhotoScene:
    """The scene of `--video`: frames at even distances, with target views between the context views."""
    timestamps, key_frames = index_video(args.video)
    wanted = {timestamps[i]: i for i in spread_evenly(len(timestamps), args.num_views)}
    images = dict(read_frames_at(args.video, list(wanted), key_frames))
    if len(images) < 2:
        raise ValueError(f"`{args.video}` has {len(images)} readable frames; give a video with at least 2.")
    times = sorted(images)
    num_context_views = max(1, int(len(times) * args.context_ratio))
    context = [times[i * len(times) // num_context_views] for i in range(num_context_views)]
    ordered = context + [time for time in times if time not in context]
    frames = {wanted[time]: images[time] for time in ordered}
    return PhotoScene(args.video.stem, frames, num_context_views, args.image_width)


def read_scenes(args: argparse.Namespace) -> SceneViews:
    """The scenes of `--scenes`: all, or those that a training run held out."""
    scenes = load_scene_sources([args.scenes])
    if args.held_out_scenes is not None:
        scenes = split_scenes(scenes, args.held_out_scenes, seed=args.seed)[1]
    return SceneViews(
        scenes,
        image_width=args.image_width,
        context_ratio=args.context_ratio,
        seed=args.seed,
        cameras=args.cameras,
        # Some data sets with cameras have no depth; the probe is then compared with VGGT's.
        depth=args.cameras and all(scenes["depths"]),
        labels=all(scenes["labels"]),
    )


def read_views(args: argparse.Namespace) -> Dataset:
    """The scenes to inspect; the first one is read, so that unreadable input is refused before any computation."""
    if args.images is not None:
        views = read_photos(args)
    elif args.video is not None:
        views = read_video(args)
    else:
        views = read_scenes(args)
    if not len(views):
        raise ValueError(f"--held-out-scenes must be at least 1, got {args.held_out_scenes}: raise it.")
    views[0, 0, args.num_views]
    return views


def load_model(args: argparse.Namespace) -> Spa3RForPreTraining:
    """The checkpoint, on the device and in the dtype asked for."""
    device = usable_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return load_whole(Spa3RForPreTraining, args.model, dtype=getattr(torch, args.dtype)).to(device).eval()


def write_inspection(args: argparse.Namespace, views: Dataset, model: Spa3RForPreTraining, report: PSFMReport):
    """Write and print the report, and draw the figures."""
    write_text(args.output / "report.json", report.to_json())
    write_text(args.output / "report.md", report.to_table() + "\n")
    for scene in tqdm(range(min(args.num_figures, args.num_scenes, len(views))), desc="Drawing", unit="scene"):
        item = views[0, scene, args.num_views]
        if item["dropped_scenes"]:
            continue
        save_figure(draw_scene_figure(model, item), args.output / "figures" / f"{item['scene_id']}.png")
    print(f"\n{report.to_table()}\n")
    print(f"Latents of a scene: {model.config.num_latents} x {model.config.hidden_size}")
    print(f"Report: {args.output / 'report.md'}")
    print(f"Figures: {args.output / 'figures'}")


def require_scene_specific(args: argparse.Namespace, report: PSFMReport):
    """Refuse a model whose latents do not tell scenes apart.

    Raises:
        ValueError: If another scene's latents predict as well as a scene's own, or there is a single scene.
    """
    if not report.beats_other_scene():
        raise ValueError(
            f"`{args.model}` does not predict the views of a scene better from its own latents than from another "
            "scene's, as --require-scene-specific asks: train longer or on more scenes."
        )


def inspect(args: argparse.Namespace):
    """Inspect a checkpoint with the options of `spa3r inspect`."""
    with only_run_in(args.output):
        views, model = read_views(args), load_model(args)
        report = evaluate_psfm(model, views, args.num_views, args.num_scenes)
        write_inspection(args, views, model, report)
    if args.require_scene_specific:
        require_scene_specific(args, report)
