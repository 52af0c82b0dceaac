"""The shipped models and two rooms, as the page of `spa3r demo` uses them."""

import pytest


@pytest.fixture(scope="package")
def studio():
    """The models of the page without arguments."""
    from spa3r.trainers.integrations.demo.command import load_studio, parse_arguments

    return load_studio(parse_arguments(["--device", "cpu"]))


@pytest.fixture(scope="package")
def rooms(tmp_path_factory):
    """The first two rooms of the page."""
    from spa3r.trainers.integrations.demo import rooms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "NUM_ROOMS", 2)
        return rooms.make_rooms(tmp_path_factory.mktemp("rooms"))
