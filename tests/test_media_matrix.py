"""Every way into the package makes the same of an odd image or video; `media_matrix` prints the table."""

import pytest
from media_matrix import recorded, row
from odd_media import IMAGES, VIDEOS

ODD_IMAGES, ODD_VIDEOS = IMAGES | recorded("image"), VIDEOS | recorded("video")


def expected(odd, outcomes):
    return dict.fromkeys(outcomes, "same" if odd.read else "refused")


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_every_way_sees_the_same_of_an_odd_image_or_names_it(name, tmp_path):
    outcomes = row(ODD_IMAGES[name], tmp_path, is_video=False)
    assert outcomes == expected(ODD_IMAGES[name], outcomes)


@pytest.mark.parametrize("name", ODD_VIDEOS)
def test_every_way_sees_the_same_of_an_odd_video_or_names_it(name, tmp_path):
    outcomes = row(ODD_VIDEOS[name], tmp_path, is_video=True)
    assert outcomes == expected(ODD_VIDEOS[name], outcomes)
