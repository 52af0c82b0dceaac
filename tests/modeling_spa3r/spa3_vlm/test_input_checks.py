"""What Spa3-VLM refuses: in one sentence, by `forward` and by `generate`."""

import pytest
import torch
from tiny_spa3_vlm import CONVERSATIONS, GEOMETRY, batch_of, tiny_model, without


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def batch(model):
    return batch_of(model, CONVERSATIONS)


@pytest.fixture(scope="module")
def scene(model):
    return batch_of(model, CONVERSATIONS[0])


def replaced(**changes):
    return lambda inputs: {**inputs, **changes}


def dropped(*names):
    return lambda inputs: without(inputs, *names)


def latents_of(*shape):
    return lambda inputs: {**without(inputs, *GEOMETRY), "spatial_latents": torch.zeros(shape)}


def one_placeholder_less(inputs):
    ids = inputs["input_ids"].clone()
    ids[0, ids[0].eq(261).nonzero()[0]] = 65
    return {**inputs, "input_ids": ids}


def one_placeholder_moved_to_another_row(inputs):
    ids, types = inputs["input_ids"].clone(), inputs["mm_token_type_ids"].clone()
    place = ids[0].eq(261).nonzero()[0]
    ids[0, place], types[0, place], ids[1, -1], types[1, -1] = 65, 0, 261, 1
    return {**inputs, "input_ids": ids, "mm_token_type_ids": types}


def views_of_two_sizes(inputs):
    sizes = inputs["geometry_sizes"].clone()
    sizes[0] = torch.tensor([28, 112])  # as many pixels
    return {**inputs, "geometry_sizes": sizes}


WRONG = {
    "placeholders_less": (one_placeholder_less, "Row 0 has 7 image placeholders, but its 2 images make 8 features"),
    "placeholders_of_another_row": (one_placeholder_moved_to_another_row, "Row 0 has 7 image placeholders"),
    "no_types": (dropped("mm_token_type_ids"), "Images need `mm_token_type_ids`"),
    "types_of_text": (
        lambda inputs: {**inputs, "mm_token_type_ids": torch.zeros_like(inputs["input_ids"])},
        "marks 0 tokens of row 0 as an image's",
    ),
    "types_moved": (
        lambda inputs: {**inputs, "mm_token_type_ids": inputs["mm_token_type_ids"].roll(1, 1)},
        "marks 8 tokens of row 0 as an image's, 2 of them no placeholders",
    ),
    "types_too_short": (
        lambda inputs: {**inputs, "mm_token_type_ids": inputs["mm_token_type_ids"][:, 1:]},
        "give each token one",
    ),
    "no_grid": (dropped("image_grid_thw"), "Images need `image_grid_thw`"),
    "no_images": (
        dropped("pixel_values", "image_grid_thw", "num_views", *GEOMETRY),
        "image placeholders, but there are no images",
    ),
    "no_num_views": (dropped("num_views"), "A batch of 4 rows needs `num_views`"),
    "num_views_of_too_few_rows": (
        replaced(num_views=torch.tensor([2, 4])),
        r"`num_views` \[2, 4\] must tell for each",
    ),
    "num_views_too_many": (replaced(num_views=torch.tensor([2, 1, 1, 3])), "how many of the 6 images"),
    "num_views_of_others": (replaced(num_views=torch.tensor([3, 0, 1, 2])), "Row 0 has 8 image placeholders"),
    "latents_too_wide": (latents_of(3, 8, 33), r"must be of shape \(num_latents, 32\) for each of the 3 scenes"),
    "latents_of_too_few_scenes": (latents_of(2, 8, 32), r"for each of the 3 scenes that have images, got \[\(8, 32\)"),
    "latents_without_any": (latents_of(3, 0, 32), r"got \[\(0, 32\)"),
    "latents_not_numbers": (
        lambda inputs: {**without(inputs, *GEOMETRY), "spatial_latents": torch.full((3, 8, 32), torch.nan)},
        "`spatial_latents` holds values that are not finite",
    ),
    "views_of_two_sizes": (views_of_two_sizes, "views of one scene have different sizes"),
    "geometry_alone": (dropped("pixel_values"), "pass their `pixel_values` too"),
    "geometry_of_too_few_views": (
        lambda inputs: {**inputs, "pixel_values_geometry": inputs["pixel_values_geometry"][1:]},
        "do not fit `pixel_values_geometry` of",
    ),
    "geometry_without_sizes": (dropped("geometry_sizes"), "Views need `geometry_sizes`"),
    "geometry_of_one_scene": (
        lambda inputs: {**inputs, "pixel_values_geometry": inputs["pixel_values_geometry"][None]},
        r"must have shape \(num_pixels of all views, 3\)",
    ),
    "geometry_in_bytes": (
        lambda inputs: {**inputs, "pixel_values_geometry": inputs["pixel_values_geometry"] * 255},
        r"must lie in \[0, 1\]",
    ),
    "geometry_without_views": (
        lambda inputs: {**inputs, "pixel_values_geometry": inputs["pixel_values_geometry"][:0]},
        "and hold a view",
    ),
    "patches_of_other_images": (
        lambda inputs: {**inputs, "pixel_values": inputs["pixel_values"][4:]},
        "but there are",
    ),
}


@pytest.mark.parametrize("method", ["forward", "generate"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_refused_in_one_sentence(wrong, method, model, batch):
    change, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message) as error:
        getattr(model, method)(**change(batch), **({} if method == "forward" else {"max_new_tokens": 1}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["forward", "generate"])
def test_images_before_and_after_the_encoders_are_not_taken_together(method, model, scene):
    features = model.get_image_features(**without(scene, "input_ids", "attention_mask", "mm_token_type_ids"))
    with pytest.raises(
        ValueError, match="Of `pixel_values`, `vision_features` and `mm_encoder_outputs`, .* more than one"
    ):
        getattr(model, method)(**scene, mm_encoder_outputs={"image": features})


@pytest.mark.parametrize("method", ["forward", "generate"])
def test_images_need_their_text(method, model, scene):
    embeddings = model.get_input_embeddings()(scene["input_ids"])
    with pytest.raises(ValueError, match="Images need `input_ids`"):
        getattr(model, method)(**without(scene, "input_ids"), inputs_embeds=embeddings)


def test_latents_of_another_number_cannot_be_appended(scene):
    model = tiny_model(fusion="append")
    inputs = batch_of(model, CONVERSATIONS[0])
    with pytest.raises(ValueError, match="`fusion='append'` needs 8 latents of each scene"):
        model(**without(inputs, *GEOMETRY), spatial_latents=torch.zeros(1, 7, 32))


def test_a_model_without_fusion_encodes_no_scene(scene):
    with pytest.raises(ValueError, match="`fusion='none'` and encodes no scenes"):
        tiny_model(fusion="none").encode_scene(*(scene[name] for name in GEOMETRY))


def test_scenes_of_different_numbers_of_patches_are_not_one_tensor(batch):
    model = tiny_model(spatial_representation="vggt")
    with pytest.raises(ValueError, match="have different numbers of latents"):
        model.encode_scene(batch["pixel_values_geometry"], batch["geometry_sizes"], batch["num_views"])
