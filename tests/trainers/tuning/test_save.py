"""Tuned models on the Hub, for which a stand-in on this machine takes the place."""

import os
import shutil
import subprocess
import sys

import pytest
from hub_server import Hub
from tiny_instructions import command_line, write_instructions
from tiny_spa3_vlm import tiny_model, tiny_processor

from spa3r.modeling_spa3r.checkpoints.self_contained import save_self_contained, spa3_vlm_card

REPOSITORY = "you/tuned"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    model = tiny_model()
    origins = {
        "vlm": "Qwen/Qwen2.5-VL-3B-Instruct",
        "vggt": "facebook/VGGT-1B",
        "spatial_encoder": None,
        "fusion": None,
    }
    card = spa3_vlm_card("vlm", model.config, origins)
    save_self_contained(model, tiny_processor(), folder / "vlm", card)
    write_instructions(folder / "set")
    return folder


def tune(place, hub, output, **options):
    """A step of tuning in a process of its own, which pushes to the stand-in."""
    options = {"max_steps": 1, "push_to_hub": "true", "hub_model_id": REPOSITORY} | options
    command = [
        sys.executable,
        "-m",
        "spa3r",
        "sft",
        *command_line(place / "vlm", place / "set", output, **options),
    ]
    environment = os.environ | hub.environment(place / "cache")
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pushed(place):
    with Hub() as hub:
        result = tune(place, hub, place / "run")
        assert result.returncode == 0, result.stderr
        yield hub.files(REPOSITORY)


def test_the_final_model_is_pushed_with_code_and_card(pushed, place):
    for file in (place / "run" / "model").iterdir():
        assert pushed[file.name] == file.read_bytes(), file.name


def test_nothing_but_the_final_model_is_in_the_repository(pushed, place):
    files = {str(file.relative_to(place / "run" / "model")) for file in (place / "run" / "model").rglob("*")}
    assert set(pushed) <= files | {".gitattributes"}


def test_the_card_tells_whose_weights_are_inside(pushed):
    card = pushed["README.md"].decode()
    assert "https://huggingface.co/facebook/VGGT-1B" in card and "Qwen Research License" in card
    assert card.startswith("---\nlibrary_name: transformers\nlicense: other\n")


def test_a_push_that_fails_leaves_the_model_and_says_how_to_go_on(place):
    output = place / "unpushed"
    shutil.rmtree(output, ignore_errors=True)
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
