import pytest
from instruction_records import convert_set, write_image
from tiny_videos import write_video


@pytest.fixture
def media(tmp_path):
    """A media folder with two images and a video of 20 frames."""
    for name in "ab":
        write_image(tmp_path / f"media/hypersim/{name}.jpg")
    write_video(tmp_path / "media/scannet/scene0000_00.mp4")
    return tmp_path / "media"


@pytest.fixture
def run(tmp_path, media):
    """Converts records, by default of VSI-590K, to the folder `set` and returns the manifest."""
    return lambda records, **options: convert_set(tmp_path, records, **options)
