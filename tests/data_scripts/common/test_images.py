import io
import re

import numpy as np
import pytest
from PIL import Image

from spa3r.data_scripts.common.images import UnreadableFrame, open_image, turn_upright

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
