"""Commands that are killed at some moments of a seeded draw; `campaign.py` kills all of them, and more often."""

import random

import pytest
from kills.campaign import CASES, make_records, run_case

NUM_KILLS = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, rooms):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "rooms").symlink_to(rooms)
    make_records(folder)
    return folder


@pytest.mark.parametrize("name", ["rooms", "room-questions", "room-questions, benchmark", "convert-data", "scenes"])
def test_a_killed_command_ends_with_the_bytes_of_an_uninterrupted_one(name, inputs, tmp_path):
    killed, wrong = run_case(CASES[name], inputs, tmp_path, random.Random(name), NUM_KILLS)
    assert len(killed) == NUM_KILLS and not wrong
