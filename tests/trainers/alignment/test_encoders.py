"""What alignment computes once per batch equals what the model and VGGT compute themselves."""

import pytest
import torch
from tiny_spa3_vlm import VARIANTS, photo, tiny_model, tiny_processor

from spa3r import VGGTForGeometry
from spa3r.trainers.alignment.encoders import FrozenEncoders
from spa3r.trainers.alignment.probe import AdapterWithHead
from spa3r.trainers.alignment.views import AlignmentViews, collate_alignment

IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "pixel_values_geometry", "geometry_sizes")
# Scenes of one size, and of different sizes; the vision tower sees two of the three rows of patches.
SCENES = {
    "one size": [[photo(0, 56, 42), photo(1, 56, 42)], [photo(2, 56, 42), photo(3, 56, 42)]],
    "different sizes": [[photo(0, 56, 42), photo(1, 56, 42)], [photo(2, 48, 64), photo(3, 56, 42)]],
}


def item_of(images, views=AlignmentViews):
    """An item of `AlignmentViews` of these images."""
    dataset = views.__new__(views)
    dataset.image_processor, dataset.depth, dataset.objects = tiny_processor().image_processor, False, False
    scene = {"video": None, "directory": "room", "frames": [f"{frame}.jpg" for frame in range(len(images))]}
    item = dataset.arrange([dataset.make_view(scene, frame, image) for frame, image in enumerate(images)], None)
    return item | {"scene_id": "scene", "replaced_frames": [], "dropped_scenes": []}


def batch_of(scenes):
    batch = collate_alignment([item_of(images) for images in scenes])
    batch["points"] = torch.zeros(len(batch["patch_pixels"]), 4, 3)
    return batch


@pytest.mark.parametrize("variant", ["paper", "vggt"])
@pytest.mark.parametrize("scenes", SCENES.values(), ids=SCENES)
def test_the_head_reads_the_image_tokens_that_the_language_model_gets(scenes, variant):
    model = tiny_model(**VARIANTS[variant]).model
    encoded = FrozenEncoders(model)(batch_of(scenes))
    fused = model.fusion(encoded.image_tokens, encoded.latents)
    for images, tokens in zip(scenes, fused, strict=True):
        inputs = batch_of([images])
        alone = model.get_image_features(**{name: inputs[name] for name in IMAGE_INPUTS}).pooler_output
        torch.testing.assert_close(tokens, torch.cat(list(alone)), rtol=1e-5, atol=1e-5)


def geometry_of(model, own):
    """The VGGT inside a model with heads, or another one."""
    torch.manual_seed(1)
    geometry = VGGTForGeometry(model.config.spatial_config.vggt_config)
    if own:
        encoder = model.spatial_encoder
        geometry.vggt.load_state_dict(getattr(encoder, "vggt", encoder).state_dict())
    return geometry.eval()


@pytest.mark.parametrize("variant", ["paper", "vggt"])
@pytest.mark.parametrize("own", [True, False], ids=["the model's", "another"])
@pytest.mark.parametrize("scenes", SCENES.values(), ids=SCENES)
def test_points_are_those_of_the_point_head_at_the_centers_of_patches(scenes, own, variant):
    model = tiny_model(**VARIANTS[variant]).model
    geometry = geometry_of(model, own)
    encoded = FrozenEncoders(model, geometry)(batch_of(scenes))
    expected = []
    for item in map(item_of, scenes):
        (height, width), num_views = item["geometry_sizes"][0].tolist(), len(item["geometry_sizes"])
        views = item["pixel_values_geometry"].view(num_views, height, width, 3).permute(0, 3, 1, 2)
        points = geometry(views[None]).points[0]
        expected += [points[view, row, column] for view, row, column in item["patch_pixels"].flatten(0, 1).tolist()]
    torch.testing.assert_close(encoded.points.flatten(0, 1), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("own", "calls"), [(True, 1), (False, 2)])
def test_one_vggt_for_latents_and_points_runs_once(own, calls):
    model = tiny_model().model
    geometry = geometry_of(model, own)
    counted = []
    for vggt in (model.spatial_encoder.vggt, geometry.vggt):
        vggt.patch_embedding.register_forward_hook(lambda *_: counted.append(1))
    FrozenEncoders(model, geometry)(batch_of(SCENES["one size"]))
    assert len(counted) == calls


def test_encoders_record_nothing_for_a_backward_pass():
    model = tiny_model().model.requires_grad_(True)
    encoded = FrozenEncoders(model, geometry_of(model, own=False))(batch_of(SCENES["one size"]))
    tensors = [*encoded.image_tokens, *encoded.latents, encoded.points]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_points_of_a_batch_are_those_of_its_scenes():
    model = tiny_model().model
    encoders, scenes = FrozenEncoders(model), SCENES["different sizes"]
    adapter = AdapterWithHead(model.fusion, model.config.get_text_config().hidden_size, 4)

    def predict(scenes):
        encoded = encoders(batch_of(scenes))
        return adapter(encoded.image_tokens, encoded.latents)

    alone = torch.cat([predict([images]) for images in scenes])
    torch.testing.assert_close(predict(scenes), alone, rtol=1e-5, atol=1e-5)
