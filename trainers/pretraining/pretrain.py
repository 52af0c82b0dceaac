"""Pre-training of Spa3R by Predictive Spatial Field Modeling: what `spa3r pretrain` does."""

import hashlib
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, set_seed

from ...configuration import Spa3RConfig, VGGTConfig, load_preset
from ...data_scripts.common.exclusions import read_excluded
from ...data_scripts.common.files import write_text
from ...data_scripts.common.locks import only_run_in
from ...data_scripts.scenes.index import load_scene_sources, split_scenes
from ...data_scripts.scenes.views import SceneViews, collate_views
from ...modeling_spa3r.checkpoints.cards import write_card
from ...modeling_spa3r.checkpoints.loading import find_damaged_file, load_config, load_whole, require_checkpoint
from ...modeling_spa3r.spa3r.image_processing_spa3r import Spa3RImageProcessor
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ..runs.distributed import end_run
from ..runs.errors import first_line
from ..runs.initialization import initialize_for_scratch
from ..runs.publish import make_repository, push_final_model, train_and_save
from ..runs.recipes import check_numbers, merge, parse_overrides
from ..runs.resume import checkpoint_to_resume
from ..runs.settings import check_resumable, check_same_run, flatten, training_settings
from .arguments import DataArguments, ModelArguments, Spa3RTrainingArguments, parse_arguments
from .figures import PSFMFigureCallback
from .model_card import pretraining_card
from .trainer import Spa3RTrainer, teacher_checkpoints

# Training scenes from which the statistics of `whiten_features` are measured.
WHITENING_SCENES = 64


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"The override of `{key}` must be a mapping of settings to values, got `{value}`.")
    return value


def build_config(args: ModelArguments) -> Spa3RConfig:
    """The architecture of a run: that of the preset or of `start_from`, with the overrides.

    Raises:
        ValueError: If the configuration has no such key, or a value is of the wrong kind.
    """
    overrides = parse_overrides(args.overrides)
    check_numbers(flatten(overrides))
    vggt, teachers = (_mapping(key, overrides.get(key, {})) for key in ("vggt_config", "teachers"))
    for name, teacher in teachers.items():
        _mapping(f"teachers.{name}", teacher)
    for config_class, changes in ((Spa3RConfig, overrides), (VGGTConfig, vggt)):
        if unknown := sorted(set(map(str, changes)) - set(config_class.__dataclass_fields__)):
            raise ValueError(f"`{config_class.__name__}` has no settings {unknown}; check the overrides.")
    if args.start_from is not None:
        require_checkpoint(args.start_from)
        base = load_config(Spa3RConfig, args.start_from).to_dict()
    else:
        base = load_preset(args.preset)
    return Spa3RConfig.from_dict(merge(base, overrides))


def check_teachers(config: Spa3RConfig, untrained: bool):
    """Refuse missing teachers before the model is built, which takes long.

    Args:
        config (`Spa3RConfig`): Names the checkpoints of the teachers.
        untrained (`bool`): Whether teachers may have no checkpoint.

    Raises:
        ValueError: If a teacher has no checkpoint, or one that cannot be read.
    """
    checkpoints = teacher_checkpoints(config)
    unnamed = [name for name, checkpoint in checkpoints.items() if checkpoint is None]
    if unnamed and not untrained:
        keys = ["vggt_checkpoint" if name == "vggt" else f"teachers.{name}.checkpoint" for name in unnamed]
        raise ValueError(
            f"There is no checkpoint of the teachers {', '.join(unnamed)}: give "
            f"`--overrides {' '.join(f'{key}=NAME' for key in keys)}`, or `--untrained_teachers true` for "
            "random ones."
        )
    for name, checkpoint in checkpoints.items():
        try:
            if checkpoint is not None:
                if damage := find_damaged_file(Path(checkpoint)):
                    raise OSError(damage)
                PreTrainedConfig.get_config_dict(checkpoint)
        except OSError as error:
            if name == "vggt":
                remedy = "make it with `spa3r convert vggt`, from a download of facebook/VGGT-1B"
            else:
                remedy = "give a folder, or accept its licence on the Hub and log in with `hf auth login`"
            raise ValueError(
                f"The checkpoint `{checkpoint}` of the teacher {name} could not be loaded ({first_line(error)}): "
                f"{remedy}."
            ) from None


def build_model(args: ModelArguments, from_scratch: bool = False) -> Spa3RForPreTraining:
    """The model of a run, with its teachers' weights.

    Args:
        args (`ModelArguments`): The architecture, and the weights to start from.
        from_scratch (`bool`, *optional*, defaults to `False`): See `SceneViewsArguments`.

    Raises:
        ValueError: If the configuration is wrong, or a teacher is missing.
    """
    config = build_config(args)
    if args.start_from is not None:
        if from_scratch:
            raise ValueError(f"`from_scratch` draws new weights, but `start_from` is {args.start_from}: choose one.")
        # Overrides may drop a target, whose weights the checkpoint still holds.
        return load_whole(Spa3RForPreTraining, args.start_from, may_hold_more=True, config=config)
    check_teachers(config, args.untrained_teachers)
    model = Spa3RForPreTraining(config)
    if from_scratch:
        initialize_for_scratch(model)
    model.load_teachers()
    return model


def build_views(args: DataArguments, training_args: Spa3RTrainingArguments) -> tuple[SceneViews, SceneViews | None]:
    """Views of the scenes to train on, and of the held-out ones."""
    if not args.scenes:
        raise ValueError("`scenes` is empty: give `--scenes KIND:FOLDER`, such as rooms:data/rooms.")
    excluded = read_excluded(args.exclude) if args.exclude else None
    scenes = load_scene_sources(args.scenes, excluded, args.exclude_may_match_nothing)
    train_scenes, held_out = split_scenes(scenes, args.held_out_scenes, seed=training_args.seed)
    options = {
        "image_width": args.image_width,
        "context_ratio": args.context_ratio,
        "seed": training_args.seed,
        "cameras": args.cameras,
        "depth": args.depth,
        "labels": training_args.object_weight != 1,
    }
    return SceneViews(train_scenes, **options), SceneViews(held_out, **options) if len(held_out) else None


def fit_whitening(model: Spa3RForPreTraining, views: SceneViews, num_views: int):
    """Measure the statistics of `whiten_features` on the first training scenes; every process finds the same."""
    requests = [(0, index, num_views) for index in range(min(WHITENING_SCENES, len(views)))]
    pixel_values = collate_views([views[request] for request in requests])["pixel_values"]
    model.eval().fit_whitening(pixel_values.to(model.device).float() / 255)


def settings_of_run(
    model: Spa3RForPreTraining,
    train_views: SceneViews,
    held_out_views: SceneViews | None,
    data_args: DataArguments,
    args: Spa3RTrainingArguments,
) -> dict[str, Any]:
    """Settings that decide the final weights of a run, by flat names such as `model.vggt_config.hidden_size`."""
    settings = training_settings(
        args, ("min_views", "max_views", "images_per_device", "from_scratch", "muon_learning_rate", "object_weight")
    )
    names = "scenes exclude held_out_scenes image_width context_ratio cameras depth"
    settings |= {name: getattr(data_args, name) for name in names.split()}
    settings["training_scenes"] = _digest(train_views.scenes)
    settings["evaluation_scenes"] = _digest(held_out_views.scenes) if held_out_views is not None else None
    # Runs of older versions did not record these settings.
    settings["compile_blocks"] = args.compile_blocks or None
    settings["bf16_teachers"] = args.bf16_teachers or None
    settings["start_from"] = model.config.name_or_path or None
    settings["model"] = model.config.to_diff_dict()
    flat = flatten(settings)
    return {name: value for name, value in flat.items() if name.split(".")[-1] != "transformers_version"}


def _digest(scenes: Dataset) -> dict[str, Any]:
    """Number of scenes, and a hash of their ids and numbers of frames."""
    columns = scenes["scene_id"], scenes["num_frames"]
    rows = sorted(f"{scene_id} {num_frames}" for scene_id, num_frames in zip(*columns, strict=True))
    return {"number": len(rows), "sha256": hashlib.sha256("\n".join(rows).encode()).hexdigest()}


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: Spa3RTrainingArguments
) -> tuple[Spa3RTrainer, Path | None]:
    """Build the trainer and find the checkpoint to continue from; wrong input is refused here, before training."""
    check_resumable(args)
    set_seed(args.seed)
    train_views, held_out_views = build_views(data_args, args)
    if held_out_views is None and args.eval_strategy != "no":
        raise ValueError(
            f"`eval_strategy` {args.eval_strategy.value} needs held-out scenes, got `held_out_scenes` "
            f"{data_args.held_out_scenes}: raise it, or set `eval_strategy: no`."
        )
    checkpoint = checkpoint_to_resume(args)
    model = build_model(model_args, args.from_scratch)
    for views in filter(None, (train_views, held_out_views)):
        views.patch_size = model.config.vggt_config.patch_size
    if model.config.whiten_features and model_args.start_from is None:
        fit_whitening(model, train_views, args.max_views)
    settings = settings_of_run(model, train_views, held_out_views, data_args, args)
    check_same_run(args.output_dir, settings, args.process_index == 0)
    make_repository(args)
    # Saved with the model, so that it can be given photos.
    processor = Spa3RImageProcessor(image_width=data_args.image_width, patch_size=model.config.vggt_config.patch_size)
    trainer = Spa3RTrainer(model, args, train_views, eval_dataset=held_out_views, processing_class=processor)
    if held_out_views is not None and data_args.figures:
        trainer.add_callback(PSFMFigureCallback(held_out_views, args.eval_views, data_args.figures))
    return trainer, checkpoint


def run(trainer: Spa3RTrainer, checkpoint: str | Path | None):
    """Train, save the self-contained model to `<output_dir>/model`, evaluate it, and push it where asked to."""
    final = train_and_save(trainer, checkpoint, trainer.save_model)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if not trainer.is_world_process_zero():
        return
    if trainer.report is not None:
        print(trainer.report.to_table())
        write_text(Path(trainer.args.output_dir) / "report.md", trainer.report.to_table() + "\n")
    write_card(final, pretraining_card(trainer.hub_model_id or str(final), trainer))
    print(f"The model is in {final}: AutoModel.from_pretrained({str(final)!r})")
    push_final_model(trainer, trainer.push_to_hub)


def main(arguments: list[str] | None = None):
    """Run `spa3r pretrain`."""
    model_args, data_args, args = parse_arguments(arguments)
    with only_run_in(args.output_dir, args.process_index == 0):
        trainer, checkpoint = build_trainer(model_args, data_args, args)
        run(trainer, checkpoint)
        end_run(trainer)
