"""Pre-training as users run it: recipes, trained and saved weights, refusals, and resuming after a kill."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_pretraining import TINY_RECIPE
from transformers import AutoImageProcessor, AutoModel, TrainerCallback
from two_processes import ready_on_cpu

from spa3r import Spa3RForPreTraining, VGGTForGeometry
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.trainers.integrations.cli import main
from spa3r.trainers.pretraining import trainer as trainer_module
from spa3r.trainers.pretraining.arguments import ModelArguments, Spa3RTrainingArguments, parse_arguments
from spa3r.trainers.pretraining.pretrain import (
    build_config,
    build_model,
    build_trainer,
    run,
)
from spa3r.trainers.runs.errors import NotWrittenError
from spa3r.trainers.runs.publish import replace_folder
from spa3r.trainers.runs.recipes import RECIPES, read_recipe
from spa3r.trainers.runs.resume import last_complete_checkpoint

TINY = TINY_RECIPE | {
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "lr_scheduler_type": "cosine",
}


def write_recipe(folder, rooms, **changes):
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(TINY | {"scenes": [f"rooms:{rooms}"]} | changes))
    return str(recipe)


def build(folder, rooms, **changes):
    """The trainer of a run in `folder/run`, and the checkpoint that it continues from."""
    recipe = write_recipe(folder, rooms, **({"max_steps": 4, "save_steps": 2} | changes))
    return build_trainer(*parse_arguments(["--config", recipe, "--output_dir", str(folder / "run")]))


def train(folder, rooms, **changes):
    """Train in this process; returns the trainer and the folder of the run."""
    output = folder / "run"
    trainer, checkpoint = build(folder, rooms, **changes)
    run(trainer, checkpoint)
    return trainer, output


@pytest.fixture(scope="module")
def finished(tmp_path_factory, rooms):
    return train(tmp_path_factory.mktemp("finished"), rooms)


def test_blocks_are_compiled_if_asked_for(tmp_path, rooms, monkeypatch):
    compiled = []
    monkeypatch.setattr(trainer_module, "compile_blocks", compiled.append)
    trainer, _ = build(tmp_path, rooms, compile_blocks=True)
    assert compiled == [trainer.model]


def test_teachers_in_bfloat16_leave_what_trains_in_float32_and_the_loss_close(tmp_path, rooms):
    losses = []
    for name, options in (("whole", {}), ("halved", {"bf16_teachers": True})):
        (tmp_path / name).mkdir()
        trainer, _ = train(tmp_path / name, rooms, bf16=True, max_steps=2, **options)
        losses.append([float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry])
    frozen = {parameter.dtype for module in trainer.model.teachers.values() for parameter in module.parameters()}
    frozen |= {parameter.dtype for parameter in trainer.model.model.vggt.parameters()}
    trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert frozen == {torch.bfloat16} and trained == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


def test_a_model_trained_beside_teachers_in_bfloat16_is_saved_in_one_dtype(tmp_path, rooms):
    _, output = train(tmp_path, rooms, bf16=True, bf16_teachers=True)
    for folder in (output / "model", output / "checkpoint-4"):
        model = Spa3RForPreTraining.from_pretrained(folder)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_teachers_in_bfloat16_need_training_in_bfloat16(tmp_path, rooms):
    with pytest.raises(ValueError, match="bf16"):
        build(tmp_path, rooms, bf16_teachers=True)


def test_training_changes_what_trains_and_nothing_else(finished):
    trainer, output = finished
    torch.manual_seed(0)
    start = Spa3RForPreTraining(trainer.model.config)
    start.load_teachers()
    trained = Spa3RForPreTraining.from_pretrained(output / "model").state_dict()
    frozen = tuple(f"{name}." for name in start.frozen_modules())
    for name, before in start.state_dict().items():
        assert torch.equal(before, trained[name]) == name.startswith(frozen), name


def test_every_named_loss_is_logged(finished):
    trainer, _ = finished
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ["geometry_l1", "geometry_cosine", "semantic_l1", "semantic_cosine", "depth_probe"]
    assert len(entries) == 4
    for entry in entries:
        assert sum(entry[f"loss_{name}"] for name in names) == pytest.approx(float(entry["loss"]), rel=1e-3)


def test_checkpoints_hold_what_trains_and_the_final_model_everything(finished):
    trainer, output = finished
    names = set(trainer.model.state_dict())
    frozen = {name for name in names if name.startswith(tuple(f"{n}." for n in trainer.model.frozen_modules()))}
    assert set(load_file(output / "checkpoint-4" / "model.safetensors")) == names - frozen
    _, info = Spa3RForPreTraining.from_pretrained(output / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_the_trained_model_saves_itself_with_its_teachers(finished, tmp_path):
    trainer, _ = finished
    trainer.model.save_pretrained(tmp_path)
    _, info = Spa3RForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that no run made: its teachers are inside and have no name."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("start") / "model"
    Spa3RForPreTraining(Spa3RConfig.from_dict(load_preset("spa3r-tiny"))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("change", ["unrelated", "missing", "shape"])
def test_a_model_to_start_from_with_other_weights_is_refused(change, start, tmp_path):
    shutil.copytree(start, tmp_path / "start")
    weights = load_file(start / "model.safetensors")
    if change == "shape":
        weights["model.latent_queries"] = weights["model.latent_queries"][:2].clone()
    else:
        del weights["model.latent_queries"]
    weights = {"other.weight": torch.zeros(2)} if change == "unrelated" else weights
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    named = "`" if change == "unrelated" else "`model.latent_queries"  # one of many, or the only one
    with pytest.raises(ValueError, match=rf"start` .*(?s:.*){named}"):
        build_model(ModelArguments(start_from=str(tmp_path / "start")))


def test_checkpoints_of_a_run_from_a_model_with_unnamed_teachers_hold_them(start, tmp_path, rooms):
    trainer, output = train(tmp_path, rooms, start_from=str(start), untrained_teachers=False)
    checkpoint = Spa3RForPreTraining.from_pretrained(output / "checkpoint-4").state_dict()
    teachers = Spa3RForPreTraining.from_pretrained(start).state_dict()
    frozen = tuple(f"{name}." for name in trainer.model.frozen_modules())
    names = [name for name in teachers if name.startswith(frozen)]
    assert names and all(torch.equal(checkpoint[name], teachers[name]) for name in names)


def test_checkpoint_of_training_and_final_model_load_alike(finished):
    _, output = finished
    views = torch.rand(1, 3, 3, 42, 56)
    final = AutoModel.from_pretrained(output / "model").eval()
    checkpoint = AutoModel.from_pretrained(output / "checkpoint-4").eval()
    torch.testing.assert_close(checkpoint(views).latents, final(views).latents)


def test_evaluation_is_reported_and_logged(finished):
    trainer, output = finished
    assert (output / "report.md").read_text().strip() == trainer.report.to_table()
    assert any("eval_geometry_cosine_own" in entry for entry in trainer.state.log_history)


def test_unreadable_frames_are_counted_and_named(tmp_path, rooms, caplog):
    copy = tmp_path / "rooms"
    shutil.copytree(rooms, copy)
    for scene in copy.iterdir():
        if scene.is_dir():
            (scene / "color" / "3.jpg").write_bytes(b"not a JPEG")
    trainer, _ = train(tmp_path, copy)
    assert trainer.replaced_frames
    assert all("3.jpg" in reason for reason in trainer.replaced_frames)
    assert "3.jpg" in caplog.text


def test_a_run_that_was_killed_after_its_last_checkpoint_takes_no_further_step(tmp_path, rooms):
    settings = {"max_steps": 3, "gradient_accumulation_steps": 1, "held_out_scenes": 0, "images_per_device": 6}
    before, output = train(tmp_path, rooms, **settings)
    assert before.state.epoch % 1  # a run that ends within an epoch
    shutil.rmtree(output / "model")
    after, _ = train(tmp_path, rooms, **settings)
    assert after.state.global_step == 3
    weights = after.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 5e-4}, "`learning_rate` was 0.001, is 0.0005"),
        ({"overrides": {"vggt_config": {"mlp_ratio": 2.0}}}, "`model.vggt_config.mlp_ratio` was 4.0, is 2.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_with_other_settings_is_refused(changes, named, finished, tmp_path, rooms):
    recipe = write_recipe(tmp_path, rooms, max_steps=4, **changes)
    with pytest.raises(ValueError, match=re.escape(named)):
        build_trainer(*parse_arguments(["--config", recipe, "--output_dir", str(finished[1])]))


def test_another_precision_of_the_launch_file_makes_another_run(finished, tmp_path, rooms, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    recipe = write_recipe(tmp_path, rooms, max_steps=4)
    with pytest.raises(ValueError, match="`bf16` was False, is True"):
        build_trainer(*parse_arguments(["--config", recipe, "--output_dir", str(finished[1])]))


@pytest.fixture
def copied(finished, tmp_path, rooms):
    """A copy of the rooms, and beside it of a run that was trained on them."""
    shutil.copytree(rooms, tmp_path / "rooms")
    shutil.copytree(finished[1], tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "run.json").read_text()) | {"scenes": [f"rooms:{tmp_path / 'rooms'}"]}
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    return tmp_path


def test_added_scenes_make_another_run(copied):
    assert build(copied, copied / "rooms")[1].name == "checkpoint-4"
    shutil.copytree(next(copied.glob("rooms/*/color")).parent, copied / "rooms" / "added")
    with pytest.raises(ValueError, match="`training_scenes.number` was 4, is 5"):
        build(copied, copied / "rooms")


def test_lost_frames_make_another_run(copied):
    for color in copied.glob("rooms/*/color"):
        (color / "7.jpg").unlink()
    with pytest.raises(ValueError, match="`training_scenes.sha256`"):
        build(copied, copied / "rooms")


def test_a_library_update_does_not_end_a_run(finished):
    _, output = finished
    assert not [name for name in json.loads((output / "run.json").read_text()) if "version" in name]


@pytest.mark.parametrize("value", ["true", True])
def test_to_resume_means_from_the_last_complete_checkpoint(value, finished, tmp_path, rooms):
    _, output = finished
    recipe = write_recipe(tmp_path, rooms, max_steps=4, save_steps=2, resume_from_checkpoint=value)
    _, checkpoint = build_trainer(*parse_arguments(["--config", recipe, "--output_dir", str(output)]))
    assert checkpoint == output / "checkpoint-4"


@pytest.mark.parametrize(("strategy", "step"), [("steps", 1), ("no", 3)])
def test_weights_that_are_not_finite_end_the_run_and_are_not_saved(strategy, step, tmp_path, rooms):
    saving = {"save_strategy": strategy, "save_steps": 1, "max_steps": 3}
    trainer, _ = build(tmp_path, rooms, logging_steps=4, **saving)
    with torch.no_grad():
        trainer.model.heads["geometry"].fc2.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=f"step {step} .*`loss_geometry_cosine` = nan"):
        run(trainer, None)
    assert not list((tmp_path / "run").glob("**/model.safetensors"))


def test_cameras_and_depth_reach_the_model_unrounded_under_deepspeed(tmp_path, rooms):
    trainer, _ = build(tmp_path, rooms)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.is_deepspeed_enabled = True
    inputs = trainer._prepare_inputs(batch)
    for name in ("extrinsics", "intrinsics", "depth"):
        assert torch.equal(inputs[name], batch[name]) and inputs[name].dtype == torch.float32


def test_one_process_refuses_several_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="--num_processes 2"):
        Spa3RTrainingArguments(str(tmp_path))


class FillDisk(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            checkpoint = Path(args.output_dir) / "checkpoint-2"
            checkpoint.mkdir()
            (checkpoint / "optimizer.pt").symlink_to("/dev/full")


def test_a_full_disk_ends_the_run_by_the_name_of_the_checkpoint(tmp_path, rooms):
    trainer, _ = build(tmp_path, rooms)
    trainer.add_callback(FillDisk())
    with pytest.raises(NotWrittenError, match="checkpoint-2"):
        run(trainer, None)


def test_a_final_model_replaces_an_older_one_completely(finished, tmp_path, rooms):
    _, output = finished
    trainer, _ = build(tmp_path, rooms)
    for folder in ("model", ".model.partial"):
        (tmp_path / "run" / folder).mkdir()
        (tmp_path / "run" / folder / "rest.bin").touch()
    replace_folder(trainer, tmp_path / "run" / "model", trainer.save_model)
    written = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "run" / "model").iterdir()} == written
    assert not (tmp_path / "run" / ".model.partial").exists()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert processor.image_width == trainer.train_dataset.image_width


# All but those of instruction tuning.
PRETRAINING = sorted(path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith(("spa3-vlm-", "teach-")))


@pytest.mark.parametrize("recipe", PRETRAINING)
def test_every_recipe_describes_a_run(recipe, tmp_path):
    # The precision depends on the machine; all other options must be accepted.
    model_args, data_args, training_args = parse_arguments(
        ["--config", recipe, "--bf16", "false", "--tf32", "false", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    )
    with torch.device("meta"):
        model = Spa3RForPreTraining(build_config(model_args))
    assert set(model.heads) == set(model.config.targets)
    assert data_args.scenes and training_args.max_steps > 0


def test_overrides_reach_nested_settings():
    args = ModelArguments("spa3r-tiny", ["vggt_config.global_qk_norm=rms_norm", "targets=[geometry]"])
    config = build_config(args)
    assert config.vggt_config.global_qk_norm == "rms_norm"
    assert config.vggt_config.hidden_size == load_preset("spa3r-tiny")["vggt_config"]["hidden_size"]
    assert config.targets == ["geometry"]


def test_overrides_of_the_command_line_add_to_those_of_the_recipe(tmp_path):
    overrides = read_recipe("spa3r-paper", "pretrain")["overrides"]
    args = ["--config", "spa3r-paper", "--bf16", "false", "--tf32", "false", "--output_dir", str(tmp_path)]
    args += ["--overrides", "num_latents=128", "teachers.semantic.image_size=256"]
    config = build_config(parse_arguments(args)[0])
    assert (config.num_latents, config.teachers["semantic"]["image_size"]) == (128, 256)
    assert config.vggt_checkpoint == overrides["vggt_checkpoint"]
    assert config.teachers["semantic"]["checkpoint"] == overrides["teachers"]["semantic"]["checkpoint"]


def test_named_teachers_need_no_permission_to_be_untrained(start, tmp_path):
    teachers = Spa3RForPreTraining.from_pretrained(start)
    vggt = VGGTForGeometry(teachers.config.vggt_config)
    vggt.save_pretrained(tmp_path / "vggt")
    teachers.teachers["semantic"].model.save_pretrained(tmp_path / "semantic")
    names = [f"vggt_checkpoint={tmp_path / 'vggt'}", f"teachers.semantic.checkpoint={tmp_path / 'semantic'}"]
    weights = build_model(ModelArguments("spa3r-tiny", names)).model.vggt.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in vggt.vggt.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rat": 1e-3}, "`learning_rate`"),
        ({"preset": "spa3r-huge"}, "`spa3r-huge`"),
        ({"overrides": {"hiden_size": 8}}, "hiden_size"),
        ({"overrides": {"vggt_config": 3}}, "`vggt_config`"),
        ({"overrides": {"teachers": {"semantic": None}}}, "`teachers.semantic`"),
        ({"overrides": ["num_latents=many"]}, "num_latents"),
        ({"overrides": {"vggt_checkpoint": "./no/vggt"}}, "`./no/vggt`"),
        ({"overrides": {"teachers": {"semantic": {"checkpoint": "./no/dino"}}}}, "`./no/dino`"),
        ({"untrained_teachers": False}, "vggt_checkpoint="),
        ({"start_from": "./no/start"}, "./no/start"),
        ({"scenes": []}, "`scenes`"),
        ({"scenes": ["data/scannet"]}, "`data/scannet`"),
        ({"exclude": "no/list.txt"}, "`no/list.txt`"),
        ({"held_out_scenes": 0, "eval_strategy": "epoch"}, "`held_out_scenes`"),
        ({"context_ratio": 1.0}, "context_ratio"),
        ({"min_views": 1}, "`min_views`"),
        ({"images_per_device": 4}, "`images_per_device`"),
        ({"per_device_train_batch_size": 4}, "`per_device_train_batch_size`"),
        ({"dataloader_drop_last": True}, "`dataloader_drop_last`"),
        ({"save_total_limit": 1}, "`save_total_limit`"),
        ({"save_only_model": True}, "`save_only_model`"),
        ({"ignore_data_skip": True}, "`ignore_data_skip`"),
        ({"load_best_model_at_end": True}, "`load_best_model_at_end`"),
        ({"resume_from_checkpoint": "run/checkpoint-7"}, "`run/checkpoint-7`"),
    ],
    ids=str,
)
def test_a_wrong_recipe_ends_the_command_with_one_sentence(changes, named, tmp_path, rooms):
    recipe = write_recipe(tmp_path, rooms, **({"max_steps": 1} | changes))
    with pytest.raises(SystemExit, match=re.escape(named)) as refusal:
        main(["pretrain", "--config", recipe, "--output_dir", str(tmp_path / "run")])
    assert str(refusal.value).startswith("spa3r pretrain: ") and "\n" not in str(refusal.value)


def losses(checkpoint):
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(num_processes, tmp_path, rooms):
    steps = 40 if num_processes == 1 else 20
    settings = {"max_steps": steps, "save_steps": 3, "save_total_limit": 20, "held_out_scenes": 0}
    recipe = write_recipe(tmp_path, rooms, **settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    with ready_on_cpu(num_processes, tmp_path / "processes") as processes:

        def start(output, log, num_workers=1, kill=None):
            arguments = ["pretrain", "--config", recipe, "--output_dir", output]
            arguments += ["--dataloader_num_workers", num_workers]
            return processes.start(arguments, tmp_path / log, kill=kill)

        # What workers read ahead changes no step.
        uninterrupted = start(whole, "log_of_whole.txt", num_workers=0)
        first = start(killed, "log_of_killed.txt", kill=(killed / "checkpoint-6", 8))
        assert first.wait() == -signal.SIGKILL, first.log.read_text()
        resumed_from = int(last_complete_checkpoint(killed).name.split("-")[1])
        second = start(killed, "log.txt")
        assert second.wait() == 0, second.log.read_text()
        assert uninterrupted.wait() == 0, uninterrupted.log.read_text()

    assert 0 < resumed_from < steps
    log_text = (tmp_path / "log.txt").read_text()
    assert f"Continuing from {killed}" in log_text
    assert "missing keys" not in log_text
    last = [output / f"checkpoint-{steps}" for output in (killed, whole)]
    # Equal losses of each batch mean equal frames and partitions.
    assert losses(last[0]) == losses(last[1])
    weights = [load_file(output / "model" / "model.safetensors") for output in (killed, whole)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    optimizers = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in last]
    for index, state in optimizers[1].items():
        assert all(torch.equal(optimizers[0][index][name], tensor) for name, tensor in state.items())


def test_teachers_in_bfloat16_without_training_in_it_are_refused_on_the_command_line(tmp_path):
    with pytest.raises(ValueError, match="`bf16_teachers` needs training in bfloat16"):
        parse_arguments(
            ["--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", "true", "--bf16_teachers", "true"]
        )
