"""A short campaign, in a folder whose name looks like a pattern."""

import pytest
from campaign import FAULTS, endings, quiet
from inputs import TARGETS, make_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs") / "[0-9] *? {a,b}"
    root.mkdir()
    with quiet():
        make_inputs(root)
    return root


def test_commands_end_well_or_with_a_sentence_on_damaged_input(inputs):
    ended = endings(inputs, number=2 * len(TARGETS), seed=7, seconds=0)
    faults = [ending for ending in ended if ending.outcome in FAULTS]
    assert not faults, "\n".join(f"{each.command}, {each.mutation} {each.file}: {each.detail}" for each in faults)
