"""Model cards: the facts beside the weights, and what the rendered card says of them."""

import json
import logging
import re

import pytest
from huggingface_hub import ModelCard
from refusals import refused
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
    "trained": "Encoder and decoder",
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


def vlm_card(origins=UNTRAINED, trained=(), **changes) -> ModelCard:
    return render_card(spa3_vlm_card("toy", tiny_config(**changes), origins, trained))


def encoder_card(evaluation=None, training=TRAINING, **changes) -> ModelCard:
    config = Spa3RConfig(**load_preset("spa3r-tiny"))
    for name, value in changes.items():
        setattr(config, name, value)
    return render_card(spa3r_card("user/spa3r", config, training, evaluation))


@pytest.mark.parametrize(
    ("card", "lines", "base_models"),
    [
        pytest.param(
            vlm_card(ORIGINS, ["vlm", "fusion"]),
            {
                "vlm": "Qwen/Qwen2.5-VL-3B-Instruct.*Qwen Research License.*Trained further",
                "vggt": "facebook/VGGT-1B.*CC BY-NC 4.0(?!.*Trained)",
                "spatial_encoder": "`runs/paper/model`",
                "fusion": "from scratch",
            },
            ["Qwen/Qwen2.5-VL-3B-Instruct", "facebook/VGGT-1B"],
            id="parts of several origins",
        ),
        pytest.param(vlm_card(), dict.fromkeys(UNTRAINED, "untrained"), None, id="untrained"),
        pytest.param(vlm_card(), {"fusion": "untrained.*adds nothing"}, None, id="untrained adapter"),
        pytest.param(
            *(vlm_card(fusion="append"), {"fusion": "untrained.*random weights"}, None), id="untrained, appends"
        ),
        pytest.param(
            vlm_card(UNTRAINED | {"vlm": "Qwen/Qwen2.5-VL-7B-Instruct"}),
            {"vlm": "huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct.*Apache-2.0"},
            ["Qwen/Qwen2.5-VL-7B-Instruct"],
            id="Apache",
        ),
        pytest.param(
            vlm_card(UNTRAINED | {"vggt": "facebook/VGGT-1B-Commercial"}),
            {"vggt": "huggingface.co/facebook/VGGT-1B-Commercial.*stated there"},
            ["facebook/VGGT-1B-Commercial"],
            id="a licence that is not known here",
        ),
        pytest.param(encoder_card(), dict.fromkeys(["vggt", "semantic"], "untrained"), None, id="Spa3R: untrained"),
        pytest.param(
            encoder_card(
                vggt_checkpoint="checkpoints/vggt-1b",
                teachers={"semantic": {"checkpoint": "facebook/dinov3-vitl16-pretrain-lvd1689m"}},
            ),
            {"vggt": "CC BY-NC 4.0", "semantic": "DINOv3 License"},
            ["facebook/VGGT-1B", "facebook/dinov3-vitl16-pretrain-lvd1689m"],
            id="Spa3R: published teachers",
        ),
        pytest.param(
            encoder_card(name_or_path="runs/first/model"),
            dict.fromkeys(["vggt", "semantic", "trained"], "`runs/first/model`"),
            "none published",
            id="Spa3R: from an earlier one",
        ),
    ],
)
def test_the_card_names_the_origin_and_the_licence_of_each_part(card, lines, base_models):
    for part, pattern in lines.items():
        assert re.search(pattern, line_of(card, part))
    # Whoever trains weights from scratch chooses their licence.
    assert card.data.license == ("other" if base_models else None)
    assert card.data.base_model == (base_models if isinstance(base_models, list) else None)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"fusion": "none"}, {"vlm"}),
        ({"spatial_representation": "vggt"}, {"vlm", "vggt", "fusion"}),
        ({"fusion": "append"}, {"vlm", "vggt", "spatial_encoder", "fusion"}),
    ],
)
def test_the_card_has_a_line_for_each_part_of_the_model(changes, parts):
    card = vlm_card(dict.fromkeys(parts, "somewhere/weights"), **changes)
    assert all("`somewhere/weights`" in line_of(card, part) for part in parts)
    assert card.text.count("`somewhere/weights`") == len(parts)


def test_the_card_gives_training_data_and_scores_with_their_protocol():
    scores = [Score("VSI-Bench", "32 frames, greedy, 16 tokens", "12.3")]
    card = render_card(spa3_vlm_card("toy", tiny_config(), UNTRAINED, training_data=["VSI-590K"], scores=scores))
    assert "\n- VSI-590K\n" in card.text
    assert "| VSI-Bench | 32 frames, greedy, 16 tokens | 12.3 |" in card.text


def test_the_card_of_a_model_that_was_neither_tuned_nor_measured_says_so():
    assert all(fact in vlm_card().text for fact in ("Not instruction-tuned", "Not evaluated"))
    assert "Not evaluated" in encoder_card().text


def test_the_card_of_a_spa3r_gives_the_settings_and_the_figures_of_its_training():
    facts = (
        "5 of ScanNet", "4 of procedural rooms", "80000 steps", "192 images", "4 to 12 views", "518 pixels", "| 0.1 |",
        "estimated by VGGT", "`adamw_torch`", "0.001 (cosine)", "seed 7", 'from_pretrained("user/spa3r")',
    )  # fmt: skip
    text = encoder_card("| 0.1 |").text
    assert not [fact for fact in facts if fact not in text]


@pytest.mark.parametrize(("scenes", "has_terms"), [({"procedural rooms": 4}, False), (TRAINING["scenes"], True)])
def test_the_card_reminds_of_the_terms_of_data_sets_but_not_of_procedural_rooms(scenes, has_terms):
    assert ("terms of use" in encoder_card(training=TRAINING | {"scenes": scenes}).text) == has_terms


@pytest.mark.parametrize(
    ("origins", "trained", "named"),
    [({"vlm": None}, [], ["`origins`", "'fusion'"]), (UNTRAINED, ["lm"], ["`trained`", "['lm']"])],
    ids=["a part without an origin", "a trained part that the model lacks"],
)
def test_facts_that_do_not_fit_the_model_are_refused(origins, trained, named):
    with refused(*named):
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


@pytest.mark.parametrize("content", [None, "{"], ids=["missing", "damaged"])
def test_without_an_earlier_card_the_starting_checkpoint_is_the_origin_of_all_weights(start, caplog, content):
    folder, config = start
    (folder / "card.json").unlink()
    if content is not None:
        (folder / "card.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert tuned_card("tuned", config, ["new data"])["origins"] == dict.fromkeys(ORIGINS, str(folder))
    assert (str(folder) in caplog.text) == (content is not None)


def test_a_model_tuned_from_random_weights_is_trained_from_scratch():
    card = render_card(tuned_card("tuned", tiny_config(), ["new data"]))
    assert "from scratch" in line_of(card, "vlm") and "**untrained**" in line_of(card, "vggt")
    assert card.data.license is None
