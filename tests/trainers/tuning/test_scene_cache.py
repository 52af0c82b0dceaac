"""Training from latents that were encoded once equals live training; stale latents are refused."""

import shutil

import PIL.Image
import pytest
import torch
from datasets import Dataset, Image, List
from terminal import verb
from tiny_instructions import NUM_RECORDS, losses, trainer_of
from tiny_spa3_vlm import GEOMETRY, tiny_model, tiny_processor

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.modeling_spa3r import compilation
from spa3r.trainers.tuning import scene_cache as scene_latents
from spa3r.trainers.tuning.instruction_data import load_instructions, open_images
from spa3r.trainers.tuning.scene_cache import SceneLatents, SceneReader, encode_scenes, with_scene_keys

main = verb("encode-scenes")


@pytest.fixture(scope="module")
def latents(vlm, instructions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    main(["--model", str(vlm), "--instructions", str(instructions), "--output", str(folder)])
    return folder


def test_each_scene_has_the_latents_of_its_images(latents, instructions):
    model, processor = tiny_model(), tiny_processor()
    store = SceneLatents(latents, model, processor)
    records = [record for record in with_scene_keys(load_instructions([str(instructions)], 0)) if record["scene_key"]]
    assert len(records) == 5  # three records have no image
    for record in records:
        inputs = processor.image_processor(open_images(record["images"]), return_tensors="pt")
        assert torch.equal(store[record["scene_key"]], model.encode_scene(*(inputs[name] for name in GEOMETRY))[0])


@pytest.mark.parametrize("options", [[], ["--vision-features"]], ids=["latents", "features"])
def test_images_travel_from_workers_as_bytes_and_no_more_than_is_needed(
    options, vlm, instructions, tmp_path, monkeypatch
):
    sent = []
    call = SceneReader.__call__
    monkeypatch.setattr(SceneReader, "__call__", lambda self, scenes: sent.append(call(self, scenes)) or sent[-1])
    main(["--model", vlm, "--instructions", instructions, "--output", tmp_path / "out", *options])
    needed = {"num_views", *GEOMETRY} | ({"pixel_values", "image_grid_thw"} if options else set())
    assert all(set(inputs) == needed for _, inputs in sent)
    assert not any(tensor.is_floating_point() for _, inputs in sent for tensor in inputs.values())


def test_records_with_the_same_views_are_one_scene(instructions):
    keys = with_scene_keys(load_instructions([str(instructions)] * 2, 0))["scene_key"]
    assert keys[: len(keys) // 2] == keys[len(keys) // 2 :]
    assert len(set(keys)) == 1 + 5


def test_training_from_latents_has_the_losses_of_live_training(vlm, instructions, latents, tmp_path):
    trainer_of(vlm, instructions, tmp_path / "live").train()
    cached = trainer_of(vlm, instructions, tmp_path / "cached", scene_latents=latents)
    calls = []
    cached.model.model.spatial_encoder.register_forward_hook(lambda *_: calls.append(1))
    cached.train()
    assert losses(tmp_path / "cached") == losses(tmp_path / "live") and not calls


@pytest.fixture(scope="module")
def latents_and_features(vlm, instructions, tmp_path_factory):
    """Latents together with features of the vision tower."""
    folder = tmp_path_factory.mktemp("features")
    command = ["--model", vlm, "--instructions", instructions, "--output", folder, "--vision-features"]
    main([str(part) for part in command])
    return folder


def test_training_from_features_has_the_losses_of_live_training_and_runs_no_encoder(
    vlm, instructions, latents_and_features, tmp_path
):
    # With batches of one record, some batches are text alone.
    options = {"per_device_train_batch_size": 1, "max_steps": 8}
    trainer_of(vlm, instructions, tmp_path / "live", **options).train()
    cached = trainer_of(vlm, instructions, tmp_path / "cached", scene_latents=latents_and_features, **options)
    calls = []
    for encoder in (cached.model.model.spatial_encoder, cached.model.model.vlm.visual):
        encoder.register_forward_hook(lambda *_: calls.append(1))
    cached.train()
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), rel=1e-5) and not calls


def test_training_from_features_makes_the_batches_of_live_training_but_opens_no_image(
    vlm, instructions, latents_and_features, tmp_path, monkeypatch
):
    live = trainer_of(vlm, instructions, tmp_path / "live")
    cached = trainer_of(vlm, instructions, tmp_path / "cached", scene_latents=latents_and_features)
    batches = [live.data_collator([live.train_dataset[row] for row in range(NUM_RECORDS)])]
    monkeypatch.setattr(PIL.Image, "open", None)
    batches.append(cached.data_collator([cached.train_dataset[row] for row in range(NUM_RECORDS)]))
    pixels = {"pixel_values", *GEOMETRY}
    assert batches[1].keys() == batches[0].keys() - pixels | {"spatial_latents", "vision_features"}
    assert all(torch.equal(batches[1][name], batches[0][name]) for name in batches[0].keys() - pixels)


@pytest.fixture(scope="module")
def blind(vlm, tmp_path_factory):
    """The model without a scene, with the weights of the other."""
    folder = tmp_path_factory.mktemp("blind")
    model = tiny_model(fusion="none")
    model.load_state_dict(tiny_model().state_dict(), strict=False)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("source", ["its own", "those of the model with a scene"])
def test_a_model_without_a_scene_trains_from_features_with_the_losses_of_live_training(
    source, blind, instructions, latents_and_features, tmp_path
):
    folder = latents_and_features
    if source == "its own":
        folder = tmp_path / "features"
        command = ["--model", blind, "--instructions", instructions, "--output", folder, "--vision-features"]
        main([str(part) for part in command])
    trainer_of(blind, instructions, tmp_path / "live").train()
    trainer_of(blind, instructions, tmp_path / "cached", scene_latents=folder).train()
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), rel=1e-5)


def test_a_model_without_a_scene_has_no_latents_to_encode(blind, instructions, tmp_path):
    with pytest.raises(SystemExit, match="--vision-features"):
        main(["--model", str(blind), "--instructions", str(instructions), "--output", str(tmp_path)])


def test_features_are_not_added_to_a_folder_without_them(vlm, instructions, latents):
    command = ["--model", vlm, "--instructions", instructions, "--output", latents, "--vision-features"]
    with pytest.raises(SystemExit, match="vision_tower"):
        main([str(part) for part in command])


def test_latents_in_another_type_are_refused_with_the_remedy(latents):
    with pytest.raises(ValueError, match="float32.*`--dtype bfloat16`"):
        SceneLatents(latents, tiny_model().bfloat16(), tiny_processor())


def test_images_inside_a_data_set_are_told_apart_by_their_bytes():
    views = [{"path": "0.jpg", "bytes": name.encode()} for name in ("door", "sofa")]
    data = Dataset.from_list([{"images": [view], "messages": []} for view in views])
    first, second = with_scene_keys(data.cast_column("images", List(Image())))["scene_key"]
    assert first != second


def test_a_killed_encoding_continues_with_the_missing_scenes(vlm, instructions, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(scene_latents, "SCENES_PER_SHARD", 2)
    model, processor, dataset = tiny_model(), tiny_processor(), load_instructions([str(instructions)], 0)
    encode, calls = model.encode_scene, []

    def encode_until_killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(model, "encode_scene", encode_until_killed)
    with pytest.raises(KeyboardInterrupt):
        encode_scenes(model, processor, dataset, tmp_path)
    assert len(list(tmp_path.glob("latents-*"))) == 1
    encode_scenes(model, processor, dataset, tmp_path)
    # Three calls and the fatal one; the two scenes of the first shard are not encoded again.
    assert len(calls) == 4 + 3
    whole, resumed = (SceneLatents(folder, model, processor) for folder in (latents, tmp_path))
    assert whole.shards.keys() == resumed.shards.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole.shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_scenes_encoded_together_equal_single_ones(workers, latents_and_features, vlm, instructions, tmp_path):
    command = ["--model", vlm, "--instructions", instructions, "--output", tmp_path, "--vision-features"]
    main([str(part) for part in (*command, "--scenes-per-batch", 3, "--workers", workers)])
    model, processor = tiny_model(), tiny_processor()
    single, together = (SceneLatents(folder, model, processor) for folder in (latents_and_features, tmp_path))
    assert single.shards.keys() == together.shards.keys()
    for key in single.shards:
        torch.testing.assert_close(together[key], single[key], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.vision_features(key), single.vision_features(key), rtol=0, atol=1e-5)
        assert together.image_grids(key) == single.image_grids(key)


def test_blocks_are_compiled_if_asked_for(vlm, instructions, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(compilation, "compile_blocks", compiled.append)
    command = ["--model", vlm, "--instructions", instructions, "--output", tmp_path, "--compile-blocks"]
    main([str(part) for part in command])
    assert [type(model) for model in compiled] == [Spa3VLMForConditionalGeneration]


@pytest.mark.parametrize("change", ["weights", "image_width"])
def test_latents_of_another_encoder_are_refused(change, latents):
    model, processor = tiny_model(seed=int(change == "weights")), tiny_processor()
    if change == "image_width":
        processor.image_processor.image_width = 84
    with pytest.raises(ValueError, match="spatial_encoder" if change == "weights" else "images"):
        SceneLatents(latents, model, processor)


def test_scenes_that_were_not_encoded_are_refused_before_training(vlm, instructions, latents, tmp_path):
    shutil.copytree(latents, tmp_path / "latents")
    next((tmp_path / "latents").glob("latents-*")).unlink()
    with pytest.raises(ValueError, match=f"5 of 5 .*`{tmp_path / 'latents'}`"):
        trainer_of(vlm, instructions, tmp_path / "run", scene_latents=tmp_path / "latents")


def test_a_folder_without_latents_is_refused(vlm, instructions, tmp_path):
    with pytest.raises(ValueError, match=f"`{tmp_path}`"):
        trainer_of(vlm, instructions, tmp_path / "run", scene_latents=tmp_path)
