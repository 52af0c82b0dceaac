"""Alignment as users run it: what it trains and saves, what it reports and refuses, and resuming after a kill."""

import json
import math

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file
from tiny_alignment import OPTIONS, align, build, command_line, save
from tiny_spa3_vlm import batch_of, tiny_config, tiny_model, tiny_processor
from transformers import AutoModelForImageTextToText, AutoProcessor

from spa3r import Spa3VLMForConditionalGeneration, VGGTForGeometry, VGGTModel
from spa3r.trainers.alignment.arguments import parse_arguments
from spa3r.trainers.alignment.views import collate_alignment
from spa3r.trainers.integrations.cli import main
from spa3r.trainers.runs.points import decode_points
from spa3r.trainers.runs.recipes import RECIPES


@pytest.fixture(scope="module")
def finished(tmp_path_factory, vlm, rooms):
    output = tmp_path_factory.mktemp("finished") / "run"
    return align(vlm, rooms, output), output


def test_every_weight_of_the_adapter_changes_and_no_other(finished, vlm):
    before, after = (load_file(folder / "model.safetensors") for folder in (vlm, finished[1] / "model"))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    # The bias of the keys shifts all scores of a query equally, so softmax ignores it.
    adapter = {name for name in before if name.startswith("model.fusion.") and not name.endswith("k_norm.bias")}
    assert changed - {name for name in before if name.endswith("k_norm.bias")} == adapter


def test_the_final_model_has_the_configuration_of_the_first_and_no_head(finished, vlm):
    model, info = AutoModelForImageTextToText.from_pretrained(finished[1] / "model", output_loading_info=True)
    before, after = (each.config.to_dict() for each in (AutoModelForImageTextToText.from_pretrained(vlm), model))
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"_name_or_path", "auto_map"}
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_the_final_model_loads_with_its_processor(finished, vlm):
    processors = [AutoProcessor.from_pretrained(folder) for folder in (vlm, finished[1] / "model")]
    assert processors[0].image_processor.image_width == processors[1].image_processor.image_width


def test_alignment_starts_from_the_logits_of_the_base_vlm(vlm, rooms, tmp_path):
    trainer, _, _ = build(vlm, rooms, tmp_path / "run")
    base, weights = tiny_model(fusion="none"), trainer.vlm.state_dict()
    base.load_state_dict({name: weights[name] for name in base.state_dict()})
    inputs = batch_of(base)
    with torch.no_grad():
        assert torch.equal(trainer.vlm(**inputs).logits, base(**inputs).logits)


def test_the_loss_falls(vlm, rooms, tmp_path):
    trainer = align(vlm, rooms, tmp_path / "run", max_steps=30, save_steps=30, learning_rate=1e-2)
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_weights_in_bfloat16_keep_their_bits_and_their_precision(rooms, tmp_path):
    start = save(tiny_model().to(torch.bfloat16), tmp_path / "vlm")
    align(start, rooms, tmp_path / "run", max_steps=2)
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run" / "model"))
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16
        assert name.startswith("model.fusion.") or torch.equal(tensor, after[name]), name


def test_training_in_bfloat16_stays_close_to_float32(vlm, rooms, tmp_path):
    losses = []
    for bf16 in ("true", "false"):
        trainer = align(vlm, rooms, tmp_path / bf16, bf16=bf16)
        losses.append([float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_model_without_an_adapter_in_its_checkpoint_gets_a_fresh_one(vlm, rooms, tmp_path):
    model = Spa3VLMForConditionalGeneration.from_pretrained(vlm)
    weights = {name: weight for name, weight in model.state_dict().items() if "fusion" not in name}
    model.save_pretrained(tmp_path / "vlm", state_dict=weights)
    tiny_processor().save_pretrained(tmp_path / "vlm")
    trainer, _, _ = build(tmp_path / "vlm", rooms, tmp_path / "run")
    assert not trainer.vlm.model.fusion.adapter.fc2.weight.any()


def test_a_checkpoint_holds_what_is_trained_alone(finished):
    names = {name.split(".")[0] for name in load_file(finished[1] / "checkpoint-4" / "model.safetensors")}
    assert names == {"fusion", "head"}


def test_the_report_compares_with_another_scene_and_with_the_mean_point(finished):
    trainer, output = finished
    report = trainer.report
    dataset, model = trainer.eval_dataset, trainer.model.eval()
    batch = collate_alignment([dataset[0, index, OPTIONS["eval_views"]] for index in range(2)])
    encoded = trainer.encoders(batch)
    truth, first = encoded.points, batch["patch_pixels"][..., 0] == 0

    def error(points, which=...):
        return (points - truth).norm(dim=-1)[which].mean().item()

    with torch.no_grad():
        own = decode_points(model(encoded.image_tokens, encoded.latents))
        other = decode_points(model(encoded.image_tokens, encoded.latents[::-1]))
    # All images have the same patches, so the mean over scenes and views is that of the same token.
    num_images = 2 * OPTIONS["eval_views"]
    mean = truth.view(num_images, -1, 3).mean(0, keepdim=True).expand(num_images, -1, 3).reshape(truth.shape)
    found = [report.own["all"], report.other["all"], report.mean["all"], report.own["first"], report.mean["rest"]]
    expected = [error(own), error(other), error(mean), error(own, first), error(mean, ~first)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert (output / "report.md").read_text().strip() == report.to_table()


def test_errors_of_training_and_evaluation_are_logged(finished):
    history = finished[0].state.log_history
    assert all(entry["point_error"] > 0 for entry in history if "loss" in entry)
    assert any("eval_point_error_own" in entry and "eval_point_error_mean" in entry for entry in history)


def test_points_of_vggt_need_no_depth_and_no_cameras(vlm, geometry, rooms, tmp_path):
    for room in sorted(rooms.iterdir()):
        if room.is_dir():
            (tmp_path / "photos").mkdir(exist_ok=True)
            (tmp_path / "photos" / room.name).symlink_to(room / "color")
    options = {"targets": "vggt", "geometry": geometry, "scenes": f"folders:{tmp_path / 'photos'}"}
    trainer = align(vlm, rooms, tmp_path / "run", **options)
    assert trainer.report.unit == "VGGT's unit" and math.isfinite(trainer.report.own["all"])


def test_the_card_says_that_the_adapter_alone_was_trained(finished, vlm):
    card = json.loads((finished[1] / "model" / "card.json").read_text())
    assert card["trained"] == ["fusion"] and card["tuned_from"] == str(vlm)


@pytest.mark.parametrize("fusion", ["none", "append"])
def test_a_model_whose_adapter_leaves_image_tokens_alone_is_refused(fusion, rooms, tmp_path):
    start = save(tiny_model(fusion=fusion), tmp_path / "vlm")
    with refused(str(start), f"`{fusion}`", "cross_attention"):
        build(start, rooms, tmp_path / "run")


def test_an_adapter_from_scratch_has_large_weights_and_still_adds_nothing(vlm, rooms, tmp_path):
    trainer, _, _ = build(vlm, rooms, tmp_path / "run", from_scratch="true")
    fusion = trainer.vlm.model.fusion
    weight = fusion.cross_attention.q_proj.weight
    assert weight.std().item() == pytest.approx(0.8 / weight.shape[1] ** 0.5, rel=0.1)
    assert not fusion.adapter.fc2.weight.any()


def test_muon_trains_the_matrices_of_an_adapter_from_scratch(vlm, rooms, tmp_path):
    trainer, _, _ = build(vlm, rooms, tmp_path / "run", from_scratch="true", max_steps=2)
    trainer.train()
    (muon, adamw) = trainer.optimizer.optimizer.parts
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    by_muon = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    assert by_muon == {
        name for name in names.values() if name.startswith("fusion.") and "weight" in name and "norm" not in name
    }
    assert len(by_muon) + sum(len(group["params"]) for group in adamw.param_groups) == len(names)


def test_a_trained_adapter_is_not_drawn_anew(rooms, tmp_path):
    start = save(tiny_model(), tmp_path / "vlm")
    with refused("`from_scratch`", str(start)):
        build(start, rooms, tmp_path / "run", from_scratch="true")


def test_a_vggt_of_another_architecture_is_refused(vlm, rooms, tmp_path):
    config = tiny_config().spatial_config.vggt_config
    config.num_hidden_layers = 3
    VGGTForGeometry(config).save_pretrained(tmp_path / "vggt")
    with refused("`geometry`", str(tmp_path / "vggt"), "`num_hidden_layers` is 3, not 2"):
        build(vlm, rooms, tmp_path / "run", targets="vggt", geometry=tmp_path / "vggt")


def test_a_vggt_without_a_point_head_is_refused(vlm, rooms, tmp_path):
    VGGTModel(tiny_config().spatial_config.vggt_config).save_pretrained(tmp_path / "vggt")
    with refused("`geometry`", str(tmp_path / "vggt"), "`point_head."):
        build(vlm, rooms, tmp_path / "run", targets="vggt", geometry=tmp_path / "vggt")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model_name_or_path": None}, "`model_name_or_path`"),
        ({"model_name_or_path": "./no/vlm"}, "`./no/vlm`"),
        ({"scenes": None}, "`scenes`"),
        ({"scenes": "data/rooms"}, "`data/rooms`"),
        ({"targets": "vggt"}, "`geometry`"),
        ({"geometry": "vggt"}, "`vggt`"),
        ({"targets": "vggt", "geometry": "./no/vggt"}, "`./no/vggt`"),
        ({"held_out_scenes": 0, "eval_strategy": "epoch"}, "`held_out_scenes`"),
        ({"min_views": 1}, "`min_views`"),
        ({"distinct_passes": -1}, "`distinct_passes`"),
        ({"images_per_device": 4}, "`images_per_device`"),
        ({"per_device_train_batch_size": 4}, "`per_device_train_batch_size`"),
        ({"save_total_limit": 1}, "`save_total_limit`"),
        ({"config": "spa3-vlm-align-room"}, "spa3-vlm-align-rooms"),
    ],
    ids=str,
)
def test_wrong_input_ends_the_command_with_one_sentence(options, named, vlm, rooms, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["align", *command_line(vlm, rooms, tmp_path / "run", **options)])
    message = str(ended.value)
    assert message.startswith("spa3r align: ") and "\n" not in message and named in message


def test_a_run_with_other_settings_is_refused(finished, vlm, rooms):
    with refused("`learning_rate` was 0.001, is 0.0005"):
        build(vlm, rooms, finished[1], learning_rate=5e-4)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("spa3-vlm-align*.yaml")))
def test_every_recipe_describes_a_run(recipe, tmp_path):
    arguments = ["--config", recipe, "--bf16", "false", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    data_args, args = parse_arguments(arguments)
    assert data_args.scenes and data_args.model_name_or_path and args.max_steps > 0
    assert (data_args.targets == "vggt") == (data_args.geometry is not None)
