"""What ships: small weights, whole models, and cards without a trace of the machine."""

import json

import pytest
import torch
from safetensors import safe_open
from tiny_spa3_vlm import tiny_config, tiny_model, tiny_processor
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from spa3r import Spa3RForPreTraining, Spa3RImageProcessor
from spa3r.modeling_spa3r.checkpoints.cards import spa3_vlm_card, spa3r_card, write_card
from spa3r.trainers.world.shipping import main

TRAINING = {
    **{"scenes": {"procedural rooms": 6}, "steps": 2, "images_per_step": 8, "min_views": 4, "max_views": 8},
    **{"image_width": 56, "context_ratio": 0.5, "given_cameras": True, "optimizer": "adamw", "learning_rate": 1e-3},
    **{"schedule": "cosine", "weight_decay": 0.01, "seed": 0},
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The folder of a Spa3R and of a Spa3-VLM that were trained on this machine and shipped."""
    folder = tmp_path_factory.mktemp("shipped")
    config = tiny_config().spatial_config
    config.vggt_checkpoint = str(folder / "geometry")
    torch.manual_seed(0)
    Spa3RForPreTraining(config).save_pretrained(folder / "spa3r")
    Spa3RImageProcessor().save_pretrained(folder / "spa3r")
    write_card(folder / "spa3r", spa3r_card("mine", config, TRAINING, "| target |"))
    model = tiny_model()
    model.config.spatial_config.vggt_checkpoint = str(folder / "geometry")
    model.save_pretrained(folder / "vlm")
    tiny_processor().save_pretrained(folder / "vlm")
    origins = dict.fromkeys(("vlm", "vggt", "spatial_encoder", "fusion"), str(folder / "start"))
    write_card(
        folder / "vlm", spa3_vlm_card("mine", model.config, origins, (), [f"`{folder / 'questions'}`, weight 1"])
    )
    (folder / "report").mkdir()
    overall = {"key": "overall", "value": 0.5123, "low": 0.498, "high": 0.531}
    report = {"label": "nano", "benchmark": "rooms", "protocol": "official", "num_scenes": 240, "columns": [overall]}
    (folder / "report" / "report.json").write_text(json.dumps(report))
    main([str(folder / "spa3r"), str(folder / "nano" / "spa3r-nano")])
    main([str(folder / "vlm"), str(folder / "nano" / "spa3-vlm-nano"), "--reports", str(folder / "report")])
    return folder


NAMES = ("spa3r-nano", "spa3-vlm-nano")


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_stored_in_half_precision_and_loaded_in_full(name, shipped):
    with safe_open(shipped / "nano" / name / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}
    assert {weight.dtype for weight in AutoModel.from_pretrained(shipped / "nano" / name).parameters()} == {
        torch.float32
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_text_names_a_place_of_this_machine(name, shipped):
    files = [file for file in (shipped / "nano" / name).iterdir() if file.suffix in (".json", ".md", ".jinja")]
    assert len(files) > 3 and [file.name for file in files if str(shipped) in file.read_text()] == []


def test_the_spa3r_keeps_all_weights_decoder_and_teachers_included(shipped):
    before, after = (
        Spa3RForPreTraining.from_pretrained(folder).eval()
        for folder in (shipped / "spa3r", shipped / "nano" / NAMES[0])
    )
    weights = after.state_dict()
    assert weights.keys() == before.state_dict().keys()
    assert all(torch.equal(weights[name], tensor.bfloat16().float()) for name, tensor in before.state_dict().items())


def test_the_spa3_vlm_loads_with_its_processor(shipped):
    folder = shipped / "nano" / NAMES[1]
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoProcessor.from_pretrained(folder).image_processor.image_width == 56


@pytest.mark.parametrize("name", NAMES)
def test_the_card_gives_a_licence_and_the_way_to_make_it_again(name, shipped):
    card = (shipped / "nano" / name / "README.md").read_text()
    assert "license: apache-2.0" in card and "`spa3r world`" in card and "untrained" not in card


def test_the_card_of_the_spa3_vlm_gives_data_and_scores(shipped):
    card = (shipped / "nano" / NAMES[1] / "README.md").read_text()
    assert "`questions`, weight 1" in card
    assert "| rooms, 240 held-out: nano | official | 51.2 % (49.8 to 53.1) |" in card
