"""`spa3r teach` as users run it: each teacher learns, is saved alone, resumes to the bit, and refuses wrong input."""

import shutil

import pytest
import torch
import yaml
from refusals import refused
from safetensors.torch import load_file
from transformers import AutoModel, TrainerCallback
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from spa3r import VGGTForGeometry
from spa3r.trainers.runs.recipes import parse_options
from spa3r.trainers.teaching.arguments import TeachingArguments
from spa3r.trainers.teaching.command import TeacherArguments
from spa3r.trainers.teaching.teach import build_trainer, run
from spa3r.trainers.teaching.trainer import group_views, in_order

RECIPE = {
    "preset": "spa3-vlm-tiny",
    "held_out_scenes": 1,
    "image_width": 56,
    "from_scratch": True,
    "min_views": 4,
    "max_views": 4,
    "images_per_device": 8,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": "none",
    "correspondence_weight": 0.5,
    "correspondence_layers": [0, 1],
    "dense_share": 0.5,
    "curriculum": ["0:2", "2:0"],
}
LOADERS = {
    "geometry": VGGTForGeometry,
    "semantic": AutoModel,
    "vision": Qwen2_5_VisionTransformerPretrainedModel,
}


class StopAfterTwoSteps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def build(folder, rooms, teacher="geometry", **changes):
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"teacher": teacher, "scenes": [f"rooms:{rooms}"]} | changes))
    arguments = ["--config", str(recipe), "--output_dir", str(folder / "run")]
    (args, training_args), _ = parse_options("teach", arguments, (TeacherArguments, TeachingArguments))
    return build_trainer(args, training_args)


@pytest.mark.parametrize("teacher", LOADERS)
def test_each_teacher_learns_and_is_saved_alone(teacher, rooms, tmp_path):
    trainer, checkpoint = build(tmp_path, rooms, teacher)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    run(trainer, checkpoint)
    trained = LOADERS[teacher].from_pretrained(tmp_path / "run" / "model").state_dict()
    prefix = "" if teacher == "geometry" else "backbone."
    changed = [name for name, value in trained.items() if not torch.equal(value, start[prefix + name])]
    assert {prefix + name for name in trained} <= start.keys()
    assert len(changed) > len(trained) / 2


def test_a_run_that_was_stopped_ends_with_the_weights_of_an_uninterrupted_one(rooms, tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    run(*build(tmp_path / "whole", rooms))
    stopped, _ = build(tmp_path / "stopped", rooms)
    stopped.add_callback(StopAfterTwoSteps())
    stopped.train()
    run(*build(tmp_path / "stopped", rooms))
    whole, resumed = (load_file(tmp_path / name / "run/model/model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_scenes_without_depth_are_refused(tmp_path, rooms):
    bare = tmp_path / "rooms"
    shutil.copytree(rooms, bare, ignore=shutil.ignore_patterns("depth"))
    with refused("room_000000", "depth"):
        build(tmp_path, bare)


def test_a_vision_tower_without_held_out_scenes_is_refused_before_training(rooms, tmp_path):
    with refused("`held_out_scenes`", "0"):
        build(tmp_path, rooms, "vision", held_out_scenes=0)


def test_scenes_without_categories_are_refused(tmp_path, rooms):
    bare = tmp_path / "rooms"
    shutil.copytree(rooms, bare, ignore=shutil.ignore_patterns("label-filt"))
    with refused("room_000000", "label-filt"):
        build(tmp_path, bare, "semantic")


@pytest.mark.parametrize("entry", ["2", "0:1", "a:2", "0:b"])
def test_a_curriculum_that_cannot_be_read_is_refused(entry, tmp_path):
    with refused("`curriculum`", entry):
        TeachingArguments(output_dir=str(tmp_path), curriculum=[entry], use_cpu=True)


def test_a_curriculum_ends_with_whole_scenes(tmp_path):
    args = TeachingArguments(output_dir=str(tmp_path), curriculum=["0:2", "10:4", "20:0"], use_cpu=True)
    assert [args.views_at(step) for step in (0, 9, 10, 19, 20, 99)] == [2, 2, 4, 4, 0, 0]


def test_views_are_put_into_the_order_of_their_frames():
    batch = {"pixel_values": torch.tensor([[3, 1, 2], [6, 5, 4]]), "frame_indices": [[30, 10, 20], [6, 5, 4]]}
    assert in_order(batch)["pixel_values"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_groups_are_neighbouring_views_and_leave_out_the_rest():
    batch = {"pixel_values": torch.arange(10).reshape(2, 5)}
    assert group_views(batch, 2)["pixel_values"].tolist() == [[0, 1], [2, 3], [5, 6], [7, 8]]


def test_without_weight_colors_are_not_learned(rooms, tmp_path):
    trainer, _ = build(tmp_path, rooms, "semantic", color_weight=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
    per_patch = trainer.model.num_categories + 3
    gradient = trainer.model.head.weight.grad.unflatten(0, (-1, per_patch))
    assert gradient[:, :-3].abs().sum() > 0 and not gradient[:, -3:].any()
