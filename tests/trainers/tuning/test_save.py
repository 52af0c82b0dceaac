"""Tuned models on the Hub, which a server on this machine replaces."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import Hub
from tiny_instructions import command_line, write_instructions
from tiny_spa3_vlm import tiny_model, tiny_processor

from spa3r.modeling_spa3r.checkpoints.cards import spa3_vlm_card
from spa3r.modeling_spa3r.checkpoints.self_contained import save_self_contained

REPOSITORY = "you/tuned"
ORIGINS = {"vlm": "Qwen/Qwen2.5-VL-3B-Instruct", "vggt": "facebook/VGGT-1B", "spatial_encoder": None, "fusion": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model to tune and instructions."""
    folder = tmp_path_factory.mktemp("tuned")
    model = tiny_model()
    save_self_contained(model, tiny_processor(), folder / "vlm", spa3_vlm_card("vlm", model.config, ORIGINS))
    write_instructions(folder / "set")
    return folder


def tune(place, hub, output, **options):
    """A step of tuning in a process of its own that pushes to the server."""
    options = {"max_steps": 1, "push_to_hub": "true", "hub_model_id": REPOSITORY} | options
    arguments = command_line(place / "vlm", place / "set", output, **options)
    command = [sys.executable, "-m", "spa3r", "sft", *arguments]
    environment = os.environ | hub.environment(place / "cache")
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pushed(place):
    with Hub() as hub:
        result = tune(place, hub, place / "run")
        assert result.returncode == 0, result.stderr
        yield hub.files(REPOSITORY)


def test_the_repository_holds_exactly_the_final_model_with_code_and_card(pushed, place):
    files = {file.name: file.read_bytes() for file in (place / "run" / "model").iterdir()}
    assert {"README.md", "card.json", "modeling_spa3_vlm.py"} <= files.keys()
    assert {name: content for name, content in pushed.items() if name != ".gitattributes"} == files


def test_the_card_keeps_the_origins_of_the_weights_and_adds_the_tuning(pushed, place):
    facts = json.loads(pushed["card.json"])
    assert facts["origins"] == ORIGINS
    assert facts["name"] == REPOSITORY and facts["tuned_from"] == str(place / "vlm")
    assert facts["trained"] == ["vlm", "fusion"]
    assert any(str(place / "set") in line for line in facts["training_data"])


def test_a_push_that_fails_leaves_the_model_and_names_the_command_that_uploads_it(place):
    output = place / "unpushed"
    with Hub() as hub:
        hub.failures["commit"] = 403
        result = tune(place, hub, output)
    assert result.returncode == 1 and (output / "model" / "model.safetensors").is_file()
    assert f"hf upload {REPOSITORY} {output / 'model'} ." in result.stderr.splitlines()[-1]


def test_a_repository_that_cannot_be_made_is_named_before_training(place):
    with Hub() as hub:
        hub.failures["create"] = 403
        result = tune(place, hub, place / "refused")
    assert result.returncode == 1 and not (place / "refused" / "checkpoint-1").exists()
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("spa3r sft: ") and REPOSITORY in last
