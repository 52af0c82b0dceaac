"""Training of Spa3R's teachers: what `spa3r teach` does."""

import copy
import sys
from pathlib import Path

import torch.nn.functional as F
from transformers import AutoModel, PreTrainedModel, set_seed
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from ...configuration import Spa3RConfig, Spa3VLMConfig, load_preset
from ...data_scripts.common.locks import only_run_in
from ...data_scripts.rooms.labels import LABELS
from ...data_scripts.scenes.index import load_scene_sources, split_scenes
from ...data_scripts.scenes.views import SceneViews
from ...modeling_spa3r.checkpoints.loading import load_whole, require_checkpoint
from ...modeling_spa3r.vggt.modeling_vggt import VGGTForGeometry
from ..runs.distributed import end_run
from ..runs.initialization import initialize_for_scratch
from ..runs.publish import make_repository, train_and_save
from ..runs.recipes import parse_options
from ..runs.resume import checkpoint_to_resume
from ..runs.settings import check_resumable, check_same_run, flatten, training_settings
from .arguments import TeachingArguments
from .categories import PatchClassifier, standardize_tokens
from .command import TeacherArguments
from .trainer import CategoryTrainer, GeometryTrainer, TeachingTrainer

TEACHERS = {
    "geometry": VGGTForGeometry,
    "semantic": AutoModel,
    "vision": Qwen2_5_VisionTransformerPretrainedModel,
}
# Settings of a run, besides the Trainer's, that decide the weights.
DECISIVE = (
    "min_views max_views images_per_device from_scratch muon_learning_rate normalize_scenes correspondence_weight "
    "correspondence_layers dense_share color_weight curriculum"
).split()


def build_teacher(args: TeacherArguments) -> PreTrainedModel:
    """The model to teach: from `start_from`, or with fresh weights and the architecture of the preset."""
    options = {} if args.attn_implementation is None else {"attn_implementation": args.attn_implementation}
    if args.start_from is not None:
        require_checkpoint(args.start_from)
        return load_whole(TEACHERS[args.teacher], args.start_from, **options)
    if args.teacher == "semantic":
        vision_config = spa3r_config(args.preset).teacher_config("semantic").vision_config
        return AutoModel.from_config(vision_config, **options)
    if args.teacher == "vision":
        config = Spa3VLMConfig.from_dict(load_preset(args.preset)).vlm_config.vision_config
    else:
        config = spa3r_config(args.preset).vggt_config
    return TEACHERS[args.teacher]._from_config(config, **options)


def spa3r_config(preset: str) -> Spa3RConfig:
    """The Spa3R of a preset, which may be that of a Spa3-VLM."""
    settings = load_preset(preset)
    if settings.get("model_type") == "spa3_vlm":
        return Spa3VLMConfig.from_dict(settings).spatial_config
    return Spa3RConfig.from_dict(settings)


def build_views(args: TeacherArguments, training_args: TeachingArguments) -> tuple[SceneViews, SceneViews]:
    """Views of the scenes to learn from, and of the held-out ones."""
    if not args.scenes:
        raise ValueError("`scenes` is empty: give `--scenes KIND:FOLDER`, such as rooms:data/rooms.")
    scenes = load_scene_sources(args.scenes, exclude=args.exclude)
    is_geometry = args.teacher == "geometry"
    options = {"image_width": args.image_width, "seed": training_args.seed}
    options |= {"cameras": is_geometry, "depth": is_geometry, "labels": not is_geometry}
    train, held_out = split_scenes(scenes, args.held_out_scenes, seed=training_args.seed)
    return SceneViews(train, **options), SceneViews(held_out, **options)


def build_trainer(args: TeacherArguments, training_args: TeachingArguments) -> tuple[TeachingTrainer, Path | None]:
    """Build the trainer and find the checkpoint to continue from; wrong input is refused here, before training."""
    check_resumable(training_args)
    set_seed(training_args.seed)
    train_views, held_out_views = build_views(args, training_args)
    if args.teacher == "vision" and not len(held_out_views):
        raise ValueError(
            f"`held_out_scenes` must be at least 1 for the teacher vision, got {args.held_out_scenes}: raise it. "
            "Tokens are standardized over these scenes."
        )
    checkpoint = checkpoint_to_resume(training_args)
    teacher = build_teacher(args)
    if training_args.from_scratch:
        if args.start_from is not None:
            raise ValueError(f"`from_scratch` draws new weights, but `start_from` is {args.start_from}: choose one.")
        initialize_for_scratch(teacher)
    settings = training_settings(training_args, DECISIVE) | {
        "teacher": args.teacher,
        "scenes": args.scenes,
        "exclude": args.exclude,
        "held_out_scenes": args.held_out_scenes,
        "image_width": args.image_width,
        "number_of_scenes": len(train_views),
        "model": teacher.config.to_diff_dict(),
    }
    check_same_run(training_args.output_dir, flatten(settings), training_args.process_index == 0)
    make_repository(training_args)
    if args.teacher == "geometry":
        return GeometryTrainer(teacher, training_args, train_views, eval_dataset=held_out_views), checkpoint
    classifier = PatchClassifier(teacher, category_size(args, teacher), len(LABELS))
    return CategoryTrainer(classifier, training_args, train_views, eval_dataset=held_out_views), checkpoint


def category_size(args: TeacherArguments, teacher: PreTrainedModel) -> tuple[int, int]:
    """Height and width in pixels that images are resized to: as Spa3R and Spa3-VLM resize them."""
    if args.teacher == "semantic":
        side = spa3r_config(args.preset).teacher_config("semantic").image_size
        return side, side
    side = teacher.config.patch_size * teacher.config.spatial_merge_size
    width = args.image_width // side * side
    return width * 3 // 4 // side * side, width


def run(trainer: TeachingTrainer, checkpoint: Path | None):
    """Train, save the teacher alone to `<output_dir>/model`, and evaluate it."""

    def save(folder: str):
        if trainer.args.should_save:
            finished_teacher(trainer).save_pretrained(folder)

    final = train_and_save(trainer, checkpoint, save)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        print("\n".join(f"{name.removeprefix('eval_'):24}{value:10.4f}" for name, value in metrics.items()))
        print(f"The teacher is in {final}.")


def finished_teacher(trainer: TeachingTrainer) -> PreTrainedModel:
    """The taught model alone; the tokens of a vision tower are standardized over the held-out scenes."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not getattr(model, "is_qwen", False):
        return getattr(model, "backbone", model)
    tower = copy.deepcopy(model.backbone).eval()  # the head of the model still reads the old tokens
    images = (batch["pixel_values"].flatten(0, 1) for batch in trainer.held_out_batches())
    standardize_tokens(tower, (F.interpolate(each, model.image_size, mode="bilinear") for each in images))
    return tower


def main(arguments: list[str] | None = None):
    """Run `spa3r teach`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    (args, training_args), _ = parse_options("teach", arguments, (TeacherArguments, TeachingArguments))
    with only_run_in(training_args.output_dir, training_args.process_index == 0):
        trainer, checkpoint = build_trainer(args, training_args)
        run(trainer, checkpoint)
        end_run(trainer)
