"""Spa3RImageProcessor: photos become the views of pre-training, and a saved model takes photos."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, pipeline

from spa3r import Spa3RConfig, Spa3RForPreTraining, Spa3RImageProcessor
from spa3r.configuration import load_preset
from spa3r.data_scripts.scenes.view_transforms import crop_to_common, load_frame

SIZES = [(64, 48), (90, 60), (48, 64)]


def photo(seed: int = 0, size: tuple[int, int] = SIZES[0]) -> PIL.Image.Image:
    width, height = size
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def processor() -> Spa3RImageProcessor:
    return Spa3RImageProcessor(image_width=56)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pre-training model with its processor."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    Spa3RForPreTraining(Spa3RConfig(**load_preset("spa3r-tiny"))).save_pretrained(folder)
    Spa3RImageProcessor(image_width=56).save_pretrained(folder)
    return folder


def views(processor, images, **options) -> torch.Tensor:
    return processor(images, return_tensors="pt", **options)["pixel_values"]


@pytest.mark.parametrize("size", SIZES)
def test_a_view_equals_that_of_pretraining(size):
    expected, _ = load_frame(photo(size=size))
    assert torch.equal(views(Spa3RImageProcessor(), photo(size=size))[0, 0], expected.float() / 255)


def test_views_of_different_sizes_are_cropped_as_in_pretraining(processor):
    photos = [photo(seed, size) for seed, size in enumerate(SIZES)]
    expected, _ = crop_to_common([load_frame(image, 56)[0] for image in photos])
    assert torch.equal(views(processor, photos)[0], expected.float() / 255)


def test_photos_are_one_scene_and_lists_are_scenes(processor):
    photos = [photo(seed) for seed in range(4)]
    one, scene = views(processor, photos[0]), views(processor, photos)
    scenes = views(processor, [photos[:2], photos[2:]])
    assert (one.shape, scene.shape, scenes.shape) == ((1, 1, 3, 42, 56), (1, 4, 3, 42, 56), (2, 2, 3, 42, 56))
    assert torch.equal(one[0, 0], scene[0, 0]) and torch.equal(scenes.flatten(0, 1), scene[0])


def test_the_forms_of_a_photo_give_equal_views(processor, tmp_path):
    image = photo()
    image.save(tmp_path / "photo.png")
    rotated = image.transpose(PIL.Image.Transpose.ROTATE_90)  # which its EXIF orientation undoes
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    rotated.save(tmp_path / "rotated.png", exif=exif)
    array = np.array(image)
    forms = [tmp_path / "photo.png", str(tmp_path / "photo.png"), str(tmp_path / "rotated.png"), array]
    forms += [torch.from_numpy(array).permute(2, 0, 1), array / 255.0, image.convert("RGBA")]
    expected = views(processor, image)
    for form in forms:
        assert torch.equal(views(processor, form), expected), type(form)


def test_a_call_can_choose_the_width(processor):
    assert views(processor, photo(), image_width=28).shape[-2:] == (14, 28)


def test_numpy_arrays_are_returned_on_request(processor):
    pixel_values = processor(photo(), return_tensors="np")["pixel_values"]
    assert pixel_values.dtype == np.float32 and pixel_values.shape == (1, 1, 3, 42, 56)


def test_a_saved_processor_is_loaded_the_same_by_the_auto_class(folder):
    loaded = AutoImageProcessor.from_pretrained(folder)
    assert type(loaded) is Spa3RImageProcessor
    assert loaded.to_dict() == Spa3RImageProcessor(image_width=56).to_dict()


def test_several_photos_of_a_scene_become_its_latents(folder):
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    photos = [photo(seed) for seed in range(3)]
    latents = model(**processor(photos, return_tensors="pt")).latents
    assert latents.shape == (1, model.config.num_latents, model.config.hidden_size)
    assert torch.equal(latents, model(views(processor, photos)).latents)


def test_the_pipeline_takes_photos(folder, tmp_path):
    photo(1).save(tmp_path / "photo.png")
    extractor = pipeline("image-feature-extraction", model=str(folder))
    single, (first, second) = (
        extractor(images, return_tensors=True) for images in (photo(0), [photo(0), str(tmp_path / "photo.png")])
    )
    for latents, seed in ((single, 0), (first, 0), (second, 1)):
        expected = extractor.model(views(extractor.image_processor, photo(seed))).latents
        torch.testing.assert_close(latents, expected)


REFUSED = {
    "no photo": ([], {}, "`images`"),
    "scenes of different lengths": ([[photo()], [photo(), photo()]], {}, r"\[1, 2\]"),
    "a scene without photos": ([[photo()], []], {}, r"\[1, 0\]"),
    "photos beside lists": ([photo(), [photo()]], {}, "`images`"),
    "a file that is not there": ([photo(), "absent.jpg"], {}, "`absent.jpg`"),
    "a panorama": ([photo(), photo(size=(600, 40))], {}, "Image 1.* 600 x 40"),
    "16-bit pixels": (np.zeros((48, 64, 3), np.uint16), {}, "Image 0.* uint16"),
    "a width below a patch": (photo(), {"image_width": 7}, "`image_width`.* 7"),
}


@pytest.mark.parametrize(("images", "options", "named"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_become_views_is_refused(processor, images, options, named):
    with pytest.raises(ValueError, match=named):
        processor(images, **options)
