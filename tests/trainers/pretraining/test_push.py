"""Pre-training that pushes to the Hub: the repository during the run and after it, and failing uploads."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import Hub
from safetensors.torch import load, load_file
from tiny_pretraining import TINY_RECIPE
from transformers import AutoModel

from spa3r import Spa3RForPreTraining
from spa3r.trainers.pretraining.model_card import pretraining_card
from spa3r.trainers.pretraining.pretrain import build_trainer, parse_arguments

RECIPE = TINY_RECIPE | {"max_steps": 4, "save_steps": 2}
TOKEN = "hf_secret_of_the_user"
LOAD = """
import sys, spa3r.modeling_spa3r
from safetensors.torch import save_file
from transformers import AutoModel
from spa3r import Spa3RForPreTraining
for auto_class, file in zip((AutoModel, Spa3RForPreTraining), sys.argv[1:], strict=True):
    save_file(auto_class.from_pretrained("user/spa3r").state_dict(), file)
"""


def arguments(folder, rooms, **changes):
    """Options of a run in `folder/run`."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"scenes": [f"rooms:{rooms}"]} | changes))
    return ["--config", str(recipe), "--output_dir", str(folder / "run")]


def pretrain(folder, rooms, environment, **changes):
    """Pre-train in a process of its own, pushing to `user/spa3r`."""
    options = arguments(folder, rooms, push_to_hub=True, hub_model_id="user/spa3r", **changes)
    command = [sys.executable, "-m", "spa3r", "pretrain", *options]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@dataclass
class Pushed:
    hub: Hub
    output: Path
    home: Path


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, rooms):
    folder = tmp_path_factory.mktemp("pushed")
    with Hub() as hub:
        settings = {"hub_strategy": "checkpoint", "hub_always_push": True, "hub_token": TOKEN}
        run = pretrain(folder, rooms, hub.environment(folder / "home"), **settings)
        assert run.returncode == 0, run.stderr
        yield Pushed(hub, folder / "run", folder)


def test_the_repository_ends_with_the_final_model_and_nothing_partial_beside_it(pushed):
    files = pushed.hub.files("user/spa3r")
    final = {path.name: path.read_bytes() for path in (pushed.output / "model").iterdir()}
    model = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(final) == model | {"README.md", "card.json"}
    assert all(files[name] == content for name, content in final.items())
    assert json.loads(files["config.json"])["teachers_included"]
    # `last-checkpoint` is what the strategy keeps for resuming.
    others = {name for name in files if not name.startswith("last-checkpoint/")} - set(final)
    assert not [name for name in others if name.endswith((".safetensors", ".bin", "config.json"))]


def test_a_pushed_model_loads_by_its_name_in_a_clean_process(pushed):
    encoder, whole = pushed.home / "encoder.safetensors", pushed.home / "whole.safetensors"
    environment = pushed.hub.environment(pushed.home / "home_of_another") | {"HF_TOKEN": ""}
    subprocess.run([sys.executable, "-c", LOAD, encoder, whole], env=os.environ | environment, check=True)
    for auto_class, file in ((AutoModel, encoder), (Spa3RForPreTraining, whole)):
        loaded, on_disk = load_file(file), auto_class.from_pretrained(pushed.output / "model").state_dict()
        assert set(loaded) == set(on_disk)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in on_disk.items())


def test_pushes_during_training_hold_what_trains_and_say_so(pushed):
    names = {"Training in progress, step 2", "Training in progress, step 4"}
    during = {title: files for title, files in pushed.hub.commits["models", "user/spa3r"] if title in names}
    assert set(during) == names
    for files in during.values():
        assert not json.loads(files["config.json"])["teachers_included"]
        assert not [name for name in load(files["model.safetensors"]) if name.startswith(("vggt.", "teachers."))]


def test_a_run_resumes_from_the_checkpoint_on_the_hub(pushed, tmp_path, rooms):
    title = "Training in progress, step 2, checkpoint"
    files = dict(pushed.hub.commits["models", "user/spa3r"])[title]
    checkpoint = tmp_path / "last-checkpoint"
    checkpoint.mkdir()
    for name, content in files.items():
        if name.startswith("last-checkpoint/"):
            (tmp_path / name).write_bytes(content)
    options = arguments(tmp_path, rooms, resume_from_checkpoint=str(checkpoint))
    trainer, resumed_from = build_trainer(*parse_arguments(options))
    trainer.train(resume_from_checkpoint=resumed_from)
    uninterrupted = Spa3RForPreTraining.from_pretrained(pushed.output / "model").state_dict()
    resumed = trainer.model.state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())


def test_the_token_is_published_with_no_file(pushed):
    published = [files for _, files in pushed.hub.commits["models", "user/spa3r"]]
    assert any("training_args.bin" in files for files in published)
    assert not [name for files in published for name, content in files.items() if TOKEN.encode() in content]


def test_the_card_gives_the_settings_and_the_evaluation_of_the_run(pushed):
    facts = json.loads(pushed.hub.files("user/spa3r")["card.json"])
    assert facts["name"] == "user/spa3r"
    assert facts["training"]["scenes"] == {"procedural rooms": 6 - RECIPE["held_out_scenes"]}
    assert facts["training"]["steps"] == RECIPE["max_steps"]
    assert facts["training"]["given_cameras"] is RECIPE["cameras"]
    card = pushed.hub.files("user/spa3r")["README.md"].decode()
    assert 'AutoModel.from_pretrained("user/spa3r")' in card
    assert (pushed.output / "report.md").read_text().strip() in card


def test_the_card_names_the_checkpoints_that_weights_come_from(pushed, tmp_path, rooms):
    start = str(pushed.output / "model")
    trainer, _ = build_trainer(*parse_arguments(arguments(tmp_path, rooms, start_from=start)))
    trainer.model.config.vggt_checkpoint = "facebook/VGGT-1B"
    facts = pretraining_card("user/spa3r", trainer)
    assert facts["origins"] == {"vggt": "facebook/VGGT-1B", "semantic": None}
    assert facts["started_from"] == start
    assert facts["evaluation"] is None


def test_a_failing_upload_costs_no_model_and_tells_how_to_upload_it(tmp_path, rooms):
    with Hub() as hub:
        hub.failures["commit"] = 500
        # Without Xet, huggingface_hub does not repeat a failing commit for half a minute.
        environment = hub.environment(tmp_path / "home") | {"HF_HUB_DISABLE_XET": "1"}
        run = pretrain(tmp_path, rooms, environment)
        model = tmp_path / "run" / "model"
        assert run.returncode == 1 and "Traceback" not in run.stderr
        message = run.stderr.splitlines()[-1]
        assert message.startswith("spa3r pretrain: ") and str(model) in message and "500" in message
        _, info = Spa3RForPreTraining.from_pretrained(model, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]

        hub.failures.clear()
        hf, *command = shlex.split(re.search(r"hf upload .*", message).group())
        subprocess.run([Path(sys.executable).parent / hf, *command], env=os.environ | environment, check=True)
        files = hub.files("user/spa3r")
        assert all(files[path.name] == path.read_bytes() for path in model.iterdir())


def test_a_missing_token_is_refused_before_training(tmp_path, rooms):
    with Hub() as hub:
        run = pretrain(tmp_path, rooms, hub.environment(tmp_path / "home") | {"HF_TOKEN": ""})
    assert run.returncode == 1 and "Traceback" not in run.stderr
    message = run.stderr.splitlines()[-1]
    assert message.startswith("spa3r pretrain: ") and "`user/spa3r`" in message
    assert "401" in message and "hf auth login" in message
    assert not list((tmp_path / "run").glob("checkpoint-*"))
