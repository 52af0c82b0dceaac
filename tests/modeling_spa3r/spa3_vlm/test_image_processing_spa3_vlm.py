"""Images of scenes: from what they are read, how they are sized, framed and cut into patches, and what is refused."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_spa3_vlm import photo, views_of
from transformers import AutoImageProcessor

from spa3r import Spa3VLMImageProcessor

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


def assert_equal(given, expected):
    assert list(given) == list(expected)
    for name, tensor in given.items():
        assert torch.equal(tensor, expected[name]), name


def test_an_image_is_resized_to_the_width_and_to_whole_patches(processor):
    image = photo(0, width=640, height=500)
    # 500 * 56 / 640 is 3.1 patches.
    np.testing.assert_allclose(views(processor, image)[0], resized(image, 56, 42), atol=1e-7)


def test_what_is_higher_than_wide_is_cropped_to_the_middle_square(processor):
    image = photo(0, width=60, height=122)
    # 122 * 56 / 60 is 8.1 patches, 112 pixels: 28 of them above the square.
    np.testing.assert_allclose(views(processor, image)[0], resized(image, 56, 112)[:, 28:84], atol=1e-7)


def test_the_width_is_518_unless_told():
    assert views(Spa3VLMImageProcessor(), photo(0)).shape == (1, 3, 392, 518)


def test_patches_for_the_vision_tower_are_of_the_top_left_part_in_clips_normalisation(processor):
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


def test_the_vision_tower_alone_can_be_given_images_by_qwens_rule():
    # The official evaluation's least number of pixels turns 504 x 392 into 532 x 420.
    size = {"shortest_edge": 256 * 28 * 28, "longest_edge": 576 * 28 * 28}
    inputs = Spa3VLMImageProcessor(do_resize=True, size=size)(photo(0), return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 420 // 14, 532 // 14]]
    assert inputs["geometry_sizes"].tolist() == [[392, 518]]


@pytest.mark.parametrize("options", [{}, {"do_resize": True}, {"image_width": 84}])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (200, 90), (31, 77)])
def test_the_number_of_patches_can_be_known_from_the_size_of_an_image(options, width, height, processor):
    grid = processor(photo(0, width, height), return_tensors="pt", **options)["image_grid_thw"]
    assert processor.get_number_of_image_patches(height, width, options) == grid.prod()


# What an image can be.


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> PIL.Image.Image:
    share = alpha[..., None] / 255
    return PIL.Image.fromarray(np.round(share * pixels + (1 - share) * 255).astype(np.uint8))


def transparent(mode: str) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """An image with transparent parts, and what it looks like on white."""
    pixels = np.asarray(photo(3)).copy()
    alpha = np.random.default_rng(4).integers(0, 256, pixels.shape[:2], dtype=np.uint8)
    if mode == "RGBA":
        return PIL.Image.fromarray(np.dstack([pixels, alpha])), on_white(pixels, alpha)
    if mode == "LA":
        gray = np.repeat(pixels[..., :1], 3, axis=2)
        return PIL.Image.fromarray(np.dstack([gray[..., 0], alpha])), on_white(gray, alpha)
    # A color that stands for what is transparent: the left half.
    pixels[:, :32] = (255, 0, 0)
    image = PIL.Image.fromarray(pixels)
    looks = pixels.copy()
    looks[:, :32] = 255
    if mode == "RGB":
        image.info["transparency"] = (255, 0, 0)
        return image, PIL.Image.fromarray(looks)
    palette = PIL.Image.fromarray((np.arange(48 * 64).reshape(48, 64) % 64 // 8).astype(np.uint8))
    palette.putpalette([10 * index for index in range(24)])
    palette.info["transparency"] = 2
    colors = np.array(palette.getpalette()[:24]).reshape(8, 3).astype(np.uint8)
    colors[2] = 255
    return palette, PIL.Image.fromarray(colors[np.asarray(palette)])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "P"])
def test_what_is_transparent_lies_on_white(mode, processor):
    image, looks = transparent(mode)
    # Blending may round the other way.
    np.testing.assert_allclose(views(processor, image), views(processor, looks), atol=2.1 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_images_of_other_modes_are_taken_as_their_colors(mode, processor):
    image = photo(5).convert(mode)
    assert torch.equal(views(processor, image), views(processor, image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_bytes_are_refused(mode, processor):
    # Pillow would cut all above 255 to white.
    with pytest.raises(ValueError, match=f"^Image 1 has the mode `{mode}`, not of bytes; scale it"):
        processor([photo(0), PIL.Image.new(mode, (64, 48))])


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
def test_an_array_gives_what_its_image_gives(kind, processor):
    image = photo(6)
    assert torch.equal(views(processor, ARRAYS[kind](np.array(image))), views(processor, image))


def test_a_tensor_in_bfloat16_is_taken_as_near_as_it_is(processor):
    image = photo(6)
    tensor = torch.from_numpy(np.array(image)).to(torch.bfloat16) / 255
    assert torch.allclose(views(processor, tensor), views(processor, image), atol=0.01)


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (1, 48, 64)])
def test_a_gray_array_gives_what_its_gray_image_gives(shape, processor):
    gray = photo(7).convert("L")
    assert torch.equal(views(processor, np.array(gray).reshape(shape)), views(processor, gray))


def encoded(image: PIL.Image.Image, kind: str = "png", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class ImageServer(BaseHTTPRequestHandler):
    """Answers with an image, and whatever else is asked for with 404 and a page."""

    def do_GET(self):
        is_there = self.path == "/image.png"
        self.send_response(200 if is_there else 404)
        self.end_headers()
        self.wfile.write(encoded(transparent("RGBA")[0]) if is_there else b"<html>Not here.</html>")

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), ImageServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("source", ["path", "string", "url", "base64", "base64 in lines", "data url"])
def test_an_image_is_read_with_its_transparency_from_wherever_it_is_named(source, processor, server, tmp_path):
    image, _ = transparent("RGBA")
    (tmp_path / "image.png").write_bytes(encoded(image))
    sources = {
        "path": tmp_path / "image.png",
        "string": str(tmp_path / "image.png"),
        "url": f"{server}/image.png",
        "base64": base64.b64encode(encoded(image)).decode(),
        "base64 in lines": base64.encodebytes(encoded(image)).decode(),
        "data url": "data:image/png;base64," + base64.b64encode(encoded(image)).decode(),
    }
    assert torch.equal(views(processor, sources[source]), views(processor, image))


# By EXIF orientation: how the pixels of a file are turned for them to stand upright.
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
def test_a_photo_stands_upright(orientation, is_open, processor, tmp_path):
    image, exif = photo(8), PIL.Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "photo.png").write_bytes(encoded(image, exif=exif))
    upright = np.ascontiguousarray(UPRIGHT[orientation](np.asarray(image)))
    source = PIL.Image.open(tmp_path / "photo.png") if is_open else tmp_path / "photo.png"
    assert torch.equal(views(processor, source), views(processor, upright))


def test_images_are_left_as_they_were(processor):
    image, array = photo(0), np.random.default_rng(0).random((48, 64, 3))
    before = image.tobytes(), array.copy()
    processor([[image], [array]])
    assert image.tobytes() == before[0] and np.array_equal(array, before[1])


# Scenes.


def test_images_in_a_flat_list_are_of_one_scene(processor):
    assert processor([photo(0), photo(1)], return_tensors="pt")["num_views"].tolist() == [2]


def test_lists_of_images_are_scenes_and_an_empty_one_has_no_views(processor):
    scenes = [[photo(0), photo(1)], [], [photo(2)]]
    assert processor(scenes, return_tensors="pt")["num_views"].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "make", [np.stack, lambda arrays: torch.from_numpy(np.stack(arrays))], ids=["array", "tensor"]
)
def test_an_array_of_several_images_is_their_list(make, processor):
    arrays = [np.array(photo(index)) for index in range(3)]
    assert_equal(processor(make(arrays), return_tensors="pt"), processor(arrays, return_tensors="pt"))


def test_arrays_of_several_images_are_scenes(processor):
    arrays = [np.array(photo(index)) for index in range(5)]
    stacked = [np.stack(arrays[:2]), np.stack(arrays[2:])]
    assert_equal(processor(stacked, return_tensors="pt"), processor([arrays[:2], arrays[2:]], return_tensors="pt"))


def test_scenes_together_are_the_scenes_alone(processor):
    scenes = [[photo(0), photo(1)], [photo(2, 48, 64)], [photo(3, 90, 48), photo(4, 90, 48)]]
    together = processor(scenes, return_tensors="pt")
    alone = [processor(scene, return_tensors="pt") for scene in scenes]
    for name in NAMES:
        assert torch.equal(together[name], torch.cat([inputs[name] for inputs in alone])), name


def test_views_of_one_scene_are_centered_on_white_in_the_size_of_the_largest(processor):
    high, wide = photo(0, 48, 48), photo(1, 64, 48)
    inputs = processor([high, wide], return_tensors="pt")
    assert inputs["geometry_sizes"].tolist() == [[56, 56], [56, 56]]
    framed = views_of(inputs)[1]
    # 42 of 56 rows are the image's.
    assert torch.equal(framed[:, 7:49], views(processor, wide)[0])
    assert (framed[:, :7] == 1).all() and (framed[:, 49:] == 1).all()


def test_the_vision_tower_sees_views_of_different_sizes_without_a_frame(processor):
    scene = [photo(0, 48, 48), photo(1, 64, 48)]
    together = processor(scene, return_tensors="pt")
    alone = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in scene])
    assert torch.equal(together["pixel_values"], alone)


# Options, saving and loading.


def test_the_result_is_what_the_processor_says_the_model_takes(processor):
    assert list(processor(photo(0))) == processor.model_input_names == NAMES


def test_an_option_of_a_call_is_for_this_call(processor):
    assert processor(photo(0), return_tensors="pt", image_width=84)["geometry_sizes"].tolist() == [[56, 84]]
    assert processor(photo(0), return_tensors="pt")["geometry_sizes"].tolist() == [[42, 56]]


@pytest.mark.parametrize("load", [Spa3VLMImageProcessor, AutoImageProcessor])
def test_options_are_saved_and_loaded(load, tmp_path):
    processor = Spa3VLMImageProcessor(image_width=84, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    assert type(loaded) is Spa3VLMImageProcessor and loaded.to_dict() == processor.to_dict()
    assert_equal(loaded(photo(0), return_tensors="pt"), processor(photo(0), return_tensors="pt"))


@pytest.mark.parametrize("width", [50, 14, 0])
def test_a_width_of_broken_or_too_few_patches_is_refused(width, processor):
    message = f"`image_width` must be a multiple of the patch size 14 and at least 28, got {width}"
    with pytest.raises(ValueError, match=message):
        Spa3VLMImageProcessor(image_width=width)
    with pytest.raises(ValueError, match=message):
        processor(photo(0), image_width=width)


def test_an_unknown_option_is_refused(processor):
    with pytest.raises(TypeError, match="image_widht"):
        processor(photo(0), image_widht=56)


# Wrong input.


def array_of(value, shape=(48, 64, 3), dtype=np.float32):
    return np.full(shape, value, dtype=dtype)


WRONG = {
    "above one": (array_of(1.5), "Image 0 is an array of type float32 with values from 1.5 to 1.5; give floats in"),
    "below zero": (
        array_of(-0.1),
        "Image 0 is an array of type float32 with values from -0.1 to -0.1; give floats in",
    ),
    "not a number": (array_of(np.nan), "Image 0 is an array of type float32 with values from nan to nan; give floats"),
    "transparent": (array_of(2, (48, 64, 4)), "Image 0 is an array of type float32 with values from 2 to 2; give"),
    "integers": (array_of(200, dtype=np.int64), "Image 0 is an array of type int64 with values from 200 to 200; give"),
    "16 bits": (
        array_of(0, dtype=np.uint16),
        "Image 0 is an array of type uint16 with values from 0 to 0; give floats",
    ),
    "five channels": (array_of(0.5, (48, 64, 5)), r"Image 0 is an array of shape \(48, 64, 5\); it must be"),
    "no rows": (array_of(0.5, (0, 64, 3)), r"Image 0 is an array of shape \(0, 64, 3\); it must be"),
    "no columns": (array_of(0.5, (48, 0, 3)), r"Image 0 is an array of shape \(48, 0, 3\); it must be"),
    "a vector": (array_of(0.5, (48,)), r"An array of shape \(48,\) is given as image; it must have 3 dimensions"),
    "five dimensions": (array_of(0, (1, 1, 48, 64, 3)), r"An array of shape \(1, 1, 48, 64, 3\) is given as image"),
    "no pixels": (PIL.Image.new("RGB", (0, 48)), "Image 0 is 0 x 48 pixels: it has none"),
    "too wide": (photo(0, 640, 20), "Image 0 is 640 x 20 pixels, and resized to 56 x 14 less than the 28 pixels high"),
    "too high": (photo(0, 1, 201), "Image 0 is 1 x 201 pixels, more than 200 times as high as wide"),
    "second": ([photo(0), array_of(2)], "Image 1 is an array of type float32"),
    "second scene": ([[photo(0)], [photo(0), array_of(2)]], "Image 1 of scene 1 is an array of type float32"),
    "nothing": (
        None,
        "An image must be a `PIL.Image.Image`, an array, a path, a URL or a base64 string, got NoneType",
    ),
    "a number": (3, "An image must be a `PIL.Image.Image`, an array, a path, a URL or a base64 string, got int"),
    "no image": ([], "There is no image; give at least one"),
    "scenes of no image": ([[], []], "There is no image; give at least one"),
    "mixture": ([[photo(0)], photo(1)], "`images` must be a list of images, or a list of lists of images"),
    "deeper lists": ([[[photo(0)]]], "`images` must be a list of images, or a list of lists of images"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image_is_refused_in_one_sentence(kind, processor):
    images, message = WRONG[kind]
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        processor(images)
    assert "\n" not in str(raised.value)


UNREADABLE = {
    "missing.jpg": (None, "there is no such file, and it is no image in base64 either"),
    "missing": (None, "there is no such file, and it is no image in base64 either"),
    "text.jpg": (b"This is no image.", "Pillow"),
    "empty.jpg": (b"", "Pillow"),
    "half.jpg": (encoded(photo(0), "jpeg")[:700], "image file is truncated"),
    "half.png": (encoded(photo(0))[:700], "image file is truncated"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_refused_by_name_and_reason(name, processor, tmp_path):
    content, reason = UNREADABLE[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^The image `.*{name}` cannot be read: {reason}") as raised:
        processor([photo(0), str(tmp_path / name)])
    assert "\n" not in str(raised.value)


def test_a_missing_path_is_refused_as_a_file(processor, tmp_path):
    with pytest.raises(ValueError, match="^The image `.*missing` cannot be read: No such file or directory"):
        processor(tmp_path / "missing")


def test_a_folder_is_refused_as_one(processor, tmp_path):
    with pytest.raises(ValueError, match="^The image `.*` cannot be read: Is a directory"):
        processor(str(tmp_path))


def test_a_url_that_is_not_found_is_refused_with_the_servers_answer(processor, server):
    with pytest.raises(ValueError, match="^The image `.*/gone.png` cannot be read: the server answers 404 Not Found"):
        processor(f"{server}/gone.png")


def test_a_server_that_is_not_there_is_refused_by_name(processor):
    with pytest.raises(ValueError, match="^The image `http://127.0.0.1:1/image.png` cannot be read: .*refused"):
        processor("http://127.0.0.1:1/image.png")


def test_an_open_image_that_cannot_be_decoded_is_refused_by_its_place(processor, tmp_path):
    (tmp_path / "half.png").write_bytes(encoded(photo(0))[:700])
    with pytest.raises(ValueError, match="^Image 1 cannot be read: image file is truncated"):
        processor([photo(0), PIL.Image.open(tmp_path / "half.png")])
