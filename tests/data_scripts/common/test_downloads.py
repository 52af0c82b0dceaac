"""Addresses of files: what they name on this machine."""

from pathlib import Path

import pytest
from refusals import refused

from spa3r.data_scripts.common.downloads import local_path


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///photos/a%20b.jpg", "/photos/a b.jpg"),
        ("file://localhost/photos/1.jpg", "/photos/1.jpg"),
        ("photos/1.jpg", "photos/1.jpg"),
        (Path("photos") / "1.jpg", "photos/1.jpg"),
    ],
)
def test_the_path_of_a_file_is_found(address, path):
    assert local_path(address) == path


def test_an_address_of_another_host_is_refused():
    with refused("file://photos/1.jpg", "photos"):
        local_path("file://photos/1.jpg")
