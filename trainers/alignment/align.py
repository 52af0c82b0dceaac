"""Alignment of a Spa3-VLM's adapter with points in space: what `spa3r align` does."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import set_seed

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...configuration.configuration_vggt import VGGTConfig
from ...data_scripts.common.files import write_text
from ...data_scripts.common.locks import only_run_in
from ...data_scripts.scenes.index import load_scene_sources, split_scenes
from ...modeling_spa3r.checkpoints.cards import Score, tuned_card, write_card
from ...modeling_spa3r.checkpoints.loading import (
    blame_checkpoint,
    load_config,
    load_processor,
    load_spa3_vlm,
    require_checkpoint,
)
from ...modeling_spa3r.checkpoints.self_contained import add_code, push_self_contained
from ...modeling_spa3r.spa3_vlm.processing_spa3_vlm import Spa3VLMProcessor
from ...modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry
from ..runs.distributed import end_run
from ..runs.fingerprint import hash_weights
from ..runs.publish import make_repository, push_final_model, train_and_save
from ..runs.resume import checkpoint_to_resume
from ..runs.settings import check_resumable, check_same_run, flatten, training_settings
from .arguments import AlignmentArguments, AlignmentTrainingArguments, parse_arguments
from .grounding import TextWriter
from .trainer import AlignmentTrainer
from .views import AlignmentViews

# In the folder of a run, until it ends.
ENCODINGS = "encodings"
# Settings of a run, besides the Trainer's, that decide the weights.
DECISIVE = "min_views max_views images_per_device from_scratch muon_learning_rate distinct_passes grounding".split()
UNITS = {"depth": "meters", "vggt": "VGGT's unit"}
# Heads that points do not need.
UNUSED_HEADS = ("camera_head.", "depth_head.")
# What may differ between the VGGT that estimates points and the one in the model: heads and initial values, and the
# norm that the official Spa3R code replaced.
MAY_DIFFER = ("camera_", "dense_", "global_qk_norm", "image_size", "initializer_range")


def check_config(args: AlignmentArguments, grounding: bool) -> Spa3VLMConfig:
    """Refuse a model that has nothing to align, before its weights are loaded.

    Raises:
        ValueError: Also if there is no model or there are no scenes, or if `targets` and `geometry` contradict.
    """
    if args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing: give a Spa3-VLM, a folder or a Hub name.")
    if not args.scenes:
        raise ValueError("`scenes` is empty: give `--scenes KIND:FOLDER`, such as rooms:data/rooms.")
    if (args.targets == "vggt") != (args.geometry is not None):
        state = "is missing" if args.geometry is None else f"is `{args.geometry}`"
        raise ValueError(
            f"`targets` are `{args.targets}`, but `geometry` {state}: give `--targets vggt --geometry FOLDER` for the "
            "points of a VGGT, or neither for known depth."
        )
    require_checkpoint(args.model_name_or_path)
    config = load_config(Spa3VLMConfig, args.model_name_or_path)
    if grounding and getattr(config.vlm_config.vision_config, "deepstack_visual_indexes", None):
        raise ValueError(
            "`grounding` runs the language model on merged features alone, but the vision-language model of "
            f"`{args.model_name_or_path}`, a {config.vlm_config.model_type}, needs DeepStack features: leave "
            "`grounding` out."
        )
    if grounding and config.fusion == "none" and args.targets == "depth":
        return config  # the language model alone, as a control
    if config.fusion != "cross_attention":
        raise ValueError(
            f"`{args.model_name_or_path}` has the fusion `{config.fusion}`, which has no adapter that changes image "
            "tokens: give a model with `cross_attention`."
        )
    return config


def load_geometry(name: str, expected: VGGTConfig) -> VGGTForGeometry:
    """Load the VGGT that estimates points, in float32.

    Raises:
        ValueError: If its architecture is not that of the model's VGGT, or its point head is missing.
    """
    require_checkpoint(name)
    config = load_config(VGGTConfig, name)
    for setting in VGGTConfig.__annotations__:
        given, own = getattr(config, setting), getattr(expected, setting)
        if given != own and not setting.startswith(MAY_DIFFER):
            raise ValueError(
                f"`geometry` must have the architecture of the model's VGGT, but in `{name}` `{setting}` is {given}, "
                f"not {own}: give the VGGT that the model was made with."
            )
    with blame_checkpoint(name):
        geometry, info = VGGTForGeometry.from_pretrained(name, config=config, output_loading_info=True)
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith(UNUSED_HEADS)):
        raise ValueError(
            f"`geometry` must be a VGGT with its point head, but `{name}` lacks {len(missing)} tensors, for example "
            f"`{missing[0]}`: give one from `spa3r convert vggt`."
        )
    return geometry.float()


def build_views(
    args: AlignmentArguments, processor: Spa3VLMProcessor, seed: int, objects: bool = False
) -> tuple[AlignmentViews, AlignmentViews | None]:
    """Views of the scenes to train on, and of the held-out ones."""
    scenes = load_scene_sources(args.scenes, exclude=args.exclude)
    train_scenes, held_out = split_scenes(scenes, args.held_out_scenes, seed=seed)
    options = {"image_processor": processor.image_processor, "depth": args.targets == "depth", "seed": seed}
    options["objects"] = objects
    return AlignmentViews(train_scenes, **options), AlignmentViews(held_out, **options) if len(held_out) else None


def settings_of_run(
    networks: dict[str, nn.Module],
    train_views: AlignmentViews,
    held_out_views: AlignmentViews | None,
    data_args: AlignmentArguments,
    args: AlignmentTrainingArguments,
) -> dict[str, Any]:
    """Settings that decide the final weights of a run, by flat names such as `training_scenes.number`."""
    settings = training_settings(args, DECISIVE)
    names = "model_name_or_path scenes exclude held_out_scenes targets geometry"
    settings |= {name: getattr(data_args, name) for name in names.split()}
    settings["training_scenes"] = _digest(train_views.scenes)
    settings["evaluation_scenes"] = _digest(held_out_views.scenes) if held_out_views is not None else None
    settings["images"] = train_views.image_processor.to_json_string()
    settings["weights"] = {name: hash_weights(network) for name, network in networks.items()}
    return flatten(settings)


def _kept_folder(args: AlignmentTrainingArguments, settings: dict[str, Any]) -> Path:
    """Where a run keeps its encodings; those of other settings are removed."""
    folder = Path(args.output_dir) / ENCODINGS / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    for other in folder.parent.glob("*"):
        if other != folder and args.process_index == 0:
            shutil.rmtree(other)
    return folder


def _digest(scenes: Dataset) -> dict[str, Any]:
    """Number of scenes, and a hash of their ids and numbers of frames."""
    columns = scenes["scene_id"], scenes["num_frames"]
    rows = sorted(f"{scene_id} {num_frames}" for scene_id, num_frames in zip(*columns, strict=True))
    return {"number": len(rows), "sha256": hashlib.sha256("\n".join(rows).encode()).hexdigest()}


def build_trainer(
    data_args: AlignmentArguments, args: AlignmentTrainingArguments
) -> tuple[AlignmentTrainer, Path | None]:
    """Build the trainer and find the checkpoint to continue from; wrong input is refused here, before training."""
    check_resumable(args)
    config = check_config(data_args, args.grounding)
    geometry = None
    if data_args.geometry is not None:
        geometry = load_geometry(data_args.geometry, config.spatial_config.vggt_config)
    processor = load_processor(data_args.model_name_or_path)
    train_views, held_out_views = build_views(data_args, processor, args.seed, args.grounding)
    if held_out_views is None and args.eval_strategy != "no":
        raise ValueError(
            f"`eval_strategy` {args.eval_strategy.value} needs held-out scenes, got `held_out_scenes` "
            f"{data_args.held_out_scenes}: raise it, or set `eval_strategy: no`."
        )
    checkpoint = checkpoint_to_resume(args)
    model = load_spa3_vlm(data_args.model_name_or_path)
    if args.from_scratch and model.model.fusion is not None and model.model.fusion.adapter.fc2.weight.any():
        raise ValueError(
            f"`from_scratch` draws the adapter's weights anew, but the adapter of `{data_args.model_name_or_path}` is "
            "trained: leave the option out to train it further, or give a model with a fresh one."
        )
    networks = {"model": model} if geometry is None else {"model": model, "geometry": geometry}
    settings = settings_of_run(networks, train_views, held_out_views, data_args, args)
    check_same_run(args.output_dir, settings, args.process_index == 0)
    make_repository(args)
    set_seed(args.seed)
    trainer = AlignmentTrainer(
        model,
        args,
        train_views,
        geometry=geometry,
        unit=UNITS[data_args.targets],
        kept_folder=_kept_folder(args, settings),
        writer=TextWriter(processor) if args.grounding else None,
        eval_dataset=held_out_views,
    )
    return trainer, checkpoint


def save_aligned_model(trainer: AlignmentTrainer, processor: Spa3VLMProcessor, data: list[str], folder: str):
    """Evaluate, and write model, processor, code and card; every process must call this.

    Args:
        trainer (`AlignmentTrainer`): After training.
        processor (`Spa3VLMProcessor`): Of the model.
        data (`list[str]`): Scenes that it trained on.
        folder (`str`): New folder to write.
    """
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if trainer.args.should_save:
        trainer.vlm.save_pretrained(folder, state_dict=trainer.weights_of_vlm())
        processor.save_pretrained(folder)
        add_code(folder)
        write_card(folder, _card(trainer, data))


def _card(trainer: AlignmentTrainer, data: list[str]) -> dict[str, Any]:
    """Collect the facts for the card of an aligned model; it extends the card of the starting checkpoint."""
    args, state, report = trainer.args, trainer.state, trainer.report
    source = "known depth and cameras" if trainer.encoders.point_head is None else "VGGT's point head"
    images_per_step = args.images_per_device * args.world_size * args.gradient_accumulation_steps
    learned = "the adapter alone learned to find the points that image tokens show"
    if args.grounding:
        learned = (
            "the adapter learned to find the points that image tokens show, and the language model the places of "
            "named objects"
        )
    line = (
        f"{', '.join(f'`{each}`' for each in data)}: {learned}, from {source} (a stage of the package `spa3r`, not of "
        "the paper); "
        f"{len(trainer.train_dataset)} scenes, {state.global_step} steps of {images_per_step} images, learning rate "
        f"{args.learning_rate:g}."
    )
    scores = []
    if report is not None:
        found = f"{report.own['all']:.3f}; the mean point at a patch: {report.mean['all']:.3f}"
        scores = [Score("Held-out scenes", f"mean distance of predicted points, {report.unit}", found)]
    name = trainer.hub_model_id or str(Path(args.output_dir) / "model")
    return tuned_card(name, trainer.vlm.config, [line], scores, trained=trainer.trained_parts)


def run(trainer: AlignmentTrainer, checkpoint: Path | None, data_args: AlignmentArguments):
    """Train, save the self-contained model to `<output_dir>/model`, and push it where asked to."""
    args = trainer.args
    processor = load_processor(data_args.model_name_or_path)
    write = partial(save_aligned_model, trainer, processor, data_args.scenes)
    final = train_and_save(trainer, checkpoint, write)
    if trainer.is_world_process_zero():
        shutil.rmtree(Path(args.output_dir) / ENCODINGS, ignore_errors=True)
        if trainer.report is not None:
            print(trainer.report.to_table())
            write_text(Path(args.output_dir) / "report.md", trainer.report.to_table() + "\n")
        print(f"The model is in {final}.")
    publishing = {"private": args.hub_private_repo, "token": args.hub_token}
    push_final_model(trainer, lambda: push_self_contained(final, trainer.hub_model_id, **publishing))


def main(arguments: list[str] | None = None):
    """Run `spa3r align`."""
    data_args, args = parse_arguments(arguments)
    with only_run_in(args.output_dir, args.process_index == 0):
        trainer, checkpoint = build_trainer(data_args, args)
        run(trainer, checkpoint, data_args)
        end_run(trainer)
