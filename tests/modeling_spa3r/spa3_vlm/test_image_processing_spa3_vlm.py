"""The image processor: kinds of images, sizes, patches, scenes, and refusals."""

import base64
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from refusals import refused
from tiny_spa3_vlm import assert_same_tensors, photo, views_of
from transformers import AutoImageProcessor

from spa3r import Spa3VLMImageProcessor
from spa3r.modeling_spa3r import scene_images
from spa3r.modeling_spa3r.spa3_vlm import image_processing_spa3_vlm

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])
NAMES = ["pixel_values", "image_grid_thw", "pixel_values_geometry", "geometry_sizes", "num_views"]


@pytest.fixture(scope="module")
def processor():
    return Spa3VLMImageProcessor(image_width=56)


def resized(image: PIL.Image.Image, width: int, height: int) -> np.ndarray:
    """An RGB image as Pillow resizes it, of shape `(3, height, width)` in [0, 1]."""
    return np.asarray(image.resize((width, height), PIL.Image.BICUBIC)).transpose(2, 0, 1) / 255


def views(processor, images) -> torch.Tensor:
    return torch.stack(views_of(processor(images, return_tensors="pt")))


def test_an_image_is_resized_to_the_width_and_to_whole_patches(processor):
    image = photo(0, width=640, height=500)
    # 500 * 56 / 640 is 3.1 patches.
    np.testing.assert_allclose(views(processor, image)[0], resized(image, 56, 42), atol=1e-7)


def test_a_portrait_image_is_cropped_to_its_middle_square(processor):
    image = photo(0, width=60, height=122)
    # 122 * 56 / 60 is 8.1 patches, 112 pixels: 28 of them above the square.
    np.testing.assert_allclose(views(processor, image)[0], resized(image, 56, 112)[:, 28:84], atol=1e-7)


def test_a_portrait_image_can_be_shown_whole_on_white(processor):
    image = photo(0, width=60, height=120)
    view = views(processor.__class__(image_width=56, image_fit="pad"), image)[0]
    np.testing.assert_allclose(view[:, :, 14:42], resized(image, 28, 56), atol=1e-7)
    assert view[:, :, :14].min() == view[:, :, 42:].min() == 1
    assert processor.get_number_of_image_patches(120, 60, {"image_fit": "pad"}) == 16


@pytest.mark.parametrize("options", [{}, {"image_fit": "pad"}])
def test_how_portrait_images_are_fitted_is_saved_unless_it_is_the_default(options, tmp_path):
    Spa3VLMImageProcessor(**options).save_pretrained(tmp_path)
    assert ("image_fit" in (tmp_path / "preprocessor_config.json").read_text()) == bool(options)
    loaded = Spa3VLMImageProcessor.from_pretrained(tmp_path)
    assert loaded.image_fit == options.get("image_fit", "crop")


def test_another_way_to_fit_images_is_refused():
    with refused("`image_fit`", "'stretch'"):
        Spa3VLMImageProcessor(image_fit="stretch")


def test_cropped_portrait_images_are_counted_in_one_warning(processor, caplog, monkeypatch):
    monkeypatch.setattr(image_processing_spa3_vlm, "_has_warned", [])
    monkeypatch.setattr(image_processing_spa3_vlm.logger, "propagate", True)
    portrait = photo(0, width=45, height=80)
    for images in ([photo(0)], [photo(0), portrait, portrait], [portrait]):
        processor(images)
    assert [record.getMessage()[:50] for record in caplog.records] == [
        "2 of 3 images are higher than wide. Only their mid"
    ]
    assert "44%" in caplog.text and "`image_fit`" in caplog.text


def test_the_default_width_is_518():
    assert views(Spa3VLMImageProcessor(), photo(0)).shape == (1, 3, 392, 518)


def test_the_vision_tower_gets_normalised_patches_of_the_top_left_part(processor):
    image = photo(1, width=64, height=48)
    inputs = processor(image, return_tensors="np")
    assert inputs["image_grid_thw"].tolist() == [[1, 2, 4]]
    normalised = (resized(image, 56, 42)[:, :28] - CLIP_MEAN[:, None, None]) / CLIP_STD[:, None, None]
    # By squares of 2 x 2 patches, row by row; each patch by channel, twice in time.
    expected = []
    for square in range(2):
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            top, left = 14 * row, 28 * square + 14 * column
            patch = normalised[:, top : top + 14, left : left + 14]
            expected.append(np.stack([patch, patch], axis=1).reshape(-1))
    np.testing.assert_allclose(inputs["pixel_values"], expected, atol=1e-5)


def test_do_resize_changes_the_images_for_the_vision_tower_only():
    # The minimum number of pixels in the official evaluation turns 504 x 392 into 532 x 420.
    size = {"shortest_edge": 256 * 28 * 28, "longest_edge": 576 * 28 * 28}
    inputs = Spa3VLMImageProcessor(do_resize=True, size=size)(photo(0), return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 420 // 14, 532 // 14]]
    assert inputs["geometry_sizes"].tolist() == [[392, 518]]


@pytest.mark.parametrize("options", [{}, {"do_resize": True}, {"image_width": 84}])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (200, 90), (31, 77)])
def test_the_number_of_patches_follows_from_the_size_of_an_image(options, width, height, processor):
    grid = processor(photo(0, width, height), return_tensors="pt", **options)["image_grid_thw"]
    assert processor.get_number_of_image_patches(height, width, options) == grid.prod()


# Kinds of images.


def transparent(mode: str) -> tuple[PIL.Image.Image, np.ndarray]:
    """An image with transparent parts, and its pixels on white."""
    pixels = np.array(photo(3).convert("L" if mode == "LA" else "RGB").convert("RGB"))
    if mode in ("RGBA", "LA"):
        alpha = np.random.default_rng(4).integers(0, 256, (48, 64, 1), dtype=np.uint8)
        image = PIL.Image.fromarray(
            np.dstack([pixels, alpha]) if mode == "RGBA" else np.dstack([pixels[..., 0], alpha])
        )
        return image, np.round(255 + alpha / 255 * (pixels - 255.0)).astype(np.uint8)
    # One color, that of the left half, marks transparent pixels.
    pixels[:, :32] = (255, 0, 0)
    image = PIL.Image.fromarray(pixels)
    if mode == "P":
        image = image.quantize(8)
        pixels = np.array(image.convert("RGB"))
    image.info["transparency"] = image.getpixel((0, 0))
    return image, np.where((pixels == pixels[0, 0]).all(-1, keepdims=True), np.uint8(255), pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "P"])
def test_transparent_parts_become_white(mode, processor):
    image, looks = transparent(mode)
    # Blending may round the other way.
    np.testing.assert_allclose(views(processor, image), views(processor, looks), atol=2.1 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_images_of_other_modes_are_converted_to_rgb(mode, processor):
    image = photo(5).convert(mode)
    assert torch.equal(views(processor, image), views(processor, image.convert("RGB")))


ARRAYS = {
    "bytes, channels last": lambda pixels: pixels,
    "bytes, channels first": lambda pixels: pixels.transpose(2, 0, 1),
    "double floats": lambda pixels: pixels / 255,
    "floats, channels first": lambda pixels: (pixels / 255).astype(np.float32).transpose(2, 0, 1),
    "floats between bytes": lambda pixels: (pixels - 0.4).clip(0) / 255,
    "half floats": lambda pixels: (pixels / 255).astype(np.float16),
    "tensor of bytes": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "tensor of floats": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1) / 255,
    "tensor with gradient": lambda pixels: (torch.from_numpy(pixels) / 255).requires_grad_(),
    "opaque": lambda pixels: np.dstack([pixels, np.full_like(pixels[..., :1], 255)]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_equals_its_image(kind, processor):
    image = photo(6)
    assert torch.equal(views(processor, ARRAYS[kind](np.array(image))), views(processor, image))


def test_a_bfloat16_tensor_is_close_to_its_image(processor):
    image = photo(6)
    tensor = torch.from_numpy(np.array(image)).to(torch.bfloat16) / 255
    assert torch.allclose(views(processor, tensor), views(processor, image), atol=0.01)


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (1, 48, 64)])
def test_a_gray_array_equals_its_gray_image(shape, processor):
    gray = photo(7).convert("L")
    assert torch.equal(views(processor, np.array(gray).reshape(shape)), views(processor, gray))


def encoded(image: PIL.Image.Image, kind: str = "png", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serves one image."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "image.png").write_bytes(encoded(transparent("RGBA")[0]))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("limit", ["MAX_DOWNLOAD_BYTES", "MAX_DOWNLOAD_SECONDS"])
def test_a_download_beyond_a_limit_is_refused(processor, server, monkeypatch, limit):
    monkeypatch.setattr(scene_images, limit, 1 if limit.endswith("BYTES") else 1e-9)
    with refused(f"{server}/image.png"):
        processor([f"{server}/image.png"])


@pytest.mark.parametrize("source", ["path", "string", "url", "file address", "base64", "base64 in lines", "data url"])
def test_every_kind_of_source_is_read_with_its_transparency(source, processor, server, tmp_path):
    image, _ = transparent("RGBA")
    (tmp_path / "image.png").write_bytes(encoded(image))
    sources = {
        "path": tmp_path / "image.png",
        "string": str(tmp_path / "image.png"),
        "file address": (tmp_path / "image.png").as_uri(),
        "url": f"{server}/image.png",
        "base64": base64.b64encode(encoded(image)).decode(),
        "base64 in lines": base64.encodebytes(encoded(image)).decode(),
        "data url": "data:image/png;base64," + base64.b64encode(encoded(image)).decode(),
    }
    assert torch.equal(views(processor, sources[source]), views(processor, image))


# For each EXIF orientation, how to turn the pixels of the file upright.
UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


@pytest.mark.parametrize("is_open", [False, True], ids=["path", "open"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_exif_orientation_is_applied(orientation, is_open, processor, tmp_path):
    image, exif = photo(8), PIL.Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "photo.png").write_bytes(encoded(image, exif=exif))
    upright = np.ascontiguousarray(UPRIGHT[orientation](np.asarray(image)))
    source = PIL.Image.open(tmp_path / "photo.png") if is_open else tmp_path / "photo.png"
    assert torch.equal(views(processor, source), views(processor, upright))


def test_the_given_images_are_not_changed(processor):
    image, array = photo(0), np.random.default_rng(0).random((48, 64, 3))
    before = image.tobytes(), array.copy()
    processor([[image], [array]])
    assert image.tobytes() == before[0] and np.array_equal(array, before[1])


# Scenes.


ARRAY = np.stack([np.array(photo(index)) for index in range(5)])


@pytest.mark.parametrize(
    "given, images",
    [(ARRAY, [*ARRAY]), (torch.from_numpy(ARRAY), [*ARRAY]), ([ARRAY[:2], ARRAY[2:]], [[*ARRAY[:2]], [*ARRAY[2:]]])],
    ids=["array", "tensor", "scenes"],
)
def test_an_array_of_several_images_is_their_list(given, images, processor):
    assert_same_tensors(processor(given, return_tensors="pt"), processor(images, return_tensors="pt"))


def test_a_batch_of_scenes_equals_its_scenes(processor):
    scenes = [[photo(0), photo(1)], [photo(2, 48, 64)], [photo(3, 90, 48), photo(4, 90, 48)]]
    together = processor([*scenes, []], return_tensors="pt")
    alone = [processor(scene, return_tensors="pt") for scene in scenes]
    for name in NAMES[:-1]:
        assert torch.equal(together[name], torch.cat([inputs[name] for inputs in alone])), name
    assert together["num_views"].tolist() == [2, 1, 2, 0]
    assert [inputs["num_views"].tolist() for inputs in alone] == [[2], [1], [2]]


def test_smaller_views_of_a_scene_are_centred_on_white(processor):
    high, wide = photo(0, 48, 48), photo(1, 64, 48)
    inputs = processor([high, wide], return_tensors="pt")
    assert inputs["geometry_sizes"].tolist() == [[56, 56], [56, 56]]
    framed = views_of(inputs)[1]
    # The image has 42 of the 56 rows.
    assert torch.equal(framed[:, 7:49], views(processor, wide)[0])
    assert (framed[:, :7] == 1).all() and (framed[:, 49:] == 1).all()


def test_the_vision_tower_gets_views_of_different_sizes_unpadded(processor):
    scene = [photo(0, 48, 48), photo(1, 64, 48)]
    together = processor(scene, return_tensors="pt")
    alone = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in scene])
    assert torch.equal(together["pixel_values"], alone)


# Options, saving and loading.


def test_the_outputs_are_the_model_input_names(processor):
    assert list(processor(photo(0))) == processor.model_input_names == NAMES


def test_an_option_of_a_call_does_not_last(processor):
    assert processor(photo(0), return_tensors="pt", image_width=84)["geometry_sizes"].tolist() == [[56, 84]]
    assert processor(photo(0), return_tensors="pt")["geometry_sizes"].tolist() == [[42, 56]]


@pytest.mark.parametrize("load", [Spa3VLMImageProcessor, AutoImageProcessor])
def test_options_are_saved_and_loaded(load, tmp_path):
    processor = Spa3VLMImageProcessor(image_width=84, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    assert type(loaded) is Spa3VLMImageProcessor and loaded.to_dict() == processor.to_dict()
    assert_same_tensors(loaded(photo(0), return_tensors="pt"), processor(photo(0), return_tensors="pt"))


# Wrong input.


@pytest.mark.parametrize("width", [50, 14, 0])
def test_a_width_that_is_not_whole_patches_is_refused(width, processor):
    with refused("`image_width`", f"got {width}"):
        Spa3VLMImageProcessor(image_width=width)
    with refused("`image_width`", f"got {width}"):
        processor(photo(0), image_width=width)


def test_an_unknown_option_is_refused(processor):
    with refused("image_widht", error=TypeError):
        processor(photo(0), image_widht=56)


def array_of(value, shape=(48, 64, 3), dtype=np.float32):
    return np.full(shape, value, dtype=dtype)


# Images, and what the message must name.
REFUSED = {
    "above one": (array_of(1.5), ["Image 0 ", "float32", "1.5"]),
    "below zero": (array_of(-0.1), ["Image 0 ", "float32", "-0.1"]),
    "not a number": (array_of(np.nan), ["Image 0 ", "float32", "nan"]),
    "transparent": (array_of(2, (48, 64, 4)), ["Image 0 ", "float32", "2"]),
    "integers": (array_of(200, dtype=np.int64), ["Image 0 ", "int64", "200"]),
    "16 bits": (array_of(0, dtype=np.uint16), ["Image 0 ", "uint16"]),
    "five channels": (array_of(0.5, (48, 64, 5)), ["Image 0 ", "(48, 64, 5)"]),
    "no rows": (array_of(0.5, (0, 64, 3)), ["Image 0 ", "(0, 64, 3)"]),
    "no columns": (array_of(0.5, (48, 0, 3)), ["Image 0 ", "(48, 0, 3)"]),
    "a vector": (array_of(0.5, (48,)), ["(48,)"]),
    "five dimensions": (array_of(0, (1, 1, 48, 64, 3)), ["(1, 1, 48, 64, 3)"]),
    "no pixels": (PIL.Image.new("RGB", (0, 48)), ["Image 0 ", "0 x 48"]),
    # Pillow would turn all values above 255 into white.
    "mode I;16": ([photo(0), PIL.Image.new("I;16", (64, 48))], ["Image 1 ", "`I;16`"]),
    "mode I": ([photo(0), PIL.Image.new("I", (64, 48))], ["Image 1 ", "`I`"]),
    "mode F": ([photo(0), PIL.Image.new("F", (64, 48))], ["Image 1 ", "`F`"]),
    "too wide": (photo(0, 640, 20), ["Image 0 ", "640 x 20", "56 x 14", "28"]),
    "too high": (photo(0, 1, 201), ["Image 0 ", "1 x 201", "200"]),
    "in a second scene": ([[photo(0)], [photo(0), array_of(2)]], ["Image 1 of scene 1 ", "float32"]),
    "nothing": (None, ["`images`", "NoneType"]),
    "a number": (3, ["`images`", "int"]),
    "no image": ([], ["`images`"]),
    "scenes of no image": ([[], []], ["`images`"]),
    "mixture": ([[photo(0)], photo(1)], ["`images`"]),
    "deeper lists": ([[[photo(0)]]], ["`images`"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_an_image_is_refused(kind, processor):
    images, named = REFUSED[kind]
    with refused(*named):
        processor(images)


@pytest.mark.parametrize(
    "source, named",
    [
        ("nowhere/image.jpg", ["`nowhere/image.jpg`", "no such file", "base64"]),
        (Path("nowhere"), ["`nowhere`", "No such file"]),
        (Path(__file__).parent, [f"`{Path(__file__).parent}`", "directory"]),
        (__file__, [f"`{__file__}`", "Pillow"]),
        ("SERVER/gone.png", ["/gone.png`", "404"]),
        ("http://127.0.0.1:1/image.png", ["`http://127.0.0.1:1/image.png`", "refused"]),
    ],
    ids=["missing file", "missing path", "folder", "no image", "missing page", "missing server"],
)
def test_an_unreadable_source_is_refused_with_its_name_and_the_reason(source, named, processor, server):
    if isinstance(source, str):
        source = source.replace("SERVER", server)
    with refused(*named):
        processor([photo(0), source])


def test_an_open_image_that_cannot_be_decoded_is_refused_by_its_index(processor, tmp_path):
    (tmp_path / "half.png").write_bytes(encoded(photo(0))[:700])
    with refused("Image 1 ", "truncated"):
        processor([photo(0), PIL.Image.open(tmp_path / "half.png")])
