"""The shipped models and rooms as the page of `spa3r demo` uses them."""

from pathlib import Path

import pytest


def make_studio():
    """The models of the page without arguments."""
    from spa3r.trainers.integrations.demo.command import load_studio, parse_arguments

    return load_studio(parse_arguments(["--device", "cpu"]))


def make_two_rooms(folder: Path):
    """The first two rooms of the page."""
    from spa3r.trainers.integrations.demo import rooms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "NUM_ROOMS", 2)
        return rooms.make_rooms(folder)
