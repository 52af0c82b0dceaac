"""Model cards: the facts beside the weights, and what the rendered card says of them."""

import json
import logging

import pytest
from huggingface_hub import ModelCard
from tiny_spa3_vlm import tiny_config

from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.cards import (
    Score,
    render_card,
    spa3_vlm_card,
    spa3r_card,
    tuned_card,
    write_card,
)

UNTRAINED = {"vlm": None, "vggt": None, "spatial_encoder": None, "fusion": None}
ORIGINS = {
    "vlm": "checkpoints/Qwen2.5-VL-3B-Instruct",
    "vggt": "facebook/VGGT-1B",
    "spatial_encoder": "runs/paper/model",
    "fusion": None,
}
LABELS = {
    "vlm": "Vision-language model",
    "vggt": "VGGT",
    "spatial_encoder": "Spa3R",
    "fusion": "Adapter",
    "semantic": "Teacher `semantic`",
}
TRAINING = {
    "scenes": {"ScanNet": 5, "procedural rooms": 4},
    "steps": 80_000,
    "images_per_step": 192,
    "min_views": 4,
    "max_views": 12,
    "image_width": 518,
    "context_ratio": 0.5,
    "given_cameras": False,
    "optimizer": "adamw_torch",
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "weight_decay": 1e-4,
    "seed": 7,
}


def line_of(card: ModelCard, part: str) -> str:
    """The line about the weights of a part."""
    (line,) = [line for line in card.text.splitlines() if line.startswith(f"- {LABELS[part]}")]
    return line


# Spa3-VLM.


def test_the_card_names_base_models_and_their_licences():
    card = render_card(spa3_vlm_card("you/spa3-vlm-4b", tiny_config(), ORIGINS, trained=["vlm", "fusion"]))
    assert card.data.base_model == ["Qwen/Qwen2.5-VL-3B-Instruct", "facebook/VGGT-1B"]
    assert card.data.license == "other"
    assert "Qwen Research License" in line_of(card, "vlm") and "Trained further" in line_of(card, "vlm")
    assert "CC BY-NC 4.0" in line_of(card, "vggt") and "Trained" not in line_of(card, "vggt")
    assert "`runs/paper/model`" in line_of(card, "spatial_encoder")
    assert "from scratch" in line_of(card, "fusion")


@pytest.mark.parametrize(
    ("checkpoint", "licence"),
    [("Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0"), ("facebook/VGGT-1B-Commercial", "stated there")],
)
def test_the_card_states_no_licence_but_a_known_one(checkpoint, licence):
    line = line_of(render_card(spa3_vlm_card("toy", tiny_config(), UNTRAINED | {"vlm": checkpoint})), "vlm")
    assert f"[{checkpoint}](https://huggingface.co/{checkpoint})" in line and licence in line


def test_the_card_of_an_untrained_model_says_so_and_claims_no_licence():
    card = render_card(spa3_vlm_card("toy", tiny_config(), UNTRAINED))
    assert all("**untrained**" in line_of(card, part) for part in UNTRAINED)
    assert card.data.license is None and card.data.base_model is None
    assert "Not instruction-tuned" in card.text and "Not evaluated" in card.text


def test_only_an_untrained_adapter_of_cross_attention_is_said_to_add_nothing():
    cards = [
        render_card(spa3_vlm_card("toy", tiny_config(fusion=f), UNTRAINED)) for f in ("cross_attention", "append")
    ]
    assert ["adds nothing" in line_of(card, "fusion") for card in cards] == [True, False]


def test_the_card_gives_training_data_and_scores_with_their_protocol():
    scores = [Score("VSI-Bench", "32 frames, greedy, 16 tokens", "12.3")]
    card = render_card(spa3_vlm_card("toy", tiny_config(), UNTRAINED, training_data=["VSI-590K"], scores=scores))
    assert "\n- VSI-590K\n" in card.text
    assert "| VSI-Bench | 32 frames, greedy, 16 tokens | 12.3 |" in card.text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"fusion": "none"}, {"vlm"}),
        ({"spatial_representation": "vggt"}, {"vlm", "vggt", "fusion"}),
        ({"fusion": "append"}, {"vlm", "vggt", "spatial_encoder", "fusion"}),
    ],
)
def test_the_card_has_a_line_for_each_part_of_the_model(changes, parts):
    card = render_card(spa3_vlm_card("toy", tiny_config(**changes), dict.fromkeys(parts, "somewhere/weights")))
    assert all("`somewhere/weights`" in line_of(card, part) for part in parts)
    assert card.text.count("`somewhere/weights`") == len(parts)


@pytest.mark.parametrize(
    ("origins", "trained", "named"),
    [({"vlm": None}, [], "`origins`.*'fusion'"), (UNTRAINED, ["lm"], r"`trained`.*\['lm'\]")],
    ids=["a part without an origin", "a trained part that the model lacks"],
)
def test_facts_that_do_not_fit_the_model_are_refused(origins, trained, named):
    with pytest.raises(ValueError, match=named):
        spa3_vlm_card("toy", tiny_config(), origins, trained=trained)


# Beside the weights.


def test_the_stored_facts_render_the_stored_card(tmp_path):
    write_card(tmp_path, spa3_vlm_card("toy", tiny_config(), ORIGINS, training_data=["VSI-590K"]))
    stored = json.loads((tmp_path / "card.json").read_text())
    assert stored["origins"] == ORIGINS
    assert str(render_card(stored)).strip() == (tmp_path / "README.md").read_text().strip()
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"


# A tuned Spa3-VLM.


@pytest.fixture
def start(tmp_path):
    """A checkpoint to tune, of which only the card matters, and its configuration."""
    scores = [Score("VSI-Bench", "32 frames", "12.3")]
    write_card(tmp_path, spa3_vlm_card("base", tiny_config(), ORIGINS, ["fusion"], ["earlier data"], scores))
    config = tiny_config()
    config.name_or_path = str(tmp_path)
    return tmp_path, config


def test_a_tuned_card_keeps_the_origins_of_weights_and_adds_training_data(start):
    folder, config = start
    facts = tuned_card("tuned", config, ["new data"], [Score("VSI-Bench", "32 frames", "45.6")])
    assert facts["origins"] == ORIGINS
    assert sorted(facts["trained"]) == ["fusion", "vlm"]
    assert facts["training_data"] == ["earlier data", "new data"]
    assert [score["score"] for score in facts["scores"]] == ["45.6"]
    assert f"`{folder}`" in render_card(facts).text


def test_without_an_earlier_card_the_starting_checkpoint_is_the_origin_of_all_weights(start):
    folder, config = start
    (folder / "card.json").unlink()
    assert tuned_card("tuned", config, ["new data"])["origins"] == dict.fromkeys(ORIGINS, str(folder))


def test_a_damaged_earlier_card_is_warned_of_and_costs_no_tuned_model(start, caplog):
    folder, config = start
    (folder / "card.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert tuned_card("tuned", config, ["new data"])["origins"] == dict.fromkeys(ORIGINS, str(folder))
    assert str(folder) in caplog.text


def test_a_model_tuned_from_random_weights_is_trained_from_scratch():
    card = render_card(tuned_card("tuned", tiny_config(), ["new data"]))
    assert "from scratch" in line_of(card, "vlm") and "**untrained**" in line_of(card, "vggt")
    assert card.data.license is None


# A pre-trained Spa3R.


@pytest.fixture
def spa3r_config() -> Spa3RConfig:
    return Spa3RConfig(**load_preset("spa3r-tiny"))


def test_the_card_of_a_spa3r_gives_the_settings_of_its_training(spa3r_config):
    text = render_card(spa3r_card("user/spa3r", spa3r_config, TRAINING, None)).text
    for fact in ("5 of ScanNet", "4 of procedural rooms", "80000 steps", "192 images", "4 to 12 views", "518 pixels",
                 "estimated by VGGT", "`adamw_torch`", "0.001 (cosine)", "seed 7", "terms of use", "Not evaluated",
                 'from_pretrained("user/spa3r")'):  # fmt: skip
        assert fact in text


def test_procedural_rooms_have_no_terms_of_use(spa3r_config):
    training = TRAINING | {"scenes": {"procedural rooms": 4}}
    assert "terms of use" not in render_card(spa3r_card("user/spa3r", spa3r_config, training, None)).text


def test_the_card_of_a_spa3r_with_untrained_teachers_says_so_and_claims_no_licence(spa3r_config):
    card = render_card(spa3r_card("user/spa3r", spa3r_config, TRAINING, None))
    assert all("**untrained**" in line_of(card, part) for part in ("vggt", "semantic"))
    assert card.data.license is None and card.data.base_model is None


def test_the_card_of_a_spa3r_names_published_teachers_and_their_licences(spa3r_config):
    spa3r_config.vggt_checkpoint = "checkpoints/vggt-1b"
    spa3r_config.teachers["semantic"]["checkpoint"] = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    card = render_card(spa3r_card("user/spa3r", spa3r_config, TRAINING, "| figures |"))
    assert card.data.base_model == ["facebook/VGGT-1B", "facebook/dinov3-vitl16-pretrain-lvd1689m"]
    assert card.data.license == "other"
    assert "CC BY-NC 4.0" in line_of(card, "vggt") and "DINOv3 License" in line_of(card, "semantic")
    assert "untrained" not in card.text and "| figures |" in card.text


def test_the_card_of_a_spa3r_names_the_model_that_training_started_from(spa3r_config):
    spa3r_config.name_or_path = "runs/first/model"
    card = render_card(spa3r_card("user/spa3r", spa3r_config, TRAINING, None))
    assert card.text.count("`runs/first/model`") == 3  # VGGT, teacher, trained parts
    assert card.data.license == "other"
