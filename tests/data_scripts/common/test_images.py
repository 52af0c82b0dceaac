import io
import os
import re

import numpy as np
import pytest
from PIL import Image

from spa3r.data_scripts.common import images
from spa3r.data_scripts.common.images import UnreadableFrame, open_image, to_rgb, turn_upright

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))


def encoded(image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("image", [NOISE, NOISE.convert("L"), NOISE.convert("RGBA"), NOISE.convert("P")])
def test_an_image_keeps_its_mode_and_pixels(tmp_path, image):
    (tmp_path / "image.png").write_bytes(encoded(image))
    for source in (tmp_path / "image.png", str(tmp_path / "image.png"), io.BytesIO(encoded(image))):
        opened = open_image(source)
        assert opened.mode == image.mode and opened.tobytes() == image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_pillow_turns_them(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = open_image(io.BytesIO(encoded(NOISE, exif=exif)))
    upright = turn_upright(photo)
    assert upright.size == ((48, 64) if orientation < 5 else (64, 48))
    assert (orientation == 1) == (upright.tobytes() == photo.tobytes())
    assert turn_upright(upright).tobytes() == upright.tobytes()


DAMAGED = {
    "no TIFF": b"Exif\0\0ZZZZ\0\0\0\x08\0\0",
    "cut off": b"Exif\0\0MM\0",
    "empty": b"Exif\0\0",
    "no such orientation": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", DAMAGED.values(), ids=DAMAGED)
def test_photos_with_damaged_exif_data_stay_as_they_are_stored(kind, exif):
    stream = io.BytesIO()
    NOISE.save(stream, kind, exif=exif)
    photo = open_image(stream)
    assert turn_upright(photo).tobytes() == photo.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB", "1", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_images_of_any_mode_become_rgb_on_white(mode):
    seen = NOISE.convert("RGBA")
    seen.putalpha(NOISE.getchannel("G"))
    image = seen.convert(mode) if mode not in ("PA", "HSV", "LAB") else NOISE
    image = {"PA": lambda: NOISE.quantize(8).convert("PA")}.get(mode, lambda: image)()
    expected = Image.new("RGBA", image.size, "white")
    expected.alpha_composite(image.convert("RGBA")) if "A" in image.getbands() else expected.paste(
        image.convert("RGB")
    )
    assert to_rgb(image).mode == "RGB" and to_rgb(image).tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_color_becomes_white(mode):
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), 1 if mode != "RGB" else (1, 1, 1))
    color = (0, 0, 0) if mode == "RGB" else 0
    opened = open_image(io.BytesIO(encoded(image, transparency=color)))
    assert to_rgb(opened).getpixel((0, 0)) == (255, 255, 255) != to_rgb(opened).getpixel((1, 0))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_images_of_more_than_8_bits_are_refused_by_name(mode):
    with pytest.raises(UnreadableFrame, match=f"wall.png.*`{mode}`"):
        to_rgb(Image.new(mode, (4, 3)), "wall.png")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableFrame, match="pipe.png`.*regular"):
        open_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "No such file"),
        (b"", "Pillow"),
        (b"\xff\xd8\xff no photo", "Pillow"),
        (encoded(NOISE)[:2000], "truncated"),
    ],
    ids=["missing", "empty", "text", "half"],
)
def test_a_file_that_is_no_image_is_named_with_the_reason(tmp_path, content, reason):
    file = tmp_path / "image.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UnreadableFrame, match=f"`{re.escape(str(file))}`.*{reason}"):
        open_image(file)


def test_an_image_without_a_path_is_called_by_the_name_that_is_given():
    with pytest.raises(UnreadableFrame, match="`image 2 of 3`") as raised:
        open_image(io.BytesIO(b"no image"), "image 2 of 3")
    assert "BytesIO" not in str(raised.value)


def test_photos_of_iphones_are_read_with_the_extra(tmp_path):
    pytest.importorskip("pillow_heif")
    smooth = NOISE.resize((4, 3)).resize((64, 48))
    smooth.save(tmp_path / "IMG_1.HEIC", quality=95)
    opened = to_rgb(turn_upright(open_image(tmp_path / "IMG_1.HEIC")))
    assert opened.size == smooth.size
    assert np.abs(np.asarray(opened, dtype=int) - np.asarray(smooth)).mean() < 5


def test_photos_of_iphones_without_the_extra_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "pillow_heif", None)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftyphei0" + bytes(40))
    with pytest.raises(UnreadableFrame, match="IMG_1.HEIC.*pip install pillow-heif"):
        open_image(tmp_path / "IMG_1.HEIC")
