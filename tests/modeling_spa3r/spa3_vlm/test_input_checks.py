"""Spa3-VLM refuses inputs that do not fit together, in `forward` and in `generate`."""

import pytest
import torch
from refusals import refused
from tiny_spa3_vlm import CONVERSATIONS, GEOMETRY, batch_of, latents_of, tiny_model, without

PLACEHOLDER, LETTER = 261, 65


def with_value(name, change):
    """Replace an input by what `change` makes of it."""
    return lambda inputs: {**inputs, name: change(inputs[name])}


def dropped(*names):
    return lambda inputs: without(inputs, *names)


def views(*counts):
    return lambda inputs: {**inputs, "num_views": torch.tensor(counts)}


def latents(*shape, value=0.0):
    return lambda inputs: {**without(inputs, *GEOMETRY), "spatial_latents": torch.full(shape, value)}


def placeholder_removed(inputs):
    ids = inputs["input_ids"].clone()
    ids[0, ids[0].eq(PLACEHOLDER).nonzero()[0]] = LETTER
    return {**inputs, "input_ids": ids}


def placeholder_moved_to_another_row(inputs):
    ids, types = inputs["input_ids"].clone(), inputs["mm_token_type_ids"].clone()
    place = ids[0].eq(PLACEHOLDER).nonzero()[0]
    ids[0, place], types[0, place], ids[1, -1], types[1, -1] = LETTER, 0, PLACEHOLDER, 1
    return {**inputs, "input_ids": ids, "mm_token_type_ids": types}


def first_view_of_another_shape(sizes):
    return torch.cat([torch.tensor([[28, 112]]), sizes[1:]])  # with as many pixels


def embeddings_without_placeholders(inputs):
    vocabulary = torch.nn.functional.one_hot(inputs["input_ids"] % 32, 32)  # of the model's hidden size
    return {**without(inputs, "input_ids"), "inputs_embeds": vocabulary.float()}


def images_given_twice(inputs):
    return {**inputs, "mm_encoder_outputs": {"image": [torch.zeros(4, 32)]}}


# The wrong input, and what the message must name.
REFUSED = {
    "placeholder removed": (placeholder_removed, "Row 0 has 7"),
    "placeholder moved": (placeholder_moved_to_another_row, "Row 0 has 7"),
    "no token types": (dropped("mm_token_type_ids"), "`mm_token_type_ids`"),
    "token types of text": (with_value("mm_token_type_ids", torch.zeros_like), "`mm_token_type_ids` marks 0"),
    "token types shifted": (with_value("mm_token_type_ids", lambda types: types.roll(1, 1)), "row 0, 2 of them"),
    "token types too short": (with_value("mm_token_type_ids", lambda types: types[:, 1:]), "`mm_token_type_ids`"),
    "no grid": (dropped("image_grid_thw"), "`image_grid_thw`"),
    "no images": (dropped("pixel_values", "image_grid_thw", "num_views", *GEOMETRY), "image placeholders"),
    "no num_views": (dropped("num_views"), "`num_views`"),
    "num_views of too few rows": (views(2, 4), "`num_views` is [2, 4], but there are 4 rows"),
    "num_views too many": (views(2, 1, 1, 3), "6 images"),
    "num_views of other rows": (views(3, 0, 1, 2), "Row 0 has 8"),
    "latents too wide": (latents(3, 8, 33), "`spatial_latents`"),
    "latents of too few scenes": (latents(2, 8, 32), "[(8, 32), (8, 32)]"),
    "scenes without latents": (latents(3, 0, 32), "(0, 32)"),
    "latents not finite": (latents(3, 8, 32, value=torch.nan), "`spatial_latents`"),
    "views of two sizes": (with_value("geometry_sizes", first_view_of_another_shape), "(28, 112)"),
    "geometry without images": (dropped("pixel_values"), "`pixel_values`"),
    "geometry cut": (with_value("pixel_values_geometry", lambda pixels: pixels[1:]), "`pixel_values_geometry`"),
    "geometry without sizes": (dropped("geometry_sizes"), "`geometry_sizes`"),
    "geometry not flat": (with_value("pixel_values_geometry", lambda pixels: pixels[None]), "`pixel_values_geometry`"),
    "geometry in bytes": (with_value("pixel_values_geometry", lambda pixels: pixels * 255), "[0, 1]"),
    "geometry empty": (with_value("pixel_values_geometry", lambda pixels: pixels[:0]), "(0, 3)"),
    "patches cut": (with_value("pixel_values", lambda patches: patches[4:]), "`image_grid_thw`"),
    "images given twice": (images_given_twice, "`pixel_values` and `mm_encoder_outputs`"),
    "embeddings without placeholders": (embeddings_without_placeholders, "Row 0 has 0"),
}


@pytest.mark.parametrize("method", ["forward", "generate"])
def test_embeddings_of_placeholders_without_images_are_refused(method, model, batch):
    inputs = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]).detach()}
    with refused("18 image placeholders"):
        getattr(model, method)(**inputs, attention_mask=batch["attention_mask"])


@pytest.mark.parametrize("method", ["forward", "generate"])
@pytest.mark.parametrize("wrong", REFUSED)
def test_wrong_input_is_refused_in_one_line(wrong, method, model, batch):
    change, named = REFUSED[wrong]
    with refused(named):
        getattr(model, method)(**change(batch), **({} if method == "forward" else {"max_new_tokens": 1}))


@pytest.mark.parametrize("gradients", [True, False], ids=["loss", "log probabilities"])
@pytest.mark.parametrize("variant", [{}, {"fusion": "append"}, {"spatial_representation": "vggt"}], ids=str)
def test_images_without_their_scene_are_refused_in_training(variant, gradients):
    model = tiny_model(**variant).train()
    inputs = without(batch_of(model), *GEOMETRY, "num_views")
    with torch.set_grad_enabled(gradients), refused("`pixel_values_geometry`", "`spatial_latents`"):
        model(**inputs)


def test_images_without_their_scene_answer_and_train_where_no_scene_is_needed(batch):
    inputs = without(batch, *GEOMETRY, "num_views")
    tiny_model(fusion="none").train()(**inputs)
    tiny_model().eval()(**inputs)
    tiny_model().train().generate(**inputs, max_new_tokens=1)


def test_latents_of_another_number_cannot_be_appended():
    model = tiny_model(fusion="append")
    inputs = batch_of(model, CONVERSATIONS[0])
    with refused("`fusion='append'` needs 8 latents"):
        model(**without(inputs, *GEOMETRY), spatial_latents=torch.zeros(1, 7, 32))


@pytest.mark.parametrize(
    "variant, named",
    [({"fusion": "none"}, "`fusion='none'`"), ({"spatial_representation": "vggt"}, "3 scenes")],
    ids=["a model without fusion", "scenes of different numbers of patches"],
)
def test_scenes_that_make_no_tensor_of_latents_are_refused(variant, named, batch):
    with refused(named):
        latents_of(tiny_model(**variant), batch)
