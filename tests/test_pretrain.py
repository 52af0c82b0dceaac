"""Pre-training as users run it: recipes, what trains, what is saved, and going on after being killed."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import AutoModel

from spa3r.configuration import load_preset
from spa3r.modeling_spa3r import Spa3RForPreTraining
from spa3r.trainers.checkpointing import check_same_run, last_complete_checkpoint
from spa3r.trainers.pretrain import (
    RECIPES,
    ModelArguments,
    build_config,
    build_trainer,
    main,
    parse_arguments,
    run,
)

TINY = {
    "preset": "spa3r-tiny",
    "held_out_scenes": 2,
    "figures": 0,
    "cameras": True,
    "depth": True,
    "image_width": 56,
    "min_views": 3,
    "max_views": 5,
    "images_per_device": 10,
    "eval_views": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "lr_scheduler_type": "cosine",
    "report_to": "none",
    "use_cpu": True,
}


def write_recipe(folder, rooms, **changes):
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(TINY | {"scenes": [f"rooms:{rooms}"]} | changes))
    return str(recipe)


def train(folder, rooms, **changes):
    """Train in this process; returns the trainer and the folder of the run."""
    output = folder / "run"
    recipe = write_recipe(folder, rooms, **({"max_steps": 4, "save_steps": 2} | changes))
    trainer, checkpoint = build_trainer(*parse_arguments(["--config", recipe, "--output_dir", str(output)]))
    run(trainer, checkpoint)
    return trainer, output


@pytest.fixture(scope="module")
def finished(tmp_path_factory, rooms):
    return train(tmp_path_factory.mktemp("finished"), rooms)


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


def test_checkpoint_of_training_and_final_model_load_alike(finished):
    _, output = finished
    views = torch.rand(1, 3, 3, 42, 56)
    final = AutoModel.from_pretrained(output / "model").eval()
    checkpoint = AutoModel.from_pretrained(output / "checkpoint-4").eval()
    torch.testing.assert_close(checkpoint(views).latents, final(views).latents)


def test_evaluation_is_reported_and_logged(finished):
    trainer, output = finished
    assert "own latents" in (output / "report.md").read_text()
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
    assert "frames could not be used" in caplog.text


def test_settings_of_another_run_are_refused(finished, tmp_path, rooms):
    _, output = finished
    recipe = write_recipe(tmp_path, rooms, max_steps=4, learning_rate=5e-4)
    with pytest.raises(ValueError, match="holds a run with other settings .*`learning_rate` was 0.001, is 0.0005"):
        build_trainer(*parse_arguments(["--config", recipe, "--output_dir", str(output)]))


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path):
    for step, is_complete in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if is_complete:
            (tmp_path / f"checkpoint-{step}" / "complete.json").write_text("{}")
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-10"
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_a_run_without_a_checkpoint_may_change_its_settings(tmp_path):
    check_same_run(tmp_path, {"seed": 0}, is_main_process=True)
    check_same_run(tmp_path, {"seed": 1}, is_main_process=True)
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_describes_a_run(recipe, tmp_path):
    # Precision is the machine's business; everything else must be understood.
    model_args, data_args, training_args = parse_arguments(
        ["--config", recipe, "--bf16", "false", "--tf32", "false", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    )
    with torch.device("meta"):
        model = Spa3RForPreTraining(build_config(model_args))
    assert set(model.heads) == set(model.config.targets)
    assert data_args.scenes and training_args.max_steps > 0


@pytest.mark.parametrize("file", sorted((RECIPES.parent / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_launch_topology_is_understood(file):
    config = load_config_from_file(str(file))
    if config.deepspeed_config:
        assert Path(RECIPES.parents[1] / config.deepspeed_config["deepspeed_config_file"]).is_file()


def test_overrides_reach_nested_settings():
    args = ModelArguments("spa3r-tiny", ["vggt_config.global_qk_norm=rms_norm", "targets=[geometry]"])
    config = build_config(args)
    assert config.vggt_config.global_qk_norm == "rms_norm"
    assert config.vggt_config.hidden_size == load_preset("spa3r-tiny")["vggt_config"]["hidden_size"]
    assert config.targets == ["geometry"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1e-3}, "Unknown key `learning_rat` .* did you mean `learning_rate`"),
        ({"preset": "spa3r-huge"}, "no architecture preset `spa3r-huge`; known are"),
        ({"overrides": {"hiden_size": 8}}, r"no settings \['hiden_size'\]"),
        ({"scenes": []}, "no scenes to train on"),
        ({"scenes": ["data/scannet"]}, "must read KIND:FOLDER.*got `data/scannet`"),
        ({"min_views": 1}, "`min_views` must be at least 2"),
        ({"images_per_device": 4}, "must hold a scene of `max_views`=5, got 4"),
        ({"save_total_limit": 1}, "at least 2, got 1"),
        ({"held_out_scenes": 0, "eval_strategy": "epoch"}, "needs held-out scenes"),
        ({"context_ratio": 1.0}, "context_ratio"),
    ],
)
def test_a_wrong_recipe_gets_one_clear_sentence(changes, message, tmp_path, rooms, capsys):
    recipe = write_recipe(tmp_path, rooms, **({"max_steps": 1} | changes))
    with pytest.raises(SystemExit, match=message):
        main(["--config", recipe, "--output_dir", str(tmp_path / "run")])


def command(recipe, output, num_processes):
    launcher = [sys.executable, "-m"]
    if num_processes > 1:
        launcher += ["torch.distributed.run", f"--nproc_per_node={num_processes}", "--rdzv_endpoint=localhost:0"]
        launcher += ["--rdzv_backend=c10d", "-m"]
    return [*launcher, "spa3r.trainers.pretrain", "--config", recipe, "--output_dir", str(output)]


def launch(arguments, log):
    return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)


def kill(process):
    """SIGKILL a process and all that it started, at once."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family)


def losses(checkpoint):
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(num_processes, tmp_path, rooms):
    steps = 40 if num_processes == 1 else 20
    settings = {"max_steps": steps, "save_steps": 3, "dataloader_num_workers": 1, "held_out_scenes": 0}
    recipe = write_recipe(tmp_path, rooms, **settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    with (tmp_path / "log.txt").open("w") as log, (tmp_path / "log_of_whole.txt").open("w") as log_of_whole:
        uninterrupted = launch(command(recipe, whole, num_processes), log_of_whole)
        first = launch(command(recipe, killed, num_processes), log)
        while last_complete_checkpoint(killed) is None:
            assert first.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.5))
        assert first.poll() is None, "the run ended before it could be killed"
        kill(first)
        resumed_from = int(last_complete_checkpoint(killed).name.split("-")[1])
        second = launch(command(recipe, killed, num_processes), log)
        assert second.wait() == 0, (tmp_path / "log.txt").read_text()
        assert uninterrupted.wait() == 0, (tmp_path / "log_of_whole.txt").read_text()

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
