"""Whole commands and sessions on a GPU beside the same on the CPU."""

import pytest
import torch
import yaml
from tiny_instructions import losses, trainer_of, write_instructions
from tiny_pretraining import TINY_RECIPE
from tiny_spa3_vlm import photo, tiny_model, tiny_processor

from spa3r import SceneSession
from spa3r.trainers.pretraining.arguments import parse_arguments
from spa3r.trainers.pretraining.pretrain import build_trainer
from spa3r.trainers.tuning.sft import run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device."),
]


def pretraining_losses(folder, rooms, **options):
    folder.mkdir()
    recipe = (
        TINY_RECIPE | {"scenes": [f"rooms:{rooms}"], "max_steps": 3, "save_steps": 3, "logging_steps": 1} | options
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    trainer, _ = build_trainer(
        *parse_arguments(["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "run")])
    )
    trainer.train()
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("options", "tolerance"), [({}, 1e-3), ({"bf16": True, "bf16_teachers": True}, 3e-2)])
def test_pretraining_has_the_losses_of_the_cpu(tmp_path, rooms, options, tolerance):
    expected = pretraining_losses(tmp_path / "cpu", rooms)
    found = pretraining_losses(tmp_path / "cuda", rooms, use_cpu=False, **options)
    assert len(found) == 3 and found == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("bf16", "tolerance"), [("false", 1e-3), ("true", 3e-2)])
def test_tuning_has_the_losses_of_the_cpu(tmp_path, bf16, tolerance):
    instructions = write_instructions(tmp_path / "set")
    tiny_model().save_pretrained(tmp_path / "vlm")
    tiny_processor().save_pretrained(tmp_path / "vlm")
    for device, options in (("cpu", {}), ("cuda", {"use_cpu": "false", "bf16": bf16})):
        run(trainer_of(tmp_path / "vlm", instructions, tmp_path / device, **options), [str(instructions)])
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=tolerance)


def test_a_session_gives_the_answers_of_the_cpu():
    model, processor = tiny_model(), tiny_processor()
    photos, questions = [photo(1), photo(2)], ["How many?", "How far is it?"]
    answers = []
    for device in ("cpu", "cuda"):
        session = SceneSession(model.to(device), processor, images=photos)
        answers.append([session.ask(question, max_new_tokens=8) for question in questions])
    assert answers[0] == answers[1]
