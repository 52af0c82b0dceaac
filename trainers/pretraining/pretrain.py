"""Pre-train Spa3R by Predictive Spatial Field Modeling.

    spa3r pretrain --config rooms-cpu
    accelerate launch --config_file configuration/accelerate/ddp.yaml pretrain.py --config spa3r-paper \\
        --scenes scannet:data/scannet scannetpp:data/scannetpp --output_dir runs/spa3r

A recipe is a YAML file with any of the options; options on the command line win. The same command, run again,
continues from the last complete checkpoint of its output folder. The final model is in <output_dir>/model.
"""

import argparse
import hashlib
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig, set_seed
from transformers.utils import logging

from ...configuration import Spa3RConfig, VGGTConfig, load_preset
from ...data_scripts.common.files import write_text
from ...data_scripts.scenes.index import load_scene_sources, split_scenes
from ...data_scripts.scenes.views import SceneViews
from ...modeling_spa3r.checkpoints.cards import write_card
from ...modeling_spa3r.spa3r.modeling_spa3r import Spa3RForPreTraining
from ..runs.recipes import find_recipe, hide_rare_options, read_recipe, set_recipe, split_config
from ..runs.resume import check_same_run, checkpoint_to_resume, first_line, flatten, train
from .figures import PSFMFigureCallback
from .model_card import pretraining_card
from .trainer import Spa3RTrainer, Spa3RTrainingArguments, teacher_checkpoints

__all__ = ["main"]

COMMON_OPTIONS = set(
    "output_dir gradient_accumulation_steps warmup_steps bf16 gradient_checkpointing logging_steps eval_strategy "
    "eval_steps save_steps seed dataloader_num_workers report_to use_cpu push_to_hub hub_model_id "
    "resume_from_checkpoint".split()
)


@dataclass
class ModelArguments:
    """What is trained."""

    preset: str = field(
        default="spa3r-base", metadata={"help": "Architecture: a preset's name, a config.json, or its folder."}
    )
    overrides: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Changes to the architecture, over those of the recipe: KEY=VALUE with dots for nested keys; a "
            "mapping in a recipe."
        },
    )
    start_from: str | None = field(
        default=None, metadata={"help": "Pre-trained Spa3R (folder or hub name) whose weights to start from."}
    )
    untrained_teachers: bool = field(
        default=False,
        metadata={"help": "Allow teachers without a checkpoint: seeded noise, for tests and the quickstart."},
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    scenes: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Sources, KIND:FOLDER, or KIND:FOLDER@LOW-HIGH to set the interval of frames; "
            "kinds are scannet, scannetpp, rooms, folders (of images), videos."
        },
    )
    exclude: str | None = field(
        default=None, metadata={"help": "File with one scene id a line that must not be used (benchmark scenes)."}
    )
    held_out_scenes: int = field(default=8, metadata={"help": "Scenes kept for evaluation."})
    image_width: int = field(default=518, metadata={"help": "Images are resized to this width."})
    context_ratio: float = field(default=0.5, metadata={"help": "Share of a scene's views that the encoder sees."})
    cameras: bool = field(default=False, metadata={"help": "Use the scenes' cameras instead of VGGT's estimates."})
    depth: bool = field(default=False, metadata={"help": "Teach the depth probe the scenes' depth instead of VGGT's."})
    figures: int = field(default=4, metadata={"help": "Held-out scenes drawn at each evaluation."})


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, Spa3RTrainingArguments]:
    """Read the command line, over the recipe that it names, over the defaults.

    Overrides of the architecture come back as one mapping: those of the recipe with those of the command line over
    them.

    Raises:
        ValueError: For a recipe that does not exist, a key that no option has, or overrides that cannot be read.
    """
    name, rest = split_config(sys.argv[1:] if argv is None else argv)
    recipe = {} if name is None else read_recipe(find_recipe(name, of_tuning=False))

    parser = HfArgumentParser(
        (ModelArguments, DataArguments, Spa3RTrainingArguments),
        prog="spa3r pretrain",
        usage="spa3r pretrain [--config RECIPE] [--OPTION VALUE ...]",
        description=__doc__,
        epilog="Every other option of transformers.TrainingArguments is understood as well.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="Recipe: a YAML file, or the name of one in configuration/recipes.")
    ours = {option.name for arguments in (ModelArguments, DataArguments) for option in fields(arguments)}
    hide_rare_options(parser, ours | set(Spa3RTrainingArguments.__annotations__) | COMMON_OPTIONS)
    set_recipe(recipe, parser, name)
    model_args, data_args, training_args, _ = parser.parse_args_into_dataclasses(rest)
    model_args.overrides = _merge(_nested(recipe.get("overrides", {})), _nested(model_args.overrides))
    return model_args, data_args, training_args


def _nested(overrides: list[str] | dict[str, Any]) -> dict[str, Any]:
    """Bring `a.b=value` to `{"a": {"b": value}}`; values are read as YAML."""
    if isinstance(overrides, dict):
        return overrides
    if not isinstance(overrides, list):
        raise ValueError(f"`overrides` must be a mapping or a list of KEY=VALUE, got `{overrides}`.")
    nested: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = str(override).partition("=")
        if not equals:
            raise ValueError(f"An override must read KEY=VALUE, got `{override}`.")
        try:
            change = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"The value of the override `{override}` is not YAML.") from None
        for part in reversed(key.split(".")):
            change = {part: change}
        nested = _merge(nested, change)
    return nested


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(merged.get(key), dict):
            value = _merge(merged[key], _mapping(key, value))
        merged[key] = value
    return merged


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"The override of `{key}` must be a mapping of settings to values, got `{value}`.")
    return value


def build_config(args: ModelArguments) -> Spa3RConfig:
    """The architecture of a run: a preset, or what `start_from` holds, with the overrides.

    Raises:
        ValueError: For an override of a key that the configuration does not have, or of a wrong kind.
    """
    overrides = _nested(args.overrides)
    vggt, teachers = (_mapping(key, overrides.get(key, {})) for key in ("vggt_config", "teachers"))
    for name, teacher in teachers.items():
        _mapping(f"teachers.{name}", teacher)
    for config_class, changes in ((Spa3RConfig, overrides), (VGGTConfig, vggt)):
        if unknown := sorted(set(map(str, changes)) - set(config_class.__dataclass_fields__)):
            raise ValueError(f"`{config_class.__name__}` has no settings {unknown}; check the overrides.")
    if args.start_from is not None:
        base = Spa3RConfig.from_pretrained(args.start_from).to_dict()
    else:
        base = load_preset(args.preset)
    return Spa3RConfig.from_dict(_merge(base, overrides))


def check_teachers(config: Spa3RConfig, untrained: bool):
    """Refuse teachers that cannot be had before a model is built, which takes long.

    Args:
        config (`Spa3RConfig`): Names the teachers' checkpoints.
        untrained (`bool`): Whether teachers may go without one.

    Raises:
        ValueError: If a teacher has no checkpoint, or one that does not exist or may not be read.
    """
    checkpoints = teacher_checkpoints(config)
    unnamed = [name for name, checkpoint in checkpoints.items() if checkpoint is None]
    if unnamed and not untrained:
        keys = ["vggt_checkpoint" if name == "vggt" else f"teachers.{name}.checkpoint" for name in unnamed]
        raise ValueError(
            f"Pre-training needs trained teachers, but there is no checkpoint of {', '.join(unnamed)}: give "
            f"`--overrides {' '.join(f'{key}=NAME' for key in keys)}`, or `--untrained_teachers true` to learn from "
            "noise."
        )
    for name, checkpoint in checkpoints.items():
        try:
            if checkpoint is not None:
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


def build_model(args: ModelArguments) -> Spa3RForPreTraining:
    """The model of a run, with its teachers' weights.

    Raises:
        ValueError: If the configuration is wrong, or a teacher cannot be had.
    """
    config = build_config(args)
    if args.start_from is not None:
        return Spa3RForPreTraining.from_pretrained(args.start_from, config=config)
    check_teachers(config, args.untrained_teachers)
    model = Spa3RForPreTraining(config)
    model.load_teachers()
    return model


def build_views(args: DataArguments, training_args: Spa3RTrainingArguments) -> tuple[SceneViews, SceneViews | None]:
    """Views of the scenes to train on, and of the held-out ones."""
    if not args.scenes:
        raise ValueError("There are no scenes to train on: give `--scenes KIND:FOLDER`, such as rooms:data/rooms.")
    scenes = load_scene_sources(args.scenes, exclude=args.exclude)
    train_scenes, held_out = split_scenes(scenes, args.held_out_scenes, seed=training_args.seed)
    options = {
        "image_width": args.image_width,
        "context_ratio": args.context_ratio,
        "seed": training_args.seed,
        "cameras": args.cameras,
        "depth": args.depth,
    }
    return SceneViews(train_scenes, **options), SceneViews(held_out, **options) if len(held_out) else None


def settings_of_run(
    model: Spa3RForPreTraining,
    train_views: SceneViews,
    held_out_views: SceneViews | None,
    data_args: DataArguments,
    args: Spa3RTrainingArguments,
) -> dict[str, Any]:
    """What decides the weights that a run ends with, by flat names such as `model.vggt_config.hidden_size`."""
    names = (
        "seed data_seed min_views max_views images_per_device max_steps learning_rate weight_decay lr_scheduler_type "
        "lr_scheduler_kwargs warmup_steps gradient_accumulation_steps max_grad_norm optim world_size"
    )
    settings = {name: getattr(args, name) for name in names.split()}
    settings |= {name: str(settings[name]) for name in ("lr_scheduler_type", "optim")}
    # A launch file has a say in this, too.
    settings |= {precision: args.mixed_precision == precision for precision in ("bf16", "fp16")}
    names = "scenes exclude held_out_scenes image_width context_ratio cameras depth"
    settings |= {name: getattr(data_args, name) for name in names.split()}
    settings["training_scenes"] = _digest(train_views.scenes)
    settings["evaluation_scenes"] = _digest(held_out_views.scenes) if held_out_views is not None else None
    settings["start_from"] = model.config.name_or_path or None
    settings["model"] = model.config.to_diff_dict()
    flat = flatten(settings)
    return {name: value for name, value in flat.items() if name.split(".")[-1] != "transformers_version"}


def _digest(scenes: Dataset) -> dict[str, Any]:
    """Tells one set of scenes from another: their number, and a hash of their ids and numbers of frames."""
    columns = scenes["scene_id"], scenes["num_frames"]
    rows = sorted(f"{scene_id} {num_frames}" for scene_id, num_frames in zip(*columns, strict=True))
    return {"number": len(rows), "sha256": hashlib.sha256("\n".join(rows).encode()).hexdigest()}


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: Spa3RTrainingArguments
) -> tuple[Spa3RTrainer, Path | None]:
    """Everything that can be refused before training begins: the trainer, and the checkpoint to continue from."""
    set_seed(args.seed)
    train_views, held_out_views = build_views(data_args, args)
    if held_out_views is None and args.eval_strategy != "no":
        raise ValueError("Evaluation needs held-out scenes: raise `held_out_scenes` or set `eval_strategy: no`.")
    checkpoint = checkpoint_to_resume(args)
    model = build_model(model_args)
    settings = settings_of_run(model, train_views, held_out_views, data_args, args)
    check_same_run(args.output_dir, settings, args.process_index == 0)
    trainer = Spa3RTrainer(model, args, train_views, eval_dataset=held_out_views)
    if held_out_views is not None and data_args.figures:
        trainer.add_callback(PSFMFigureCallback(held_out_views, args.eval_views, data_args.figures))
    return trainer, checkpoint


def run(trainer: Spa3RTrainer, checkpoint: str | Path | None):
    """Train, save the self-contained model to `<output_dir>/model`, evaluate it, and push it where asked to."""
    args = trainer.args
    train(trainer, checkpoint)

    final = trainer.final_folder
    trainer.save_final_model()
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if not trainer.is_world_process_zero():
        return
    if trainer.report is not None:
        print(trainer.report.to_table())
        write_text(Path(args.output_dir) / "report.md", trainer.report.to_table() + "\n")
    name = trainer.hub_model_id or str(final)
    write_card(final, pretraining_card(name, trainer))
    print(f"The model is in {final}: AutoModel.from_pretrained({str(final)!r})")
    if args.push_to_hub:
        push(trainer)


def push(trainer: Spa3RTrainer):
    """Upload the final model; where that fails, say where it lies and how to upload it later."""
    try:
        trainer.push_to_hub()
    # Whatever it is (the Hub, the network, the token): the model is safe, and the user must learn how to go on.
    except Exception as error:
        repository, folder = trainer.hub_model_id, trainer.final_folder
        raise SystemExit(
            f"spa3r pretrain: the model is trained and lies in {folder}, but uploading it failed "
            f"({first_line(error)}); do it later with: hf upload {repository} {shlex.quote(str(folder))} ."
        ) from error
    print(f"It is on the Hub, too: AutoModel.from_pretrained({trainer.hub_model_id!r})")


def main(argv: list[str] | None = None):
    """Entry point of `spa3r pretrain`."""
    logging.set_verbosity_info()
    try:
        trainer, checkpoint = build_trainer(*parse_arguments(argv))
    except (OSError, ImportError) as error:
        raise SystemExit(f"spa3r pretrain: {first_line(error)}") from None
    except (ValueError, StrictDataclassError) as error:
        raise SystemExit(f"spa3r pretrain: {' '.join(str(error).split())}") from None
    try:
        run(trainer, checkpoint)
    except FloatingPointError as error:
        raise SystemExit(f"spa3r pretrain: {error}") from None


if __name__ == "__main__":
    main()
